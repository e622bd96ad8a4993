"""What the server says about itself: its protos (reflection), and its connections (channelz)."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

from tdb_server.errors import TdbError

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
REFLECTION_METHODS = frozenset(
    f"{service}/ServerReflectionInfo" for service in (REFLECTION_V1, reflection.SERVICE_NAME)
)


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets clients ask for the protos of these services, under both names that reflection has.

    grpcio knows v1alpha alone. The messages of v1 are the same on the wire; it is not listed, as its proto is
    not here to be described.
    """
    names = (*services, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler}),)
    )


def add_channelz(server: grpc.aio.Server) -> None:
    """Lets clients look at the server's connections.

    Raises:
        TdbError: the package grpcio-channelz is not installed.
    """
    try:
        from grpc_channelz.v1 import channelz  # type: ignore[import-untyped]
    except ImportError as error:
        raise TdbError("--channelz needs the package grpcio-channelz", "OPTION_NOT_AVAILABLE") from error
    channelz.add_channelz_servicer(server)
