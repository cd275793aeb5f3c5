"""Which idle worker gets which task: by examples, and by what comes of it in a simulated node."""

from __future__ import annotations

import math

import pytest

from gc_warm.hooks.placement import LONGEST_LOAD, PATIENCE, WORTH, Plan, decide
from gc_warm.hooks.pool import Needs, Seat, State, Waiting
from tests.hooks.placements import Node, Outcome, Work

A, B, C = b"a", b"b", b"c"
NOW = 1000.0


def node(**seats: Seat) -> State:
    """Workers w0, w1, ...; the load of A takes two seconds."""
    numbered = {int(name[1:]): seat for name, seat in seats.items()}
    return State("", seats=numbered, needs={A: Needs(frozenset(), 2.0)})


def seat(*holds: bytes, used: float = 0.0, busy: bool = False, doing: bytes | None = None) -> Seat:
    return Seat(1, idle=not busy, used=used, holds=frozenset(holds), doing=doing)


def wait_for(state: State, *hints: bytes | None, now: float = NOW) -> Plan:
    """What is decided when tasks with these hints have come; the last is in the pipe if it has
    none.
    """
    state.tasks = [Waiting(number, hint, now) for number, hint in enumerate(hints) if hint]
    if hints and hints[-1] is None:
        state.head = Waiting(len(hints) - 1, None, now)
    return again(state, now)


def again(state: State, now: float) -> Plan:
    return decide(state, [number for number, each in state.seats.items() if each.idle], now)


def given(plan: Plan) -> dict[int, int]:
    return {worker: task.task_id for worker, task in plan.given.items()}


def test_a_task_goes_to_the_idle_holder_that_was_used_last() -> None:
    state = node(w0=seat(A, used=5), w1=seat(used=9), w2=seat(A, used=7))
    assert given(wait_for(state, A)) == {2: 0}


def test_without_a_hint_it_goes_to_the_worker_that_was_used_last() -> None:
    assert given(wait_for(node(w0=seat(used=5), w1=seat(A, used=9)), None)) == {1: 0}


def test_one_that_nobody_holds_goes_where_least_is_given_up() -> None:
    state = node(w0=seat(B, used=1), w1=seat(A, C, used=2), w2=seat(A, used=3))
    assert given(wait_for(state, C, B, A)) == {0: 1, 1: 0, 2: 2}
    state = node(w0=seat(B, used=1), w1=seat(used=9))
    assert given(wait_for(state, A)) == {1: 0}


def test_it_waits_for_a_busy_holder_hardly_longer_than_its_load_takes() -> None:
    state = node(w0=seat(A, busy=True), w1=seat())
    end = NOW + WORTH * 2.0
    assert wait_for(state, A) == Plan({}, end)
    assert not again(state, end - 0.01).given
    assert given(again(state, end)) == {1: 0}


def test_it_waits_for_a_first_load_that_is_under_way() -> None:
    state = node(w0=seat(busy=True, doing=B), w1=seat())
    assert wait_for(state, B).again == NOW + PATIENCE, "nobody knows whether it loads"
    state.seats[0].loading = True
    assert again(state, NOW).again == NOW + LONGEST_LOAD


def test_of_two_with_a_new_hint_the_second_waits_for_the_first() -> None:
    plan = wait_for(node(w0=seat(used=1), w1=seat(used=2)), B, B)
    assert given(plan) == {0: 0}
    assert plan.again == NOW + PATIENCE


def test_hits_come_first_and_nothing_is_passed_over_for_long() -> None:
    state = node(w0=seat(A), w1=seat(A, busy=True))
    assert given(wait_for(state, B, A)) == {0: 1}
    state.tasks = [state.tasks[0], Waiting(2, A, NOW + 1)]
    assert given(again(state, NOW + PATIENCE - 0.1)) == {0: 2}
    assert given(again(state, NOW + PATIENCE)) == {0: 0}


def test_what_is_in_the_pipe_is_not_passed_over_for_ever_either() -> None:
    state = node(w0=seat(A))
    assert given(wait_for(state, A, None)) == {0: 0}
    state.head = Waiting(1, None, NOW, passed=NOW)
    state.tasks = [Waiting(2, A, NOW + 1)]
    assert given(again(state, NOW + 1)) == {0: 2}
    assert given(again(state, NOW + PATIENCE)) == {0: 1}


def test_nobody_idle_nothing_decided() -> None:
    assert wait_for(node(w0=seat(A, busy=True)), A) == Plan({}, math.inf)


LOW, HIGH, BACKLOG = 15, 100, 0
PREFETCH = 16


def runs(workers: int, load: float, rate: float) -> tuple[Outcome, Outcome]:
    work = Work(300, rate, load, median=0.005)
    stock = Node(work, workers, PREFETCH, routed=False).run()
    return Node(work, workers, PREFETCH).run(), stock


@pytest.mark.parametrize("rate", [LOW, HIGH, BACKLOG])
@pytest.mark.parametrize("load", [0.3, 10.0])
@pytest.mark.parametrize("workers", [4, 32])
def test_loads_in_a_simulated_node_are_hardly_more_than_keys(
    workers: int, load: float, rate: float
) -> None:
    ours, stock = runs(workers, load, rate)
    assert ours.loads <= 1.25 * 8
    assert stock.loads > 10 * 8
    if rate == BACKLOG and (workers == 4 or load > 1):  # else loads do not dominate
        assert ours.seconds < stock.seconds / 3
    if rate == LOW and load < 1:
        assert ours.wait(0.95) < load
