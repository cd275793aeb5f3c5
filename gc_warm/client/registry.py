"""Function books: ids of registered functions, kept in a YAML file.

A function is registered once, and sent again only if it has changed. Globus Compute gives every
registration a new id, and has no way to ask for one by name. A book remembers the ids, and with
each a *fingerprint* of what was sent. By default a function of a module is sent by its name, so
that its body may be edited at will: the fingerprint stays, and so does the id.

Registering loses nothing. The book is replaced after every function that the service has accepted,
atomically and under a lock that is held from the comparison to the last replacement. Room for the
new book is taken before a function is sent, so that a full disk is noticed in time. The only id
that can be lost is the one on its way when the process is killed or interrupted, or its connection
breaks: that function is sent again the next time, and the other id is known to nobody.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import ipaddress
import os
import platform
import re
import reprlib
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import urlsplit

import globus_sdk
from globus_compute_sdk import Client, Executor
from globus_compute_sdk import __version__ as SDK_VERSION
from globus_compute_sdk.errors import SerializationError
from globus_compute_sdk.serialize import ComputeSerializer
from globus_compute_sdk.serialize.concretes import SELECTABLE_CODE_STRATEGIES

from gc_warm.client.book_storage import Entry, LockedFile, canonical_uuid, read, text_of
from gc_warm.client.executor import WarmExecutor, carrier_of
from gc_warm.exceptions import BookError
from gc_warm.worker.state import Warm

STRATEGIES = {strategy.__name__: strategy for strategy in SELECTABLE_CODE_STRATEGIES}
"""The SDK's serialization strategies for code, by name."""


@dataclass(frozen=True)
class Terms:
    """The conditions of a registration: serializer, service and audience.

    A function that is registered under other terms gets another id.

    Attributes:
        serializer: The client's serializer.
        service: URL of the web service.
        public: Whether anybody may call the functions.
        group: Id of the Globus group whose members may call them; None for no group.
        recorded: Whether what a `WarmExecutor` sends is registered in place of the function.

    Raises:
        BookError: *public* and *group* contradict each other, or *group* is no id.
    """

    serializer: ComputeSerializer
    service: str
    public: bool = False
    group: str | None = None
    recorded: bool = False

    def __post_init__(self) -> None:
        if self.public and self.group:
            raise BookError(
                "public lets anybody call the functions, and group only its members: choose one"
            )
        if not self.group:
            return

        try:
            canonical_uuid(self.group)
        except ValueError:
            raise BookError(f"group: {self.group!r} is not the id of a Globus group") from None

    def entry(self, function: FunctionType) -> Entry:
        """Return the entry of a book for *function*.

        Its id is a placeholder until the service has given one.

        Args:
            function: A function at the top level of a module.

        Raises:
            BookError: The function cannot be sent with the serializer's strategy.
        """
        strategy = type(self.serializer.code_serializer).__name__
        try:
            fingerprint = _fingerprint(self._sent(function))
        except SerializationError as error:
            reason = error.__cause__ or error
            raise BookError(
                f"{function.__name__} cannot be sent with the strategy {strategy}: {reason}"
            ) from error
        if "Source" in strategy or "Text" in strategy:
            _refuse_foreign_source(function, strategy)

        description = inspect.getdoc(function)
        if description is not None:
            # half a surrogate pair is no text
            description = description.encode(errors="replace").decode()

        return Entry(
            function_id=str(uuid.uuid4()),
            module=function.__module__,
            signature=_signature(function),
            strategy=strategy,
            fingerprint=fingerprint,
            public=self.public,
            group=self.group,
            recorded=self.recorded,
            service=self.service,
            sdk_version=SDK_VERSION,
            python_version=platform.python_version(),
            registered=_now(),
            description=description,
        )

    def _sent(self, function: FunctionType) -> str:
        """Return what is registered for a function."""
        if self.recorded:
            return carrier_of(function, self.serializer)[0]
        return self.serializer.serialize(function)


