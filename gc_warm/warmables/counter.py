"""The smallest warmable module: a module global, and a function that changes it.

A worker imports this module once, for the first task that asks for it. The next task on that worker
finds the same module, and in it the number that the last task left.
"""

count = 0


def increase() -> int:
    """Count this call, and return how many there were in this process: 1 is cold, more is warm."""
    global count
    count += 1
    return count
