"""The claims of the rules, come true on the endpoint's real engine.

Each test bears the name of its rule. Those of the rules for functions are in the persistence table,
as far as they are about what is sent.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import identity_keys
import logbook
import preloaded
import pytest
import tasks
from globus_compute_common import messagepack
from globus_compute_endpoint.engines.base import GCFuture
from globus_compute_sdk.serialize import ComputeSerializer

from gc_warm import MockExecutor
from gc_warm.check import config_rules, function_rules
from gc_warm.check.rules import REPRODUCED
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders, loading
from gc_warm.exceptions import ConfigError
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon
from tests.support import EXPORT_MODULES, ScriptStep, breaks, has_ended, remote_text, wait_until

engine = pytest.mark.engine
START = 120  # seconds


def config(
    *settings: str, job: tuple[str, ...] = (), init: str = "", top: tuple[str, ...] = ()
) -> str:
    """A user endpoint on this machine whose engine looks often; *settings* come last."""
    if not any("job_status_kwargs" in line for line in settings):
        settings = ("job_status_kwargs: {strategy_period: 0.2}", *settings)

    lines = [
        *top,
        "engine:",
        "  type: GlobusComputeEngine",
        "  address: 127.0.0.1",
        "  heartbeat_period: 1",
        "  heartbeat_threshold: 5",
        *(f"  {line}" for line in settings),
        "  provider:",
        "    type: LocalProvider",
        *(f"    {line}" for line in job),
        "    worker_init: |",
        f"      {EXPORT_MODULES}",
        *(f"      {line}" for line in init.splitlines()),
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def running(text: str) -> Iterator[MockExecutor]:
    """An executor whose tasks may never end."""
    executor = MockExecutor(config=text)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)


@engine
@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("max_idle: 60", "max_idle"),
        ("strategy: Simple", "Simple"),
        ("strategy_period: '5'", "not supported between"),
    ],
)
def test_gcw001_the_engine_does_not_start(setting: str, what: str) -> None:
    with (
        pytest.raises((TypeError, KeyError), match=what),
        running(breaks(config(f"job_status_kwargs: {{{setting}}}"), "GCW001")),
    ):
        pass


@engine
def test_gcw001_idle_workers_never_end_where_their_idle_time_is_text() -> None:
    """Side by side with the same as a number: when that worker has ended, this one is there."""
    text = "job_status_kwargs: {strategy_period: 0.2, max_idletime: %s}"
    with running(breaks(config("max_workers_per_node: 1", text % "'1'"), "GCW001")) as wrong:
        kept, _ = wrong.submit(tasks.pid_and_count).result(START)
        with running(config("max_workers_per_node: 1", text % 1)) as right:
            ended, _ = right.submit(tasks.pid_and_count).result(START)
            wait_until(lambda: has_ended(ended), "the other worker has ended")
        assert not has_ended(kept)


@engine
def test_gcw000_the_endpoint_does_not_start() -> None:
    with (
        pytest.raises(ConfigError, match="max_wrokers"),
        running(breaks(config("max_wrokers: 1", "max_workers_per_node: 1"), "GCW000")),
    ):
        pass


WORKERS = {
    "the last of two": (
        "GCW002",
        config("max_workers_per_node: 1", "cores_per_worker: 0.1", "max_workers_per_node: 3"),
    ),
    "unset": ("GCW004", config()),
    "zero": ("GCW005", config("max_workers_per_node: 0")),
    "more than devices": (
        "GCW009",
        config("max_workers_per_node: 4", "cores_per_worker: 0.1", "available_accelerators: 2"),
    ),
}


@pytest.fixture(scope="module")
def workers_of_a_node() -> dict[str, int]:
    """Return how many there are with each of these configs.

    They run side by side, since most of the time is waiting.
    """

    def count(rule: str, text: str) -> int:
        with running(breaks(text, rule)) as executor:
            return int(executor.submit(tasks.environment, "PARSL_WORKER_COUNT").result(START) or 0)

    with ThreadPoolExecutor(len(WORKERS)) as pool:
        futures = {name: pool.submit(count, *case) for name, case in WORKERS.items()}
    return {name: future.result() for name, future in futures.items()}


@engine
def test_gcw002_the_last_one_counts(workers_of_a_node: dict[str, int]) -> None:
    assert workers_of_a_node["the last of two"] == 3


@engine
def test_gcw004_there_is_a_worker_for_each_core(workers_of_a_node: dict[str, int]) -> None:
    assert workers_of_a_node["unset"] == os.cpu_count()


@engine
def test_gcw005_zero_workers_are_as_many_as_cores(workers_of_a_node: dict[str, int]) -> None:
    assert workers_of_a_node["zero"] == os.cpu_count()


@engine
def test_gcw009_there_are_no_more_workers_than_devices(workers_of_a_node: dict[str, int]) -> None:
    assert workers_of_a_node["more than devices"] == 2


@engine
def test_gcw006_there_are_no_more_workers_than_cores() -> None:
    on_slurm = config("drain_period: 60", "max_workers_per_node: 3")
    breaks(on_slurm.replace("LocalProvider", "SlurmProvider\n    cores_per_node: 2"), "GCW006")
    # which the Slurm provider exports
    with running(config("max_workers_per_node: 3", init="export PARSL_CORES=2")) as executor:
        number = executor.submit(tasks.environment, "PARSL_WORKER_COUNT").result(START)
    assert number == "2"


@engine
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (config("max_workers_per_node: -1"), "a node has room for 0 workers"),
        (config("max_workers_per_node: 1", "cores_per_worker: 0"), "ZeroDivisionError"),
        (
            config("max_workers_per_node: 1", "cores_per_worker: .nan"),
            "cannot convert float NaN to integer",
        ),
        (
            config("max_workers_per_node: 1", job=("nodes_per_block: 0",)),
            "ended before its workers were ready",
        ),
    ],
)
def test_gcw005_there_are_no_workers(text: str, reason: str) -> None:
    with running(breaks(text, "GCW005")) as executor:
        said = remote_text(executor.submit(tasks.rank), START)
        assert re.search(f"(?s)WorkerStartError.*{reason}", said)


@engine
def test_gcw001_and_gcw005_no_job_ever_starts() -> None:
    """Side by side with one that may start one: when that has answered, the others have not."""
    text = config("max_workers_per_node: 1", job=("init_blocks: 0", "max_blocks: 1"))
    is_text = breaks(text.replace("blocks: 1", "blocks: '1'"), "GCW001")
    is_zero = breaks(text.replace("blocks: 1", "blocks: 0"), "GCW005")

    with running(is_text) as wrong, running(is_zero) as none, running(text) as right:
        waiting = [executor.submit(tasks.rank) for executor in (wrong, none)]
        assert right.submit(tasks.rank).result(START) == 0
        assert not any(future.done() for future in waiting)


def two_gpus(folder: Path) -> Path:
    """Write a program after which Parsl takes the machine for one with two NVIDIA GPUs."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: a'\necho 'GPU 1: b'\n")
    program.chmod(0o755)
    return program


