"""The report: its figures, its file, its picture, and its command."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gc_warm.cli import main
from gc_warm.client.report import Node, Report
from gc_warm.client.warmth import Call, Load, Warmth, unknown
from gc_warm.worker.lifecycle import Worker
from tests.support import cli_runner

W0, W1 = (Worker("node1", 100 + rank, "0", "5d0c", rank, 2) for rank in range(2))


def load(seconds: float, at: float, why: str = "first on this worker") -> Load:
    return Load("my_model.model", "('a',)", seconds, at, why)


def call(
    worker: Worker, at: float, seconds: float, *loads: Load, stale: tuple[str, ...] = ()
) -> Call:
    why = loads[0].why if loads else None
    warmth = Warmth(
        "cold" if loads else "warm", why, loads, 0 if loads else 1, 0, worker, at, seconds, stale
    )
    return Call("predict", f"{worker.pid} {at}", at - 0.1, at + seconds + 0.1, warmth)


CALLS = [
    call(W0, 1000.0, 3.0, load(2.5, 1002.5)),
    call(W1, 1000.0, 4.0, load(3.0, 1003.0)),
    call(W0, 1003.0, 0.5),
    call(W0, 1003.5, 0.5, stale=("my_model",)),
    call(W1, 1004.0, 2.0, load(1.5, 1005.5, "evicted")),
    Call("predict", None, 1006.0, 1007.0, unknown("lost")),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(call.plain()) + "\n" for call in CALLS))
    return path


def test_figures() -> None:
    report = Report.of(CALLS)
    assert (report.calls, report.warm, report.cold, report.unknown) == (6, 2, 3, 1)
    assert report.hit_rate == pytest.approx(2 / 5)
    assert report.seconds_lost == pytest.approx(7.0)
    assert report.reasons == {
        "cold: first on this worker": 2,
        "cold: evicted": 1,
        "unknown: lost": 1,
    }
    assert report.stale == {"my_model": 1}
    assert [(lane.worker, lane.calls, lane.warm, lane.cold) for lane in report.workers] == [
        (W0, 3, 2, 1),
        (W1, 2, 0, 2),
    ]
    assert [slow.load.seconds for slow in report.slowest] == [3.0, 2.5, 1.5]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.calls = 0  # type: ignore[misc]


def test_loads_are_shown_by_node() -> None:
    first, second = (Worker("node1", pid, "0", "5d0c", pid, 2, template=1) for pid in (0, 1))
    third = Worker("node2", 2, "0", "71aa", 0, 1, not_forked="threads live: poller")
    calls = [call(first, 1.0, 2.0), call(second, 1.0, 2.0, load(1.0, 2.0)), call(third, 1.0, 2.0)]
    report = Report.of(calls)
    assert report.nodes == (
        Node("node1", workers=2, born_warm=2, templates=1, loads=1, load_seconds=1.0),
        Node("node2", workers=1, born_warm=0, templates=0, loads=0, load_seconds=0.0),
    )
    said = " ".join(str(report).replace("|", " ").split())
    words = "1 by 3 workers on 2 nodes; 2 of them were born warm, from 1 template"
    assert f"loads {words}" in said
    assert "not forked: threads live: poller 1 worker" in said
    assert "worker 0, pid 0, from template 1" in said


def test_a_call_that_was_reloaded_counts_once() -> None:
    again = dataclasses.replace(CALLS[0], function="reloaded")
    assert Report.of([*CALLS, again]) == Report.of(CALLS)


def test_a_load_within_a_load_is_not_lost_twice() -> None:
    outer, inner = load(2.0, 1002.0), load(1.5, 1001.9)
    assert call(W0, 1000.0, 3.0, inner, outer).warmth.load_seconds == 2.0
    assert call(W0, 1000.0, 3.0, load(1.0, 1001.0), load(1.0, 1002.0)).warmth.load_seconds == 2.0
    assert call(W0, 1000.0, 3.0, load(1.0, 1001.0), load(1.0, 1001.5)).warmth.load_seconds == 1.5, (
        "side by side"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", "long"), ("state", []), ("worker", {"host": None, "pid": 1}), ("at", [1])],
)
def test_a_record_with_odd_values_is_none(name: str, value: object) -> None:
    plain = CALLS[0].plain()
    plain["warmth"][name] = value
    with pytest.raises(ValueError, match=name):
        Call.of(plain)


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    odd = dataclasses.replace(load(1.0, 1001.0), key="('[/a]', c1cc[nH]c1')")
    assert "c1cc[nH]c1" in str(Report.of([call(W0, 1000.0, 2.0, odd)]))


def shown(loads: list[tuple[str, str, Worker]]) -> list[str]:
    """Return the labels of loads with these keys, tags and workers, one after another."""
    calls = []
    for number, (key, tag, worker) in enumerate(loads):
        odd = dataclasses.replace(load(9.0 - number, 1001.0), key=key, tag=tag)
        calls.append(call(worker, 1000.0 + number, 9.0, odd))

    table = Report.of(calls)._by_load()
    assert table is not None
    return [str(cell) for cell in table.columns[0].cells]


def shown_on_a_terminal(keys: list[str]) -> list[str]:
    """Return the labels as 80 columns show them, folded, without their spaces."""
    loads = [
        dataclasses.replace(load(9.0 - number, 1001.0), key=key) for number, key in enumerate(keys)
    ]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(Report.of([call(W0, 1000.0, 9.0, *loads)])._by_load())

    rows = [line.split("|")[1:3] for line in capture.get().splitlines() if "|" in line][2:]
    labels: list[str] = []
    for label, took in rows:
        if took.strip():
            labels.append("")
        labels[-1] += label.replace(" ", "")
    return labels


LONG = ("a" * 60, "b" * 60)


def test_keys_of_different_text_are_shown_apart() -> None:
    first = f"('{LONG[0]}1{LONG[1]}',)"
    second = first.replace("1", "2")
    as_path = f"(PosixPath({first[1:-2]}),)"
    labels = shown([(key, "a1", W0) for key in (first, second, as_path, first, "('short',)")])
    assert len(set(labels)) == 4
    assert labels[0] == labels[3]
    assert labels[-1] == "my_model.model ('short',)"
    assert all(len(label) < 170 for label in labels)
    without_spaces = [label.replace(" ", "") for label in labels[:3]]
    assert shown_on_a_terminal([first, second, as_path]) == without_spaces
    assert shown([(first, "a1", W0)] * 2)[0].count("characters") == 1, "there is no other"


def test_keys_of_one_text_are_shown_apart_by_their_tags() -> None:
    key = "((1, 2, 3, 4, 5, 6, ...),)"
    first, other, again, elsewhere = shown(
        [(key, "a1b2c3", W0), (key, "d4e5f6", W0), (key, "a1b2c3", W0), (key, "a9b8c7", W1)]
    )
    assert (first, other) == (f"my_model.model {key} #a1b2c3", f"my_model.model {key} #d4e5f6")
    assert again == first
    assert elsewhere == f"my_model.model {key}", "tags of two processes cannot be compared"


def test_slowest_loads_show_what_the_process_grew_by() -> None:
    grown = dataclasses.replace(load(2.0, 1002.0), grown=1_234_567_890)
    report = Report.of([call(W0, 1000.0, 3.0, grown), call(W1, 1000.0, 3.0, load(1.0, 1001.0))])
    table = report._by_load()
    assert table is not None
    assert [str(cell) for cell in table.columns[2].cells] == ["1.2 GB", ""]
    assert "grew" in str(report)

    loads = [slow["load"] for slow in json.loads(report.json())["slowest"]]
    assert [load["grown"] for load in loads] == [1_234_567_890, 0]


def test_records_of_an_earlier_version_are_read() -> None:
    plain = CALLS[0].plain()
    for each in plain["warmth"]["loads"]:
        del each["grown"], each["tag"]
    assert Call.of(plain) == CALLS[0]


@pytest.mark.engine
def test_many_calls_are_drawn_at_once(tmp_path: Path) -> None:
    lines = [json.dumps({**call.plain(), "task_id": None}) + "\n" for call in CALLS]
    (tmp_path / "many.jsonl").write_text("".join(lines * 1_000))
    script = "from gc_warm.client.report import Report; Report.read('many.jsonl').picture('a.png')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "a.png").exists()


def test_of_nothing() -> None:
    report = Report.of([])
    assert report.hit_rate is None
    assert "0: 0 warm, 0 cold, 0 unknown" in str(report)
    with pytest.raises(ValueError, match="nothing to draw"):
        report.picture("never.png")


def test_what_is_written_is_what_is_read(file: Path) -> None:
    assert Report.read(file) == Report.of(CALLS)


def test_a_line_that_was_cut_off_is_passed_over_and_nothing_else(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines) + '\n{"function": "predict", "task')
    assert Report.read(file).calls == 6
    file.write_text("\n".join([lines[0], lines[1][:-9], lines[2]]))
    assert Report.read(file).calls == 2
    file.write_text("\n".join([lines[0], "{}", lines[1]]))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}:2 is no record of a call"):
        Report.read(file)


def test_what_another_version_has_added_is_passed_over(file: Path) -> None:
    plain = CALLS[0].plain()
    plain["new"] = plain["warmth"]["new"] = plain["warmth"]["worker"]["new"] = 1
    assert Call.of(plain) == CALLS[0]


def test_the_command_shows_tables_json_and_errors(file: Path, tmp_path: Path) -> None:
    shown = cli_runner().invoke(main, ["report", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "2 warm, 3 cold, 1 unknown" in shown.output
    assert "| my_model.model" in shown.output
    assert "| ('a',)" in shown.output
    told = json.loads(cli_runner().invoke(main, ["report", str(file), "--json"]).output)
    assert (told["calls"], told["hit_rate"], "records" in told) == (6, 0.4, False)
    for odd in (b"no record\n", b"\xff\x00"):
        (tmp_path / "odd").write_bytes(odd)
        failed = cli_runner().invoke(main, ["report", str(tmp_path / "odd")])
        assert failed.exit_code == 1
        assert "odd has no record of a call" in failed.stderr


DRAW = """
import json, sys
from click.testing import CliRunner
from gc_warm.cli import main
file, *pictures = sys.argv[1:]
runs = [CliRunner().invoke(main, ["report", file, "--picture", path]) for path in pictures]
print(json.dumps([(run.exit_code, run.output) for run in runs]))
"""


def test_the_picture_has_a_lane_for_each_worker(file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    # in a process of their own, since Matplotlib keeps its fonts open
    run = subprocess.run(
        [sys.executable, "-c", DRAW, file, picture, tmp_path / "a.xyz"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    text = picture.read_text()
    for word in (
        "node1, block 0, worker 0, pid 100",
        "node1, block 0, worker 1, pid 101",
        "cold call",
        "warm call",
        "load",
    ):
        assert f"<!-- {word} -->" in text, word
    drawn, refused = json.loads(run.stdout)
    assert drawn[0] == 0, drawn
    assert refused[0] == 1
    assert "xyz" in refused[1]
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "timeline.svg"}
