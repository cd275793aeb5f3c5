"""The rules for configs, held against miniatures.

Each rule finds its miniature, is content with the repaired twin, and leaves alone what is as it
should be.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from globus_compute_endpoint.endpoint import config as endpoint_config

from gc_warm.check import config_rules, folder_rules, rulebook, targets
from gc_warm.check.rules import REPRODUCED, Finding
from gc_warm.check.task_facts import Numbers
from gc_warm.configs import folders, loading, meaning, rendering
from gc_warm.exceptions import ConfigError
from gc_warm.hooks import STARTUP
from tests.support import MODULES

OLDER_LOADER = not hasattr(endpoint_config, "CoreEndpointConfig")
"""Whether this endpoint's loader is one that also looks at types, as pydantic does."""


def engine(
    *settings: str,
    provider: str = "LocalProvider",
    job: tuple[str, ...] = (),
    top: tuple[str, ...] = (),
    workers: str = "2",
) -> str:
    """The YAML of a user endpoint with these settings."""
    sized = [f"max_workers_per_node: {workers}"] if workers else []
    lines = [
        *top,
        "engine:",
        "  type: GlobusComputeEngine",
        "  address: 127.0.0.1",
        *(f"  {line}" for line in [*sized, *settings]),
        "  provider:",
        f"    type: {provider}",
        *(f"    {line}" for line in job),
        "",
    ]

    return "\n".join(lines)


def slurm(*job: str, engine_settings: tuple[str, ...] = (), **more: Any) -> str:
    """The same on Slurm, with a drain and an end of idle jobs, as they should be."""
    return engine(
        "drain_period: 3000",
        *engine_settings,
        provider="SlurmProvider",
        job=("walltime: '01:00:00'", *job),
        **more,
    )


def pbs(*job: str, **more: Any) -> str:
    """The same on PBS."""
    job = ("walltime: '01:00:00'", *job)
    return engine("drain_period: 3000", provider="PBSProProvider", job=job, **more)


def contained(options: str, init: str, program: str = "docker") -> str:
    """The same in a container."""
    settings = (f"container_type: {program}", "container_uri: a")
    return engine(*settings, f"container_cmd_options: {options}", job=(f"worker_init: {init}",))


def preloading(specs: str) -> tuple[str, ...]:
    """The settings of a provider whose workers find the tests' modules, and preload these."""
    path = f"export PYTHONPATH='{MODULES}'\"${{PYTHONPATH:+:$PYTHONPATH}}\""
    line = f'eval "$(globus-compute-endpoint python-exec gc_warm.worker.boot {specs} || echo)"'
    return ("worker_init: |", f"  {path}", "  # gc_warm.worker.boot preloaded:fail", f"  {line}")


def mpi(job: tuple[str, ...]) -> str:
    """A config of a GlobusMPIEngine, whose provider has these settings."""
    text = engine(job=(*job, "launcher: {type: SimpleLauncher}"))
    text = text.replace("GlobusComputeEngine", "GlobusMPIEngine")
    return text.replace("max_workers_per_node", "max_workers_per_block")


@dataclass(frozen=True)
class Case:
    """A miniature that breaks one rule, its twin that breaks none, and the finding of the first.

    Attributes:
        bad: The miniature.
        good: The twin.
        says: A part of the finding's text.
        at: The start of the line where the finding is.
        numbers: What is known of the tasks.
    """

    bad: str
    good: str
    says: str
    at: str
    numbers: Numbers = field(default_factory=Numbers)