@dataclass(frozen=True)
class Step:
    """One function on its way into a book.

    Attributes:
        name: The function's name.
        why: Why the function has to be sent; empty if it need not be.
        function_id: Its id in the book; None while the book has no valid one.
        function: The function itself.
        entry: The book's entry of the function once it has been sent.
    """

    name: str
    why: str
    function_id: str | None
    function: FunctionType
    entry: Entry


class FunctionBook(Mapping[str, str]):
    """Ids of registered functions, by name: ``book["energy"]`` is one.

    It holds what was in the file when it was read; the file of a book in use may be replaced.

    Attributes:
        path: The file that the book was read from.
        entries: All entries of the book, by name.

    Example:
        >>> import tempfile
        >>> from gc_warm import FunctionBook, MockExecutor, MockClient
        >>> from gc_warm.functions import count
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     MockClient(workers=1) as client,
        ...     MockExecutor(client=client) as executor,
        ... ):
        ...     path = f"{folder}/functions.yaml"
        ...     # or, once: gc-warm register gc_warm.functions
        ...     _ = FunctionBook.register(path, client, [count])
        ...     book = FunctionBook.load(path)
        ...     book.prime(executor)
        ...     executor.submit(count).result()  # under the id in the book
        1
    """

    def __init__(self, path: str | os.PathLike[str], entries: Mapping[str, Entry]) -> None:
        self.path = os.fspath(path)
        self.entries = dict(entries)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FunctionBook:
        """Return the book in a file.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file; `register` makes it.
            BookError: The file is not a function book. The text names the file and the entry.
        """
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"there is no function book {os.fspath(path)}: gc-warm register makes one"
            )
        return cls(path, read(path))

    @classmethod
    def register(
        cls,
        path: str | os.PathLike[str],
        client: Client,
        functions: Iterable[Callable[..., Any]],
        *,
        public: bool = False,
        group: str | None = None,
        recorded: bool = False,
        report: Callable[[Step], None] | None = None,
    ) -> FunctionBook:
        """Register the *functions* that are new or have changed, and write their ids into the book.

        May be called again and again, also by several processes at once: the second waits, and
        finds all done. After an interrupt, all functions that have been sent are in the book, but
        for the one that was on its way.

        Args:
            path: File of the book; made if there is none.
            client: Sends the functions, with its serialization strategy for code.
            functions: Functions that are defined with ``def``, at the top level of a module.
            public: Let anybody call them.
            group: Id of the Globus group whose members may call them.
            recorded: Register what a `WarmExecutor` sends in place of each function, for its use
                alone: a call by such an id returns a record with the result.
            report: Called with the step of each function, as soon as the function is in the book.

        Returns:
            The book as it is now.

        Raises:
            BookError: Nothing is sent, since the book cannot be read or written, or a function
                cannot be registered. Or a function has been sent, and its id could not be written
                into the book after all; the text has the id.
            globus_sdk.GlobusError: The service cannot be reached, or refuses.
        """
        terms = Terms(client.fx_serializer, client.web_service_address, public, group, recorded)

        with LockedFile(path) as file:
            entries = read(file.path)
            for step in plan(entries, functions, terms):
                if not step.why and is_local(step.entry.service) and _is_forgotten(client, step):
                    step = replace(step, why="the service does not know this id any more")
                if step.why:
                    step = _send(file, entries, step, client)
                if report is not None:
                    report(step)

        return cls(path, entries)

    def prime(self, executor: Executor) -> None:
        """Make ``executor.submit(function)`` use the ids of this book.

        This holds for all functions in the book that still exist. Nothing is registered again.
        Priming twice does no harm. Calls are recorded if the functions were registered for it.

        Args:
            executor: The executor that will submit the functions.

        Raises:
            BookError: Some of the functions are no longer what has been registered, or were
                registered with another service than this executor's, or to be recorded, which only
                a `WarmExecutor` can, or the executor has already registered them itself. The text
                names them all; the executor is left as it was.
        """
        functions = {}
        wrong = []
        for name, entry in self.entries.items():
            try:
                # it has been removed or renamed: nobody can submit it
                if not hasattr(_import(entry.module), name):
                    continue
                functions[name] = self._function(name, executor)
            except BookError as error:
                wrong.append(f"{name}: {error}")
        if wrong:
            raise BookError(f"{self.path} does not fit, {'; '.join(wrong)}")

        for name, function in functions.items():
            recorded = self.entries[name].recorded
            if _id_in(executor, function, recorded):  # the SDK would warn
                continue
            if recorded and isinstance(executor, WarmExecutor):
                executor.adopt_carrier(function, self[name])
            else:
                executor.register_function(function, function_id=self[name])

    def _function(self, name: str, executor: Executor) -> FunctionType:
        """Return the function of an entry, which must be what has been registered.

        Raises:
            BookError: It is not, or the executor has registered it itself.
        """
        entry = self.entries[name]
        if entry.strategy not in STRATEGIES:
            raise BookError(
                f"the SDK {SDK_VERSION} has no strategy {entry.strategy}: "
                "run gc-warm register again, with another"
            )

        function = _function_of(_import(entry.module), name)
        serializer = ComputeSerializer(strategy_code=STRATEGIES[entry.strategy])
        service = executor.client.web_service_address
        terms = Terms(serializer, service, entry.public, entry.group, entry.recorded)

        why = _difference(entry, terms.entry(function))
        if why:
            raise BookError(f"{why}: run gc-warm register again")
        if entry.recorded and not isinstance(executor, WarmExecutor):
            raise BookError(
                "it is registered to be recorded: prime a WarmExecutor, or register it "
                "without --recorded, in another book"
            )
        if _id_in(executor, function, entry.recorded) not in (None, entry.function_id):
            raise BookError(
                "this executor has registered it itself: prime an executor before its first submit"
            )
        return function

    def __getitem__(self, name: str) -> str:
        if name not in self.entries:
            raise KeyError(f"{name!r} is not in {self.path}{_near(name, self.entries)}")
        return self.entries[name].function_id

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"FunctionBook({self.path!r}, {len(self)} functions)"