def pinned(text: str, number: int, folder: Path) -> list[str | None]:
    """Return the device of each worker of a node, in the order of their ranks."""
    meeting = folder / "meeting"
    meeting.mkdir()
    with running(text) as executor:
        futures = [executor.submit(tasks.meet_as, str(meeting), number) for _ in range(number)]
        answers = [future.result(START) for future in futures]
    return [device for _, device in sorted((rank, device) for _, rank, _, device in answers)]


@engine
def test_gcw027_all_workers_are_on_the_first_gpu(tmp_path: Path) -> None:
    settings = (
        "max_workers_per_node: 4",
        "cores_per_worker: 0.1",
        "available_accelerators: ['0', '0', '1', '1']",
    )
    on_slurm = config("drain_period: 60", *settings)
    breaks(on_slurm.replace("LocalProvider", "SlurmProvider\n    gpus_per_node: 2"), "GCW027")
    text = config(*settings, init=f"export PATH={two_gpus(tmp_path).parent}:$PATH")
    assert pinned(text, 4, tmp_path) == ["0"] * 4


@engine
def test_gcw028_no_worker_is_pinned(tmp_path: Path) -> None:
    settings = ("max_workers_per_node: 2", "cores_per_worker: 0.1")
    on_slurm = config("drain_period: 60", *settings)
    breaks(on_slurm.replace("LocalProvider", "SlurmProvider\n    gpus_per_node: 2"), "GCW028")
    text = config(*settings, init=f"export PATH={two_gpus(tmp_path).parent}:$PATH")
    assert pinned(text, 2, tmp_path) == [None] * 2


