"""The smallest warmable module: a module global, and a function that changes it.

A worker imports this module once, for the first task that asks for it. The next task on that worker
finds the same module, and in it the number the last one left.
"""

count = 0


def increase() -> int:
    """How often this has been called in this process, this call included: 1 is cold, more is warm."""
    global count
    count += 1
    return count