def functions_of(module: str, names: Sequence[str] = ()) -> list[FunctionType]:
    """Return the public functions of a module, or those of the given names.

    Public are the functions in its ``__all__``; without an ``__all__``, those that are defined in
    the module and whose name has no leading underscore.

    Args:
        module: Dotted name of the module.
        names: Names of the functions to return, public or not; all public ones if there is none.

    Raises:
        BookError: The module cannot be imported, has no such function, or something else under that
            name.
    """
    imported = _import(module)
    chosen = names or _public(imported)
    if not chosen:
        raise BookError(
            f"{module} has no public functions: name those to register, "
            "or define them with def and no leading underscore"
        )

    functions = [_function_of(imported, name) for name in chosen]
    return list(dict.fromkeys(functions))


def plan(
    entries: Mapping[str, Entry], functions: Iterable[Callable[..., Any]], terms: Terms
) -> list[Step]:
    """Return the steps that make *entries* fit *functions*, without asking the service.

    Args:
        entries: Entries of the book, by name.
        functions: Functions that are to be in the book.
        terms: The terms on which they are to be registered.

    Raises:
        BookError: A function cannot be registered, or its name belongs to one of another module.
    """
    steps: dict[str, Step] = {}
    for function in functions:
        checked = _check(function, getattr(function, "__name__", str(function)))
        name = checked.__qualname__
        entry = terms.entry(checked)
        old = entries.get(name)

        namesake = steps[name].entry if name in steps else old
        if namesake is not None and namesake.module != entry.module:
            raise BookError(
                f"{name} of {entry.module}: this book has a function of that name from "
                f"{namesake.module}. Use another book, or, if it has moved, remove that entry"
            )
        if old is not None and is_local(entry.service) and not is_local(old.service):
            raise BookError(
                f"this book has ids of {old.service}, which those of a service on this machine "
                "would replace: use another book for that"
            )

        function_id = old.function_id if old else None
        steps[name] = Step(name, _difference(old, entry), function_id, checked, entry)
    return list(steps.values())