IDLE = "job_status_kwargs: {max_idletime: %s}"
SRUN = "launcher: {type: SrunLauncher}"
IN_DOCKER = (
    "container_type: docker",
    "container_uri: a",
    "container_cmd_options: --init",
    "cores_per_worker: 1",
)
AUTO_SCALE = "job_status_kwargs: {strategy: htex_auto_scale, max_idletime: %s}"
CASES: list[tuple[str, Case]] = [
    (
        "GCW000",
        Case(
            engine("max_wrokers: 3"),
            engine(),
            "unexpected keyword argument 'max_wrokers'",
            "max_wrokers",
        ),
    ),
    (
        "GCW000",
        Case(
            slurm("cores_per_node: 4", engine_settings=("cores_per_worker: .nan",)),
            slurm("cores_per_node: 4", engine_settings=("cores_per_worker: 1",)),
            "cores_per_worker .nan is not a number; write one, or leave it out",
            "cores_per_worker",
        ),
    ),
    (
        "GCW001",
        Case(
            engine(job=("parallelism: .nan",)),
            engine(job=("parallelism: 0.5",)),
            "parallelism .nan is not a number",
            "parallelism",
        ),
    ),
    (
        "GCW001",
        Case(
            engine().replace("127.0.0.1", "login01.site.org"),
            engine().replace("127.0.0.1", "{type: address_by_hostname}"),
            "address 'login01.site.org' is no IP address",
            "address",
        ),
    ),
    (
        "GCW001",
        Case(
            engine("job_status_kwargs: {max_idle: 60}"),
            engine(IDLE % 60),
            "has no 'max_idle'",
            "job_status_kwargs",
        ),
    ),
    (
        "GCW001",
        Case(
            engine(IDLE % "'60'"),
            engine(IDLE % ".inf"),
            "max_idletime '60' is no number",
            "job_status_kwargs",
        ),
    ),
    (
        "GCW001",
        Case(
            engine("job_status_kwargs: {strategy_period: 0}"),
            engine(),
            "strategy_period 0",
            "job_status_kwargs",
        ),
    ),
    (
        "GCW001",
        Case(
            engine("job_status_kwargs: {strategy: Simple}"),
            engine(),
            "strategy 'Simple' is none of none, simple",
            "job_status_",
        ),
    ),
    (
        "GCW001",
        Case(
            engine("strategy: {type: SimpleStrategy, max_idletime: 300}"),
            engine("strategy: simple", IDLE % 300),
            "write strategy: simple and job_status_kwargs: {max_idletime: 300}",
            "strategy",
        ),
    ),
    (
        "GCW001",
        Case(
            engine(job=("max_blocks: '2'",)),
            engine(job=("max_blocks: 2",)),
            "max_blocks '2' is not a number",
            "max_blocks",
        ),
    ),
    (
        "GCW001",
        Case(
            engine(job=("init_blocks: yes",)),
            engine(job=("parallelism: 0.5",)),
            "init_blocks True is not a",
            "init_blocks",
        ),
    ),
    (
        "GCW001",
        Case(
            engine("drain_period: 100", provider="PBSProProvider", job=("worker_init: [a]",)),
            engine("drain_period: 100", provider="PBSProProvider", job=("walltime: 3600",)),
            "worker_init ['a'] is not text",
            "worker_init",
        ),
    ),
    (
        "GCW002",
        Case(
            engine("max_workers_per_node: 4"),
            engine(),
            "max_workers_per_node is given twice",
            "max_workers_per_node: 4",
        ),
    ),
    (
        "GCW002",
        Case(
            engine(job=("min_blocks: 0", "min_blocks: 0")),
            engine(job=("min_blocks: 0",)),
            "min_blocks is given",
            "min_blocks",
        ),
    ),
    ("GCW003", Case("display_name: mine\n", engine(), "no 'engine:' section", "display_name")),
    ("GCW003", Case("", engine(), "there is no 'engine:' section", "")),
    (
        "GCW019",
        Case(
            "engine:\n  type: ThreadPoolEngine\n",
            engine(),
            "ThreadPoolEngine: its tasks are threads",
            "type",
        ),
    ),
    (
        "GCW019",
        Case(
            "engine:\n  type: ProcessPoolEngine\n  max_tasks_per_child: 9\n",
            engine(),
            "each is cold after 9 tasks",
            "type",
        ),
    ),
    (
        "GCW004",
        Case(engine(workers=""), engine(), f"{os.cpu_count()} workers on a node;", "engine"),
    ),
    (
        "GCW004",
        Case(
            slurm("cores_per_node: 64", workers=""),
            slurm(),
            "64 workers on a node, 256 GB",
            "engine",
            Numbers(state_gb=4),
        ),
    ),
    (
        "GCW004",
        Case(
            slurm(workers=""),
            slurm(engine_settings=("cores_per_worker: 8",), workers=""),
            "a worker for each core",
            "engine",
        ),
    ),
    (
        "GCW005",
        Case(
            engine(workers="0"),
            engine(),
            "max_workers_per_node 0 means one for each core",
            "max_workers",
        ),
    ),
    (
        "GCW005",
        Case(
            engine(workers="-1"),
            engine(),
            "max_workers_per_node -1 leaves no worker",
            "max_workers",
        ),
    ),
    (
        "GCW005",
        Case(
            engine("cores_per_worker: .nan"),
            engine("cores_per_worker: 1"),
            "cores_per_worker .nan leaves no worker; write a number above 0",
            "cores_per_worker",
        ),
    ),
    (
        "GCW005",
        Case(
            engine("cores_per_worker: 0"),
            engine("cores_per_worker: 0.5"),
            "cores_per_worker 0 leaves",
            "cores_per_worker",
        ),
    ),
    (
        "GCW005",
        Case(
            slurm("mem_per_node: 10", engine_settings=("mem_per_worker: .nan",)),
            slurm("mem_per_node: 10", engine_settings=("mem_per_worker: 2",)),
            "mem_per_worker .nan limits nothing; write a number above 0",
            "mem_per_worker",
        ),
    ),
    (
        "GCW005",
        Case(
            engine(job=("nodes_per_block: 0",)),
            engine(),
            "nodes_per_block 0 leaves no worker",
            "nodes_per_block",
        ),
    ),
    (
        "GCW005",
        Case(
            engine(job=("max_blocks: 0",)), engine(), "max_blocks 0 leaves no worker", "max_blocks"
        ),
    ),
    (
        "GCW006",
        Case(
            engine("cores_per_worker: 9999"),
            engine(),
            "cores_per_worker 9999 is more than the",
            "cores_per_worker",
        ),
    ),
    (
        "GCW006",
        Case(
            slurm("cores_per_node: 8", engine_settings=("cores_per_worker: 9",)),
            slurm("cores_per_node: 8", engine_settings=("cores_per_worker: 8",), workers="1"),
            "cores_per_worker 9 is more than the 8 cores of a node",
            "cores_per_worker",
        ),
    ),
    (
        "GCW006",
        Case(
            slurm("mem_per_node: 16", engine_settings=("mem_per_worker: 17",)),
            slurm("mem_per_node: 16", engine_settings=("mem_per_worker: 8",)),
            "mem_per_worker 17 is more than the 16 GB of a node",
            "mem_per_worker",
        ),
    ),
    (
        "GCW006",
        Case(
            slurm("cores_per_node: 8", workers="32"),
            slurm("cores_per_node: 8", engine_settings=("cores_per_worker: 0.25",), workers="32"),
            "max_workers_per_node 32, and cores_per_worker 1: the 8 cores of a node are enough "
            "for 8, and no others will start",
            "max_workers",
        ),
    ),
    (
        "GCW007",
        Case(
            engine("cpu_affinity: blocks"),
            engine("cpu_affinity: none"),
            "cpu_affinity 'blocks' is unknown",
            "cpu_affinity",
        ),
    ),
    (
        "GCW007",
        Case(
            engine("cpu_affinity: list:0:0:0"),
            engine("cpu_affinity: list:0:0-0,0"),
            "is for 3 workers, and a node has 2",
            "cpu_affinity",
        ),
    ),
    (
        "GCW007",
        Case(
            engine("cpu_affinity: list:0:2-1"),
            engine("cpu_affinity: list:0:2-1,0"),
            "has a worker without cores; write low-high",
            "cpu_affinity",
        ),
    ),
    (
        "GCW007",
        Case(
            engine("cpu_affinity: list:a:b"),
            engine("cpu_affinity: NONE"),
            "is not of the form list:0-1:2-3",
            "cpu_affinity",
        ),
    ),
    (
        "GCW007",
        Case(
            slurm(
                "cores_per_node: 2",
                engine_settings=("cpu_affinity: block", "cores_per_worker: 0.5"),
                workers="4",
            ),
            slurm("cores_per_node: 4", engine_settings=("cpu_affinity: block",), workers="4"),
            "needs a core for each worker: 4 workers, 2 cores",
            "cpu_affinity",
        ),
    ),
    (
        "GCW039",
        Case(
            slurm("launcher: {type: SrunLauncher, overrides: --cpu-bind=cores}"),
            slurm("launcher: {type: SrunLauncher, overrides: -c 64 --cpu-bind=cores}"),
            "with --cpu-bind=cores and no -c, all workers of a node share one core; write -c and "
            "the cores of a node before it",
            "launcher",
        ),
    ),
    (
        "GCW039",
        Case(
            slurm("cores_per_node: 4", "launcher: {type: SrunLauncher, overrides: --exclusive}"),
            slurm("cores_per_node: 4", "launcher: {type: SrunLauncher, overrides: --mpi=none}"),
            "share one core; write -c and 4 before it",
            "launcher",
        ),
    ),
    (
        "GCW008",
        Case(
            slurm("gpus_per_node: 2", engine_settings=("available_accelerators: 3",), workers="3"),
            slurm("gpus_per_node: 2", engine_settings=("available_accelerators: 4",), workers="4"),
            "worker 2 would get a GPU that is not there: "
            "3 workers on 2 NVIDIA GPUs do not divide; have 2",
            "available_accelerators",
        ),
    ),
    (
        "GCW008",
        Case(
            slurm(
                "scheduler_options: '#SBATCH --gpus-per-node=a100:4'",
                engine_settings=("available_accelerators: 6",),
                workers="6",
            ),
            slurm(
                "scheduler_options: '#SBATCH --gpus-per-node=a100:4'",
                engine_settings=("available_accelerators: 8",),
                workers="8",
            ),
            "worker 4, 5 would get a GPU",
            "available_accelerators",
        ),
    ),
    (
        "GCW009",
        Case(
            engine("available_accelerators: 2", "cores_per_worker: 0.1", workers="4"),
            engine("available_accelerators: 2", "cores_per_worker: 0.1"),
            "max_workers_per_node 4 and 2 available_accelerators: only 2 workers will start",
            "max_workers_per_node",
        ),
    ),
    (
        "GCW009",
        Case(
            engine("available_accelerators: 3"),
            engine("available_accelerators: ['0', '1']"),
            "1 of them will be idle",
            "max_workers",
        ),
    ),
    (
        "GCW010",
        Case(
            slurm("nodes_per_block: 3"),
            slurm("nodes_per_block: 3", "launcher: {type: SrunLauncher}"),
            "nodes_per_block 3 with SingleNodeLauncher: all 3 managers on the first node; "
            "use SrunLauncher",
            "provider",
        ),
    ),
    (
        "GCW010",
        Case(
            slurm("nodes_per_block: 2", "launcher: {type: WrappedLauncher, prepend: time}"),
            slurm("nodes_per_block: 2", "launcher: {type: WrappedLauncher, prepend: srun -N 2}"),
            "nodes_per_block 2 with WrappedLauncher: one manager",
            "launcher",
        ),
    ),
    (
        "GCW011",
        Case(
            slurm(engine_settings=(IDLE % 300,)),
            slurm(engine_settings=(IDLE % 400,)),
            "workers end after 300 s without tasks, and it takes 330 s to be warm again",
            "job_status_kwargs",
            Numbers(load_seconds=30, queue_seconds=300),
        ),
    ),
    (
        "GCW011",
        Case(
            engine(top=("idle_heartbeats_soft: 1",)),
            engine(top=("idle_heartbeats_soft: 3",)),
            "workers end after 30 s without tasks",
            "idle_heartbeats_soft",
            Numbers(load_seconds=60),
        ),
    ),
    (
        "GCW012",
        Case(
            engine(IDLE % 3600, top=("idle_heartbeats_soft: 10",)),
            engine(IDLE % 3600, top=("idle_heartbeats_soft: 121",)),
            "max_idletime 3600 s is undercut: "
            "the endpoint stops after 300 s (10 heartbeats of 30 s)",
            "idle_heartbeats_soft",
        ),
    ),
    (
        "GCW012",
        Case(
            engine(job=("min_blocks: 1",), top=("idle_heartbeats_soft: 10",)),
            engine(job=("min_blocks: 1",), top=("idle_heartbeats_soft: 0",)),
            "min_blocks 1 is undercut",
            "idle_heartbeats_soft",
        ),
    ),
    (
        "GCW013",
        Case(
            slurm("min_blocks: 1"),
            slurm("min_blocks: 0"),
            "min_blocks 1 without idle_heartbeats_soft",
            "min_blocks",
        ),
    ),
    (
        "GCW013",
        Case(
            slurm(engine_settings=(IDLE % ".inf",)),
            slurm(engine_settings=(IDLE % ".inf",), top=("idle_heartbeats_soft: 10",)),
            "max_idletime .inf without",
            "job_status_kwargs",
        ),
    ),
    (
        "GCW013",
        Case(
            slurm(engine_settings=("job_status_kwargs: {strategy: none}",)),
            slurm(),
            "strategy none without",
            "job_status_kwargs",
        ),
    ),
    (
        "GCW014",
        Case(
            slurm().replace("01:00:00", "30:00"),
            slurm(),
            "walltime '30:00' is not of the form HH:MM:SS",
            "walltime",
        ),
    ),
    (
        "GCW014",
        Case(
            slurm().replace("'01:00:00'", "'1-00:00:00'"),
            slurm(),
            "walltime '1-00:00:00' is not of the form",
            "walltime",
        ),
    ),
    (
        "GCW014",
        Case(
            slurm().replace("01:00:00", "00:00:59").replace("3000", "9"),
            slurm(),
            "is less than a minute",
            "walltime",
        ),
    ),
    (
        "GCW015",
        Case(
            slurm(engine_settings=(IDLE % 3000,)).replace("3000", "2500", 1),
            slurm(engine_settings=(IDLE % 3000,)).replace("01:00:00", "04:00:00"),
            "walltime 01:00:00 is 3600 s, and load and task take 4000 s",
            "walltime",
            Numbers(load_seconds=3000, task_seconds=1000),
        ),
    ),
    (
        "GCW016",
        Case(
            slurm().replace("drain_period: 3000", "label: mine"),
            slurm(),
            "set drain_period to walltime less",
            "engine",
        ),
    ),
    (
        "GCW016",
        Case(
            slurm().replace("3000", "3600"),
            slurm(),
            "drain_period 3600 is not before the walltime of 3600 s",
            "drain_period",
        ),
    ),
    (
        "GCW016",
        Case(
            slurm(),
            slurm().replace("3000", "2400"),
            "leaves 600 s for a task of 900 s",
            "drain_period",
            Numbers(task_seconds=900),
        ),
    ),
    (
        "GCW017",
        Case(
            slurm("max_blocks: 2", engine_settings=("prefetch_capacity: 4",)),
            slurm(engine_settings=("prefetch_capacity: 4",)),
            "prefetch_capacity 4: tasks wait on one of 2 nodes",
            "prefetch_capacity",
        ),
    ),
    (
        "GCW018",
        Case(
            engine(job=("worker_init: module load a; export GC_TASK_TIMEOUT=60",)),
            engine(job=("worker_init: export GC_TASK_TIMEOUT=600",)),
            "GC_TASK_TIMEOUT 60 s is not above the 90 s of load;",
            "worker_init",
            Numbers(load_seconds=90),
        ),
    ),
    (
        "GCW020",
        Case(
            slurm("mem_per_node: 64", workers="8"),
            slurm("mem_per_node: 64", workers="6"),
            "8 workers with 10 GB of state each need 80 GB, and a node has 64; 6 would fit",
            "max_workers_per_node",
            Numbers(state_gb=10),
        ),
    ),
    (
        "GCW021",
        Case(
            engine("run_in_sandbox: true", job=("worker_init: export PYTHONPATH=lib/python:/opt",)),
            engine(
                "run_in_sandbox: true",
                job=("worker_init: export PYTHONPATH=/opt/lib URL=http://a/b",),
            ),
            "PYTHONPATH has the relative path 'lib/python'",
            "worker_init",
        ),
    ),
    (
        "GCW022",
        Case(
            slurm(
                "nodes_per_block: 2",
                "launcher: {type: SrunLauncher}",
                "worker_init: redis-server &",
            ),
            slurm(
                "nodes_per_block: 2",
                "launcher: {type: SrunLauncher}",
                "worker_init: module load a 2>&1 && export A='x & y'",
            ),
            "worker_init starts a program in the background, on the first of 2 nodes only",
            "worker_init",
        ),
    ),
    (
        "GCW023",
        Case(
            engine("container_type: docker", "container_uri: a"),
            engine("container_type: docker", "container_uri: a", "container_cmd_options: --init"),
            "docker without an init",
            "container_type",
        ),
    ),
    (
        "GCW024",
        Case(
            engine(
                "launch_cmd: \"env A='b c' process_worker_pool.py {debug} --block_id={{block_id}}\""
            ),
            engine(
                "launch_cmd: \"env A='b' process_worker_pool.py {debug} --block_id={{block_id}}\""
            ),
            "launch_cmd: the quotes around 'A=b c' will be lost",
            "launch_cmd",
        ),
    ),
    (
        "GCW024",
        Case(
            engine(
                "container_type: apptainer",
                "container_uri: a",
                "container_cmd_options: --env 'A=$B'",
            ),
            engine(
                "container_type: apptainer", "container_uri: a", "container_cmd_options: --env A=$B"
            ),
            "container_cmd_options: the quotes around 'A=$B' will be lost",
            "container_cmd_options",
        ),
    ),
    (
        "GCW024",
        Case(
            engine(
                "container_type: apptainer", "container_uri: a", "container_cmd_options: --env 'A"
            ),
            engine("container_cmd_options: --env 'A"),
            "cannot be taken apart into words: No closing quotation",
            "container_cmd_options",
        ),
    ),
    (
        "GCW025",
        Case(
            engine("heartbeat_period: 150"),
            engine(),
            "heartbeat_threshold 120 s is not above",
            "heartbeat_period",
        ),
    ),
    (
        "GCW025",
        Case(
            engine("heartbeat_threshold: 50"),
            engine("heartbeat_threshold: 60"),
            "is below two heartbeat_periods",
            "heartbeat_threshold",
        ),
    ),
    (
        "GCW026",
        Case(
            engine(job=preloading("preloaded:needs_path")),
            engine(job=preloading("preloaded:table unknown_module:load")),
            "preload: preloaded:needs_path needs path (",
            "worker_init",
        ),
    ),
    (
        "GCW026",
        Case(
            engine(job=preloading("--preload-node=preloaded:table,preloaded:needs_path")),
            engine(job=preloading("--preload-node=preloaded:table,unknown_module:load")),
            "preload: preloaded:needs_path needs path (",
            "worker_init",
        ),
    ),
    (
        "GCW040",
        Case(
            mpi(preloading("--preload-node=preloaded:table")),
            mpi(preloading("preloaded:table")),
            "--preload-node=preloaded:table does nothing in a GlobusMPIEngine",
            "worker_init",
        ),
    ),
    (
        "GCW045",
        Case(
            mpi(preloading("--warm-first")),
            mpi(preloading("--survive-idle-kill")),
            "--warm-first does nothing in a GlobusMPIEngine",
            "worker_init",
        ),
    ),
    (
        "GCW027",
        Case(
            slurm(
                "gpus_per_node: 2",
                engine_settings=("available_accelerators: ['0', '0', '1', '1']",),
                workers="4",
            ),
            slurm("gpus_per_node: 2", engine_settings=("available_accelerators: 4",), workers="4"),
            "Parsl divides them by 2, and workers are on GPU 0, 0, 0, 0; write the number of",
            "available_accelerators",
        ),
    ),
    (
        "GCW027",
        Case(
            slurm(
                "gres: 'gpu:2'",
                engine_settings=("available_accelerators: ['0', '1', '0', '1']",),
                workers="4",
            ),
            slurm(
                "gres: 'gpu:2'",
                engine_settings=("available_accelerators: [MIG-a, MIG-a, MIG-b, MIG-b]",),
                workers="4",
            ),
            "available_accelerators 0, 1, 0, 1: Parsl divides them by 2",
            "available_accelerators",
        ),
    ),
    (
        "GCW028",
        Case(
            slurm("scheduler_options: '#SBATCH --gpus-per-node=4'", workers="4"),
            slurm("scheduler_options: '#SBATCH --gpus-per-node=4'", workers="1"),
            "4 GPUs asked for, 4 workers, and no available_accelerators: all 4 copies",
            "engine",
        ),
    ),
    (
        "GCW028",
        Case(
            engine(
                "drain_period: 1500",
                provider="PBSProProvider",
                job=("walltime: 3600", "select_options: ngpus=2"),
            ),
            engine(
                "drain_period: 1500",
                "available_accelerators: 2",
                provider="PBSProProvider",
                job=("walltime: 3600", "select_options: ngpus=2"),
            ),
            "write available_accelerators: 2",
            "engine",
        ),
    ),
    (
        "GCW029",
        Case(
            slurm(
                "gres: 'gpu:mi250:4'", engine_settings=("available_accelerators: 4",), workers="4"
            ),
            slurm(
                "gres: 'gpu:mi250:1'", engine_settings=("available_accelerators: 1",), workers="1"
            ),
            "workers on AMD GPUs get CUDA_VISIBLE_DEVICES beside ROCR_VISIBLE_DEVICES",
            "available_accelerators",
        ),
    ),
    (
        "GCW029",
        Case(
            slurm("gres: 'gpu:mi250:2'", engine_settings=("available_accelerators: 2",)),
            slurm(
                "gres: 'gpu:mi250:2'",
                'worker_init: eval "$(python -m gc_warm.worker.boot --amd-gpus)"',
                engine_settings=("available_accelerators: 2",),
            ),
            "have the former removed, by --amd-gpus behind gc_warm.worker.boot",
            "available_accelerators",
        ),
    ),
    (
        "GCW031",
        Case(
            slurm("scheduler_options: '#SBATCH --qos=a --time=00:10:00'"),
            slurm("scheduler_options: '#SBATCH --time-min=00:10:00'"),
            "ask for a time of 00:10:00 below the walltime of 01:00:00",
            "scheduler_options",
        ),
    ),
    (
        "GCW031",
        Case(
            slurm("scheduler_options: '#SBATCH -t 10'"),
            slurm("scheduler_options: '#SBATCH --tmp=10'"),
            "ask for a time of 10 below",
            "scheduler_options",
        ),
    ),
    (
        "GCW031",
        Case(
            slurm("scheduler_options: |", "  #SBATCH -t 9", "  #SBATCH --qos=a -t 10 # minutes"),
            slurm("scheduler_options: |", "  #SBATCH -t 9", "  #SBATCH -t 01:00:00 # was -t 10"),
            "ask for a time of 10 below",
            "scheduler_options",
        ),
    ),
    (
        "GCW032",
        Case(
            engine("heartbeat_threshold: 1200"),
            engine("heartbeat_threshold: 600"),
            "the tasks of a node that is lost seem to run for so long",
            "heartbeat_threshold",
        ),
    ),
    (
        "GCW010",
        Case(
            slurm("nodes_per_block: 2", "launcher: {type: MpiExecLauncher}"),
            slurm(
                "nodes_per_block: 2",
                "launcher: {type: MpiExecLauncher}",
                "worker_init: export PBS_NODEFILE=nodes",
            ),
            "it knows other nodes than the first by PBS_NODEFILE only, which is not there; use S",
            "launcher",
        ),
    ),
    (
        "GCW010",
        Case(
            pbs("nodes_per_block: 4", "launcher: {type: MpiExecLauncher, overrides: --ppn 2}"),
            pbs("nodes_per_block: 4", "launcher: {type: MpiExecLauncher, overrides: --ppn 1}"),
            "MpiExecLauncher: its overrides '--ppn 2' leave 2 without a manager; change them",
            "launcher",
        ),
    ),
    (
        "GCW020",
        Case(
            engine(
                "encrypted: false",
                provider="KubernetesProvider",
                job=("image: a", "max_mem: 8Gi"),
                workers="4",
            ),
            engine(
                "encrypted: false",
                provider="KubernetesProvider",
                job=("image: a", "max_mem: 16Gi"),
                workers="4",
            ),
            "4 workers with 3 GB of state each need 12 GB, and a pod (max_mem) has 8; 2 would fit",
            "max_workers_per_node",
            Numbers(state_gb=3),
        ),
    ),
    (
        "GCW004",
        Case(
            engine(
                "encrypted: false", provider="KubernetesProvider", job=("image: a",), workers=""
            ),
            engine("encrypted: false", provider="KubernetesProvider", job=("image: a",)),
            "a worker for each core, of all that the machine has and not of max_cpu 2,",
            "engine",
        ),
    ),
    (
        "GCW031",
        Case(
            pbs("scheduler_options: '#PBS -l filesystems=home -l walltime=00:10:00'"),
            pbs("scheduler_options: '#PBS -l filesystems=home'"),
            "ask for a time of 00:10:00 below the walltime of 01:00:00, and only one of them",
            "scheduler_options",
        ),
    ),
    (
        "GCW034",
        Case(
            engine(AUTO_SCALE % 60, job=("max_blocks: 2",)),
            engine(AUTO_SCALE % ".inf", job=("max_blocks: 2",)),
            "a job without tasks for 60 s ends, and one that is in the queue at once",
            "job_status_kwargs",
        ),
    ),
    (
        "GCW034",
        Case(
            engine("strategy: htex_auto_scale", job=("max_blocks: 2",)),
            engine("strategy: htex_auto_scale", job=("max_blocks: 1",)),
            "others of the 2 are busy; write strategy: simple",
            "strategy",
        ),
    ),
    (
        "GCW035",
        Case(
            slurm("scheduler_options: '#SBATCH --signal=B:USR1@600'"),
            slurm("scheduler_options: '#SBATCH --signal=B:USR1@500'"),
            "have SIGUSR1 sent up to 660 s before the walltime, and a job ends of it, with its "
            "tasks: leave it out, or set drain_period to 2586",
            "scheduler_options",
        ),
    ),
    (
        "GCW035",
        Case(
            slurm("launcher: {type: SrunLauncher}", "scheduler_options: '#SBATCH --signal TERM'"),
            slurm("scheduler_options: '#SBATCH --signal TERM'"),
            "have SIGTERM sent up to 120 s before the walltime",
            "scheduler_options",
            Numbers(task_seconds=500),
        ),
    ),
    (
        "GCW036",
        Case(
            slurm("scheduler_options: '#SBATCH --requeue'"),
            slurm(
                "scheduler_options: '#SBATCH --requeue'",
                engine_settings=("max_retries_on_system_failure: 2",),
            ),
            "--requeue has a job run again, and not its tasks, which fail with ManagerLost",
            "scheduler_options",
        ),
    ),
    (
        "GCW036",
        Case(
            pbs("scheduler_options: '#PBS -q debug -r y'"),
            pbs("scheduler_options: '#PBS -q debug -r n'"),
            "-r y has a job run again, and not its tasks",
            "scheduler_options",
        ),
    ),
    (
        "GCW037",
        Case(
            engine(top=("idle_heartbeats_soft: 2", "idle_heartbeats_hard: 9")),
            engine(top=("idle_heartbeats_hard: 9",)),
            "stops when nothing has moved for 300 s, and a task of 310 s starts over and over",
            "idle_heartbeats_hard",
            Numbers(task_seconds=301, load_seconds=9),
        ),
    ),
    (
        "GCW041",
        Case(
            slurm("worker_init: '# gc_warm.hooks.handover'", "max_blocks: 1"),
            slurm("worker_init: '# gc_warm.hooks.handover overlap_jobs=1'", "max_blocks: 1"),
            "handover: there is at most one job, so that tasks wait for the next one after its end",
            "worker_init",
        ),
    ),
    (
        "GCW041",
        Case(
            engine(job=("worker_init: '# gc_warm.hooks.handover'", "max_blocks: 2")),
            engine(
                "drain_period: 60", job=("worker_init: '# gc_warm.hooks.handover'", "max_blocks: 2")
            ),
            "handover: its jobs do not drain before they end: set drain_period",
            "worker_init",
        ),
    ),
    (
        "GCW038",
        Case(
            contained("--init", "export GC_TASK_TIMEOUT=60 PATH=/opt/bin A=1"),
            contained("--init --env GC_TASK_TIMEOUT -e A=2", "export GC_TASK_TIMEOUT=60 A=1"),
            "in docker do not see what is exported outside: GC_TASK_TIMEOUT, A; name it in",
            "worker_init",
        ),
    ),
    (
        "GCW038",
        Case(
            contained("-C --env A=1,B=2", "export B=2 C=3", "apptainer"),
            contained("--nv", "export B=2 C=3", "apptainer"),
            "workers in apptainer do not see what is exported outside: C;",
            "worker_init",
        ),
    ),
    (
        "GCW038",
        Case(
            contained("--init", "source /opt/env/bin/activate", "podman"),
            contained("--init", "echo conda", "podman"),
            "do not see what is exported outside: the environment that it activates;",
            "worker_init",
        ),
    ),
    (
        "GCW038",
        Case(
            slurm("cores_per_node: 8", engine_settings=IN_DOCKER, workers=""),
            slurm("cores_per_node: 8", engine_settings=IN_DOCKER),
            "do not see what is exported outside: PARSL_CORES;",
            "provider",
        ),
    ),
    (
        "GCW028",
        Case(
            slurm("nodes_per_block: 2", SRUN, "scheduler_options: '#SBATCH -C gpu -G 8'"),
            slurm("nodes_per_block: 2", SRUN, "scheduler_options: '#SBATCH -C gpu --gpus=2'"),
            "4 GPUs asked for, 2 workers",
            "engine",
        ),
    ),
    (
        "GCW031",
        Case(
            slurm("scheduler_options: '#SBATCH -t 0-2'"),
            slurm("scheduler_options: '#SBATCH -t 60:00'"),
            "ask for a time of 0-2 below",
            "scheduler_options",
        ),
    ),
    (
        "GCW030",
        Case(
            engine(job=("worker_init: python -m venv env && env/bin/pip install dill",)),
            engine(job=("worker_init: python -m venv env && env/bin/pip install dill gc-warm",)),
            "worker_init makes an environment without gc_warm",
            "worker_init",
        ),
    ),
]


