"""Where the workers live: the part of the settings that is about the pool."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tdb_server.flags import (
    Flags,
    at_least,
    one_of,
    positive_number,
    positive_seconds,
    zero_or_more_seconds,
)

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class WorkerCare:
    """When workers are replaced, and when they give memory back.

    Attributes:
        silence_seconds: how long a worker may do nothing although it should before it counts as hung.
        step_seconds: how long one step of a worker, a layer or a result, may take.
        idle_memory_seconds: how long a worker waits for calls before it gives back memory that it does not
            need; None for never.
    """

    silence_seconds: float = 10.0
    step_seconds: float = 120.0
    idle_memory_seconds: float | None = 60.0


@dataclass(frozen=True, slots=True)
class RayPoolSettings:
    """Workers as replicas of a Ray Serve application.

    Attributes:
        address: of a Ray cluster; `LOCAL` starts one on this machine, which ends with this server.
        application: its name in the cluster. Fronts that name the same one share its replicas.
        min_replicas: kept without load.
        max_replicas: started under load.
        gpus_per_replica: may be a part of one; None for one where the cluster has any.
        upscale_seconds: how long calls must queue before a replica is added.
        downscale_seconds: how long a replica must be idle before it is taken away.
    """

    address: str = LOCAL
    application: str = "transformer-debugger"
    min_replicas: int = 1
    max_replicas: int = 1
    gpus_per_replica: float | None = None
    upscale_seconds: float = 10.0
    downscale_seconds: float = 600.0


def add_pool_flags(flags: Flags) -> None:
    """The flags of `serve` that are about the pool."""
    flags.group("when workers are replaced, and rest")
    flags.add(
        "--worker-silence-seconds",
        positive_seconds,
        10.0,
        "S",
        "a worker that does nothing although it should, for this long, is replaced",
    )
    flags.add(
        "--worker-step-seconds",
        positive_seconds,
        120.0,
        "S",
        "so is one that takes this long for one step, a layer or a result",
    )
    flags.add(
        "--idle-memory-seconds",
        zero_or_more_seconds,
        60.0,
        "S",
        "after so long without calls a worker gives memory back; 0 for never",
    )
    flags.group("where the workers live")
    flags.add("--pool", one_of("local", "ray"), "local", "POOL", "local: on this machine; ray: on Ray Serve")
    flags.add("--ray-address", str, LOCAL, "ADDRESS", "a Ray cluster, or auto; local starts Ray here")
    flags.add(
        "--ray-application", str, "transformer-debugger", "NAME", "servers that name one share its workers"
    )
    flags.add("--ray-max-workers", at_least(1), None, "N", "workers under load (default: as --workers)")
    flags.add(
        "--ray-gpus", positive_number, None, "G", "GPUs of a worker (default: 1 if the cluster has any)"
    )
    flags.add("--ray-upscale-seconds", positive_seconds, 10.0, "S", "load that lasts this long adds a worker")
    flags.add(
        "--ray-downscale-seconds", positive_seconds, 600.0, "S", "idleness that lasts this long ends one"
    )


def read_care(told: argparse.Namespace) -> WorkerCare:
    """What was told about replacing workers, and about their rest."""
    return WorkerCare(told.worker_silence_seconds, told.worker_step_seconds, told.idle_memory_seconds or None)


def read_pool(told: argparse.Namespace, n_workers: int) -> RayPoolSettings | None:
    """What was told about the pool; None for workers on this machine.

    Raises:
        ValueError: flags contradict each other.
    """
    if told.pool == "local":
        return None
    if told.devices is not None or told.device not in ("auto", "cpu"):
        raise ValueError("with --pool ray, --device is auto or cpu: Ray decides which GPU a worker gets")
    max_replicas: int = told.ray_max_workers or n_workers
    if max_replicas < n_workers:
        raise ValueError(f"--ray-max-workers {max_replicas} is less than --workers {n_workers}")
    return RayPoolSettings(
        address=told.ray_address or LOCAL,
        application=told.ray_application,
        min_replicas=n_workers,
        max_replicas=max_replicas,
        gpus_per_replica=told.ray_gpus,
        upscale_seconds=told.ray_upscale_seconds,
        downscale_seconds=told.ray_downscale_seconds,
    )