@engine
def test_gcw029_both_variables_name_the_second_gpu() -> None:
    """Without nvidia-smi, as on a node of AMD."""
    settings = ("max_workers_per_node: 1", "available_accelerators: ['1']")
    on_slurm = config("drain_period: 60", *settings)
    breaks(on_slurm.replace("LocalProvider", "SlurmProvider\n    gres: 'gpu:mi250:2'"), "GCW029")
    assert rocr_pins(config(*settings)) == ["1", "1"]


@engine
def test_gcw029_a_worker_of_our_hook_has_one_of_them() -> None:
    settings = ("max_workers_per_node: 1", "available_accelerators: ['1']")
    init = 'eval "$(python -m gc_warm.worker.boot --amd-gpus)"'
    on_slurm = config("drain_period: 60", *settings, init=init).replace("LocalP", "SlurmP")
    assert config_rules.examine(on_slurm, "").findings == []
    assert rocr_pins(config(*settings, init=init)) == [None, "1"]


def rocr_pins(text: str) -> list[str | None]:
    with running(text) as executor:
        names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
        futures = [executor.submit(tasks.environment, name) for name in names]
        return [future.result(START) for future in futures]


@engine
def test_gcw008_a_worker_is_pinned_to_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """Two GPUs, as far as Parsl looks: it counts the lines of nvidia-smi."""
    program = two_gpus(tmp_path)

    settings = ("max_workers_per_node: 3", "cores_per_worker: 0.1", "available_accelerators: 3")
    with_gpus = config(*settings).replace("LocalProvider", "SlurmProvider\n    gpus_per_node: 2")
    breaks(with_gpus.replace("  provider:", "  drain_period: 60\n  provider:"), "GCW008")

    meeting = tmp_path / "meeting"
    meeting.mkdir()
    with running(config(*settings, init=f"export PATH={program.parent}:$PATH")) as executor:
        futures = [executor.submit(tasks.meet_as, str(meeting), 3) for _ in range(3)]
        answers = [future.result(START) for future in futures]

    devices = {rank: device for _, rank, _, device in answers}
    assert devices == {0: "0", 1: "1", 2: "2"}


@engine
def test_jobs_of_mpi_run_on_this_machine(tmp_path: Path) -> None:
    """With two nodes there is one manager, which is told of both."""
    text = (
        "engine:\n  type: GlobusMPIEngine\n  address: 127.0.0.1\n  heartbeat_period: 1\n"
        "  provider:\n    type: SlurmProvider\n    nodes_per_block: 2\n    init_blocks: 0\n"
        "    launcher: {type: SimpleLauncher}\n"
        f"    worker_init: {EXPORT_MODULES}\n"
    )
    path = tmp_path / "endpoint.yaml"
    path.write_text(text)
    with MockExecutor(config=path, on="local") as executor:
        executor.resource_specification = {"num_nodes": 2, "ranks_per_node": 1}
        assert executor.submit(tasks.rank).result(START) == 0


@engine
def test_gcw011_a_job_is_cancelled_before_it_was_ever_warm(tmp_path: Path) -> None:
    """It waits for what never comes, as in a queue, while there is no task."""
    part = tmp_path / "part"
    init = (
        f"echo $$ > {part} && mv {part} {tmp_path / 'pid'}\n"
        f"until [ -e {tmp_path / 'gate'} ]; do sleep 0.1; done"
    )
    text = config(
        "max_workers_per_node: 1",
        "job_status_kwargs: {strategy_period: 0.2, max_idletime: 2}",
        init=init,
    )

    with running(breaks(text, "GCW011", Numbers(queue_seconds=60))):
        wait_until((tmp_path / "pid").exists, "the job has started")
        job = int((tmp_path / "pid").read_text())
        wait_until(lambda: has_ended(job), "the job was ended")


@engine
def test_gcw012_the_endpoint_stops_before_its_workers_have_been_idle_for_long_enough(
    tmp_path: Path,
) -> None:
    text = config(
        "max_workers_per_node: 1",
        "job_status_kwargs: {max_idletime: 3600}",
        top=("heartbeat_period: 5", "idle_heartbeats_soft: 1"),
    )
    (tmp_path / folders.TEMPLATE).write_text(breaks(text, "GCW012"))
    (tmp_path / "config.yaml").write_text("display_name: null\n")

    with LocalCloud() as cloud, EndpointDaemon(cloud, tmp_path) as endpoint:
        pid, _ = ScriptStep(cloud.environment, endpoint.endpoint_id, "worker").answer()
        wait_until(lambda: has_ended(pid), "the endpoint has ended its worker")


