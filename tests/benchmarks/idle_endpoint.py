"""An idle user endpoint of ours beside a stock one: ``python tests/benchmarks/idle_endpoint.py``.

Two real daemons on one `LocalCloud`, which needs port 5000: one with the config ``local``, as
`gc-warm configure` makes an endpoint of it, with its hook in the user endpoint; one with the
template of globus-compute-endpoint, whose block that makes an environment with uv is left out,
and which is told to stay for an hour, where it would end its worker after two minutes and itself
after five. Each runs one task, and has one warm worker from then on. What is counted is for the
user endpoint with all that it has started (interchange, block, manager, worker), in the same
minutes without any task:

- processes, threads, resident memory and descriptors,
- system calls that name a file, as strace sees them: a shared file system would have to answer
  them. Without strace, read and write calls stand for them (/proc/PID/io).
- programs that were started, those of the scheduler among them.

With ``--slurm``, a real Slurm is started, and both submit to it. With ``--hooks``, the hooks of
ours in workers are switched on, too.

With ``--check``, the exit status is 1 if one of ours is more than 5 % above the stock one.

With ``--limit 64``, for root only: instead of that, our daemon is started as the user nobody under
``ulimit -u 64``, and whether a task ends there is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import globus_compute_endpoint.endpoint.config as stock
import psutil
from globus_compute_sdk import Executor
from globus_compute_sdk.sdk import executor as sdk_executor

from gc_warm.configs import folders, installing
from gc_warm.functions import count
from gc_warm.local import daemon
from gc_warm.local.cloud import LocalCloud
from gc_warm.local.daemon import EndpointDaemon

LIMIT = 0.05
START_TIMEOUT = 60  # seconds
CPU = "CPU seconds, an hour"  # told and not judged: it swings
UV = '{{ default_worker_init | default("") | indent(6) }}'
SETTLE = 15  # seconds, after which what comes with a start is over, such as first looks at jobs
SCHEDULER = ("sbatch", "squeue", "scancel", "sacct", "scontrol", "sinfo")


def stock_config(folder: Path, is_slurm: bool) -> Path:
    """Make the folder of an endpoint as ``globus-compute-endpoint configure`` makes it."""
    shutil.copytree(Path(stock.__file__).parent, folder, ignore=shutil.ignore_patterns("*.py*"))
    (folder / "default_config.yaml").rename(folder / "config.yaml")
    (folder / "user_environment.yaml").unlink()

    template = folder / "user_config_template.yaml.j2"
    text = template.read_text()
    if UV not in text or "type: LocalProvider" not in text:
        raise SystemExit(f"{template} is not as this script knows it")
    if is_slurm:
        slurm = "type: SlurmProvider\n    exclusive: false\n    launcher: {type: SrunLauncher}"
        text = text.replace("type: LocalProvider", slurm)
    kept = "max_workers_per_node: 1\n  job_status_kwargs: {max_idletime: 3600}"
    text = text.replace(UV, "true").replace("max_workers_per_node: 1", kept)
    template.write_text(text.replace("idle_heartbeats_soft: 10\n", "idle_heartbeats_soft: 120\n"))
    return folder


def our_config(folder: Path, is_slurm: bool) -> Path:
    """Make the folder of an endpoint as ``gc-warm configure`` makes it."""
    source = folders.find_folder("slurm" if is_slurm else "local")
    installing.write(installing.plan(folder, source, {}))
    return folder


def family(cloud: LocalCloud, endpoint: EndpointDaemon) -> list[psutil.Process]:
    """Return the processes of the endpoint's user endpoint: named for it, or begun by such."""
    name = f"uep.{endpoint.endpoint_id}."
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_named = name in " ".join(process.cmdline())
            if is_named and process.environ().get("GC_WARM_ENGINE") == cloud.mark:
                found[process.pid] = process
                found.update((each.pid, each) for each in process.children(recursive=True))
    return list(found.values())


