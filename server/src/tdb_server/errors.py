# ruff: noqa: N818 - the names say what happened; a base class named TdbError says that they are errors
"""Every error this program raises on purpose.

    TdbError
    ├── ModelError                  the model cannot be served
    │   ├── ModelNotFound           no such folder, file or hub model, or no network to fetch it
    │   ├── ModelBroken             a file of it is missing, damaged or contradicts another
    │   │   └── ConversionDamaged   what we have made of a model and kept is not what it was
    │   ├── UnsupportedModel        sound, but of a kind that the decoder cannot compute
    │   └── AutoencoderBroken       the same for the files of an autoencoder
    ├── ConfigurationBroken         a file of tokens or certificates cannot be used
    ├── InvalidRequest              the request can never work; names the fields at fault
    ├── FailedPrecondition          the request cannot work with what is loaded; names the fields at fault
    ├── OverLimit                   a limit is exceeded or the queue is full
    │   ├── FieldsOverLimit         fields ask for more than a limit allows; names them
    │   └── ResponseTooLarge        the answer does not fit a call that does not stream
    ├── Unavailable                 nobody can do the work right now; try again
    ├── Cancelled                   the caller no longer wants the answer
    ├── DeadlineExceeded            the answer would come too late
    ├── Unauthenticated             no credentials, or wrong ones
    ├── PermissionDenied            the caller may not do this
    └── Internal                    a fault of ours, logged under an id

Each has a `reason`, an upper-snake word for programs, and a `message` for people. Errors cross the border
between worker and front process, so all of them can be pickled.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class TdbError(Exception):
    """Base of all: what happened, for people (`message`) and for programs (`reason`).

    Args:
        message: one or two sentences.
        reason: an upper-snake word; the class's own one when left out.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init_subclass__(cls, reason: str | None = None) -> None:
        cls.default_reason = reason or cls.default_reason

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with `args`, which does not fit every subclass.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[TdbError], args: tuple[object, ...], attributes: dict[str, object]) -> TdbError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ModelError(TdbError, reason="MODEL_ERROR"):
    """The model cannot be served; the server does not start."""


class ModelNotFound(ModelError, reason="MODEL_NOT_FOUND"):
    """There is no model where one was looked for."""


class ModelBroken(ModelError, reason="MODEL_BROKEN"):
    """A file of the model is missing, damaged, unsafe to read, or contradicts another."""


class ConversionDamaged(ModelBroken):
    """What was made of a model and kept is not what it was; it can be made again."""


class UnsupportedModel(ModelError, reason="UNSUPPORTED_MODEL"):
    """The model asks for mathematics that the decoder does not have."""


class AutoencoderBroken(ModelError, reason="AUTOENCODER_BROKEN"):
    """A file of an autoencoder is missing, damaged, or does not fit the model."""


class ConfigurationBroken(TdbError, reason="CONFIGURATION_BROKEN"):
    """A file that an option names is missing, damaged, or contradicts another; the server does not start."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault.

    Attributes:
        field: its full path, for example `sub_requests[1].node_ablations[0].node_index.layer_index`.
        description: what is wrong and what would be right, for people.
        reason: an upper-snake word, for programs.
    """

    field: str
    description: str
    reason: str


def in_words(violations: Sequence[FieldViolation], n_more: int) -> str:
    """All fields at fault in one line, and how many more there are."""
    words = [f"{violation.field}: {violation.description}" for violation in violations]
    return "; ".join([*words, f"and {n_more} more"] if n_more else words)


class ViolationError(TdbError):
    """Base of the errors that name fields. Its reason is that of the first field.

    Args:
        violations: fields at fault, at least one.
        n_more: fields at fault that were counted and not kept.
    """

    def __init__(self, violations: Sequence[FieldViolation], n_more: int = 0) -> None:
        self.violations = tuple(violations)
        self.n_more = n_more
        super().__init__(in_words(violations, n_more), self.violations[0].reason)


class InvalidRequest(ViolationError):
    """The request can never work, whatever is loaded."""


class FailedPrecondition(ViolationError):
    """The request is well formed but does not fit what is loaded, like a latent without its autoencoder."""


class RetryableError(TdbError):
    """Base of the errors that may pass with time.

    Args:
        message: one or two sentences.
        reason: an upper-snake word.
        retry_after_seconds: when to try again; None when that cannot help.
    """

    def __init__(self, message: str, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, reason)
        self.retry_after_seconds = retry_after_seconds


class OverLimit(RetryableError):
    """Too much at once, or too much for ever (then without a time to retry)."""


class FieldsOverLimit(ViolationError, OverLimit):
    """Fields that are right but for the server's limits, which do not pass with time."""


class ResponseTooLarge(OverLimit):
    """The answer does not fit a call that does not stream.

    Args:
        size: how large it is, and how large it may be.
        streaming_call: the method that can answer.

    Attributes:
        size: the message but for the way out, which is another over HTTP.
    """

    def __init__(self, size: str, streaming_call: str) -> None:
        self.size = size
        super().__init__(f"{size}; use {streaming_call}", "RESPONSE_TOO_LARGE")
        self.streaming_call = streaming_call


class Unavailable(RetryableError):
    """No worker can take the work right now."""


class Cancelled(TdbError, reason="CANCELLED"):
    """The caller went away or said so."""


class DeadlineExceeded(TdbError, reason="DEADLINE_EXCEEDED"):
    """The caller's deadline or the server's own time limit has passed."""


class Unauthenticated(TdbError, reason="UNAUTHENTICATED"):
    """The call carries no credentials, or wrong ones."""


class PermissionDenied(TdbError, reason="PERMISSION_DENIED"):
    """The caller is known and may not do this."""


class Internal(TdbError):
    """A fault of the server. The caller learns the id alone, the log has the rest.

    Args:
        error_id: what the log calls this fault.
    """

    def __init__(self, error_id: str) -> None:
        super().__init__(f"internal error {error_id}; the server's log says more")
        self.error_id = error_id

    @classmethod
    def logged(cls, log: logging.Logger, what: str, error: BaseException | None = None) -> Internal:
        """A fault under a new id, which is written to the log.

        Args:
            log: of the module that has found it.
            what: is wrong, or where.
            error: whose stack trace is logged.
        """
        error_id = uuid.uuid4().hex[:12]
        log.error("internal error %s: %s", error_id, what, exc_info=error)
        return cls(error_id)