@engine
def test_gcw013_idle_jobs_stay() -> None:
    scaling = "job_status_kwargs: {strategy_period: 0.2, max_idletime: 1}"
    text = config("max_workers_per_node: 1", scaling, job=("min_blocks: 1",))
    on_slurm = text.replace("LocalProvider", "SlurmProvider")
    breaks(on_slurm.replace("  provider:", "  drain_period: 60\n  provider:"), "GCW013")

    with running(text) as stays, running(text.replace("min_blocks: 1", "min_blocks: 0")) as ends:
        kept, _ = stays.submit(tasks.pid_and_count).result(START)
        ended, _ = ends.submit(tasks.pid_and_count).result(START)
        wait_until(lambda: has_ended(ended), "the other worker has ended")
        assert not has_ended(kept)


@engine
def test_gcw014_no_job_starts() -> None:
    text = config("max_workers_per_node: 1", "drain_period: 60").replace(
        "LocalProvider", "SlurmProvider\n    walltime: '30:00'"
    )
    with running(breaks(text, "GCW014")) as executor:
        assert "not enough values to unpack" in remote_text(executor.submit(tasks.rank), START)


@engine
def test_gcw017_a_task_waits_behind_another_though_a_worker_is_free(tmp_path: Path) -> None:
    """Two jobs of one worker each.

    The engine gives a task to either: within many tries to the busy one, where it stays.
    """
    text = config(
        "max_workers_per_node: 1", "prefetch_capacity: 1", job=("init_blocks: 2", "max_blocks: 2")
    )
    with running(breaks(text, "GCW017")) as executor:
        (tmp_path / "meeting").mkdir()
        meet_both(executor, tmp_path / "meeting")

        for number in range(40):
            begun = tmp_path / f"begun{number}"
            gate = tmp_path / f"gate{number}"
            long = executor.submit(tasks.begin_and_wait, str(begun), str(gate))
            wait_until(begun.exists, "the long task runs")

            quick = executor.submit(tasks.rank)
            is_stuck = not waited(quick, 3)
            gate.touch()
            assert (long.result(START), quick.result(START)) == (str(gate), 0)
            if is_stuck:
                return
    pytest.fail("in 40 tries, no task went to the busy one")


def meet_both(executor: MockExecutor, folder: Path) -> None:
    """Send tasks until both workers have reported.

    A pair of tasks may go to the same worker, and wait there for ever: so they are many.
    """
    futures = [executor.submit(tasks.note_manager, str(folder)) for _ in range(2)]
    for future in futures:
        future.result(START)
    while len(os.listdir(folder)) < 2:
        executor.submit(tasks.note_manager, str(folder)).result(START)


