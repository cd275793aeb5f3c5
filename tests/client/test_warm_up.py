"""warm_up: every worker is reached, or it is said who is missing."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import history
import pytest
import tasks

from gc_warm import MockExecutor, WarmExecutor
from gc_warm.client import warm_up
from gc_warm.client.warm_up import WarmUp, WarmUpRun
from gc_warm.worker import calls
from tests.support import MODULES, Clock
from tests.testing.backends import engine_config, workers

TIMES = 20
NOWHERE = "/no/such/flag"


@pytest.fixture(scope="module")
def two() -> Iterator[WarmExecutor]:
    with WarmExecutor(MockExecutor(workers=2, pythonpath=[MODULES])) as executor:
        executor.submit(len, "").result(120)  # its threads are there before the first test
        yield executor


def cases() -> Iterator[Any]:
    for backend in ("spawned", "engine"):
        for number in (1, 2, 4):
            is_quick = (backend, number) == ("spawned", 2)
            yield pytest.param(
                (backend, number),
                marks=[] if is_quick else [pytest.mark.engine],
                id=f"{backend}-{number}",
            )


@pytest.fixture(scope="module", params=cases())
def many(request: pytest.FixtureRequest) -> Iterator[tuple[WarmExecutor, int]]:
    """An executor, and how many workers it has."""
    backend, number = request.param
    if (backend, number) == ("spawned", 2):
        yield request.getfixturevalue("two"), 2
        return
    with WarmExecutor(MockExecutor(**workers(backend, number))) as executor:
        executor.submit(len, "").result(120)
        yield executor, number


def pids(reached: WarmUp) -> set[int]:
    return {visit.worker.pid for visit in reached.reached}


def test_all_workers_are_reached_every_time_with_the_tasks_of_others_in_the_way(
    many: tuple[WarmExecutor, int],
) -> None:
    executor, number = many
    for turn in range(TIMES):
        foreign: list[Future[object]] = [
            executor.submit(tasks.work, 0.01 * (turn % 5)) for _ in range(2 * number)
        ]
        reached = executor.warm_up(history.use, f"key {turn}", NOWHERE, workers=number)
        assert reached.complete, str(reached)
        assert len(pids(reached)) == number
        assert {visit.warmth.state for visit in reached.reached} == {"cold"}, (
            "it ran once on each worker"
        )
        wait(foreign)
    futures = [executor.submit(history.use, f"key {TIMES - 1}", NOWHERE) for _ in range(2 * number)]
    wait(futures)
    assert {future.warmth.state for future in futures} == {"warm"}


def let_time_be_over_after(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a warm-up's time stand still until so many tasks have been answered, and end then."""
    clock = Clock()
    taken = [0]
    take_in = WarmUpRun._take_in

    def noted(warm_up_run: WarmUpRun, future: Future[Any]) -> None:
        take_in(warm_up_run, future)
        taken[0] += 1
        if taken[0] == answers:
            clock.advance(warm_up_run.timeout)

    monkeypatch.setattr(WarmUpRun, "_take_in", noted)
    monkeypatch.setattr(warm_up, "time", clock)


def test_more_workers_than_there_are_end_at_the_deadline_with_those_that_are_missing(
    two: WarmExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_time_be_over_after(9, monkeypatch)  # three rounds
    reached = two.warm_up(history.use, "a", NOWHERE, workers=3)
    assert (len(reached.reached), reached.missing, reached.complete) == (
        2,
        ("1 of which nothing is known",),
        False,
    )
    assert str(reached).startswith("2 of 3 workers reached in ")
    assert "\n  missing: 1 of which nothing is known" in str(reached)
    assert two.submit(len, "ab").result(120) == 2, "nothing of it is in the way of what follows"


def test_a_worker_that_is_occupied_is_named(
    two: WarmExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    occupied = two.submit(tasks.begin_and_wait, str(begun), str(gate))
    try:
        two.submit(tasks.wait_for_file, str(begun)).result(120)
        with monkeypatch.context() as patch:
            let_time_be_over_after(6, patch)  # three rounds
            reached = two.warm_up(history.use, "b", NOWHERE, workers=2)
    finally:
        gate.touch()
        occupied.result(120)
    (worker,) = (visit.worker for visit in reached.reached)
    assert reached.missing == (
        f"worker {1 - (worker.rank or 0)} of manager {worker.pool} on {worker.host}",
    )
    assert two.warm_up(history.use, "b", NOWHERE, workers=2).complete


def test_a_function_that_fails_is_told_for_each_worker_and_tried_once_on_each(
    two: WarmExecutor, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    reached = two.warm_up(history.use, "c", str(flag), workers=2)
    assert [visit.error for visit in reached.failed] == ["RuntimeError: not yet"] * 2
    assert not reached.complete
    assert "\n  failed on " in str(reached)


def test_a_function_that_kills_its_workers_does_so_a_few_times_and_it_is_said() -> None:
    with WarmExecutor(MockExecutor(workers=1)) as executor:
        reached = executor.warm_up(os.abort, workers=1)
    assert (reached.complete, reached.rounds, reached.lost) == (False, 3, 3)
    assert "\n  3 tasks were lost with their workers" in str(reached)


def test_a_visit_that_nobody_waits_for_any_more_keeps_no_worker_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(
        monotonic=time.monotonic, perf_counter=time.perf_counter, time=time.time, sleep=slept.append
    )
    monkeypatch.setattr(calls, "time", clock)
    assert calls.visit("late", 60.0, time.time() - 1.0, lambda: len, [""])["error"] is None
    assert slept == [0.0]


def test_it_is_frozen_and_no_workers_are_refused(two: WarmExecutor) -> None:
    with pytest.raises(ValueError, match="workers=0: there has to be at least one"):
        two.warm_up(len, "", workers=0)
    reached = two.warm_up(len, "", workers=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reached.rounds = 0  # type: ignore[misc]


@pytest.mark.engine
def test_with_tasks_fetched_ahead_it_gets_there_or_says_who_is_missing() -> None:
    config = engine_config(2).replace(
        "cores_per_worker", "prefetch_capacity: 4\n  cores_per_worker"
    )
    with WarmExecutor(MockExecutor(config=config)) as executor:
        for key in range(5):
            reached = executor.warm_up(history.use, str(key), NOWHERE, workers=2, timeout=30)
            assert len(reached.reached) + len(reached.missing) == 2
            assert reached.complete or reached.missing


def test_a_worker_that_is_killed_in_between_is_reached_in_its_next_life() -> None:
    with WarmExecutor(MockExecutor(workers=2, pythonpath=[MODULES])) as executor:
        before = executor.warm_up(history.use, "d", NOWHERE, workers=2)
        executor.workers[0].kill()
        after = executor.warm_up(history.use, "e", NOWHERE, workers=2)
    assert after.complete
    assert len(pids(after) & pids(before)) == 1
