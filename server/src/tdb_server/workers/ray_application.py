"""Ray Serve's side of the pool: starting Ray, deploying the application, asking how it is.

Every function here blocks, some of them for seconds; none of them may run on the event loop.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, ProxyLocation, RequestRouterConfig

from tdb_server.domain.limits import MIB
from tdb_server.errors import ConfigurationBroken
from tdb_server.pool_settings import LOCAL, RayPoolSettings
from tdb_server.workers.messages import Configuration, Ready
from tdb_server.workers.ray_deploy_lock import deploying
from tdb_server.workers.ray_replica import Replica

DEPLOYMENT = "Replica"
OBJECT_STORE_BYTES = 200 * MIB
"""Size of the object store of a Ray that is started here. Results pass through it one by one; what does not
fit goes to disk."""
BATCHES_PER_REPLICA = 2
"""One that runs, and one that waits beside it, from another front or for a replica to come."""
MAX_STARTS = 3
DESCRIBE_SECONDS = 60.0
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class State:
    """The application as Ray Serve sees it.

    Attributes:
        n_running: replicas that can compute.
        failure: why no replica will ever run; None when all is well or may become so.
    """

    n_running: int
    failure: str | None


def connect(settings: RayPoolSettings, n_threads: int) -> None:
    """Joins the cluster, or starts Ray on this machine.

    Raises:
        ConfigurationBroken: there is no Ray at the address.
    """
    common = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if settings.address == LOCAL:
            n_cpus = max(os.cpu_count() or 1, settings.max_replicas * n_threads)
            ray.init(
                "local",
                num_cpus=n_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **common,
            )
        else:
            _knock(settings.address)
            ray.init(settings.address, **common)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationBroken(f"no Ray at {settings.address}: {error}") from error
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)


def deploy(settings: RayPoolSettings, configuration: Configuration) -> Any:
    """Deploys the application unless it is there already, and does not wait for its replicas.

    Fronts that start at the same moment take turns, so that only the first one deploys.

    Returns:
        Ray Serve's handle of the application.
    """
    if not _is_there(settings):
        with deploying():
            if not _is_there(settings):
                serve.start(proxy_location=ProxyLocation.Disabled)
                application = _deployment(settings, configuration).bind(configuration)
                target = serve.RunTarget(application, name=settings.application, route_prefix=None)
                serve.run_many([target], wait_for_applications_running=False)
    return serve.get_app_handle(settings.application)


def state(settings: RayPoolSettings) -> State:
    """How many replicas run, and whether there is hope for one."""
    application = serve.status().applications.get(settings.application)
    if application is None:
        return State(0, "the application is gone from the cluster")
    deployment = application.deployments.get(DEPLOYMENT)
    n_running = 0 if deployment is None else deployment.replica_states.get("RUNNING", 0)
    has_failed = application.status == "DEPLOY_FAILED"
    return State(
        n_running, reason(deployment.message if deployment else application.message) if has_failed else None
    )


def describe(handle: Any, configuration: Configuration) -> Ready:
    """What the replicas hold.

    Raises:
        ConfigurationBroken: the application was deployed by a front with another model.
    """
    loaded: Configuration
    ready: Ready
    loaded, ready = handle.describe.remote().result(timeout_s=DESCRIBE_SECONDS)
    same = ("model", "autoencoders", "dtype")
    if any(getattr(loaded, name) != getattr(configuration, name) for name in same):
        raise ConfigurationBroken(
            f"the cluster's application of this name serves {loaded.model_name}, and not "
            "what this server was told to; give another --ray-application"
        )
    return ready


def disconnect() -> None:
    """Leaves the cluster, and ends it if it was started here."""
    ray.shutdown()


def _is_there(settings: RayPoolSettings) -> bool:
    return settings.application in serve.status().applications


def _knock(address: str) -> None:
    """Fails at once where nobody listens; Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _deployment(settings: RayPoolSettings, configuration: Configuration) -> Any:
    n_gpus = settings.gpus_per_replica
    if n_gpus is None:
        n_gpus = 1.0 if configuration.device != "cpu" and ray.cluster_resources().get("GPU") else 0.0
    options = {
        "name": DEPLOYMENT,
        "ray_actor_options": {
            "num_cpus": configuration.n_threads,
            "num_gpus": n_gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(configuration.n_threads)}},
        },
        "max_ongoing_requests": BATCHES_PER_REPLICA,
        "max_constructor_retry_count": MAX_STARTS,
        "health_check_period_s": 2.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "request_router_config": RequestRouterConfig(initial_backoff_s=0.01, max_backoff_s=0.1),
    }
    if settings.max_replicas == settings.min_replicas:
        return serve.deployment(Replica, num_replicas=settings.min_replicas, **options)
    look_back_seconds = min(max(settings.upscale_seconds, 2.0), 30.0)
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=1.0,
        upscale_delay_s=settings.upscale_seconds,
        downscale_delay_s=settings.downscale_seconds,
        look_back_period_s=look_back_seconds,
        metrics_interval_s=look_back_seconds / 4,
    )
    return serve.deployment(Replica, autoscaling_config=scaling, **options)


def reason(message: str) -> str:
    """The line of a stack trace that says why the model cannot be loaded, without the names of classes."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = [line.partition(": ")[2] for line in lines if line.startswith("tdb_server.errors.")]
    return (said or lines or ["no replica could start"])[-1]