def waited(future: Future[Any], seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        future.result(seconds)
    return future.done()


@engine
def test_gcw018_state_never_becomes_warm(tmp_path: Path) -> None:
    text = breaks(
        config("max_workers_per_node: 1", init="export GC_TASK_TIMEOUT=10"),
        "GCW018",
        Numbers(load_seconds=60),
    )
    record = tmp_path / "loads"
    never = tmp_path / "never"

    with running(text) as executor:
        for number in (1, 2, 3):
            future = executor.submit(logbook.load_slowly, str(record), str(never))
            assert "AppTimeout" in remote_text(future, START)
            assert len(record.read_text().splitlines()) == number, "each task begins the load anew"


@contextlib.contextmanager
def pool(text: str, folder: Path) -> Iterator[Any]:
    """An engine without jobs, started as an endpoint does it."""
    loaded: Any = loading.load_to_start(breaks(text, "GCW019"), "x")
    loaded.engine.start(endpoint_id=uuid.uuid4(), run_dir=str(folder))
    try:
        yield loaded.engine
    finally:
        loaded.engine.shutdown(block=True)
        loaded.engine.executor = None
        gc.collect()  # a pool that is broken keeps its pipes until then


def error_in(pool: Any, function: Any, *arguments: Any) -> str | None:
    """Return what goes wrong with a task in that engine, None if nothing does."""
    serializer = ComputeSerializer()
    parts: tuple[Any, ...] = (function, arguments, {})
    buffer = serializer.pack_buffers([serializer.serialize(part) for part in parts])
    task = messagepack.message_types.Task(task_id=uuid.uuid4(), task_buffer=buffer)

    future = GCFuture(task.task_id)
    pool.submit(future, messagepack.pack(task), {})
    result: Any = messagepack.unpack(future.result(START))
    return result.data if result.error_details else None


@engine
def test_gcw019_threads_share_the_endpoints_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which a task changes for the whole endpoint
    monkeypatch.setenv("GC_TASK_UUID", "")
    with pool("engine:\n  type: ThreadPoolEngine\n  max_workers: 2\n", tmp_path) as threads:
        assert error_in(threads, tasks.set_environment, "GC_WARM_SEEN", "by all") is None
    assert os.environ.pop("GC_WARM_SEEN") == "by all"
    assert Path.cwd() == tmp_path / "tasks_working_dir"


@engine
def test_gcw019_all_tasks_fail_when_one_worker_of_a_process_pool_has_died(tmp_path: Path) -> None:
    with pool("engine:\n  type: ProcessPoolEngine\n  max_workers: 2\n", tmp_path) as processes:
        for function, arguments in ((tasks.end, ("os._exit",)), (tasks.rank, ()), (tasks.rank, ())):
            assert "BrokenProcessPool" in str(error_in(processes, function, *arguments))


@engine
def test_gcw021_a_relative_path_leads_elsewhere_in_each_task() -> None:
    text = config(
        "max_workers_per_node: 1", "run_in_sandbox: true", init="export MODEL_PATH=weights/model.pt"
    )
    with running(breaks(text, "GCW021")) as executor:
        seen = {executor.submit(tasks.real_path_of, "MODEL_PATH").result(START) for _ in range(3)}
    assert len(seen) == 3


@engine
def test_gcw024_quotes_are_lost() -> None:
    worker = (
        "globus-compute-endpoint python-exec parsl.executors.high_throughput.process_worker_pool"
    )
    text = config(
        "max_workers_per_node: 1",
        f"launch_cmd: \"env NOTE='a b' {worker} {{debug}} {{max_workers_per_node}}\"",
    )

    with running(breaks(text, "GCW024")) as executor:
        said = remote_text(executor.submit(tasks.rank), START)
        assert re.search(r"env: .b.: No such file or directory", said)


@engine
def test_gcw025_a_node_is_lost_between_two_heartbeats() -> None:
    text = config("max_workers_per_node: 1").replace("heartbeat_period: 1", "heartbeat_period: 30")
    with running(breaks(text, "GCW025")) as executor:
        assert "ManagerLost" in remote_text(executor.submit(tasks.wait_for_file, "/never"), START)


@engine
def test_gcw109_identity_key_is_refused() -> None:
    (found,) = function_rules.examine(identity_keys.__file__)
    assert found.rule == "GCW109"
    with running(config("max_workers_per_node: 1")) as executor:
        for _ in range(2):
            future = executor.submit(identity_keys.predict, identity_keys.Settings("a.pt"))
            said = remote_text(future, START)
            assert re.search("argument settings=.* compares by identity", said)


@engine
def test_gcw026_the_workers_start_without_it() -> None:
    specs = ["preloaded:needs_path", "preloaded:generator", "preloaded:missing"]
    line = f'eval "$(python -m gc_warm.worker.boot {" ".join(specs)})"'
    text = config("max_workers_per_node: 1", init=line)
    found = config_rules.examine(text, "").findings
    assert [each.text.split()[1] for each in found if each.rule == "GCW026"] == specs
    with running(text) as executor:
        assert executor.submit(preloaded.failures).result(START) == specs


@engine
def test_gcw034_a_job_ends_beside_a_busy_one(tmp_path: Path) -> None:
    scaling = (
        "job_status_kwargs: {strategy: htex_auto_scale, strategy_period: 0.2, max_idletime: 1}"
    )
    jobs = ("init_blocks: 2", "max_blocks: 2")
    text = breaks(config("max_workers_per_node: 1", scaling, job=jobs), "GCW034")

    with running(text) as executor:
        short = executor.submit(tasks.pid_at, str(tmp_path / "short"))
        long = executor.submit(tasks.pid_at, str(tmp_path / "long"))
        wait_until(lambda: len(os.listdir(tmp_path)) == 2, "both workers have a task")
        (tmp_path / "short" / "gate").touch()
        idle = short.result(START)
        wait_until(lambda: has_ended(idle), "the worker without a task has ended")

        assert not long.done()
        (tmp_path / "long" / "gate").touch()
        assert long.result(START) != idle


@engine
def test_gcw034_a_job_that_starts_is_ended_at_once(tmp_path: Path) -> None:
    """However long it may be idle: one of two, for a single task."""
    gate = tmp_path / "gate"
    scaling = "job_status_kwargs: {strategy: htex_auto_scale, strategy_period: 0.2}"
    init = f"touch {tmp_path}/$$\nuntil [ -e {gate} ]; do sleep 0.1; done"
    jobs = ("init_blocks: 2", "max_blocks: 2")
    text = config("max_workers_per_node: 1", scaling, job=jobs, init=init)

    with running(breaks(text, "GCW034")) as executor:
        wait_until(lambda: len(os.listdir(tmp_path)) == 2, "both jobs have started")
        pids = [int(name) for name in os.listdir(tmp_path)]
        future = executor.submit(tasks.rank)
        wait_until(lambda: any(has_ended(pid) for pid in pids), "one of them has ended")
        gate.touch()
        assert future.result(START) == 0


def output_of_job() -> str:
    paths = Path(tempfile.gettempdir()).rglob("submit_scripts/*.err")
    return "".join(path.read_text() for path in paths)


@engine
def test_gcw040_workers_of_mpi_are_not_forked(tmp_path: Path) -> None:
    boot = "gc_warm.worker.boot --preload-node=preloaded:table --warm-first"
    line = f'eval "$(globus-compute-endpoint python-exec {boot})"'
    text = (
        "engine:\n  type: GlobusMPIEngine\n  address: 127.0.0.1\n  heartbeat_period: 1\n"
        "  provider:\n    type: SlurmProvider\n    init_blocks: 0\n"
        "    launcher: {type: SimpleLauncher}\n"
        f"    worker_init: |\n      {EXPORT_MODULES}\n      {line}\n"
    )
    path = tmp_path / "endpoint.yaml"
    found = config_rules.examine(text, "x").findings
    assert {"GCW040", "GCW045"} <= {each.rule for each in found}
    path.write_text(text)
    with MockExecutor(config=path, on="local") as executor:
        executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 1}
        assert executor.submit(preloaded.failures).result(START) == ["preloaded:table"]
        born = executor.submit(tasks.birth).result(START)
        assert born == (None, "the workers of a GlobusMPIEngine are not forked")
        assert "warm_first is not done: a GlobusMPIEngine has given" in output_of_job()


