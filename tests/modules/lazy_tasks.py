"""Tasks for libraries that people use beside Globus Compute: ProxyStore and Academy."""

from __future__ import annotations

from typing import Any

from academy.agent import Agent, action
from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy
from proxystore.store import Store, get_store


def _store(name: str, folder: str) -> Store[Any]:
    return get_store(name) or Store(name, FileConnector(folder), register=True)


def proxied(name: str, folder: str, number: int) -> Proxy[dict[str, int]]:
    """Return a lazy result: it stays where it was stored until somebody looks at it."""
    import shapes

    return _store(name, folder).proxy({"number": number, "calls": shapes.import_in_body()})


def total(numbers: list[int]) -> int:
    """Return a sum; *numbers* may be a proxy, which is fetched here."""
    return sum(numbers)


class Counter(Agent):
    """An agent that lives in a task, and answers by what is warm on its worker."""

    @action
    async def count(self) -> int:
        from gc_warm import functions

        return functions.count()