def gone(entries: Mapping[str, Entry], module: str) -> list[str]:
    """Return the names in a book that an imported module no longer has.

    Args:
        entries: Entries of the book, by name.
        module: Dotted name of the module; entries of other modules are left out.
    """
    imported = sys.modules[module]
    own = [name for name, entry in entries.items() if entry.module == module]
    return [name for name in own if not hasattr(imported, name)]


def is_local(service: str) -> bool:
    """Return whether a service is a stand-in on this machine.

    A stand-in forgets its functions when it ends.

    Args:
        service: URL of the service.
    """
    host = urlsplit(service).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _import(module: str) -> Any:
    if module.endswith(".ipynb"):
        raise BookError(
            f"{module} is a notebook, which cannot be imported: move the functions to a module, "
            "and give the module's name"
        )
    if module.endswith(".py") or os.sep in module:
        parts = Path(module).with_suffix("").parts
        dotted = ".".join(part for part in parts if part.strip("./"))
        raise BookError(
            f"{module} is a path: give the module's dotted name, as workers import it, "
            f"such as {dotted}"
        )

    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module can end in any
        raise BookError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


def _public(module: Any) -> list[str]:
    """Return the names of a module's public functions; see `functions_of`."""
    functions = {name: thing for name, thing in vars(module).items() if inspect.isfunction(thing)}
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if name in functions]

    own = [name for name, thing in functions.items() if thing.__module__ == module.__name__]
    return [name for name in own if not name.startswith("_")]


def _function_of(module: Any, name: str) -> FunctionType:
    if not hasattr(module, name):
        raise BookError(f"{module.__name__} has no function {name!r}{_near(name, _public(module))}")
    return _check(getattr(module, name), name)


def _near(name: str, names: Iterable[str]) -> str:
    """Return the end of a message on an unknown *name*: the nearest of *names*, or all of them."""
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names) or 'none'}"


def _check(thing: Any, name: str) -> FunctionType:
    """Return *thing* if it is a function that workers can find.

    Raises:
        BookError: It is something else, or belongs to a script, or is not found under its name.
    """
    is_of_main = getattr(thing, "__module__", None) == "__main__"
    if isinstance(thing, Warm) and is_of_main:
        raise BookError(
            f"{name} is a @warm function of a script or a notebook, whose name workers do not "
            "know: move it to a module (from a notebook, with %%writefile my_model.py), and "
            "register a function that imports it in its body and calls it"
        )
    if not inspect.isfunction(thing):
        raise BookError(
            f"{name} is {_kind_of(thing)}, and only plain functions are registered: "
            f"write one that imports {name} in its body and calls it"
        )
    if is_of_main:
        raise BookError(
            f"{name} belongs to a script, whose name workers do not know: "
            "move it to a module, and import it from there"
        )

    found: object = getattr(sys.modules.get(thing.__module__), thing.__qualname__, None)
    if found is not thing:
        raise BookError(
            f"{name} cannot be found as {thing.__module__}.{thing.__qualname__}: "
            "define it with def at the top level of a module, under any decorator functools.wraps; "
            "or name the functions to register"
        )
    return thing


def _kind_of(thing: Any) -> str:
    if isinstance(thing, Warm):
        return "a @warm function"
    if inspect.isclass(thing):
        return "a class"
    return f"a {type(thing).__name__}"


def _signature(function: FunctionType) -> str:
    """Return a function's signature as text that is the same in every process.

    Addresses are left out, and sets are in order.
    """
    signature = inspect.signature(function)
    shown = []
    for parameter in signature.parameters.values():
        if parameter.default is not parameter.empty:
            default = _Shown(_SORTED.repr(parameter.default))
            parameter = parameter.replace(default=default)
        shown.append(parameter)

    text = str(signature.replace(parameters=shown))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


class _Shown(str):
    """A default value as text; in a signature it stands without quotes."""

    __repr__ = str.__str__