def standing(processes: list[psutil.Process]) -> dict[str, float]:
    """Return what processes have at this moment."""
    return {
        "processes": len(processes),
        "threads": sum(each.num_threads() for each in processes),
        "memory, MB (resident, added up)": sum(each.memory_info().rss for each in processes) / 1e6,
        "descriptors": sum(each.num_fds() for each in processes),
    }


def seconds_of_cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:4]) for each in processes if each.is_running())


class Calls:
    """The system calls of processes and of their children while it is used in ``with``.

    Args:
        processes: The processes.
        record: The file that strace writes.
    """

    def __init__(self, processes: list[psutil.Process], record: Path) -> None:
        self._processes = processes
        self._record = record
        self._strace: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Calls:
        self._before = self._reads_and_writes()
        if shutil.which("strace"):
            attached = [f"--attach={each.pid}" for each in self._processes]
            options = ["-f", "-qq", "-e", "trace=%file", "-o", str(self._record)]
            self._strace = subprocess.Popen(["strace", *options, *attached])
        return self

    def __exit__(self, *_: object) -> None:
        if self._strace is not None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.wait()
        self._after = self._reads_and_writes()

    def _reads_and_writes(self) -> int:
        io = [each.io_counters() for each in self._processes]
        return sum(each.read_count + each.write_count for each in io)

    def an_hour(self, seconds: float) -> dict[str, float]:
        """Return their numbers, as many as there would be in an hour."""
        counted = Counter({"programs started": 0, "scheduler calls": 0})
        if self._strace is None:
            counted.clear()
            counted["read and write calls"] = self._after - self._before
        else:
            for line in self._record.read_text(errors="replace").splitlines():
                # one with an empty name asks about a file that is open
                counted["calls that name a file"] += "(" in line and ', "", ' not in line
                if started := re.search(r'execve\("([^"]*)".* = 0$', line):
                    counted["programs started"] += 1
                    counted["scheduler calls"] += os.path.basename(started[1]) in SCHEDULER
        return {f"{name}, an hour": found * 3600 / seconds for name, found in counted.items()}


