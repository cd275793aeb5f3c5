"""State that has gone bad: it is asked for, given up, and replaced."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gc_warm import unchanged, warm
from gc_warm.worker import ledger
from gc_warm.worker.state import Warm
from tests.support import observe, wait_until


class Line:
    """A state that may break."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.works = True


def lines(
    valid: Callable[..., object], maxsize: int | None = None
) -> tuple[Warm[[str], Line], list[str]]:
    history: list[str] = []

    @warm(maxsize=maxsize, valid=valid)
    def line(name: str) -> Generator[Line, None, None]:
        history.append(f"open {name}")
        yield Line(name)
        history.append(f"close {name}")

    return line, history


def works(state: Line, name: str) -> bool:
    return state.works


@pytest.mark.parametrize("maxsize", [None, 1, 2])
def test_state_gone_bad_is_replaced(maxsize: int | None) -> None:
    line, history = lines(works, maxsize)
    first = line("a")
    assert line("a") is first
    first.works = False
    second = line("a")
    assert second is not first
    assert line("a") is second
    assert history == ["open a", "close a", "open a"]
    info = line.info()
    assert (info.hits, info.loads, info.failures, info.evictions) == (2, 2, 0, 0)
    line.clear()


def test_valid_is_asked_before_each_hand_out_and_once_after_a_load() -> None:
    asked: list[tuple[str, str]] = []

    def valid(state: Line, name: str) -> bool:
        asked.append((state.name, name))
        return True

    line, _ = lines(valid)
    line("a")
    assert asked == [("a", "a")]
    line("a")
    line("b")
    assert asked == [("a", "a"), ("a", "a"), ("b", "b")]
    line.clear()


def test_valid_gets_the_arguments_as_the_loader_does() -> None:
    asked: list[Any] = []

    def valid(state: object, *args: Any, **kwargs: Any) -> bool:
        asked.append((args, kwargs))
        return True

    @warm(valid=valid)
    def state(a: int, /, b: int = 2, *rest: int, c: int = 3, **_gc_warm_state: int) -> object:
        return object()

    state(1, c=5, other=7)
    assert asked == [((1, 2), {"c": 5, "other": 7})]


def test_an_exception_of_valid_counts_as_no(caplog: pytest.LogCaptureFixture) -> None:
    def valid(state: Line, name: str) -> bool:
        if not state.works:
            raise ConnectionError("gone away")
        return True

    line, history = lines(valid)
    line("a").works = False
    assert line("a").works
    assert history == ["open a", "close a", "open a"]
    assert "valid failed for ('a',)" in caplog.text
    assert "gone away" in caplog.text
    line.clear()


@pytest.mark.parametrize("answer", [False, None, 0, "", []])
def test_fresh_state_that_is_not_valid_is_an_error(answer: object) -> None:
    line, history = lines(lambda state, name: answer)
    before = ledger.mark()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"just loaded \('a',\), and valid says no.*cold"):
            line("a")
    assert history == ["open a", "close a"] * 2
    assert (line.info().size, line.info().failures, line.info().loads) == (0, 2, 0)
    assert [event.kind for event in ledger.events(since=before)] == ["failed", "failed"]


def test_fresh_state_whose_valid_fails_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    line, history = lines(lambda state: True)  # it takes too few arguments
    with pytest.raises(RuntimeError, match="valid says no"):
        line("a")
    assert "positional argument" in caplog.text
    assert history == ["open a", "close a"]


def test_interruptions_of_valid_are_no_answers() -> None:
    def valid(state: Line, name: str) -> bool:
        if not state.works:
            raise KeyboardInterrupt
        return True

    line, history = lines(valid)
    line("a").works = False
    with pytest.raises(KeyboardInterrupt):
        line("a")
    assert history == ["open a"]
    line.clear()


def test_a_lease_is_asked_for_like_a_call() -> None:
    line, history = lines(works)
    line("a").works = False
    with line.lease("a") as state:
        assert state.works
        assert history == ["open a", "close a", "open a"]
    line.clear()


def test_state_gone_bad_while_leased_is_retired() -> None:
    line, history = lines(works)
    with line.lease("a") as state:
        state.works = False
        assert line("a").works
        assert history == ["open a", "open a"]
        assert line.info().size == 2
    assert history == ["open a", "open a", "close a"]
    line.clear()


def test_bad_state_that_is_leased_takes_its_room() -> None:
    line, history = lines(works, maxsize=1)
    with line.lease("a") as state:
        state.works = False
        with pytest.raises(RuntimeError, match="no room"):
            line("a")
        assert history == ["open a"]
    assert line("a").works
    assert history == ["open a", "close a", "open a"]
    line.clear()