def problems(text: str, numbers: Numbers | None = None) -> list[Finding]:
    """Return the findings, without a refusal that comes beside them from an older loader.

    Older loaders refuse some of what the rules are about.
    """
    found = config_rules.examine(text, "endpoint.yaml", numbers).findings
    beside = [problem for problem in found if problem.rule != "GCW000"]
    return beside if beside and OLDER_LOADER else found


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{rule}-{case.at or 'empty'}" for rule, case in CASES]
)
def test_each_rule_finds_its_miniature_and_is_content_with_the_repaired_one(number: int) -> None:
    rule, case = CASES[number]
    (found,) = problems(case.bad, case.numbers)
    assert (found.rule, found.file) == (rule, "endpoint.yaml")
    assert case.says in found.text

    lines = case.bad.splitlines() or [""]
    assert lines[found.line - 1].strip().startswith(case.at), (
        "the line is that of the setting, or of the section where it is missing"
    )
    names = (found.option or "").split(".")
    assert lines[found.line - 1][found.column - 1 :].startswith(tuple(names))
    another = "GCW000" if OLDER_LOADER else "GCW999"
    lines[found.line - 1] += f" # gc-warm: ignore[{another}, {rule}]"
    assert problems("\n".join(lines), case.numbers) == [], "a comment silences it there"

    assert problems(case.good, case.numbers) == []


