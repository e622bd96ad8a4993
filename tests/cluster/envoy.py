"""Envoy with the configuration that is shipped, on free ports and with a test's fronts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster.fronts import Front

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "envoy"
START_SECONDS = 30.0
TLS_FILES = ("tls.crt", "tls.key")


@dataclass(frozen=True)
class Envoy:
    """A running Envoy. The first port is for gRPC and gRPC-Web."""

    port: int
    json_port: int
    admin_port: int

    def statistic(self, name: str) -> int:
        """One of its counters or gauges."""
        page = httpx.get(f"http://127.0.0.1:{self.admin_port}/stats?filter=^{name}$").text
        return int(page.rpartition(":")[2])

    def n_healthy(self, cluster: str = "fronts") -> int:
        return self.statistic(f"cluster.{cluster}.membership_healthy")

    def weight(self, front: Front) -> int:
        """What calls to this front count, beside those of the other fronts."""
        page = httpx.get(f"http://127.0.0.1:{self.admin_port}/clusters").text
        key = f"fronts::127.0.0.1:{front.port}::weight::"
        (weight,) = [line.removeprefix(key) for line in page.splitlines() if line.startswith(key)]
        return int(weight)


@contextmanager
def running_envoy(
    folder: Path, fronts: Sequence[Front], *, tls: Path | None = None, is_weighted: bool = False
) -> Iterator[Envoy]:
    """Starts Envoy and waits until it holds all fronts for healthy.

    Args:
        folder: for its files.
        fronts: to share calls out to.
        tls: folder of the certificate and key; None to listen in clear.
        is_weighted: by the fronts' load reports, rather than in turn.
    """
    folder.mkdir(exist_ok=True)
    path, admin, log = folder / "envoy.yaml", folder / "admin.txt", folder / "envoy.log"
    path.write_text(yaml.safe_dump(_configuration(fronts, tls, is_weighted=is_weighted)))
    command = [
        str(Path(sys.executable).with_name("envoy")),
        "-c",
        str(path),
        "--admin-address-path",
        str(admin),
    ]
    command += ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield _when_ready(process, admin, log, len(fronts))
    finally:
        process.terminate()
        process.wait(timeout=30)


def _configuration(fronts: Sequence[Front], tls: Path | None, *, is_weighted: bool) -> Any:
    """The shipped file, with nothing changed but addresses, ports and certificates."""
    configuration = yaml.safe_load((CONFIGURATION / "envoy.yaml").read_text())
    configuration["admin"]["address"] = _address(0)
    resources = configuration["static_resources"]
    for listener in resources["listeners"]:
        listener["address"] = _address(0)
        (chain,) = listener["filter_chains"]
        if tls is None:
            del chain["transport_socket"]
        else:
            context = chain["transport_socket"]["typed_config"]["common_tls_context"]
            (certificate,) = context["tls_certificates"]
            certificate["certificate_chain"]["filename"] = str(tls / TLS_FILES[0])
            certificate["private_key"]["filename"] = str(tls / TLS_FILES[1])
            certificate["watched_directory"]["path"] = str(tls)
    grpc, http = resources["clusters"]
    for cluster, ports in ((grpc, [one.port for one in fronts]), (http, [one.http_port for one in fronts])):
        (locality,) = cluster["load_assignment"]["endpoints"]
        locality["lb_endpoints"] = [{"endpoint": {"address": _address(port)}} for port in ports]
    if is_weighted:
        del grpc["lb_policy"]
        grpc |= yaml.safe_load((CONFIGURATION / "weighted_round_robin.yaml").read_text())
    return configuration


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _when_ready(process: subprocess.Popen[bytes], admin: Path, log: Path, n_fronts: int) -> Envoy:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
        if not admin.exists() or not admin.read_text():
            continue
        admin_port = int(admin.read_text().rpartition(":")[2])
        try:
            found = httpx.get(f"http://127.0.0.1:{admin_port}/listeners?format=json").json()
            ports = {
                one["name"]: one["local_address"]["socket_address"]["port_value"]
                for one in found.get("listener_statuses", ())
            }
            if ports.keys() >= {"grpc", "json"}:
                envoy = Envoy(ports["grpc"], ports["json"], admin_port)
                if envoy.n_healthy() == envoy.n_healthy("json_fronts") == n_fronts:
                    return envoy
        except (httpx.TransportError, ValueError):
            continue
