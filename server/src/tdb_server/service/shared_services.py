"""What the gRPC server and the JSON gateway share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tdb_server.domain.budget import Budget
from tdb_server.service.access.tls import ServerTls
from tdb_server.service.call_events import CallEvents
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.model_service import ModelService
from tdb_server.settings import Settings

if TYPE_CHECKING:
    from tdb_server.examples.reading import ExampleFolder


@dataclass(frozen=True, slots=True)
class SharedServices:
    """The services, and what stands around their calls: both servers check, limit and queue alike."""

    calls: CallEvents
    model: ModelService
    guard: CallGuard
    memory: Budget
    threads: FairThreads
    tls: ServerTls | None
    settings: Settings
    version: str
    is_ready: Callable[[], bool]
    examples: ExampleFolder | None = None
