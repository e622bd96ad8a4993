"""The ways to two fronts: the client itself takes turns, or a balancer does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.vitals import wait_until
from tests.cluster.envoy import Envoy, running_envoy
from tests.cluster.fronts import Front
from tests.cluster.nginx import Nginx, running_nginx

WAYS = ("round_robin", "envoy", "nginx")
WHOLE_SECONDS = 30.0


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: one of `WAYS`.
        target: for the client.
        json_port: where the JSON API is; None where the client would have to choose a front itself.
        nginx: to be told before a front stops.
    """

    name: str
    target: str
    json_port: int | None = None
    nginx: Nginx | None = None

    def before_stop(self, front: Front) -> None:
        """What whoever stops a front does first, as `docs/operations.md` says."""
        if self.nginx is not None:
            self.nginx.mark_down(front)

    def after_start(self) -> None:
        """What is done when it is ready again."""
        if self.nginx is not None:
            self.nginx.mark_down()


@dataclass(frozen=True)
class Cluster:
    """Two fronts, and all ways to them."""

    fronts: Sequence[Front]
    ways: dict[str, Way]
    envoy: Envoy

    def make_whole(self) -> None:
        """Starts fronts that a test has left dead, and waits until all balancers know of them."""
        for front in self.fronts:
            if not front.is_running:
                front.start()
                for way in self.ways.values():
                    way.after_start()
        wait_until(lambda: self.envoy.n_healthy() == len(self.fronts), WHOLE_SECONDS)


@contextmanager
def running_cluster(folder: Path, fronts: Sequence[Front]) -> Iterator[Cluster]:
    """Starts the balancers before fronts that run."""
    with ExitStack() as running:
        envoy = running.enter_context(running_envoy(folder / "envoy", fronts))
        nginx = running.enter_context(running_nginx(folder / "nginx", fronts))
        both = ",".join(f"127.0.0.1:{front.port}" for front in fronts)
        ways = (
            Way("round_robin", f"ipv4:{both}"),
            Way("envoy", f"127.0.0.1:{envoy.port}", envoy.json_port),
            Way("nginx", f"127.0.0.1:{nginx.port}", nginx.json_port, nginx),
        )
        yield Cluster(fronts, {way.name: way for way in ways}, envoy)