def test_every_rule_has_a_miniature() -> None:
    of_folders = set(folder_rules.RULES)
    assert {rule for rule, _ in CASES} | of_folders == set(config_rules.RULES)


def test_endpoint_for_several_users_refuses_handover(tmp_path: Path) -> None:
    shutil.copytree(folders.shipped()["slurm"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "map.json").write_text("[]")
    core = tmp_path / "config.yaml"
    core.write_text(f"display_name: a\nidentity_mapping_config_path: {tmp_path / 'map.json'}\n")
    with pytest.raises(ConfigError, match="handover: an endpoint that serves other users has no"):
        rendering.render(tmp_path, {"handover": True})

    config = loading.load(rendering.render(folders.shipped()["slurm"], {"handover": True}), "")
    assert [each.rule for each in folder_rules.examine(tmp_path, config)] == ["GCW042"]
    assert folder_rules.examine(tmp_path) == []


def test_endpoint_without_hooks_cannot_hand_over(tmp_path: Path) -> None:
    config = loading.load(rendering.render(folders.shipped()["slurm"], {"handover": True}), "")
    shutil.copytree(folders.shipped()["slurm"], tmp_path, dirs_exist_ok=True)
    assert folder_rules.examine(tmp_path, config) == [], "it is no endpoint yet"

    variables = tmp_path / "user_environment.yaml"
    variables.write_text("PYTHONPATH: /home/me/lib\n")
    assert [each.rule for each in folder_rules.examine(tmp_path, config)] == ["GCW043"]
    variables.write_text(f"PATH: /bin\nPYTHONPATH: {STARTUP}:/home/me/lib\n")
    assert folder_rules.examine(tmp_path, config) == []


@pytest.mark.parametrize("name", ["slurm", "stock"])
def test_options_that_undo_a_restriction_are_named(name: str, tmp_path: Path) -> None:
    stock = Path(inspect.getfile(endpoint_config)).parent
    source = stock if name == "stock" else folders.shipped()[name]
    for file in (folders.TEMPLATE, "user_config_schema.json"):
        (tmp_path / file).write_text((source / file).read_text())

    core = tmp_path / "config.yaml"
    core.write_text("display_name: a\n")
    assert folder_rules.examine(tmp_path) == []

    core.write_text("display_name: a\nallowed_functions:\n  - " + str(uuid.UUID(int=1)) + "\n")
    (found,) = folder_rules.examine(tmp_path)
    assert (found.rule, found.file, found.line) == ("GCW033", str(core), 2)
    assert ("worker_init" if name == "stock" else "environment, python_path") in found.text

    schema = json.loads((tmp_path / "user_config_schema.json").read_text())
    run_code = ["environment", "python_path", "preload", "preload_node"]
    for option in (*run_code, "container_uri", "container_cmd_options"):
        schema["properties"].pop(option, None)
    (tmp_path / "user_config_schema.json").write_text(json.dumps(schema))
    is_repaired = name == "slurm"
    assert folder_rules.examine(tmp_path) == ([] if is_repaired else [found])

    core.write_text(core.read_text().replace("functions:", "functions: # gc-warm: ignore[GCW033]"))
    assert folder_rules.examine(tmp_path) == [], "a comment silences it"


def test_value_that_a_template_fixes_is_no_option(tmp_path: Path) -> None:
    core = f"allowed_functions: [{uuid.UUID(int=1)}]\n"
    (tmp_path / "config.yaml").write_text(core)
    fixed = "{% set worker_init = 'module load x' %}worker_init: {{ worker_init | shell_escape }}\n"
    (tmp_path / folders.TEMPLATE).write_text(fixed)
    assert folder_rules.examine(tmp_path) == []
    (tmp_path / folders.TEMPLATE).write_text(fixed.replace("'module load x'", "worker_init"))
    assert [found.rule for found in folder_rules.examine(tmp_path)] == ["GCW033"]


def test_a_comment_silences_its_own_rule_in_its_own_line_only() -> None:
    bad = engine("heartbeat_period: 150")
    others = [
        bad.replace("150", "150 # gc-warm: ignore[GCW024]"),
        "# gc-warm: ignore[GCW025]\n" + bad,
        bad.replace("150", "150 # GCW025"),
    ]
    assert [[found.rule for found in problems(text)] for text in others] == [["GCW025"]] * 3


def test_errors_come_first() -> None:
    both = problems(engine("heartbeat_period: 150", workers=""))
    assert [found.level for found in both] == ["error", "warning"]


TEMPLATE = """\
{#- a comment
 of two lines -#}
{%- set n = n | default(2) -%}
{%- set table = {
  "a": 1,
} -%}
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
{%- if n == 1 %}
  max_workers_per_node: {{ n }}
{%- else %}
  max_workers_per_node: {{ n - 2 }}
{%- endif %}
  provider:
    type: LocalProvider
{%- for name in ["init_blocks", "max_blocks"] %}
    {{ name }}: {{ n - 2 }}
{%- endfor %}
    worker_init: |
      export A=1
{% include "more.yaml" %}
"""


def test_line_is_that_of_the_template_where_the_yaml_comes_from_one(tmp_path: Path) -> None:
    def find() -> list[Finding]:
        return targets.inspect_target(str(tmp_path), [], None, Numbers(), "DillCode").findings

    (tmp_path / folders.TEMPLATE).write_text(TEMPLATE)
    (tmp_path / "more.yaml").write_text("    min_blocks: one\n")
    (wrong,) = find()
    assert (wrong.rule, wrong.line) == ("GCW001", 20), (
        "what is included belongs to what stands before it"
    )

    (tmp_path / "more.yaml").write_text("    min_blocks: 0\n")
    places = [(problem.option, problem.line, problem.column) for problem in find()]
    assert places == [
        ("engine.max_workers_per_node", 13, 3),
        ("engine.provider.max_blocks", 18, 5),
    ], "a name that the template makes begins where its line does"

    silenced = TEMPLATE
    for line, with_comment in (
        ("{{ n - 2 }}\n{%- endif", "{{ n - 2 }} {# gc-warm: ignore[GCW005] #}\n{%- endif"),
        ("{{ name }}: {{ n - 2 }}", "{{ name }}: {{ n - 2 }} # gc-warm: ignore[GCW005]"),
    ):
        silenced = silenced.replace(line, with_comment)
    (tmp_path / folders.TEMPLATE).write_text(silenced)
    assert find() == []


def test_template_that_reckons_with_what_it_renders_is_looked_at_all_the_same(
    tmp_path: Path,
) -> None:
    text = "{% set number %}\nn: 0\n{% endset %}\n" + engine(
        workers="{{ 0 // (1 if number | length == 6 else 0) }}"
    )
    (tmp_path / folders.TEMPLATE).write_text(text)
    (found,) = targets.inspect_target(str(tmp_path), [], None, Numbers(), "DillCode").findings
    assert (found.rule, found.line) == ("GCW005", 1)


@pytest.mark.parametrize(
    "text",
    [
        slurm().replace("  provider:\n", "  provider:\n    <<: {cmd_timeout: 10}\n")
        + "    cmd_timeout: 20\n",
        engine("container_type: apptainer", 'container_cmd_options: --bind "$SCRATCH:/scratch"'),
        slurm("nodes_per_block: 2", "launcher: {type: WrappedLauncher, prepend: mpiexec_mpt -n 2}"),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SimpleLauncher}",
            engine_settings=("launch_cmd: srun process_worker_pool.py",),
        ),
        engine(
            "cpu_affinity: block",
            "cores_per_worker: 0.5",
            job=("worker_init: export PARSL_CORES=1",),
        ),
        slurm().replace("01:00:00", "1:90:00"),
        slurm(
            "scheduler_options: |-\n      #SBATCH --gres=gpu:a100-sxm4:4\n"
            "      ##SBATCH --gpus-per-node=3",
            engine_settings=("available_accelerators: 4",),
            workers="4",
        ),
        slurm(
            "gres: 'gpu:mig-1g.5gb:1'",
            engine_settings=("available_accelerators: 2",),
            workers="2",
        ),
        engine(
            "run_in_sandbox: true",
            job=("worker_init: export TZ=Europe/Berlin HF_MODEL=meta/llama CFLAGS=-I/usr/include",),
        ),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SrunLauncher}",
            "worker_init: srun --overlap agent &",
        ),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SrunLauncher}",
            "worker_init: export X=$(( SLURM_JOB_ID & 1023 ))",
        ),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SrunLauncher}",
            "worker_init: |\n      fetch & wait",
        ),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SrunLauncher}",
            "worker_init: |\n      srun --overlap \\\n        agent &",
        ),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SrunLauncher, overrides: --ntasks-per-node=2}",
            "scheduler_options: '#SBATCH --ntasks-per-node=4 --no-requeue'",
        ),
        slurm(
            "gres: 'gpu:pvc:2'",
            engine_settings=("available_accelerators: 4",),
            workers="4",
        ),
        slurm(
            "nodes_per_block: 2",
            "launcher: {type: SimpleLauncher}",
            "worker_init: mpirun -n 2 bash -c start_server",
        ),
        engine(
            "container_type: custom",
            "container_cmd_options: podman run --init image {EXECUTOR_LAUNCH_CMD}",
        ),
    ],
)
def test_nothing_is_said_of_what_is_as_it_should_be(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            "GCW007",
            slurm(
                "cores_per_node: 1",
                engine_settings=("cpu_affinity: list:0:0", "cores_per_worker: 0.5"),
            ),
        ),
        (
            "GCW008",
            slurm(
                "gres: 'gpu:a100-sxm4:2'",
                engine_settings=("available_accelerators: 3",),
                workers="3",
            ),
        ),
        ("GCW005", engine("job_status_kwargs: {strategy: none}", job=("init_blocks: 0",))),
        ("GCW001", engine("job_status_kwargs: [[max_idletime, 3]]")),
        (
            "GCW022",
            slurm(
                "nodes_per_block: 2",
                "launcher: {type: SrunLauncher}",
                "worker_init: (redis-server > log 2>&1 &)",
            ),
        ),
        (
            "GCW022",
            slurm(
                "nodes_per_block: 2",
                "launcher: {type: SrunLauncher}",
                "worker_init: |\n      serve --tensor-parallel-size 4 &  # no need to wait",
            ),
        ),
        *(
            (
                "GCW022",
                slurm(
                    "nodes_per_block: 2",
                    "launcher: {type: SrunLauncher}",
                    f"worker_init: {command}",
                ),
            )
            for command in (
                "ray start --head --port 6379",
                "redis-server --daemonize yes",
                "tmux new-session -d -s a serve",
                "nvidia-cuda-mps-control -d",
                "tmux new -ds a serve",
                "setsid -f serve",
                "nohup serve > log 2>&1 & echo please wait",
                "docker run -d --name db postgres",
                "apptainer instance start db.sif db",
                "serve & ./wait-for-it.sh here",
            )
        ),
        (
            "GCW010",
            slurm(
                "nodes_per_block: 2",
                "launcher: {type: SimpleLauncher}",
                "worker_init: export A=1  # not with mpirun",
            ),
        ),
        (
            "GCW023",
            engine(
                "container_type: custom",
                "container_cmd_options: docker run image {EXECUTOR_LAUNCH_CMD}",
            ),
        ),
        ("GCW006", engine(job=("worker_init: export PARSL_CORES=0",))),
        ("GCW000", "engine: &e\n  type: GlobusComputeEngine\n  provider: *e\n"),
        ("GCW000", engine() + "\0"),
        ("GCW000", "engine: " + 500 * "["),
    ],
)
def test_each_rule_finds_what_it_is_about_in_other_words(rule: str, text: str) -> None:
    assert [found.rule for found in problems(text)] == [rule]