ELSEWHERE = {
    "GCW006": "tests/check/test_on_engine.py::test_engine_whose_workers_cannot_start_says_why",
    "GCW039": "tests/journeys/test_slurm.py::test_gcw039_all_workers_of_a_node_share_a_core",
    "GCW007": "tests/check/test_on_engine.py::test_engine_whose_workers_cannot_start_says_why",
    "GCW010": "tests/journeys/test_slurm.py::test_gcw010_all_managers_are_on_the_first_node",
    "GCW016": "tests/journeys/test_slurm.py::test_gcw016_a_job_that_does_not_drain_loses_a_task",
    "GCW022": (
        "tests/journeys/test_slurm.py"
        "::test_gcw022_a_program_in_the_background_is_on_the_first_node_only"
    ),
    "GCW035": "tests/journeys/test_slurm.py::test_gcw035_a_signal_ends_a_job_before_its_walltime",
    "GCW045": "tests/check/test_rules_on_engine.py::test_gcw040_workers_of_mpi_are_not_forked",
    "GCW036": "tests/journeys/test_slurm.py::test_gcw036_a_job_is_run_again_and_its_task_is_not",
}
"""Rules whose claims come true in other tests."""


def test_every_rule_that_is_said_to_be_reproduced_is_reproduced() -> None:
    root = Path(__file__).parents[2]
    names = [name for name in globals() if name.startswith("test_gcw")]
    tests = [f"tests/check/{Path(__file__).name}::{name}" for name in names]
    for test in (*ELSEWHERE.values(), *tests):
        path, _, name = test.partition("::")
        body = ast.parse((root / path).read_text()).body
        assert name in [node.name for node in body if isinstance(node, ast.FunctionDef)], test

    here = {f"GCW{name[8:11]}" for name in names}
    rules = [*config_rules.RULES.values(), function_rules.RULES["GCW109"]]
    assert here | set(ELSEWHERE) == {rule.id for rule in rules if rule.evidence == REPRODUCED}
