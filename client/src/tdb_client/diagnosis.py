"""Whether a server can be used, step by step: address, connection, TLS, health, token, version, model.

Each step is only taken when those before went well, so that the first problem is the one to solve.
"""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tdb_client.client import Client
from tdb_client.compatibility import ApiVersionWarning, client_version, version_problem
from tdb_client.connection import Connection
from tdb_client.errors import (
    InvalidValueError,
    NotImplementedCallError,
    PermissionDeniedError,
    TdbError,
    UnauthenticatedError,
    UnreachableError,
)
from tdb_client.model_info import ModelInfo
from tdb_client.tls_probe import HandshakeError, certificate_facts, speaks_tls

STEP_SECONDS = 5.0

Outcome = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One step.

    Attributes:
        name: what was looked at.
        outcome: `problem` ends the diagnosis.
        finding: what was found.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    outcome: Outcome
    finding: str
    advice: str = ""


class _StepError(Exception):
    """A step that did not go well; the check says how."""

    def __init__(self, name: str, finding: str, advice: str) -> None:
        super().__init__(finding)
        self.check = Check(name, "problem", " ".join(finding.split()), advice)


def diagnose(connection: Callable[[], Connection]) -> Iterator[Check]:
    """Yields each step as soon as it is known. `connection` says how the server is to be reached."""
    try:
        try:
            how = connection()
        except OSError as error:
            raise _StepError("options", str(error), "Give the path of a file that can be read") from None
        except InvalidValueError as error:
            raise _StepError("options", str(error), "Give another") from None
        yield from _reach(how)
        with _client(how) as client:
            yield _health(client, how)
            model, check = _access(client, how)
            yield check
            yield _version(model)
            yield Check("model", "ok", _words(model))
    except _StepError as error:
        yield error.check


def _reach(how: Connection) -> Iterator[Check]:
    """Checks from the name to the handshake; left to gRPC where the address is not a host and a port."""
    host, colon, port = how.server.rpartition(":")
    if "/" in how.server or how.is_balanced or how.server.startswith("unix:"):
        yield Check("address", "ok", f"{how.server}, which gRPC resolves by itself")
        return
    if not colon or not port.isdecimal():
        raise _StepError("address", f"{how.server!r} has no port", "Write HOST:PORT, such as 127.0.0.1:50051")
    host = host.strip("[]")
    yield _resolved(host, int(port))
    yield _connected(host, int(port))
    if how.tls is not None:
        try:
            finding, days_left = certificate_facts(host, int(port), how.tls, STEP_SECONDS)
        except OSError as error:
            raise _StepError("TLS", str(error), "Give files that can be read") from None
        except HandshakeError as problem:
            raise _StepError("TLS", str(problem), problem.advice) from None
        is_fresh = days_left > 14
        advice = "" if is_fresh else "Ask whoever runs the server for a new certificate"
        yield Check("TLS", "ok" if is_fresh else "warning", finding, advice)
    elif how.token is not None and not how.is_local:
        finding = "the token goes over the network in clear"
        yield Check("TLS", "warning", finding, "Use --tls, where the server offers it")


def _resolved(host: str, port: int) -> Check:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        advice = "Check the spelling of --server, or of $TDB_SERVER"
        raise _StepError("address", f"the name {host!r} is not known ({error})", advice) from None
    addresses = ", ".join(dict.fromkeys(str(one[4][0]) for one in found))
    return Check("address", "ok", addresses if addresses == host else f"{host} is {addresses}")


def _connected(host: str, port: int) -> Check:
    start = time.monotonic()
    try:
        socket.create_connection((host, port), STEP_SECONDS).close()
    except ConnectionRefusedError:
        advice = "Start a server there with `tdb-server serve`, or name another with --server or $TDB_SERVER"
        raise _StepError("connection", f"nothing listens at {host}:{port}", advice) from None
    except OSError as error:
        advice = "Look for a wrong address, a firewall, or a server that listens on 127.0.0.1 alone"
        raise _StepError("connection", f"no way to {host}:{port}: {error}", advice) from None
    return Check("connection", "ok", f"{host}:{port} in {1000 * (time.monotonic() - start):.1f} ms")


def _client(how: Connection) -> Client:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a check says it
        return Client(how.server, tls=how.tls, token=how.token, timeout=STEP_SECONDS)


def _health(client: Client, how: Connection) -> Check:
    start = time.monotonic()
    try:
        status = client.health()
    except UnreachableError as error:
        if how.tls is None and speaks_tls(how.server, STEP_SECONDS):
            finding, advice = (
                "the server speaks TLS",
                "Add --tls; and --tls-ca FILE for a certificate of your own",
            )
            raise _StepError("health", finding, advice) from None
        advice = "Something else may listen at this port; the server's log names the port of its gRPC"
        raise _StepError("health", str(error), advice) from None
    except NotImplementedCallError:
        advice = "Something else may listen at this port"
        raise _StepError("health", "a gRPC server, but without a health service", advice) from None
    except TdbError as error:
        raise _StepError("health", str(error), "Look into the server's log") from None
    if status != "SERVING":
        advice = "It may still be loading its model, or be about to stop: wait, and look into its log"
        raise _StepError("health", f"the server is {status}", advice)
    return Check("health", "ok", f"SERVING, answered in {1000 * (time.monotonic() - start):.1f} ms")


def _access(client: Client, how: Connection) -> tuple[ModelInfo, Check]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ApiVersionWarning)  # the next check says it
            model = client.model_info()
    except (UnauthenticatedError, PermissionDeniedError) as error:
        missing = "Give a token with --token-file FILE" if how.token is None else "This token is not taken"
        raise _StepError("token", str(error), f"{missing}; ask whoever runs the server for one") from None
    except NotImplementedCallError:
        finding = "the server does not offer the model service of this client's interface"
        raise _StepError("version", finding, "Install the client of the server's version") from None
    except TdbError as error:
        raise _StepError("token", str(error), "Look into the server's log") from None
    return model, Check("token", "ok", "none needed" if how.token is None else "taken")


def _version(model: ModelInfo) -> Check:
    problem = version_problem(model.api_version)
    if problem is not None:
        raise _StepError("version", problem, "Install the client of the server's version")
    finding = f"interface {model.api_version}, server {model.server_version}, client {client_version()}"
    if _release(model.server_version) < _release(client_version()):
        advice = "What is newer than the server may be left out of its answers: upgrade the server first"
        return Check("version", "warning", finding, advice)
    return Check("version", "ok", finding)


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number; nothing when the text has none, which is taken for old."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _words(model: ModelInfo) -> str:
    sites = ", ".join(f"{one.n_latents} latents at {one.site}" for one in model.autoencoders)
    return (
        f"{model.name}: {model.family}, {model.n_layers} layers, {model.n_heads} heads, {model.dtype};"
        f" prompts of up to {model.limits.max_prompt_tokens} tokens;"
        f" {f'autoencoders with {sites}' if sites else 'no autoencoders'}"
    )
