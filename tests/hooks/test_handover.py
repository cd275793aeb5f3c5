"""Jobs that hand over: Parsl's own strategy, on a batch system whose time passes in steps."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.jobs.strategy import Strategy

from gc_warm.hooks import handover
from tests.support import Clock

DRAIN = 600
POLL = 60  # seconds between two looks at the batch system, as with Slurm
LOOK = 5  # seconds between two of the strategy, and from a job's beginning to its manager's
BOOT = 'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot my_model:load)"'


@dataclass
class Job:
    """A job as the batch system knows it; its manager's number changes when it starts again."""

    asked: float
    begun: float = math.inf
    state: JobState = JobState.PENDING
    manager: int = 0
    tasks: int = 0


class Endpoint:
    """An executor, and a batch system in which jobs wait and start for so many seconds."""

    label = "endpoint"
    bad_state_is_set = False
    workers_per_node = 2

    def __init__(
        self, clock: Clock, max_jobs: int = 2, overlap: int = 0, queue: float = 20, load: float = 30
    ) -> None:
        self.clock = clock
        self.queue = queue
        self.load = load
        self.drain_period = DRAIN
        self.provider = SimpleNamespace(
            init_blocks=0,
            min_blocks=0,
            max_blocks=max_jobs,
            nodes_per_block=1,
            parallelism=1,
            worker_init=f"# gc_warm.hooks.handover overlap_jobs={overlap}\n{BOOT}",
        )
        self.strategy = Strategy(strategy="simple", max_idletime=math.inf)
        self.strategy.add_executors([self])  # type: ignore[list-item]

        self.jobs: dict[str, Job] = {}
        self.status_facade: dict[str, JobStatus] = {}
        self.blocks_to_job_id: dict[str, str] = {}
        self.refuses = False
        self.requests = 0
        self._task_counter = 0
        self._last_poll_time = 0.0
        self._waiting = 0
        self._history: list[str] = []

    def outstanding(self) -> int:
        return self._waiting + sum(job.tasks for job in self.jobs.values())

    def scale_out_facade(self, n: int) -> list[str]:
        """Submit jobs, as Parsl does; none while the batch system refuses them."""
        self.requests += 1
        if self.refuses:
            return []
        blocks = [str(len(self.jobs) + number) for number in range(n)]
        for block in blocks:
            self.jobs[block] = Job(self.clock.monotonic())
            self.status_facade[block] = JobStatus(JobState.PENDING)
            self.blocks_to_job_id[block] = f"10{block}"
        return blocks

    def connected_managers(self) -> list[dict[str, Any]]:
        return [
            {
                "block_id": block,
                "manager": f"{block}.{job.manager}",
                "tasks": job.tasks,
                "draining": self.age(job) >= DRAIN,
            }
            for block, job in self.jobs.items()
            if self.is_connected(job)
        ]

    def connected_blocks(self) -> list[str]:
        return self._history

    def age(self, job: Job) -> float:
        return self.clock.monotonic() - job.begun

    def is_connected(self, job: Job) -> bool:
        is_over = self.age(job) >= DRAIN and not job.tasks
        return job.state == JobState.RUNNING and self.age(job) >= LOOK and not is_over

    @property
    def alive(self) -> list[str]:
        """The jobs that the site counts."""
        return [block for block, job in self.jobs.items() if job.state < JobState.CANCELLED]

    @property
    def serving(self) -> list[str]:
        """The jobs that take tasks, and are warm."""
        return [
            block
            for block in self.alive
            if self.is_connected(self.jobs[block])
            and LOOK + self.load <= self.age(self.jobs[block]) < DRAIN
        ]

    def step(self, task: bool = True) -> None:
        """Let time pass until the next look, in which there is a quick task or none."""
        self.clock.advance(LOOK)
        now = self.clock.monotonic()
        for block, job in self.jobs.items():
            if job.state == JobState.PENDING and now >= job.asked + self.queue:
                job.state = JobState.RUNNING
                job.begun = now
            elif job.state == JobState.RUNNING:
                self._history += [block] * (self.age(job) in (LOOK, LOOK + self.load))
                if self.age(job) >= DRAIN and not job.tasks:
                    job.state = JobState.COMPLETED

        self._task_counter += task
        self._waiting = task and not self.serving
        if now >= self._last_poll_time + POLL:
            self._last_poll_time = now
            for block, job in self.jobs.items():
                self.status_facade[block] = JobStatus(job.state)
        self.strategy.strategize([self])  # type: ignore[list-item]

    def run(self, seconds: float, task: bool = True) -> Iterator[None]:
        """Let seconds pass, and stop at each look."""
        for _ in range(round(seconds / LOOK)):
            self.step(task)
            yield

    def pass_by(self, seconds: float, task: bool = True) -> None:
        for _ in self.run(seconds, task):
            pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The hook, with a time of its own."""
    monkeypatch.setattr(Strategy, "__init__", Strategy.__init__)
    clock = Clock()
    clock.advance(math.ceil(clock.monotonic()) - clock.monotonic())
    monkeypatch.setattr(handover, "time", clock)
    handover.install()
    return clock


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    messages = [each.getMessage() for each in caplog.records if each.name == "parsl.gc_warm"]
    return [message for message in messages if words in message]


def gap(endpoint: Endpoint, seconds: float) -> int:
    """Return in how many of the next seconds no job is warm."""
    return LOOK * sum(not endpoint.serving for _ in endpoint.run(seconds))


@pytest.mark.parametrize(("max_jobs", "overlap"), [(2, 0), (1, 1)], ids=["counts", "overlaps"])
@pytest.mark.parametrize("queue", [0, 20, 90])
def test_next_job_is_warm_before_the_last_drains(
    max_jobs: int, overlap: int, queue: float, clock: Clock
) -> None:
    endpoint = Endpoint(clock, max_jobs, overlap, queue=queue)
    endpoint.pass_by(queue + 60)
    for _ in endpoint.run(6 * DRAIN):
        assert endpoint.serving
        assert len(endpoint.alive) <= 2
    begun = [job.begun for job in endpoint.jobs.values()][1:-1]
    least = DRAIN - handover.lead(queue + LOOK + 30, DRAIN, LOOK) + queue
    assert all(
        least - 2 * LOOK <= after - before <= least + 2 * LOOK
        for before, after in itertools.pairwise(begun[1:])
    ), "it is asked for no sooner than it has to be"


def test_ceiling_of_one_means_a_gap_that_is_said(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint(clock, max_jobs=1)
    endpoint.pass_by(60)
    waited = 0
    for _ in endpoint.run(2 * DRAIN):
        waited += LOOK * (not endpoint.serving)
        assert len(endpoint.alive) <= 1
    assert len(endpoint.jobs) == 3
    assert waited <= 2 * (20 + 30 + 3 * LOOK), "no batch status is waited for"
    lines = said(caplog, "its successor has to wait for the end of a job: there are 1, with a ")
    assert len(lines) == 2
    assert lines[0].endswith("maximum of 1, and overlap_jobs is 0")


def test_queue_longer_than_the_lead_is_said(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint(clock, queue=400)
    endpoint.pass_by(440)
    waited = gap(endpoint, 1200)
    assert 0 < waited < 400
    (line,) = said(caplog, "is not ready")
    assert line.startswith("job 100 (block 0) drains, and its successor, job 101 (block 1), is ")


def test_refusal_leaves_that_job_to_stock(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint(clock)
    endpoint.pass_by(300)
    endpoint.refuses = True
    endpoint.requests = 0
    while endpoint.age(endpoint.jobs["0"]) < DRAIN - LOOK:
        endpoint.step()
    assert endpoint.requests == 1
    assert said(caplog, "takes no successor of job 100 (block 0): that job ends as it would")

    endpoint.refuses = False
    endpoint.pass_by(100)
    assert endpoint.serving, "Parsl's own strategy has asked"
    assert gap(endpoint, 3 * DRAIN) == 0, "and the next job has a successor"


def test_without_work_a_job_has_no_successor(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "RECENT", 300)
    endpoint = Endpoint(clock)
    endpoint.pass_by(100)
    endpoint.pass_by(2 * DRAIN, task=False)
    assert len(endpoint.jobs) == 1


def test_no_more_jobs_follow_than_are_needed(clock: Clock) -> None:
    endpoint = Endpoint(clock, max_jobs=8)
    endpoint.scale_out_facade(3)
    endpoint.pass_by(60)
    assert gap(endpoint, DRAIN) == 0
    assert len(endpoint.jobs) == 4, "three had tasks for one"


def test_draining_job_gives_no_free_slots(clock: Clock) -> None:
    endpoint = Endpoint(clock)
    endpoint.pass_by(60)
    endpoint.jobs["0"].tasks = 1
    endpoint.pass_by(DRAIN, task=False)
    assert endpoint.alive == ["0", "1"]
    endpoint._waiting = 2
    endpoint.strategy.strategize([endpoint])  # type: ignore[list-item]
    assert len(endpoint.jobs) == 2, "it counts for the maximum all the same"


def test_job_that_is_queued_again_counts_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "parsl.gc_warm")
    endpoint = Endpoint(clock)
    endpoint.pass_by(200)
    again = endpoint.jobs["0"]
    again.state = JobState.PENDING
    again.asked = clock.monotonic() + 100
    again.begun = math.inf
    again.manager += 1
    endpoint.pass_by(200)
    assert endpoint.alive == ["0"]
    assert said(caplog, "job 100 (block 0) is in the queue again")

    for _ in endpoint.run(3 * DRAIN):
        assert endpoint.serving
        assert len(endpoint.alive) <= 2


@pytest.mark.parametrize("state", [JobState.HELD, JobState.UNKNOWN])
def test_suspended_job_counts_as_a_job(state: JobState, clock: Clock) -> None:
    endpoint = Endpoint(clock)
    endpoint.pass_by(60)
    endpoint.scale_out_facade(1)
    endpoint.pass_by(60)
    endpoint.jobs["0"].state = state
    while endpoint.age(endpoint.jobs["1"]) < DRAIN - LOOK:
        endpoint.step()
    assert len(endpoint.jobs) == 2, "there is no room for a third"


def test_preempted_job_makes_room(clock: Clock) -> None:
    endpoint = Endpoint(clock)
    endpoint.pass_by(300)
    endpoint.jobs["0"].state = JobState.TIMEOUT
    endpoint.pass_by(POLL + 100)
    assert endpoint.serving == ["1"]
    assert gap(endpoint, 2 * DRAIN) == 0


def test_lost_successor_leaves_the_job_to_stock(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint(clock, queue=90)
    endpoint.pass_by(150)
    while len(endpoint.jobs) < 2:
        endpoint.step()
    endpoint.jobs["1"].state = JobState.CANCELLED
    while endpoint.age(endpoint.jobs["0"]) < DRAIN - LOOK:
        endpoint.step()
    assert len(endpoint.jobs) == 2
    assert said(caplog, "job 101 (block 1), the successor of job 100 (block 0), has ended")


def test_failure_leaves_parsls_own_strategy(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint(clock)
    endpoint.pass_by(100)
    endpoint.connected_managers = lambda: [{}]  # type: ignore[method-assign]
    while endpoint.age(endpoint.jobs["0"]) < DRAIN:
        endpoint.step()
    assert len(endpoint.jobs) == 1
    endpoint.pass_by(POLL + 100)
    assert endpoint.serving
    (line,) = said(caplog, "")
    assert line == "jobs do not hand over from here"


def test_config_that_does_not_drain_is_left_alone(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint(clock)
    endpoint.drain_period = 0
    endpoint.pass_by(60)
    assert endpoint.serving
    assert "handover needs a drain_period, and the engine has none" in caplog.text


@pytest.mark.parametrize(
    ("worker_init", "overlap"),
    [
        ("# gc_warm.hooks.handover overlap_jobs=3", 3),
        ("export X=1\n  # gc_warm.hooks.handover\nmodule load x", 0),
        ("echo # gc_warm.hooks.handover", None),
        ("# gc_warm.hooks.handover please", None),
        ("", None),
    ],
)
def test_config_asks_by_a_line_of_its_own(worker_init: str, overlap: int | None) -> None:
    assert handover.overlap_jobs(worker_init) == overlap


def test_configs_that_do_not_ask_see_the_executor_itself(clock: Clock) -> None:
    endpoint = Endpoint(clock)
    endpoint.provider.worker_init = BOOT
    seen: list[Any] = []
    strategy = handover._Handover(seen.extend)
    strategy.strategize([endpoint])
    assert seen == [endpoint]
    assert isinstance(handover._Overlay(endpoint), Endpoint), "as the strategy asks"
    assert not hasattr(Strategy(strategy="none", max_idletime=1).strategize, "__wrapped__")


def test_other_parsl_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strategy, "__init__", lambda self, kind: None)
    changed = Strategy.__init__
    with pytest.raises(TypeError, match=re.escape("not as gc_warm knows it: (self, kind)")):
        handover.install()
    assert Strategy.__init__ is changed
