#!/opt/tdb/bin/python
"""Asks the server of this container for its health; the exit code is 0 when it is ready.

Asks without TLS. Where the server itself does TLS, give the container another health check, or none.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 4.0


def main() -> int:
    """Returns the exit code."""
    port = os.environ.get("TDB_SERVER_PORT", "50051")
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True
            )
        except grpc.RpcError as error:
            print(f"the server does not answer: {error.code().name}", file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