@pytest.mark.parametrize("maxsize", [None, 1])
def test_threads_that_find_bad_state_replace_it_once(maxsize: int | None) -> None:
    everybody = threading.Barrier(8)
    asked_by: set[int] = set()

    def valid(state: Line, name: str) -> bool:
        if not state.works and threading.get_ident() not in asked_by:
            asked_by.add(threading.get_ident())
            everybody.wait(120)
        return state.works

    line, history = lines(valid, maxsize)
    line("a").works = False
    found: list[Line] = []
    threads = [threading.Thread(target=lambda: found.append(line("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(found)) == 1
    assert len(found) == 8
    assert history == ["open a", "close a", "open a"]
    line.clear()


def give_up_and_load(table: Warm[[str], Line], giving_up: str) -> None:
    line = table("a")
    if giving_up == "invalid":
        line.works = False
    elif giving_up == "discard":
        table.discard("a")
    elif giving_up == "clear":
        table.clear()
    elif giving_up == "evict":
        table("b")
    table("a")


WORDS = {
    "invalid": "not valid any more",
    "discard": "discarded",
    "clear": "cleared",
    "evict": "evicted",
}


@pytest.mark.parametrize("giving_up", WORDS)
def test_each_way_out_has_its_word(giving_up: str) -> None:
    line, _ = lines(works, maxsize=1)
    _, record = observe(give_up_and_load, line, giving_up)
    assert record["loads"][-1]["why"] == WORDS[giving_up]
    line.clear()


@pytest.mark.parametrize("giving_up", ["invalid", "discard", "clear"])
def test_each_way_out_of_leased_state_has_its_word(giving_up: str) -> None:
    line, _ = lines(works)
    with line.lease("a"):
        _, record = observe(give_up_and_load, line, giving_up)
    assert record["loads"][-1]["why"] == WORDS[giving_up]
    line.clear()


def test_another_key_is_said_to_be_one() -> None:
    @warm
    def table_of_its_own(name: str) -> str:
        return name

    whys = [observe(table_of_its_own, name)[1]["loads"][0]["why"] for name in "ab"]
    assert whys == ["first on this worker", "another key"]


# files


def reader(argument: str = "path", **options: Any) -> Warm[[Any], str]:
    @warm(valid=unchanged(argument), **options)
    def content(path: Any) -> str:
        return Path(getattr(path, "checkpoint", path)).read_text()

    return content


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    path.write_text("first")
    return path


def make_older(file: Path) -> None:
    """Files that are written within one tick of the kernel's clock have one time."""
    os.utime(file, ns=(10**18, 10**18))


def replace(file: Path) -> None:
    other = file.with_name("new")
    other.write_text("other")
    make_older(other)
    other.replace(file)


def replace_by_its_copy_of_the_same_time(file: Path) -> None:
    other = file.with_name("new")
    other.write_text("other")
    shutil.copystat(file, other)
    other.replace(file)


def rewrite(file: Path) -> None:
    file.write_text("other")


def append(file: Path) -> None:
    with file.open("a") as opened:
        opened.write(" and more")
    make_older(file)


def remove_and_write(file: Path) -> None:
    file.unlink()
    file.write_text("other")


@pytest.mark.parametrize(
    "change",
    [replace, replace_by_its_copy_of_the_same_time, rewrite, append, remove_and_write],
)
@pytest.mark.parametrize("maxsize", [None, 1])
def test_a_changed_file_is_loaded_anew(
    change: Callable[[Path], None], maxsize: int | None, file: Path
) -> None:
    make_older(file)
    content = reader(maxsize=maxsize)
    assert content(str(file)) == "first"
    content(str(file))
    assert content.info().loads == 1

    change(file)
    assert content(str(file)) == file.read_text() != "first"
    content(str(file))
    assert (content.info().loads, content.info().size) == (2, 1)


def test_a_link_to_another_file_is_loaded_anew(file: Path) -> None:
    latest = file.with_name("latest")
    latest.symlink_to(file)
    content = reader()
    assert content(latest) == "first"

    other = file.with_name("other")
    other.write_text("other")
    latest.unlink()
    latest.symlink_to(other)
    assert content(latest) == "other"


def test_a_missing_file_is_kept_with_one_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = reader()
    content(str(file))
    content(str(file))
    assert caplog.records == []

    os.rename(file, file.with_name("aside"))
    for _ in range(3):
        assert content(str(file)) == "first"
    assert len(caplog.records) == 1
    assert "is missing or cannot be read; its state is kept" in caplog.text
    assert str(file) in caplog.text

    os.rename(file.with_name("aside"), file)
    content(str(file))
    assert content.info().loads == 1


def test_a_folder_on_the_way_that_became_a_file_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("first")
    content = reader()
    assert content(folder / "a") == "first"
    shutil.rmtree(folder)
    folder.write_text("no folder")
    assert content(folder / "a") == "first"


def test_a_missing_file_that_came_back_changed_is_loaded(file: Path) -> None:
    content = reader()
    content(file)
    file.unlink()
    assert content(file) == "first"
    file.write_text("another one")
    assert content(file) == "another one"


def test_a_file_that_changes_during_its_load_is_loaded_again(file: Path) -> None:
    loads: list[str] = []

    @warm(valid=unchanged("path"))
    def content(path: str) -> str:
        text = Path(path).read_text()
        if not loads:
            Path(path).write_text("second, and longer")
        loads.append(text)
        return text

    assert content(str(file)) == "first"
    assert content(str(file)) == "second, and longer"
    content(str(file))
    assert len(loads) == 2


@dataclass(frozen=True)
class Settings:
    checkpoint: str
    inner: Settings | None = None


@pytest.mark.parametrize("depth", [0, 1])
def test_the_path_may_be_an_attribute_of_an_argument(depth: int, file: Path) -> None:
    names = ["settings", *["inner"] * depth, "checkpoint"]

    @warm(valid=unchanged(".".join(names)))
    def content(number: int, *, settings: Settings) -> str:
        return file.read_text()

    settings = Settings(str(file))
    if depth:
        settings = Settings("/nowhere", settings)
    assert content(1, settings=settings) == "first"
    rewrite(file)
    append(file)
    assert content(1, settings=settings) == "other and more"


@pytest.mark.parametrize("argument", ["", ".", "path.", "a b", "1", None, 3, "path..x"])
def test_a_name_that_is_none_is_refused(argument: Any) -> None:
    with pytest.raises(TypeError, match=r"write the name of the loader's argument"):
        unchanged(argument)


def test_an_argument_that_the_loader_does_not_have_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"content: the loader has no argument 'file', which unchanged\('file"
    ):
        reader("file.path")


@pytest.mark.parametrize("path", [None, 1.5, ("a",)])
def test_an_argument_that_is_no_path_is_named(path: object) -> None:
    @warm(valid=unchanged("path"))
    def content(path: Any) -> str:
        return "loaded"

    with pytest.raises(TypeError, match=r"unchanged\('path'\): .* is no path"):
        content(path)


def test_an_attribute_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(TypeError, match=r"unchanged\('path.checkpoint'\).*no attribute"):
        reader("path.checkpoint")(str(file))


def test_predicates_for_files_have_a_text_and_travel() -> None:
    predicate = unchanged("settings.checkpoint")
    assert repr(predicate) == "unchanged('settings.checkpoint')"
    assert repr(pickle.loads(pickle.dumps(predicate))) == repr(predicate)


@pytest.mark.parametrize(
    ("option", "value"), [("size", 3), ("key", "a"), ("valid", True), ("valid", "path")]
)
def test_options_that_are_no_functions_are_named(option: str, value: object) -> None:
    def table() -> None: ...

    with pytest.raises(TypeError, match=rf"table: {option} must be a function .*, not {value!r}"):
        warm(**{option: value})(table)  # type: ignore[call-overload]


# a recipe: a connection whose server has closed it


class Server:
    """Answers with what it is sent."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.accepted: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted.append(connection)
            thread = threading.Thread(target=self._answer, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def close_connections(self) -> None:
        for connection in self.accepted:
            if connection.fileno() >= 0:
                connection.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: all(c.fileno() < 0 for c in self.accepted), "all are closed")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.close_connections()
        for thread in self._threads:
            thread.join(120)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def ask(connection: socket.socket) -> bytes:
    connection.sendall(b"ping")
    answer = connection.recv(100)
    if not answer:
        raise ConnectionError("closed by the server")
    return answer


def is_open(connection: socket.socket, address: object) -> bool:
    """Look whether the server has closed it: then there is an end to read, and not just nothing."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    finally:
        connection.setblocking(True)


def connect(address: tuple[str, int]) -> Generator[socket.socket, None, None]:
    with socket.create_connection(address) as connection:
        yield connection


def test_a_connection_that_its_server_closed_is_made_anew(server: Server) -> None:
    connection = warm(valid=is_open)(connect)
    assert ask(connection(server.address)) == b"ping"
    assert ask(connection(server.address)) == b"ping"
    assert len(server.accepted) == 1

    server.close_connections()
    assert ask(connection(server.address)) == b"ping"
    assert (len(server.accepted), connection.info().size) == (2, 1)
    connection.clear()


def test_a_task_discards_a_connection_that_failed(server: Server) -> None:
    connection = warm(connect)

    def answer() -> bytes:
        with connection.lease(server.address) as leased:
            try:
                return ask(leased)
            except OSError:
                assert connection.discard(server.address)
                return ask(connection(server.address))

    assert answer() == b"ping"
    server.close_connections()
    assert answer() == b"ping"
    assert (len(server.accepted), connection.info().size) == (2, 1)
    connection.clear()


def test_a_broken_predicate_does_not_stop_the_log(caplog: pytest.LogCaptureFixture) -> None:
    line, _ = lines(works)
    line("a")
    del line("a").works
    with caplog.at_level(logging.ERROR, logger="gc_warm"):
        assert line("a").works
    assert "AttributeError" in caplog.text
    line.clear()
