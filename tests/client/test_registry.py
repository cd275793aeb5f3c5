"""Function books: what is sent, why, and what is left when something breaks."""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import globus_sdk
import pytest
import requests
from globus_compute_sdk import Executor
from globus_compute_sdk.serialize import ComputeSerializer
from hypothesis import given, settings
from hypothesis import strategies as st

from gc_warm import BookError, FunctionBook, MockClient, MockExecutor, WarmExecutor, functions
from gc_warm.client import book_storage, registry
from tests.support import client_environment, wait_until

SCIENCE = '''
def energy(x):
    """Energy: of a --- cluster.

    In two paragraphs.
    """
    return x * x


def forces(x, unit="eV"):
    return [x]


def _helper():
    return energy(1)
'''

Write = Callable[..., list[Any]]


class Counting(MockClient):
    """Knows what was sent with it, and can lose its connection at the n-th registration."""

    def __init__(self, cut_at: int = 0, **options: Any) -> None:
        # which is not asked for what it knows
        super().__init__(**{"environment": "production", **options})
        self.sent: list[str] = []
        self.cut_at = cut_at

    def __enter__(self) -> Counting:
        return self

    def register_function(self, function: Any, *args: Any, **options: Any) -> str:
        if len(self.sent) + 1 == self.cut_at:
            raise globus_sdk.GlobusConnectionError("cut", requests.ConnectionError("the cable"))
        self.sent.append(function.__name__)
        return str(super().register_function(function, *args, **options))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "functions.yaml"


@pytest.fixture
def client() -> Iterator[Counting]:
    with Counting() as client:
        yield client


