"""Who the call that is being answered comes from. Every call is a task of its own, with its own context."""

from __future__ import annotations

from contextvars import ContextVar

from tdb_server.domain.caller import Caller

ANONYMOUS = Caller("anonymous")
_current: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """The caller of this call; anonymous outside of one."""
    return _current.get()


def answer_to(caller: Caller) -> None:
    """From here on, what runs in this task runs for this caller."""
    _current.set(caller)
