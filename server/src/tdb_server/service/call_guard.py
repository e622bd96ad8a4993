"""What is done around every call, over gRPC or HTTP: its record, its caller, limits and faults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tdb_server.domain.limits import Limits
from tdb_server.errors import DeadlineExceeded, Internal, TdbError
from tdb_server.service.access.access import Access
from tdb_server.service.error_status import status_code
from tdb_server.service.open_calls import OpenCalls
from tdb_server.service.telemetry.call_record import CallListener, CallRecord, recorded

_log = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class CallGuard:
    """Around the answering of calls. A transport adds how requests are read and errors are sent.

    Attributes:
        limits: the limits in force; of them, the seconds of a call are kept here.
        open_calls: counts calls, and refuses them while the server stops.
        access: who may call.
        listeners: hear of each call.
        keeps_prompts: whether records may have the prompts.
    """

    limits: Limits
    open_calls: OpenCalls
    access: Access = field(default_factory=Access)
    listeners: Sequence[CallListener] = ()
    keeps_prompts: bool = False

    async def answered(
        self,
        record: CallRecord,
        answer: Callable[[], Awaitable[AnswerT]],
        refuse: Callable[[TdbError], Awaitable[AnswerT]],
    ) -> AnswerT:
        """Answers one call; whatever goes wrong is noted, and refused as the transport does.

        Args:
            record: of the call.
            answer: admits the caller (`Access.admitted`), reads the request, and answers it within `in_time`.
            refuse: sends the error to the client.
        """
        with recorded(record, self.listeners):
            try:
                return await answer()
            except asyncio.CancelledError:
                record.status = "CANCELLED" if record.status == "OK" else record.status
                raise
            except TdbError as error:
                return await self._refused(record, error, refuse)
            except Exception as error:
                return await self._refused(record, Internal.logged(_log, record.method, error), refuse)

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Around what is done for a request that has been read.

        Raises:
            Unavailable: the server is stopping.
            DeadlineExceeded: it took too long.
        """
        await self.open_calls.until_let_go()
        timeout = asyncio.timeout(self.limits.max_call_seconds)
        try:
            with self.open_calls.one():
                async with timeout:
                    yield
        except TimeoutError:
            if not timeout.expired():
                raise
            message = f"the call took longer than the {self.limits.max_call_seconds:g} s this server allows"
            raise DeadlineExceeded(message, "CALL_TIME_LIMIT") from None

    async def _refused(
        self, record: CallRecord, error: TdbError, refuse: Callable[[TdbError], Awaitable[AnswerT]]
    ) -> AnswerT:
        record.status, record.reason = status_code(error).name, error.reason
        return await refuse(error)
