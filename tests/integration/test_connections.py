"""What is open to other machines, and bounds on connections and their age."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest

from tests.chaos.vitals import wait_until
from tests.integration.failing_starts import serve_and_fail


def test_other_machines_are_not_served_in_clear():
    ended = serve_and_fail("--host", "0.0.0.0")
    assert ended.returncode == 2
    assert "--allow-plaintext" in ended.stderr


def test_unless_told_so(start_server):
    server = start_server("--host", "0.0.0.0", "--allow-plaintext")
    assert server.model.Tokenize(TokenizeRequest(text="a")).token_ids


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")
def test_ipv6(start_server):
    server = start_server("--host", "::1")
    with grpc.insecure_channel(f"[::1]:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_connections_are_bounded(start_server):
    server = start_server("--max-connections", "3")
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

    def connected() -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{server.port}", own)

    channels = [connected() for _ in range(5)]
    assert [is_served(channel) for channel in channels] == [True] * 3 + [False] * 2
    for channel in channels[2:]:
        channel.close()

    def one_more_is_served() -> bool:
        with connected() as channel:
            return is_served(channel)

    wait_until(one_more_is_served, seconds=20)
    for channel in channels[:2]:
        channel.close()


def is_served(channel: grpc.Channel) -> bool:
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - nothing else is expected
        return False
    return True


def test_old_connections_are_renewed_without_a_failed_call(start_server):
    server = start_server("--max-connection-age-seconds", "0.5")
    begun_at, peers = time.monotonic(), set()
    while time.monotonic() - begun_at < 3.0:
        server.model.Tokenize(TokenizeRequest(text="a"), timeout=10)
        time.sleep(0.02)
    lines = [line for line in server.log.read_text().splitlines() if "method=" in line]
    peers = {line.split("peer=")[1].split()[0] for line in lines}
    assert len(peers) >= 2