_SORTED = reprlib.Repr()
for _limit in [name for name in vars(_SORTED) if name.startswith("max")]:
    setattr(_SORTED, _limit, 1000)


def _fingerprint(sent: str) -> str:
    return hashlib.sha256(sent.encode(errors="surrogatepass")).hexdigest()[:32]


def _refuse_foreign_source(function: FunctionType, strategy: str) -> None:
    """Refuse a function that was made by `exec`.

    Python takes for its source that of something else in its file, or finds none.

    Raises:
        BookError: Its source does not define it.
    """
    name = function.__name__
    try:
        source = inspect.getsource(function)
    except OSError:
        source = ""

    if not re.search(rf"\bdef\s+{re.escape(name)}\b", source):
        raise BookError(
            f"{name} cannot be sent with the strategy {strategy}: "
            "its source cannot be found; write it with def in a file"
        )


def _difference(old: Entry | None, new: Entry) -> str:
    """Return why a function has to be sent, given its old and its new entry; empty if it need not.

    A change of what is sent is named only where its cause is not: a strategy or a signature.
    """
    if old is None:
        return "new"
    if old.service != new.service:
        return f"its id is one of {old.service}, and this is {new.service}"

    reasons = []
    if old.strategy != new.strategy:
        reasons.append(f"strategy {old.strategy} -> {new.strategy}")
    if old.signature != new.signature:
        reasons.append(f"signature {old.signature} -> {new.signature}")
    if old.recorded != new.recorded:
        reasons.append("to be recorded" if new.recorded else "no longer to be recorded")
    if not reasons and old.fingerprint != new.fingerprint:
        reasons.append(f"what is sent has changed{_versions(old, new)}")

    if _audience(old) != _audience(new):
        reasons.append(f"for {_audience(old)} -> for {_audience(new)}")
    return ", ".join(reasons)


def _versions(old: Entry, new: Entry) -> str:
    """Return the versions that differ between two entries, as the probable cause of a change."""
    changes = []
    if old.python_version != new.python_version:
        changes.append(f"Python {old.python_version} is now {new.python_version}")
    if old.sdk_version != new.sdk_version:
        changes.append(f"the SDK {old.sdk_version} is now {new.sdk_version}")

    return f", probably since {' and '.join(changes)}" if changes else ""


def _audience(entry: Entry) -> str:
    if entry.public:
        return "everybody"
    return f"group {entry.group}" if entry.group else "you"


def _is_forgotten(client: Client, step: Step) -> bool:
    try:
        client.get_function(step.function_id)
    except globus_sdk.GlobusAPIError as error:
        if error.http_status != 404:
            raise
        return True
    return False


def _id_in(executor: Executor, function: FunctionType, recorded: bool) -> str | None:
    """Return the id by which an executor would send a function; None if it has none yet."""
    if recorded and isinstance(executor, WarmExecutor):
        return executor.carrier_id(function)
    known: str | None = executor._function_registry.get(executor._fn_cache_key(function))
    return known


def _send(file: LockedFile, entries: dict[str, Entry], step: Step, client: Client) -> Step:
    """Register one function and write its entry into *entries* and into the file."""
    entry = step.entry.model_copy(update={"registered": _now()})
    text = text_of({**entries, step.name: entry})

    with file.room_for(text) as put:
        function_id = canonical_uuid(_register(step.function, entry, client))
        try:
            put(text.replace(entry.function_id, function_id))  # of the same length
        except OSError as error:
            raise BookError(
                f"{step.name} is registered as {function_id}, but that cannot be written into "
                f"{file.path} ({error.strerror}): keep this id, or register again to get another"
            ) from error

    entries[step.name] = entry.model_copy(update={"function_id": function_id})
    return replace(step, function_id=function_id, entry=entries[step.name])


def _register(function: FunctionType, entry: Entry, client: Client) -> str:
    audience: dict[str, Any] = {"public": entry.public, "group": entry.group}
    if entry.recorded:
        source, name = carrier_of(function, client.fx_serializer)
        return str(client.register_source_code(source, name, **audience))
    return str(client.register_function(function, **audience))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
