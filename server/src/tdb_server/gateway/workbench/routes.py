"""The workbench's routes: what the page asks is asked of this process's services, as by any client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import tdb_client
from tdb_client.workbench.faults import Fault, fault
from tdb_client.workbench.route import Route
from tdb_client.workbench.routes import ROUTES

from tdb_server import errors
from tdb_server.domain.node import NodeType
from tdb_server.gateway.http_calls import Endpoint, HttpCalls, Lines
from tdb_server.gateway.json_text import Body
from tdb_server.gateway.node_examples import node_examples
from tdb_server.gateway.records import RECORD_BYTES
from tdb_server.gateway.workbench.in_process import InProcessChannel
from tdb_server.service.caller import current_caller
from tdb_server.service.enum_names import PRIORITIES

if TYPE_CHECKING:
    from tdb_server.examples.reading import ExampleFolder

PREFIX = "v1/workbench"


@dataclass(slots=True)
class _Asked:
    """A question, and how urgent it is: a number of the protos, as messages have it."""

    question: Any
    priority: int = PRIORITIES.unspecified


@dataclass(frozen=True, slots=True)
class _Context:
    """What routes are answered with.

    Attributes:
        services: servicers of this process by the names of their services.
        calls: the memory that answers take their bytes from while they are put together, and threads.
        examples: texts that activate nodes; None where there are none.
    """

    services: Mapping[str, object]
    calls: HttpCalls
    examples: ExampleFolder | None


def workbench_endpoints(
    services: Mapping[str, object], calls: HttpCalls, examples: ExampleFolder | None = None
) -> dict[str, Endpoint]:
    """What answers at each address of the workbench's own.

    Args:
        services: servicers of this process by the names of their services.
        calls: what is around every request.
        examples: texts that activate nodes; None where there are none.
    """
    context = _Context(services, calls, examples)
    return {
        f"{PREFIX}/{name}": Endpoint(
            partial(_read, route), partial(_answer, context, route), has_priority=True, names_fields=True
        )
        for name, route in ROUTES.items()
    }


def _read(route: Route, body: Any) -> _Asked:
    try:
        return _Asked(route.read(body))
    except tdb_client.TdbError as error:
        raise _server_error(fault(error)) from error


async def _answer(context: _Context, route: Route, asked: _Asked) -> Lines:
    return Lines(_lines(context, route, asked))


async def _lines(context: _Context, route: Route, asked: _Asked) -> AsyncGenerator[Body]:
    channel = InProcessChannel(context.services, context.calls.memory, current_caller().name)
    priority = PRIORITIES.members.get(asked.priority)
    client = tdb_client.AsyncClient(
        "this process",
        timeout=None,
        priority="interactive" if priority is None else priority.value,
        channel=channel,
    )
    try:
        async with client:
            async for line in route.lines(client, asked.question):
                if context.examples is None:
                    yield line
                    continue
                async for one in _with_examples(context.examples, context.calls, line):
                    yield one
    except tdb_client.TdbError as error:
        raise _server_error(fault(error)) from error


async def _with_examples(examples: ExampleFolder, calls: HttpCalls, line: Body) -> AsyncGenerator[Body]:
    """A line, and what this server knows and a client does not: in which texts a node is active."""
    match line:
        case {"model": dict() as model}:
            model["hasExamples"] = True
            yield line
        case {"event": "node", "type": kind, "layer": layer, "index": index}:
            yield line
            read = partial(node_examples, examples, NodeType(kind), layer, index)
            found = await calls.threads.run(current_caller().name, RECORD_BYTES, read)
            if found is not None:
                yield {"event": "examples", **found}
        case _:
            yield line


def _server_error(fault: Fault) -> errors.TdbError:
    """A client's error as one of the server's, of which log, metrics and HTTP status are made."""
    violations = [errors.FieldViolation(one.path, one.description, one.reason) for one in fault.violations]
    match fault.status:
        case "INVALID_ARGUMENT" if violations:
            return errors.InvalidRequest(violations)
        case "FAILED_PRECONDITION" if violations:
            return errors.FailedPrecondition(violations)
        case "RESOURCE_EXHAUSTED" if violations:
            return errors.FieldsOverLimit(violations)
        case "RESOURCE_EXHAUSTED":
            return errors.OverLimit(fault.message, fault.reason, fault.retry_after)
        case "UNAVAILABLE":
            return errors.Unavailable(fault.message, fault.reason, fault.retry_after)
        case "DEADLINE_EXCEEDED":
            return errors.DeadlineExceeded(fault.message, fault.reason)
        case "CANCELLED":
            return errors.Cancelled(fault.message, fault.reason)
        case "PERMISSION_DENIED":
            return errors.PermissionDenied(fault.message, fault.reason)
        case _:
            return errors.TdbError(fault.message, fault.reason)
