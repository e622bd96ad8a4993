"""Who may call. The same rules for gRPC and the JSON gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tdb_server.domain.caller import Caller
from tdb_server.errors import Unauthenticated
from tdb_server.service.access.caller_ledger import CallerLedger
from tdb_server.service.access.client_address import Network, client_address
from tdb_server.service.access.token_file import TokenFile
from tdb_server.service.caller import ANONYMOUS, answer_to
from tdb_server.service.telemetry.call_record import CallRecord

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a call came in.

    Attributes:
        name: address and port at the other end, which no other connection has at the same time.
        host: the address alone.
        forwarded_for: every value of the call's header `x-forwarded-for`.
    """

    name: str
    host: str
    forwarded_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """Knows callers by their tokens, and keeps them within their limits.

    Attributes:
        tokens: who may call; None to let everybody call.
        certificate_names: one of which a client's certificate must have; empty to take any that the
            handshake has let through.
        trusted_proxies: who is believed when they say for whom they call.
    """

    tokens: TokenFile | None = None
    certificate_names: frozenset[str] = frozenset()
    trusted_proxies: Sequence[Network] = ()
    _ledger: CallerLedger = field(default_factory=CallerLedger)

    def token_owner(self, authorization: Sequence[str]) -> Caller | None:
        """Whose token is in a call's header of that name, given every value of it; None if none is asked for.

        Raises:
            Unauthenticated: no token, more than one, or one that is not in the file.
        """
        if self.tokens is None:
            return None
        if len(authorization) != 1 or not authorization[0].lower().startswith(_SCHEME):
            raise Unauthenticated("the call carries no token; send one as `authorization: Bearer TOKEN`")
        owner = self.tokens.caller_of(authorization[0][len(_SCHEME) :].strip())
        if owner is None:
            raise Unauthenticated("the call's token is not known here")
        return owner

    @contextmanager
    def admitted(
        self,
        record: CallRecord,
        owner: Caller | None,
        connection: Connection,
        certificate_names: Sequence[str] = (),
    ) -> Iterator[None]:
        """Around the answering of one call, which runs for its caller.

        That is its token's owner, else the first, best known, of the names in the client's certificate, else
        the client's address. The record learns who it is.

        Raises:
            Unauthenticated: no name of the certificate may call.
            OverLimit: the caller is at a limit.
        """
        if owner is None:
            address = client_address(connection.host, connection.forwarded_for, self.trusted_proxies)
            owner = Caller(next(iter(certificate_names), "") or address or ANONYMOUS.name)
        caller = replace(owner, connection=connection.name)
        record.caller = caller.name
        if self.certificate_names and self.certificate_names.isdisjoint(certificate_names):
            raise Unauthenticated("the client's certificate has none of the names that may call here")
        with self._ledger.one_call(caller):
            answer_to(caller)
            yield