@pytest.fixture
def science(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the module `science` anew, and return its functions as a new process finds them."""
    folder = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(folder)

    def write(source: str, name: str = "science") -> list[Any]:
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return registry.functions_of(name)

    return write


def reasons(book: Path, client: MockClient, functions: list[Any], **terms: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    FunctionBook.register(
        book, client, functions, report=lambda step: found.update({step.name: step.why}), **terms
    )
    return found


def many(number: int) -> str:
    return "\n\n".join(f"def f{n}(x):\n    return x + {n}" for n in range(number))


# What is sent, and why


def test_a_book_holds_what_was_sent(book: Path, client: Counting, science: Write) -> None:
    made = FunctionBook.register(book, client, science(SCIENCE))
    assert book.read_text().startswith(
        "# Written by gc-warm register; ids of functions registered with Globus Compute.\n"
        "version: 1\n"
    )
    loaded = FunctionBook.load(book)
    assert dict(loaded) == dict(made)
    assert list(loaded) == ["energy", "forces"]
    entry = loaded.entries["energy"]
    assert entry.description == "Energy: of a --- cluster.\n\nIn two paragraphs."
    assert client.get_function(loaded["energy"])["description"] == entry.description
    assert (entry.module, entry.signature, entry.strategy) == ("science", "(x)", "DillCode")
    assert (entry.public, entry.group) == (False, None)
    assert loaded.entries["forces"].signature == "(x, unit='eV')"
    assert dict(pickle.loads(pickle.dumps(loaded))) == dict(loaded)


def test_source_only_edit_keeps_every_id(book: Path, client: Counting, science: Write) -> None:
    before = dict(FunctionBook.register(book, client, science(SCIENCE)))
    edited = science("import os\n" + SCIENCE.replace("x * x", "x ** 2"))
    assert reasons(book, client, edited) == {"energy": "", "forces": ""}
    assert dict(FunctionBook.load(book)) == before
    assert client.sent == ["energy", "forces"]


def test_after_a_change_of_signature_one_is_sent(
    book: Path, client: Counting, science: Write
) -> None:
    before = dict(FunctionBook.register(book, client, science(SCIENCE)))
    changed = science(SCIENCE.replace("energy(x)", "energy(x, y=1)"))
    assert reasons(book, client, changed) == {"energy": "signature (x) -> (x, y=1)", "forces": ""}
    after = FunctionBook.load(book)
    assert client.sent == ["energy", "forces", "energy"]
    assert after["energy"] != before["energy"]
    assert after["forces"] == before["forces"]


def test_after_a_change_of_strategy_one_is_sent(
    book: Path, client: Counting, science: Write
) -> None:
    energy, forces = science(SCIENCE)
    before = FunctionBook.register(book, client, [energy, forces])
    with Counting(code_serialization_strategy=registry.STRATEGIES["PureSourceDill"]()) as other:
        assert reasons(book, other, [energy]) == {"energy": "strategy DillCode -> PureSourceDill"}
        assert reasons(book, other, [energy]) == {"energy": ""}
    assert FunctionBook.load(book)["forces"] == before["forces"]


def test_fifty_functions_twice_the_second_time_sends_none(
    book: Path, client: Counting, science: Write
) -> None:
    FunctionBook.register(book, client, science(many(50)))
    assert len(client.sent) == 50
    written = book.read_bytes()
    FunctionBook.register(book, client, science(many(50)))
    assert len(client.sent) == 50
    assert book.read_bytes() == written


def test_source_that_is_sent_counts(book: Path, science: Write) -> None:
    strategy = registry.STRATEGIES["PureSourceTextInspect"]()
    with Counting(code_serialization_strategy=strategy) as client:
        FunctionBook.register(book, client, science(SCIENCE))
        edited = science(SCIENCE.replace("x * x", "x ** 2"))
        assert reasons(book, client, edited) == {"energy": "what is sent has changed", "forces": ""}

        old = FunctionBook.load(book).entries["energy"].python_version
        book.write_text(book.read_text().replace(f"python_version: {old}", "python_version: 3.9.1"))
        reason = reasons(book, client, science(SCIENCE))["energy"]
        assert reason == f"what is sent has changed, probably since Python 3.9.1 is now {old}"


def test_audience_counts(book: Path, client: Counting) -> None:
    group = str(uuid.uuid4())
    assert reasons(book, client, [functions.count]) == {"count": "new"}
    assert reasons(book, client, [functions.count], public=True) == {
        "count": "for you -> for everybody"
    }
    assert reasons(book, client, [functions.count], group=group) == {
        "count": f"for everybody -> for group {group}"
    }
    assert client.service._functions[FunctionBook.load(book)["count"]]["group"] == group


def test_ids_of_another_service_mean_nothing(book: Path, client: Counting, science: Write) -> None:
    here = FunctionBook.register(book, client, science(SCIENCE))
    with Counting(environment="preview") as other:
        reason = reasons(book, other, [functions.count, *science(SCIENCE)[:1]])["energy"]
        assert "its id is one of https://compute.api.globus.org" in reason
    assert FunctionBook.load(book)["forces"] == here["forces"]  # nobody asked for it
    assert reasons(book, client, science(SCIENCE)[1:]) == {"forces": ""}


def test_a_stand_in_that_forgot_is_told_again(book: Path) -> None:
    with Counting(environment="local") as first:
        FunctionBook.register(book, first, [functions.count, functions.cluster_energy])
        first.delete_function(FunctionBook.load(book)["count"])
        found = reasons(book, first, [functions.count, functions.cluster_energy])
        assert found == {
            "count": "the service does not know this id any more",
            "cluster_energy": "",
        }
    with Counting(environment="local") as second:
        assert set(reasons(book, second, [functions.count]).values()) == {
            "the service does not know this id any more"
        }
        assert reasons(book, second, [functions.count]) == {"count": ""}


def test_another_error_of_a_stand_in_is_not_taken_for_forgetting(
    book: Path, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "is_local", lambda service: True)
    FunctionBook.register(book, client, [functions.count])

    def refuse(function_id: str) -> None:
        raise globus_sdk.NetworkError("cut", requests.ConnectionError())

    monkeypatch.setattr(client, "get_function", refuse)
    with pytest.raises(globus_sdk.NetworkError):
        FunctionBook.register(book, client, [functions.count])
    assert client.sent == ["count"]


@pytest.mark.parametrize(
    ("service", "local"),
    [
        ("http://localhost:5000", True),
        ("http://127.0.0.3", True),
        ("http://[::1]:5000", True),
        ("https://compute.api.globus.org", False),
    ],
)
def test_what_is_local(service: str, local: bool) -> None:
    assert registry.is_local(service) == local


def test_same_name_from_another_module(book: Path, client: Counting, science: Write) -> None:
    FunctionBook.register(book, client, science(SCIENCE))
    written = book.read_bytes()
    others = science("def energy(x):\n    return 0\n\n\ndef new():\n    return 1", "chemistry")
    with pytest.raises(
        BookError,
        match=r"energy of chemistry: this book has a function of that name from science\. "
        "Use another book",
    ):
        FunctionBook.register(book, client, others)
    with pytest.raises(BookError, match="of that name from chemistry"):
        FunctionBook.register(book.with_name("b.yaml"), client, [*others, *science(SCIENCE)])
    assert (book.read_bytes(), client.sent) == (written, ["energy", "forces"])
    assert not book.with_name("b.yaml").exists()


# Which functions


def test_public_functions(science: Write) -> None:
    imported = (
        "from os.path import join\n"
        "from gc_warm.functions import count\n"
        "class A: pass\n"
        "again = None\n" + SCIENCE + "\nalias = energy\n"
    )
    assert [each.__name__ for each in science(imported)] == ["energy", "forces"]
    listed = science(imported + "__all__ = ['count', 'A', '_helper']")
    assert [each.__name__ for each in listed] == ["count", "_helper"]


ODD = """
from gc_warm import warm
@warm
def table():
    return [1]
class Machine:
    def method(self): pass
number = 3
short = lambda: 1
def made():
    def inner(): pass
    return inner
inside = made()
method = Machine.method
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tabel", r"has no function 'tabel'; did you mean 'table_of'\?"),
        (
            "table",
            "table is a @warm function, and only plain .* "
            "write one that imports table in its body and calls it",
        ),
        ("Machine", "Machine is a class"),
        ("number", "number is a int"),
        ("short", "short cannot be found as science.<lambda>: define it with def at the top level"),
        ("inside", "cannot be found as science.made.<locals>.inner"),
        ("method", "cannot be found as science.Machine.method"),
    ],
)
def test_what_cannot_be_registered(science: Write, name: str, message: str) -> None:
    science("def table_of(): pass")
    with pytest.raises(BookError, match=r"cannot be found as science\.<lambda>"):
        science(ODD + "def table_of(): pass")
    with pytest.raises(BookError, match=message):
        registry.functions_of("science", [name])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "lib/science.py",
            "lib/science.py is a path: give the module's dotted name, as workers import it, "
            "such as lib.science$",
        ),
        ("./science", "such as science$"),
        (
            "no_such.module",
            "no_such.module cannot be imported: ModuleNotFoundError: No module named 'no_such'",
        ),
        ("", "cannot be imported: ValueError"),
        ("ends", "ends cannot be imported: SystemExit: 3"),
        ("wrong", "wrong cannot be imported: SyntaxError"),
        ("json.tool.x", "cannot be imported: ModuleNotFoundError"),
        ("string.templatelib.nothing", "cannot be imported"),
        ("errno", "errno has no public functions"),
    ],
)
def test_modules_that_cannot_be_used(science: Write, module: str, message: str) -> None:
    for name, source in (("ends", "raise SystemExit(3)"), ("wrong", "def")):
        with pytest.raises(BookError):
            science(source, name)
    with pytest.raises(BookError, match=message):
        registry.functions_of(module)