OLD = """\
engine:
  type: HighThroughputEngine
  max_workers: 3
  cores_per_worker: 0
  worker_port_range: [50000, 50100]
  strategy: {type: SimpleStrategy}
  max_blockss: 1
  provider:
    type: SlurmProvider
    account: 0123
    nodes_per_blocks: 2
    walltime: 12:00:00
"""


@pytest.mark.skipif(OLDER_LOADER, reason="says it in other words")
def test_old_settings_are_all_named_at_once_and_the_rest_is_looked_at() -> None:
    said = {(found.line, found.rule): found.text for found in problems(OLD)}
    assert said.pop((1, "GCW016")).startswith("drain_period is not given")
    assert said.pop((3, "GCW000")).endswith("write max_workers_per_node: 3")
    assert said.pop((4, "GCW005")).startswith("cores_per_worker 0 leaves no worker")
    assert said.pop((6, "GCW001")).endswith("write strategy: simple")
    assert said.pop((8, "GCW010")).startswith("nodes_per_block 2 with SingleNodeLauncher")
    assert said == {
        (2, "GCW000"): "HighThroughputEngine is gone: write GlobusComputeEngine",
        (5, "GCW000"): "worker_port_range [50000, 50100]: the loader takes no range; "
        "give worker_port, one of them: worker_port: 50000",
        (7, "GCW000"): "HighThroughputExecutor.__init__() got an unexpected keyword argument "
        "'max_blockss'; remove it",
        (10, "GCW000"): 'write account: "0123", in quotes: YAML reads it as the number 83',
        (11, "GCW000"): "SlurmProvider.__init__() got an unexpected keyword argument "
        "'nodes_per_blocks'; did you mean 'nodes_per_block'?",
        (12, "GCW000"): 'write walltime: "12:00:00", in quotes: YAML reads it as the number 43200',
    }


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (
            "engine:\ntype: GlobusComputeEngine\nmax_workers_per_node: 1\n",
            1,
            "engine: is empty, and type, max_workers_per_node stand beside it: indent them",
        ),
        (
            engine().replace("    type: Local", "  init_blocks: 0\n  type: Local"),
            5,
            "provider: is empty, and init_blocks stand beside it: indent them",
        ),
        (
            slurm("account: {{ who }}"),
            9,
            "this is a template ({{ who }}): put it into a folder as user_config_template.yaml.j2",
        ),
        (slurm("account: 'a-{{ who }}'"), 9, "account has {{ who }}, which nobody fills in"),
        (slurm("partition: yes"), 9, 'write partition: "yes", in quotes'),
        (
            engine("available_accelerators: [0, 1]"),
            5,
            'write available_accelerators: ["0", "1"], in quotes',
        ),
        (engine(job=("cores_per_worker: 1",)), 7, "'cores_per_worker'; write it under engine:"),
    ],
)
@pytest.mark.skipif(OLDER_LOADER, reason="says it in other words")
def test_common_mistake_is_told_from_what_follows_of_it(text: str, line: int, says: str) -> None:
    found = problems(text)
    assert [says in each.text and each.line == line for each in found].count(True) == 1
    # where a section has lost its indentation, its type is given twice
    assert {each.rule for each in found} <= {"GCW000", "GCW001", "GCW002"}


