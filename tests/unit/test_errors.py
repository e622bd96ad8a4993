"""Every error survives the way from the worker to the front process."""

from __future__ import annotations

import pickle

import pytest
from tdb_server import errors
from tdb_server.errors import FieldViolation, TdbError

VIOLATIONS = (
    FieldViolation("prompt", "is empty", "EMPTY_PROMPT"),
    FieldViolation("k", "must be above 0", "OUT_OF_RANGE"),
)
EXAMPLES: list[tuple[TdbError, str]] = [
    (errors.ModelNotFound("gone"), "MODEL_NOT_FOUND"),
    (errors.ModelBroken("broken"), "MODEL_BROKEN"),
    (errors.UnsupportedModel("odd"), "UNSUPPORTED_MODEL"),
    (errors.AutoencoderBroken("odd"), "AUTOENCODER_BROKEN"),
    (errors.ConfigurationBroken("no such file"), "CONFIGURATION_BROKEN"),
    (errors.InvalidRequest(VIOLATIONS), "EMPTY_PROMPT"),
    (errors.FailedPrecondition(VIOLATIONS[1:]), "OUT_OF_RANGE"),
    (errors.OverLimit("full", "QUEUE_FULL", retry_after_seconds=0.5), "QUEUE_FULL"),
    (errors.FieldsOverLimit(VIOLATIONS[1:], 3), "OUT_OF_RANGE"),
    (errors.Unavailable("loading", "NO_WORKER_READY", 2.0), "NO_WORKER_READY"),
    (errors.Cancelled("gone"), "CANCELLED"),
    (errors.DeadlineExceeded("late", "CALL_TIME_LIMIT"), "CALL_TIME_LIMIT"),
    (errors.Unauthenticated("who?"), "UNAUTHENTICATED"),
    (errors.PermissionDenied("no"), "PERMISSION_DENIED"),
    (errors.Internal("a1b2"), "INTERNAL"),
]


@pytest.mark.parametrize(("error", "reason"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_reason_and_pickling(error: TdbError, reason: str) -> None:
    assert error.reason == reason
    assert str(error) == error.message
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_every_field_is_named_in_the_message() -> None:
    assert errors.InvalidRequest(VIOLATIONS).message == "prompt: is empty; k: must be above 0"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    shared = {"TdbError", "ViolationError", "RetryableError"}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, TdbError) and name not in shared:
            assert f"── {name} " in drawn, name