@pytest.mark.parametrize(
    "strategy", ["DillCodeSource", "DillCodeTextInspect", "PureSourceDill", "PureSourceTextInspect"]
)
@pytest.mark.parametrize("filename", ["<string>", "typed at a prompt"])
def test_a_function_that_cannot_be_sent(
    filename: str, strategy: str, book: Path, science: Write
) -> None:
    """Some Pythons take the first lines of its module for its source."""
    with Counting(code_serialization_strategy=registry.STRATEGIES[strategy]()) as client:
        made = science(SCIENCE + f"exec(compile('def typed(): pass', {filename!r}, 'exec'))")
        with pytest.raises(
            BookError,
            match=f"typed cannot be sent with the strategy {strategy}: (its|could not get) source",
        ):
            FunctionBook.register(book, client, made)
        assert client.sent == []
    assert not book.exists()


# The same from process to process

SETS = """
import functools, sys
from gc_warm.client.registry import STRATEGIES, Terms, functions_of
from globus_compute_sdk.serialize import ComputeSerializer
class Spot: pass
def member(x: int, among={"a", "b", "c", "d"}, spot=Spot()):
    return x in {"e", "f", "g", ("h", None), 1.5} or [
        each for each in "x" if each in {"i", "j", "k"}
    ]
def twice(function):
    @functools.wraps(function)
    def inner(*args): return function(*args) or args in {"l", "m", "n"}
    return inner
@twice
def wrapped(x): return x
"""
SHOW = """
if __name__ == "__main__":
    import sets
    for name, strategy in STRATEGIES.items():
        for function in (sets.member, sets.wrapped):
            entry = Terms(ComputeSerializer(strategy_code=strategy), "").entry(function)
            print(name, entry.module, function.__name__, entry.fingerprint, entry.signature)
"""


