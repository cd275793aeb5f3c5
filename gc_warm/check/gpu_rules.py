"""Rules for GPUs, and for which worker is pinned to which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gc_warm.check.config_subjects import (
    WORKERS,
    Workers,
)
from gc_warm.check.rules import Fix
from gc_warm.configs import meaning
from gc_warm.configs.repairs import ENGINE


@WORKERS.rule("GCW008", "error")
def no_such_device(config: Workers) -> Iterator[tuple[Any, ...]]:
    """A worker that is pinned to a GPU that is not there.

    On NVIDIA nodes Parsl divides workers by GPUs, rounds down, and gives worker *n* the device *n*
    divided by that. Where they do not divide evenly, the last workers get a number that no GPU has:
    there, CUDA finds no device. On GPUs of AMD nothing is divided, and each worker needs its own.
    """
    workers = config.profile.workers_per_manager
    gpus, maker = meaning.requested_gpus(config.provider)
    # a GPU of Intel can count as its tiles
    if not gpus or workers is None or maker == "Intel":
        return

    names = config.executor.available_accelerators[:workers]
    are_numbers = list(names) == [str(number) for number in range(len(names))]
    if not are_numbers:
        # names of another form are the user's own, who knows what they stand for
        return

    is_amd = maker == "AMD"
    devices = names if is_amd else meaning.divided_devices(names, gpus)
    missing = [rank for rank, name in enumerate(devices) if int(name) >= gpus]
    if missing:
        ranks = ", ".join(map(str, missing))
        fitting = gpus if is_amd else max(workers // gpus, 1) * gpus
        which = "AMD GPUs, whose numbers nobody divides" if is_amd else "NVIDIA GPUs do not divide"
        text = (
            f"worker {ranks} would get a GPU that is not there: "
            f"{workers} workers on {gpus} {which}; have {fitting}"
        )
        yield (*ENGINE, "available_accelerators"), text


@WORKERS.rule("GCW027", "error")
def divided_numbers(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Numbers of GPUs that Parsl divides, so that workers crowd on the first.

    Where there is `nvidia-smi` and there are several workers to a GPU, Parsl divides the number of
    each worker's device by the workers of a GPU. It expects 0, 1, 2, 3 for four workers on two
    GPUs, and puts all of them on the first if it gets 0, 0, 1, 1. Names that are no numbers, such
    as the UUIDs of parts of a GPU (MIG), are never divided.
    """
    gpus = config.gpus
    names = config.executor.available_accelerators[: config.profile.workers_per_manager]
    if not gpus or not all(name.isdecimal() for name in names):
        return

    devices = meaning.divided_devices(names, gpus)
    is_shared = len(set(names)) < len(names)
    if is_shared and len(set(devices)) < len(set(names)):
        text = (
            f"available_accelerators {', '.join(names)}: Parsl divides them by "
            f"{len(names) // gpus}, and workers are on GPU {', '.join(devices)}; "
            f"write the number of workers, {len(names)}"
        )
        fix = Fix("engine.available_accelerators", len(names))
        yield (*ENGINE, "available_accelerators"), text, fix


@WORKERS.rule("GCW028", "warning")
def gpus_not_pinned(config: Workers) -> Iterator[tuple[Any, ...]]:
    """GPUs that a job asks for, and no worker is pinned to.

    Without `available_accelerators` every worker sees all GPUs, and what loads a model takes the
    first: all copies of the state are on one GPU, and the others are billed and idle. Nothing is
    said where a node has one worker, which may use all of them.
    """
    gpus, _ = meaning.requested_gpus(config.provider)
    workers = config.profile.workers_per_manager
    is_pinned = bool(config.executor.available_accelerators)
    if not gpus or gpus < 2 or workers == 1 or is_pinned or config.is_mpi:
        return

    number = "a worker for each core" if workers is None else f"{workers} workers"
    copies = "all" if workers is None else f"all {workers}"
    text = (
        f"{gpus} GPUs asked for, {number}, and no available_accelerators: {copies} copies of the "
        f"state go to the first GPU; write available_accelerators: {workers or gpus}"
    )
    yield ENGINE, text, Fix("engine.available_accelerators", workers or gpus)


@WORKERS.rule("GCW029", "warning")
def amd_pinning(config: Workers) -> Iterator[tuple[Any, ...]]:
    """AMD GPUs, of which workers but the first find none.

    Parsl pins a worker by CUDA_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES at once (Parsl's issue
    3858). The second leaves one GPU, which is number 0 from then on, and HIP looks in it for the
    number that the first says. The option `amd_gpus` of our configs, or `--amd-gpus` behind
    `gc_warm.worker.boot`, leaves the second only. So does a module that removes
    CUDA_VISIBLE_DEVICES from `os.environ` before it imports what uses the GPU.
    """
    _, maker = meaning.requested_gpus(config.provider)
    names = config.executor.available_accelerators
    is_mended = meaning.leaves_rocr_only(config.provider)
    if maker == "AMD" and not is_mended and any(name != "0" for name in names):
        text = (
            "workers on AMD GPUs get CUDA_VISIBLE_DEVICES beside ROCR_VISIBLE_DEVICES, with which "
            "HIP finds no GPU: have the former removed, by --amd-gpus behind gc_warm.worker.boot"
        )
        yield (*ENGINE, "available_accelerators"), text


@WORKERS.rule("GCW009", "warning")
def devices_and_workers(config: Workers) -> Iterator[tuple[Any, ...]]:
    """Workers and devices differ in number.

    Each worker is pinned to one entry of `available_accelerators`. There are never more workers
    than entries, whatever `max_workers_per_node` says; with fewer, the last devices stay idle.
    """
    most = config.written(*ENGINE, "max_workers_per_node")
    devices = len(config.executor.available_accelerators)
    if devices and most and most > 0 and most != devices:
        if most > devices:
            result = f"only {devices} workers will start"
        else:
            result = f"{devices - most} of them will be idle"

        text = (
            f"max_workers_per_node {most} and {devices} available_accelerators: {result}; "
            "give as many of one as of the other"
        )
        yield (*ENGINE, "max_workers_per_node"), text
