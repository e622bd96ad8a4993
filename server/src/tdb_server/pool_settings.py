"""Where the workers live: the part of the settings that is about the pool."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.flags import at_least, flag, positive_number, positive_seconds, zero_or_more_seconds

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class WorkerCare:
    """When workers are replaced, and when they give memory back; None for never."""

    silence_seconds: float = flag(
        10.0,
        positive_seconds,
        "S",
        "a worker that does nothing although it should, for this long, is replaced",
        name="--worker-silence-seconds",
    )
    step_seconds: float = flag(
        120.0,
        positive_seconds,
        "S",
        "so is one that takes this long for one step, a layer or a result",
        name="--worker-step-seconds",
    )
    idle_memory_seconds: float | None = flag(
        60.0, zero_or_more_seconds, "S", "after so long without calls a worker gives memory back; 0 for never"
    )


def _address(text: str) -> str:
    return text or LOCAL


@dataclass(frozen=True, slots=True)
class RayPoolSettings:
    """Workers as replicas of a Ray Serve application.

    Attributes:
        address: of a Ray cluster; `LOCAL` starts one on this machine, which ends with this server.
        application: its name in the cluster. Fronts that name the same one share its replicas.
        min_replicas: kept without load.
        gpus_per_replica: may be a part of one.
    """

    address: str = flag(
        LOCAL, _address, "ADDRESS", "a Ray cluster, or auto; local starts Ray here", name="--ray-address"
    )
    application: str = flag(
        "transformer-debugger",
        str,
        "NAME",
        "servers that name one share its workers",
        name="--ray-application",
    )
    max_replicas: int = flag(
        1,
        at_least(1),
        "N",
        "workers under load (default: as --workers)",
        name="--ray-max-workers",
        shown=None,
    )
    gpus_per_replica: float | None = flag(
        None, positive_number, "G", "GPUs of a worker (default: 1 if the cluster has any)", name="--ray-gpus"
    )
    upscale_seconds: float = flag(
        10.0, positive_seconds, "S", "load that lasts this long adds a worker", name="--ray-upscale-seconds"
    )
    downscale_seconds: float = flag(
        600.0, positive_seconds, "S", "idleness that lasts this long ends one", name="--ray-downscale-seconds"
    )
    min_replicas: int = 1