def run(arguments: list[Any], **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fingerprints_are_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "sets.py").write_text(SETS)
    (tmp_path / "script.py").write_text(SETS + SHOW)
    first, other = (
        run(
            [where / "script.py"],
            cwd=tmp_path,
            env={**client_environment(), "PYTHONHASHSEED": seed},
        )
        for where, seed in ((tmp_path, "1"), (Path("."), "2"))
    )
    assert len(first.splitlines()) == 2 * len(registry.STRATEGIES)
    assert "(x: int, among={'a', 'b', 'c', 'd'}, spot=<sets.Spot object>)" in first
    assert other == first


# A client that is quick to import, without the stand-in's service
CLIENT = """
import sys, time, uuid
import globus_sdk
from globus_compute_sdk import Client as SdkClient
from gc_warm import FunctionBook
from gc_warm.client import book_storage, registry
class Client(SdkClient):
    def __init__(self):
        super().__init__(do_version_check=False, authorizer=globus_sdk.NullAuthorizer())
    def register_function(self, function, **options):
        return str(uuid.uuid4())
"""


def test_functions_of_a_script_are_refused(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    said = run(["script.py"], cwd=tmp_path, env=client_environment())
    assert said == (
        "energy belongs to a script, whose name workers do not know: "
        "move it to a module, and import it from there\n"
        "table is a @warm function of a script or a notebook, whose name workers do not know: "
        "move it to a module (from a notebook, with %%writefile my_model.py), and "
        "register a function that imports it in its body and calls it\n"
    )


SCRIPT = """
from gc_warm import BookError, FunctionBook, MockClient, warm
def energy(x):
    return x
@warm
def table():
    return [1]
if __name__ == "__main__":
    with MockClient() as client:
        for function in (energy, table):
            try:
                FunctionBook.register("functions.yaml", client, [function])
            except BookError as error:
                print(error)
"""


# Priming an executor


def test_a_primed_executor_registers_nothing(book: Path) -> None:
    with Counting(workers=1) as client, MockExecutor(client=client) as executor:
        FunctionBook.register(book, client, [functions.count])
        loaded = FunctionBook.load(book)
        loaded.prime(executor)
        loaded.prime(executor)
        future = executor.submit(functions.count)
        assert future.result(120) == 1
        assert client.sent == ["count"]


@pytest.fixture
def executor(client: Counting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    monkeypatch.setattr(Executor, "_default_task_group_id", Executor._default_task_group_id)
    with Executor(uuid.uuid4(), client=client, task_group_id=uuid.uuid4()) as executor:
        yield executor


def test_priming_with_what_has_changed_names_all_of_it(
    book: Path, client: Counting, science: Write, executor: Executor
) -> None:
    made = FunctionBook.register(book, client, [functions.count, *science(SCIENCE)])
    science("def energy(x, y): pass\ndef forces(x, y): pass")
    with pytest.raises(BookError) as raised:
        made.prime(executor)
    assert raised.match(
        r"energy: signature \(x\) -> \(x, y\): run gc-warm register again; "
        r"forces: signature \(x, unit='eV'\) -> "
    )
    assert executor._function_registry == {}
    text = (
        book.read_text()
        .replace("DillCode", "Telepathy", 1)
        .replace("module: science", "module: alchemy")
    )
    book.write_text(text)
    with pytest.raises(
        BookError, match=r"has no strategy Telepathy.*energy: alchemy cannot be imported"
    ):
        FunctionBook.load(book).prime(executor)


def test_what_has_been_renamed_does_not_hinder_priming(
    book: Path, client: Counting, science: Write, executor: Executor
) -> None:
    FunctionBook.register(book, client, science(SCIENCE))
    made = FunctionBook.register(
        book, client, science(SCIENCE.replace("def forces", "def gradient"))
    )
    made.prime(executor)
    assert set(made) == {"energy", "forces", "gradient"}
    assert len(executor._function_registry) == 2


def test_ids_that_count_are_not_replaced_by_those_of_a_local_service(
    book: Path, client: Counting, science: Write
) -> None:
    FunctionBook.register(book, client, science(SCIENCE))
    kept = book.read_bytes()
    with (
        Counting(environment="local") as local,
        pytest.raises(BookError, match=r"has ids of https://compute.* use another book for that"),
    ):
        FunctionBook.register(book, local, science(SCIENCE))
    assert (book.read_bytes(), local.sent) == (kept, [])


def test_priming_for_another_service_or_too_late(
    book: Path, client: Counting, executor: Executor
) -> None:
    with Counting(environment="preview") as other:
        made = FunctionBook.register(book, other, [functions.count])
    with pytest.raises(
        BookError,
        match=r"its id is one of https://compute\.api\.preview\.globus\.org, "
        r"and this is https://compute\.api\.globus",
    ):
        made.prime(executor)

    executor.register_function(functions.count)
    made = FunctionBook.register(book, client, [functions.count])
    with pytest.raises(
        BookError,
        match="count: this executor has registered it itself: "
        "prime an executor before its first submit",
    ):
        made.prime(executor)


# The file


def test_a_missing_book(book: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no function book .*functions\.yaml: gc-warm register makes one",
    ):
        FunctionBook.load(book)


def test_a_missing_name(book: Path, client: Counting) -> None:
    made = FunctionBook.register(book, client, [functions.count])
    with pytest.raises(
        KeyError, match=r"'cuont' is not in .*functions\.yaml; did you mean 'count'"
    ):
        made["cuont"]
    assert "cuont" not in made
    assert repr(made).endswith("functions.yaml', 1 functions)")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", "version: Input should be 1"),
        ("    public: false\n", "", "functions.count.public: Field required"),
        ("public: false", "public: 0", "functions.count.public: Input should be a valid boolean"),
        (
            "public: false",
            "public: false\n    colour: red",
            "functions.count.colour: Extra inputs are not permitted",
        ),
        (
            "function_id: ",
            "function_id: x",
            "functions.count.function_id: Value error, badly formed",
        ),
        ("group: null", "group: us", "functions.count.group"),
        (
            "  count:",
            "  count:\n  cluster_energy:",
            "functions.count: Input should be a valid dictionary",
        ),
        ("module: gc", "module: gc\n    module: gc", r"functions\.yaml:7: module is there twice"),
        ("module: gc", "module: [gc", r"functions.yaml:\d+: "),
        ("module: gc", "module: !python/name:os.system gc", "could not determine a constructor"),
        ("module: gc", "module: \0gc", "functions.yaml cannot be read: unacceptable character"),
        ("module: gc", "module: 2026-99-99", "functions.yaml cannot be read: month must be"),
        ("module: gc", "? [a]\n    : gc", "unhashable"),
        ("module: gc", "module: \udcff", "functions.yaml cannot be read: 'utf-8' codec"),
    ],
)
def test_what_is_not_a_book(book: Path, client: Counting, old: str, new: str, message: str) -> None:
    FunctionBook.register(book, client, [functions.count])
    text = book.read_text()
    assert old in text
    book.write_text(
        text.replace(old, new).replace("99-99_warm.functions", "99-99"), errors="surrogateescape"
    )
    broken = book.read_bytes()

    with pytest.raises(BookError, match=message) as raised:
        FunctionBook.load(book)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    with pytest.raises(BookError, match=message):
        FunctionBook.register(book, client, [functions.cluster_energy])
    assert book.read_bytes() == broken
    assert (client.sent, os.listdir(book.parent)) == (["count"], [book.name])


