"""A real Slurm on this machine, for tests: a controller and virtual nodes, all in one folder."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from tests.support import wait_until

_DAEMONS = ("munged", "slurmctld", "slurmd")
_CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
_TASK_PLUGINS = ("task/affinity", "task/none")
"""In the order of preference: the second one where slurmd cannot run with the first."""
_LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket; Linux has 108 with the zero at the end."""
_LOWEST_PORT = 20_000
"""Below those that Linux gives to whoever asks for any, from 32768 on."""
_PORTS = 1000
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={uid}
SlurmdUser={uid}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
# The daemons log to their standard errors, which are files here. Job steps have no other place.
SlurmctldLogFile=/dev/null
SlurmdLogFile={folder}/%n.steps
SlurmdParameters=config_overrides
# No cgroups: containers seldom let us have any.
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
# A step that does not say how many cores it wants gets one: what a strict site does to it.
TaskPluginParam=autobind=cores
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
OverTimeLimit=0
InactiveLimit=0
# An ended job can be asked about for as long as the tests may take.
MinJobAge=86400
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs={cpus} RealMemory=4096 {gres} State=UNKNOWN"
)


@dataclass(frozen=True)
class SlurmJob:
    """One line of squeue.

    Attributes:
        id: the number that sbatch printed
        name: the job's name
        state: in capitals, as in ``PENDING``, ``RUNNING``, ``COMPLETING``, ``COMPLETED``,
            ``CANCELLED``, ``TIMEOUT``
        nodes: the nodes it has or had, none while it waits
    """

    id: str
    name: str
    state: str
    nodes: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in _ENDED


