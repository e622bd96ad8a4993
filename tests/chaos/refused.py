"""Why a call failed, read from its rich status."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class Refused:
    """A failed call.

    Attributes:
        code: its status.
        message: what it says for people.
        domain: of its ErrorInfo; empty where there is none, as when the call never reached our code.
        reason: of its ErrorInfo.
        retry_seconds: of its RetryInfo; None where there is none.
    """

    code: grpc.StatusCode
    message: str
    domain: str
    reason: str
    retry_seconds: float | None


def refused(error: grpc.RpcError) -> Refused:
    information, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_seconds = None
    status = rpc_status.from_call(error)
    for detail in () if status is None else status.details:
        detail.Unpack(information)
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return Refused(error.code(), error.details() or "", information.domain, information.reason, retry_seconds)