@pytest.mark.parametrize(
    "text", ["[]", "nothing", "functions: {}", "version: 1\nfunctions: []", "[" * 500]
)
def test_what_is_no_book_at_all(book: Path, text: str) -> None:
    book.write_text(text)
    with pytest.raises(BookError, match=r"functions\.yaml"):
        FunctionBook.load(book)


hostile = (
    st.text(max_size=300)
    | st.text("\n\t :-#'\"|>%&*!\\\x85\u2028\ufeff", max_size=60)
    | st.sampled_from(["---", "~", "1e3", "\n---\n", " x\n  y"])
)


@given(
    st.dictionaries(
        hostile,
        st.tuples(hostile, hostile | st.none() | st.just("word " * 3000)),
        min_size=1,
        max_size=3,
    )
)
@settings(deadline=None, max_examples=40)
def test_whatever_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, tuple[str, str | None]]
) -> None:
    function = registry.functions_of("gc_warm.functions")[0]
    sample = registry.Terms(ComputeSerializer(), "").entry(function)
    entries = {
        name: sample.model_copy(update={"signature": signature, "description": description})
        for name, (signature, description) in written.items()
    }
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_bytes(book_storage.text_of(entries).encode())
    assert book_storage.read(path) == entries


def test_half_a_surrogate_pair_in_a_docstring(book: Path, client: Counting, science: Write) -> None:
    made = FunctionBook.register(
        book, client, science('def odd(): ...\nodd.__doc__ = "half \\ud800 of it"')
    )
    assert FunctionBook.load(book).entries["odd"].description == "half ? of it"
    assert client.get_function(made["odd"])["description"] == "half \ud800 of it"