def compare(is_slurm: bool, more: Mapping[str, Any], seconds: float) -> float:
    """Print what each has, and return by how much ours is above the stock one at most."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = stack.enter_context(LocalCloud())
        os.environ.update(cloud.environment)

        options: dict[str, dict[str, Any]] = {
            "ours": {"workers_per_node": 1, **more},
            "stock": {},
        }
        endpoints = {
            "stock": EndpointDaemon(cloud, stock_config(scratch / "stock", is_slurm)),
            "ours": EndpointDaemon(cloud, our_config(scratch / "ours", is_slurm)),
        }
        for endpoint in endpoints.values():
            stack.callback(endpoint.close)

        for name, endpoint in endpoints.items():
            run_task(endpoint, options[name])
        time.sleep(SETTLE)

        figures = watch(cloud, endpoints, scratch, seconds)
    return report(figures["ours"], figures["stock"])


def run_task(endpoint: EndpointDaemon, options: Mapping[str, Any]) -> None:
    executor = Executor(endpoint.endpoint_id, user_endpoint_config=dict(options))
    future = executor.submit(count)
    wait([future], START_TIMEOUT)
    executor.shutdown(wait=False, cancel_futures=True)
    for watcher in list(sdk_executor._RESULT_WATCHERS.values()):
        watcher.shutdown(wait=False, cancel_futures=True)  # it would look for its service for ever

    if not future.done() or future.exception():
        told = endpoint.folder.parent.glob(f"uep.{endpoint.endpoint_id}.*/**/*.[le][or][gr]")
        words = [f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(told)]
        raise SystemExit("\n".join([f"no result: {future}", *words]))


def watch(
    cloud: LocalCloud, endpoints: Mapping[str, EndpointDaemon], scratch: Path, seconds: float
) -> dict[str, dict[str, float]]:
    """Return what each endpoint has and does in the same seconds."""
    families = {name: family(cloud, endpoint) for name, endpoint in endpoints.items()}
    figures = {name: standing(processes) for name, processes in families.items()}

    # first without strace, which takes time of its own
    before = {name: seconds_of_cpu(processes) for name, processes in families.items()}
    time.sleep(seconds)
    for name, processes in families.items():
        used = seconds_of_cpu(processes) - before[name]
        figures[name][CPU] = used * 3600 / seconds

    with contextlib.ExitStack() as stack:
        calls = {
            name: stack.enter_context(Calls(processes, scratch / f"{name}.strace"))
            for name, processes in families.items()
        }
        time.sleep(seconds)
    for name, counted in calls.items():
        figures[name].update(counted.an_hour(seconds))
    return figures


def report(ours: Mapping[str, float], stock: Mapping[str, float]) -> float:
    print(f"{'':34}{'ours':>8}{'stock':>8}  ratio")
    worst = 0.0
    for name in dict.fromkeys([*ours, *stock]):
        mine, theirs = ours.get(name, 0.0), stock.get(name, 0.0)
        ratio = mine / theirs if theirs else float(mine > 0) + 1
        if name != CPU:
            worst = max(worst, ratio - 1)
        print(f"{name:34}{mine:8.0f}{theirs:8.0f}  {ratio:.2f}")
    return worst


@contextlib.contextmanager
def limited_commands(folder: Path, user: str, processes: int) -> Iterator[None]:
    """Have daemons start as a user who may have so many processes and threads."""
    command = folder / "globus-compute-endpoint"
    real = Path(daemon._SCRIPTS, command.name)
    identity = pwd.getpwnam(user)
    command.write_text(
        f"#!/bin/bash\nulimit -u {processes}\n"
        f'[ $(id -u) = {identity.pw_uid} ] && exec {real} "$@"\n'
        f'chown -R {user} "$GLOBUS_COMPUTE_USER_DIR"\n'
        f"exec setpriv --reuid={identity.pw_uid} --regid={identity.pw_gid} --clear-groups "
        f'{real} "$@"\n'
    )
    command.chmod(0o755)
    former = daemon._SCRIPTS
    daemon._SCRIPTS = str(folder)
    try:
        yield
    finally:
        daemon._SCRIPTS = former


def try_limit(processes: int) -> None:
    """Print what a daemon of nobody has when a task has ended there; else what was said."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch.chmod(0o755)
        cloud = stack.enter_context(LocalCloud())
        os.environ.update(cloud.environment)
        stack.enter_context(limited_commands(scratch, "nobody", processes))

        endpoint = EndpointDaemon(cloud, "local")
        stack.callback(endpoint.close)
        run_task(endpoint, {"workers_per_node": 1})

        nobody = [each for each in psutil.process_iter() if each.username() == "nobody"]
        threads = sum(each.num_threads() for each in nobody)
        print(f"a task ended; {len(nobody)} processes with {threads} threads of {processes}")


def slurm(stack: contextlib.ExitStack) -> Mapping[str, str]:
    """Start a Slurm with two nodes, and return the variables that lead to it."""
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests.parent), str(tests / "modules")]
    from tests.slurm_cluster import SlurmCluster

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return stack.enter_context(SlurmCluster(folder, nodes=2)).environment


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if ours has more than it may")
    parser.add_argument("--slurm", action="store_true", help="on a real Slurm, started for this")
    parser.add_argument("--hooks", action="store_true", help="ours with its hooks switched on")
    parser.add_argument("--limit", type=int, help="processes that nobody may have")
    parser.add_argument("--seconds", type=float, default=120, help="(default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.limit:
        try_limit(arguments.limit)
        return 0

    options: dict[str, Any] = {}
    if arguments.hooks:
        options |= {"preload": ["gc_warm.warmables.counter"], "survive_idle_kill": True}
    if arguments.slurm:
        options |= {"address": "127.0.0.1"}

    with contextlib.ExitStack() as stack:
        if arguments.slurm:
            os.environ.update(slurm(stack))
        worst = compare(arguments.slurm, options, arguments.seconds)

    print(f"at most {LIMIT:.0%} may be added; found was {worst:+.0%}")
    return arguments.check and worst > LIMIT


if __name__ == "__main__":
    sys.exit(main())
