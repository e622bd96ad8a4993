"""TLS ends at the balancer, with the shipped configuration as it is."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from tdb_client import Client
from tdb_client.connection import Tls

from tests.cluster.envoy import running_envoy
from tests.cluster.nginx import running_nginx
from tests.cluster.ways import Cluster


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    """A folder as Kubernetes mounts a secret of type TLS, and the authority beside it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "tls.crt", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    return tmp_path


@pytest.mark.parametrize("balancer", ["envoy", "nginx"])
def test_calls_over_tls(cluster: Cluster, tls: Path, balancer: str) -> None:
    run = {"envoy": running_envoy, "nginx": running_nginx}[balancer]
    with run(tls / balancer, cluster.fronts, tls=tls) as running:
        with Client(f"localhost:{running.port}", tls=Tls(ca_file=tls / "ca.crt")) as client:
            assert client.health() == "SERVING"
            assert len(client.debug("the cat sat", " on", k=3).nodes) > 0
        trusted = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        url = f"https://localhost:{running.json_port}/model_info"
        assert httpx.post(url, json={}, verify=trusted).json()["nLayers"] == 3