def test_permissions_and_links_stay(book: Path, client: Counting) -> None:
    link = book.with_name("link.yaml")
    link.symlink_to("functions.yaml")
    before = os.umask(0o027)
    try:
        FunctionBook.register(link, client, [functions.count])
    finally:
        os.umask(before)
    assert book.stat().st_mode & 0o777 == 0o640
    book.chmod(0o664)
    FunctionBook.register(link, client, [functions.cluster_energy])
    assert book.stat().st_mode & 0o777 == 0o664
    assert link.is_symlink()
    assert len(FunctionBook.load(book)) == 2


@pytest.mark.parametrize("on_the_way", [False, True])
def test_link_of_another_user_is_not_followed(
    on_the_way: bool, tmp_path: Path, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where everybody can write, as /tmp; in one's own, it is one's own affair."""
    shared = tmp_path / "shared"
    own = tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    link = shared / "link"
    link.symlink_to("../own" if on_the_way else "../own/functions.yaml")
    book = link / "functions.yaml" if on_the_way else link
    FunctionBook.register(book, client, [functions.count])
    before = (own / "functions.yaml").read_text()

    if os.geteuid() == 0:
        os.lchown(link, 65534, -1)
    else:  # who cannot give a link away is somebody else
        another = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: another)
    shared.chmod(0o1777)
    with pytest.raises(BookError, match=rf"{link} is a symbolic link of another user \(uid \d+\)"):
        FunctionBook.register(book, client, [functions.cluster_energy])
    executor: Any = SimpleNamespace(shutdown=lambda wait: None)
    with pytest.raises(PermissionError, match="is a symbolic link of another user"):
        WarmExecutor(executor, records=book)
    assert client.sent == ["count"]
    assert (own / "functions.yaml").read_text() == before

    shared.chmod(0o755)
    FunctionBook.register(book, client, [functions.cluster_energy])
    assert client.sent == ["count", "cluster_energy"]


def test_links_in_a_circle_are_an_error(tmp_path: Path, client: Counting) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(BookError, match="cannot be written"):
        FunctionBook.register(tmp_path / "one", client, [functions.count])


@pytest.mark.parametrize(
    "place", ["missing/functions.yaml", ".", "/dev/null", "/proc/functions.yaml"]
)
def test_places_that_cannot_be_written(tmp_path: Path, client: Counting, place: str) -> None:
    with pytest.raises(
        BookError, match=r"cannot be written .*; nothing more has been sent|/dev/null is not a file"
    ):
        FunctionBook.register(tmp_path / place, client, [functions.count])
    assert (client.sent, list(tmp_path.iterdir())) == ([], [])


def file_limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def _any_size() -> Iterator[None]:
    yield
    file_limit(resource.RLIM_INFINITY)


@pytest.mark.usefixtures("_any_size")
def test_a_full_disk_is_noticed_before_anything_is_sent(
    book: Path, client: Counting, science: Write
) -> None:
    made = science(SCIENCE)
    file_limit(100)
    with pytest.raises(BookError, match=r"File too large.*; nothing more has been sent"):
        FunctionBook.register(book, client, made)
    assert (client.sent, os.listdir(book.parent)) == ([], [])

    file_limit(900)
    with pytest.raises(BookError, match="File too large"):
        FunctionBook.register(book, client, made)
    assert client.sent == list(FunctionBook.load(book)) == ["energy"]
    assert os.listdir(book.parent) == [book.name]


@pytest.mark.usefixtures("_any_size")
def test_an_id_that_cannot_be_written_down_is_told(
    book: Path, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    function_id = str(uuid.uuid4())

    def register_function(*_: Any, **__: Any) -> str:
        file_limit(10)
        return function_id

    monkeypatch.setattr(client, "register_function", register_function)
    with pytest.raises(
        BookError,
        match=f"count is registered as {function_id}, but that cannot be written "
        ".*File too large.*keep this id",
    ):
        FunctionBook.register(book, client, [functions.count])
    assert os.listdir(book.parent) == []


# What breaks in the middle


def test_a_lost_connection_loses_nothing(book: Path, science: Write) -> None:
    made = science(many(5))
    with Counting(cut_at=4) as client:
        with pytest.raises(globus_sdk.NetworkError):
            FunctionBook.register(book, client, made)
        assert list(FunctionBook.load(book)) == client.sent == ["f0", "f1", "f2"]
        assert os.listdir(book.parent) == [book.name]
        client.cut_at = 0
        FunctionBook.register(book, client, made)
        assert client.sent == ["f0", "f1", "f2", "f3", "f4"]


def test_a_book_that_got_no_entry_is_not_there(book: Path, science: Write) -> None:
    with Counting(cut_at=1) as client, pytest.raises(globus_sdk.NetworkError):
        FunctionBook.register(book, client, science(SCIENCE))
    assert os.listdir(book.parent) == []


def test_what_a_killed_process_may_leave_is_no_obstacle(book: Path, client: Counting) -> None:
    book.touch()
    book.with_name(f".{book.name}.tmp").write_text("half of it")
    FunctionBook.register(book, client, [functions.count])
    assert (list(FunctionBook.load(book)), os.listdir(book.parent)) == (["count"], [book.name])


WORKER = (
    CLIENT
    + """
from pathlib import Path
from types import SimpleNamespace
book_storage._SAY_WAITING = 0.05
folder, wait_at = Path(sys.argv[1]), sys.argv[2]
class Waiting(Client):
    def register_function(self, function, **options):
        with open(folder / "sent", "a") as log:
            log.write(function.__name__ + "\\n")
        while function.__name__ == wait_at and not (folder / "go").exists():
            time.sleep(0.01)
        return super().register_function(function, **options)
FunctionBook.register(folder / "functions.yaml", Waiting(), registry.functions_of("many"))
"""
)


def start(folder: Path, wait_at: str) -> subprocess.Popen[str]:
    (folder / "many.py").write_text(many(4))
    environment = {
        **client_environment(),
        "PYTHONPATH": f"{client_environment()['PYTHONPATH']}:{folder}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, folder, wait_at],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def sent(folder: Path) -> list[str]:
    log = folder / "sent"
    return log.read_text().split() if log.exists() else []


def test_sigkill_in_the_middle(tmp_path: Path, client: Counting, science: Write) -> None:
    process = start(tmp_path, "f2")
    wait_until(lambda: "f2" in sent(tmp_path), "the process is in the middle")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    kept = dict(book_storage.read(tmp_path / "functions.yaml"))
    assert list(kept) == ["f0", "f1"]

    after = FunctionBook.register(tmp_path / "functions.yaml", client, science(many(4), "many"))
    assert client.sent == ["f2", "f3"]
    assert {name: after.entries[name] for name in kept} == kept
    assert sorted(os.listdir(tmp_path)) == ["functions.yaml", "many.py", "sent"]


def test_two_at_once_register_nothing_twice(tmp_path: Path) -> None:
    processes = [start(tmp_path, "f1")]
    try:
        wait_until(lambda: "f1" in sent(tmp_path), "the first is in the middle")
        processes.append(start(tmp_path, ""))
        waiting = processes[1].stderr
        assert waiting is not None
        said = waiting.readline()
        assert said.startswith("waiting for another process that registers functions in ")
        (tmp_path / "go").touch()
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sent(tmp_path) == ["f0", "f1", "f2", "f3"]
    assert list(FunctionBook.load(tmp_path / "functions.yaml")) == ["f0", "f1", "f2", "f3"]