def test_pods_are_looked_at_without_kubernetes() -> None:
    pods = engine(
        "encrypted: false", provider="KubernetesProvider", job=("image: a", "min_blocks: 1")
    )
    assert [found.rule for found in problems(pods)] == ["GCW013"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="binds to one core")
def test_cores_are_those_that_a_manager_counts() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert problems(engine(f"cores_per_worker: {os.cpu_count()}", workers="1")) == []
    finally:
        os.sched_setaffinity(0, allowed)


WORDS = {
    "srun is given another number": (
        slurm("nodes_per_block: 2", "launcher: {type: SrunLauncher, overrides: -c 4 --ntasks=6}"),
        "copies of the state",
        "6 on each node, 12 in all (2 nodes a job, 1 job at most)",
    ),
    "a container hides the number of cores": (
        slurm(
            "cores_per_node: 1",
            engine_settings=("container_type: docker", "container_uri: a"),
            workers="4",
        ),
        "copies of the state",
        "4 on each node, 4 in all (1 node a job, 1 job at most)",
    ),
    "a part of a node": (
        slurm("exclusive: false", "cores_per_node: 4", "gres: 'gpu:1'"),
        "the worst case costs",
        "4 core-hours and 1 GPU-hour, if every job runs to its walltime; "
        "jobs that follow cost as much again",
    ),
    "a whole node": (
        slurm("cores_per_node: 4", "gres: 'gpu:1'"),
        "being idle costs",
        "1 node-hour an hour; from the last task until cold, 0.03 node-hours at most",
    ),
    "GPUs of Intel are not divided": (
        slurm("gres: 'gpu:max1100:2'", engine_settings=("available_accelerators: 4",), workers="4"),
        "devices of a node's workers",
        "0, 1, 2, 3",
    ),
    "a signal ends a long task": (
        slurm("scheduler_options: '#SBATCH --signal=B:2@60'"),
        "a task",
        "may take 8 min, less what worker_init takes: a longer one is lost if its job ends first",
    ),
    "a job without a drain ends": (
        slurm().replace("drain_period: 3000", "drain_period: 0"),
        "a task",
        "may take what its job has left",
    ),
    "a drain after the end is none": (
        slurm().replace("3000", "3600"),
        "a job ends",
        "after 1 h at the latest; tasks that still run then are lost",
    ),
    "jobs without a walltime drain": (
        engine("drain_period: 60"),
        "a job ends",
        "with the last task that it has then: it takes no new tasks after 60 s, "
        "and what comes then can wait for the last that it has",
    ),
    "one manager for all nodes": (
        slurm("nodes_per_block: 2", "max_blocks: 3", "launcher: {type: SimpleLauncher}"),
        "copies of the state",
        "6 in all, on the first node of each job (2 nodes a job, 3 jobs at most)",
    ),
    "all managers on one node": (
        slurm("nodes_per_block: 2"),
        "copies of the state",
        "4 in all, on the first node (2 nodes a job, 1 job at most)",
    ),
    "one job ends beside others": (
        engine(
            "job_status_kwargs: {strategy: htex_auto_scale, max_idletime: 6}",
            job=("max_blocks: 2",),
        ),
        "stays warm",
        "for 6 s without any task; a job without tasks ends after 6 s though others are busy",
    ),
    "the endpoint ends a long task": (
        engine(top=("heartbeat_period: 5", "idle_heartbeats_soft: 1", "idle_heartbeats_hard: 2")),
        "a task",
        "may take 15 s: if nothing else moves meanwhile, the endpoint stops then "
        "(idle_heartbeats_hard)",
    ),
    "a job ends a long task": (
        slurm(),
        "a task",
        "may take 10 min, less what worker_init takes: a longer one is lost if its job ends first",
    ),
    "one copy for all workers": (
        engine(
            "max_workers_per_node: 4",
            "cores_per_worker: 0.1",
            job=preloading("--preload-node=preloaded:table,numpy"),
        ),
        "shared on a node",
        "preloaded:table, numpy: one copy on each node, for 4 workers, where it can be forked",
    ),
    "the next job is asked for before": (
        slurm("worker_init: '# gc_warm.hooks.handover'", "max_blocks: 2"),
        "jobs hand over",
        "the next is asked for before one drains, while there are fewer than 2 jobs, by what "
        "starts have taken and 16 min 40 s at most, which is up to 1.5 times the node-hours; "
        "--with load_seconds=... --with queue_seconds=... says how many",
    ),
    "the next job has no room": (
        slurm("worker_init: '# gc_warm.hooks.handover'", "max_blocks: 1"),
        "jobs hand over",
        "not before the last has ended, since there is at most one: tasks wait for the start of "
        "the next; with overlap_jobs, it is asked for before that",
    ),
    "a time-out ends it before": (
        slurm("worker_init: export GC_TASK_TIMEOUT=60"),
        "a task",
        "may take 60 s",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_summary_says_what_ends_state_and_tasks(case: str) -> None:
    text, heading, expected = WORDS[case]
    profile = meaning.warmth_profile(loading.load(text, ""))
    assert dict(meaning.in_words(profile))[heading] == expected


@pytest.mark.parametrize(
    ("queue", "load", "words"),
    [
        (
            30,
            60,
            "the next is asked for before one drains, by 2 min 25 s; steady use costs 1.04 "
            "node-hours an hour for each job, where it would be 0.98 node-hours with tasks that "
            "wait 2 min 2 s after each job",
        ),
        (
            1800,
            60,
            "the next is asked for before one drains, by 16 min 40 s, and tasks wait 14 min 20 s "
            "for it; steady use costs 0.79 node-hours an hour for each job, where it would be "
            "0.62 node-hours with tasks that wait 31 min 32 s after each job",
        ),
    ],
    ids=["in time", "long queue"],
)
def test_summary_says_what_handover_costs(queue: float, load: float, words: str) -> None:
    text = slurm("worker_init: '# gc_warm.hooks.handover overlap_jobs=1'", "max_blocks: 1")
    profile = meaning.warmth_profile(loading.load(text, ""))
    assert dict(meaning.in_words(profile, queue, load))["jobs hand over"] == words


@pytest.mark.parametrize("value", ['"60"', "60  # a minute", "60;", "'60.0'"])
def test_time_out_of_tasks_is_found_however_it_is_exported(value: str) -> None:
    text = engine(job=("worker_init: |", f"  export A=1 GC_TASK_TIMEOUT={value}"))
    assert [found.rule for found in problems(text, Numbers(load_seconds=90))] == ["GCW018"]


def test_workers_that_share_amd_gpus_are_told_apart() -> None:
    found = problems(
        slurm("gres: 'gpu:gfx90a:2'", engine_settings=("available_accelerators: 4",), workers="4")
    )
    assert [problem.rule for problem in found] == ["GCW008", "GCW029"]
    says = "worker 2, 3 would get a GPU that is not there: 4 workers on 2 AMD GPUs, whose numbers"
    assert found[0].text.startswith(says)


def test_workers_that_share_gpus_of_this_machine_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("available_accelerators: 4", "cores_per_worker: 0.1")
    config = loading.load(engine(*settings, workers="4"), "")
    assert meaning.warmth_profile(config).devices == ("0", "1", "2", "3")

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: a'\necho 'GPU 1: b'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert meaning.warmth_profile(config).devices == ("0", "0", "1", "1")


OLD_STRATEGY = "strategy: {type: SimpleStrategy, max_idletime: 9}"


@pytest.mark.parametrize(
    ("settings", "rule", "at"),
    [
        ((OLD_STRATEGY, "job_status_kwargs:"), "GCW001", "strategy"),
        ((OLD_STRATEGY, "job_status_kwargs: 3"), "GCW001", "job_status_kwargs"),
        (("address: {type: address_by_interface, ifname: [eth0]}",), "GCW002", "address"),
    ],
)
def test_odd_value_does_not_end_the_check(settings: tuple[str, ...], rule: str, at: str) -> None:
    text = engine(*settings)
    lines = text.splitlines()
    assert any(each.rule == rule and at in lines[each.line - 1] for each in problems(text))


@pytest.mark.parametrize("rule", rulebook.RULES.values(), ids=lambda rule: rule.id)
def test_every_rule_explains_itself(rule: Any) -> None:
    words = rule.explanation()
    assert words.startswith(f"{rule.id} ({rule.level}): {rule.title}\n\n")
    assert f"# gc-warm: ignore[{rule.id}]" in words

    body = words.split("\n\n")[1]
    assert len(body) > 60, "it says what happens"

    if rule.evidence != REPRODUCED and not OLDER_LOADER:  # which had other files
        site_packages = Path(inspect.getfile(endpoint_config)).parents[3]
        source = site_packages / re.split("[,:]", rule.evidence.removeprefix("read in "))[0]
        assert source.exists(), "the source that it names is there"


@pytest.mark.parametrize("name", folders.shipped())
def test_own_configs_break_no_rule_with_their_defaults_and_for_their_sites(name: str) -> None:
    folder = folders.shipped()[name]
    known = Numbers(load_seconds=300, task_seconds=120, state_gb=0.1, queue_seconds=200)

    for options in (None, *map(str, sorted((folder / "sites").glob("*.yaml")))):
        assert targets.inspect_target(name, [], options, known, "DillCode").findings == []


DOCUMENTED: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("documented.yaml").read_text()
)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_is_found_in_the_examples_of_globus_computes_documentation(name: str) -> None:
    example = DOCUMENTED[name]
    found = [f"{each.rule}: {each.text}" for each in problems(example["yaml"])]
    finds: dict[str, str] = example["finds"]
    if OLDER_LOADER and "GCW000" in finds:  # its words cannot be repaired, to look at the rest
        finds = {"GCW000": finds["GCW000"]}

    assert [each[:6] for each in found] == list(finds)
    for said, expected in zip(found, finds.values(), strict=True):
        assert expected in said


def test_stock_template_is_rendered_as_for_a_client_of_this_version(tmp_path: Path) -> None:
    def find(assignments: list[str], load_seconds: float) -> list[Finding]:
        numbers = Numbers(load_seconds=load_seconds)
        return targets.inspect_target(
            str(tmp_path), assignments, None, numbers, "DillCode"
        ).findings

    shipped = Path(inspect.getfile(endpoint_config)).parent
    for name in (folders.TEMPLATE, "user_config_schema.json"):
        (tmp_path / name).write_text((shipped / name).read_text())
    makes_environments = "uv venv" in (tmp_path / folders.TEMPLATE).read_text()
    found = [(each.rule, each.line) for each in find([], 60)]
    assert [rule for rule, _ in found] == ["GCW030"] * makes_environments
    assert find(["endpoint_setup=true", "requirements=gc-warm"], 60) == []
    assert find(["requirements=gc-warm", "worker_init=export A=1"], 60) == []

    slow = find(["requirements=gc-warm"], 200)[-1]
    assert slow.text.startswith(
        "workers end after 120 s without tasks, and it takes 200 s to be warm again"
    ), "its idle time is Parsl's"