class SlurmCluster:
    """Virtual nodes on this machine, with a partition ``debug``.

    They are there for as long as the ``with`` block lasts. Any user can run them, and everything
    runs as that user: the daemons are children of this process, and know only the files in their
    folder. Each cluster has ports of its own, so that there can be several at a time. Each node has
    all cores of the machine.

    There is no accounting, so ``sacct`` fails; ended jobs are seen with ``squeue -t all`` and
    ``scontrol show job``. Slurm looks at time limits every 30 seconds, counted from the
    controller's start, so a job may have up to that much more than its limit.
    """

    def __init__(self, folder: Path, *, nodes: int = 2, gpus_per_node: int = 0) -> None:
        """Describe a cluster; ``with`` starts it.

        Args:
            folder: where everything is kept; created if need be, never removed, but jobs of an
                earlier start there are forgotten
            nodes: how many nodes, named ``n1`` and so on
            gpus_per_node: pretended GPUs of each node, granted by Slurm and named in
                ``CUDA_VISIBLE_DEVICES``

        Raises:
            ValueError: the folder's path is too long for sockets in it, or cannot be written in
                slurm.conf
        """
        self.folder = folder.resolve()
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))

        longest = f"{self.folder}/{self.nodes[-1]}/{self.nodes[-1]}_9999.4294967291"
        if excess := max(0, len(os.fsencode(longest)) - _LONGEST_SOCKET):
            raise ValueError(
                f"the path {self.folder} is {excess} bytes too long for Slurm's sockets in it"
            )
        if odd := re.findall(r"[^\w./+@:-]", str(self.folder)):
            raise ValueError(f"slurm.conf cannot name {self.folder}, because of {odd}")

        self.gpus_per_node = gpus_per_node
        self.binds_cores = False
        """Whether job steps are bound to the cores they asked for; known once the cluster is up."""
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._up = False

    @staticmethod
    def missing() -> str | None:
        """Return why there can be no cluster on this machine, or None if there can."""
        missing = [name for name in (*_DAEMONS, *_CLIENTS) if _program(name) is None]
        return f"programs of Slurm and munge are missing: {', '.join(missing)}" if missing else None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a program needs to reach this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> SlurmCluster:
        for task_plugin in _TASK_PLUGINS:
            try:
                self._start(task_plugin)
            except BaseException as error:
                logs = self._log_tails()
                self._stop()
                cannot_run = f"cannot create task context for {task_plugin}" in logs
                if cannot_run and task_plugin != _TASK_PLUGINS[-1]:
                    continue
                if not isinstance(error, Exception):
                    raise
                raise RuntimeError(f"Slurm does not start: {error}\n{logs}") from error

            self.binds_cores = task_plugin == "task/affinity"
            break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def command(self, *words: str, text: str = "", seconds: float = 120.0) -> str:
        """Run a client program of Slurm, and return what it prints.

        Args:
            words: the program and its arguments
            text: its standard input, such as a script for sbatch
            seconds: how long it may take

        Raises:
            RuntimeError: the program failed
            subprocess.TimeoutExpired: it took too long, and was killed
        """
        process = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            env=self._clean_environment(),
            timeout=seconds,
        )
        if process.returncode:
            command = " ".join(words)
            raise RuntimeError(f"{command} ended with {process.returncode}: {process.stderr}")
        return process.stdout

    def jobs(self) -> list[SlurmJob]:
        """Return all jobs there have been, the ended ones too, the oldest first."""
        options = ("--noheader", "--states=all", "--sort=i", "--format=%i|%T|%N|%j")
        lines = self.command("squeue", *options).splitlines()
        fields = [line.split("|", maxsplit=3) for line in lines]
        return [SlurmJob(job, name, state, _expanded(nodes)) for job, state, nodes, name in fields]

    def job(self, job_id: str) -> SlurmJob:
        """Return one of the jobs."""
        return next(job for job in self.jobs() if job.id == job_id)

    def cancel(self, *job_ids: str) -> None:
        """Tell jobs to end; those that do not are killed 5 seconds later."""
        self.command("scancel", *job_ids)

    def wait_for_state(self, job_id: str, *states: str, seconds: float = 120.0) -> SlurmJob:
        """Wait until a job is in one of these states."""
        what = f"job {job_id} is {' or '.join(states)}"
        wait_until(lambda: self.job(job_id).state in states, what, seconds)
        return self.job(job_id)

    def _clean_environment(self) -> dict[str, str]:
        """Return this process's environment, without a cluster that it may run on itself."""
        foreign = ("SLURM", "SBATCH", "SRUN", "SQUEUE", "SINFO", "SCANCEL")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return own | self.environment

    def _start(self, task_plugin: str) -> None:
        self._write_files(task_plugin)
        inside = [f"--{what}-file={self.folder}/munged.{what}" for what in ("log", "pid", "seed")]
        # The folder is private, which munged would refuse without --force: it is made for clients
        # that are other users.
        self._run_daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={self.folder}/key",
            f"--socket={self.folder}/munge",
            *inside,
        )
        wait_until((self.folder / "munge").is_socket, "munged listens")

        self._run_daemon("slurmctld", "-D")
        # who comes earlier tries again only a second later
        wait_until(self._controller_listens, "the controller listens")

        for node in self.nodes:
            self._run_daemon("slurmd", "-D", "-N", node)
        wait_until(self._nodes_are_idle, "all nodes are idle")
        self._up = True

    def _write_files(self, task_plugin: str) -> None:
        for name in ("state", *self.nodes):
            # what an earlier start knew about its jobs
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)

        # only a socket that is new means that munged listens
        (self.folder / "munge").unlink(missing_ok=True)
        (self.folder / "key").touch(mode=0o600)
        (self.folder / "key").write_bytes(os.urandom(128))

        host = socket.gethostname().partition(".")[0]
        port, *ports = _free_ports(1 + len(self.nodes))
        gres = f"Gres=gpu:h100:{self.gpus_per_node}" if self.gpus_per_node else ""
        nodes = [
            _NODE.format(name=name, host=host, port=port, cpus=os.cpu_count(), gres=gres)
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        configuration = _CONFIGURATION.format(
            port=port,
            host=host,
            uid=os.getuid(),
            folder=self.folder,
            task_plugin=task_plugin,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(configuration)

        devices = []
        for number in range(self.gpus_per_node):
            # Slurm sets CUDA_VISIBLE_DEVICES only for devices, numbered by the names' ends
            device = self.folder / f"gpu{number}"
            with contextlib.suppress(FileExistsError):
                device.symlink_to("/dev/null")
            devices.append(f"Name=gpu Type=h100 File={device}\n")
        (self.folder / "gres.conf").write_text("".join(devices))

    def _run_daemon(self, name: str, *arguments: str) -> None:
        """Start a child in a session of its own.

        There a Ctrl-C for the tests does not end it before its jobs.
        """
        program = _program(name)
        assert program is not None, f"{name} is missing"

        log_name = f"{name}.{arguments[-1]}.log" if "-N" in arguments else f"{name}.log"
        with open(self.folder / log_name, "wb") as log:
            daemon = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._clean_environment(),
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def _controller_listens(self) -> bool:
        self._check_daemons()
        log = (self.folder / "slurmctld.log").read_text(errors="replace")
        return "Running as primary controller" in log

    def _nodes_are_idle(self) -> bool:
        self._check_daemons()
        # a line for each partition that a node is in
        states = self.command("sinfo", "--noheader", "--Node", "--format=%N:%T").split()
        return set(states) == {f"{node}:idle" for node in self.nodes}

    def _check_daemons(self) -> None:
        ended = [daemon for daemon in self._daemons if daemon.poll() is not None]
        if ended:
            names = [Path(daemon.args[0]).name for daemon in ended]  # type: ignore[index,arg-type]
            raise RuntimeError(f"{', '.join(names)} ended")

    def _log_tails(self) -> str:
        tails = []
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            tails += [f"{log.name}:", *lines[-15:]]
        return "\n".join(tails)

    def _stop(self) -> None:
        """End the jobs, then the daemons, then what escaped both.

        A step's process may have left its family.
        """
        if self._up and all(daemon.poll() is None for daemon in self._daemons):
            # jobs that do not end in time, or cannot be told to, are killed below
            with contextlib.suppress(Exception):
                self.command("scancel", "--quiet", f"--user={os.getuid()}", seconds=1)
                wait_until(
                    lambda: not self.command("squeue", "--noheader", seconds=1), "all jobs ended"
                )

        self._up = False
        for daemon in self._daemons:
            # asked politely, the controller waits for jobs that are ending, and writes down a state
            # nobody reads
            daemon.kill()
        for daemon in self._daemons:
            daemon.wait()
        self._daemons.clear()

        wait_until(lambda: not self._kill_leftovers(), "all processes of the jobs ended")

    def _kill_leftovers(self) -> list[psutil.Process]:
        """Kill what is left of Slurm and of the jobs, whose parent is init.

        Slurm's processes are known by their folder, and those of jobs by their environment.
        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._is_slurm(process) or self._is_in_a_job(process):
                    process.kill()
                    found.append(process)
        return found

    def _is_slurm(self, process: psutil.Process) -> bool:
        # not by its environment: a slurmstepd has none, as it writes its title over it
        is_named_so = process.name().startswith(("munge", "slurm"))
        return is_named_so and process.cwd() == str(self.folder)

    def _is_in_a_job(self, process: psutil.Process) -> bool:
        # A test may have SLURM_CONF too, to use the cluster, but is in no job of it.
        environment = process.environ()
        is_ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
        return is_ours and "SLURM_JOB_ID" in environment


def _program(name: str) -> str | None:
    """Return the path of a program; an ordinary user's PATH may lack the folders of the daemons."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody has, and that nobody gets who asks for any port.

    They are held all at once, so that they differ, and given back. Other processes of the same run
    of pytest choose among others.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _LOWEST_PORT + process * _PORTS
    candidates = random.SystemRandom().sample(range(first, first + _PORTS), _PORTS)

    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody has it
                one.bind(("", candidates[-1]))
                ports.append(candidates[-1])
            candidates.pop()
        return ports


def _expanded(nodes: str) -> tuple[str, ...]:
    """Return the names in Slurm's short form, such as ``n[1-2,4]``."""
    names: list[str] = []
    for part in nodes.removeprefix("n").strip("[]").split(",") if nodes else ():
        first, _, last = part.partition("-")
        names += [f"n{number}" for number in range(int(first), int(last or first) + 1)]
    return tuple(names)
