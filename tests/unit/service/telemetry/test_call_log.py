from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from tdb_server.log_format import FIELDS, configure_logging
from tdb_server.service.telemetry.call_log import CallLog
from tdb_server.service.telemetry.call_record import CallRecord, current_record, recorded


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Puts the root logger back as pytest has it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # configuring would close those it replaces
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def log_of(record: CallRecord, log_format: str, level: int = logging.INFO) -> str:
    stream = io.StringIO()
    configure_logging(log_format, level, stream)
    with recorded(record, [CallLog()]):
        pass
    return stream.getvalue()


def a_record(**fields: object) -> CallRecord:
    record = CallRecord(
        "transformer_debugger.v1.ModelService/Tokenize", peer="ipv4:127.0.0.1:1", caller="alice"
    )
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def test_a_line_of_json():
    record = a_record(request_id="a-1", status="RESOURCE_EXHAUSTED", reason="QUEUE_FULL")
    record.request_id, record.n_sub_requests = "a-1", 2
    record.parsed([["the", " cat"], ["the", " dog"]])
    record.queue_seconds, record.is_cached = 0.25, False
    said = json.loads(log_of(record, "json"))
    seconds, pid, time = said.pop("seconds"), said.pop("pid"), said.pop("time")
    assert seconds > 0
    assert pid > 0
    assert time.endswith("Z")
    assert said == {
        "level": "info",
        "logger": "tdb_server.call",
        "message": "call",
        "request_id": "a-1",
        "caller": "alice",
        "peer": "ipv4:127.0.0.1:1",
        "method": "transformer_debugger.v1.ModelService/Tokenize",
        "status": "RESOURCE_EXHAUSTED",
        "reason": "QUEUE_FULL",
        "n_sub_requests": 2,
        "n_tokens": 4,
        "queue_seconds": 0.25,
        "cached": False,
    }


def test_a_line_of_text():
    line = log_of(a_record(request_id="a-1", is_cached=True), "text")
    assert " INFO [" in line
    assert "call request_id=a-1 caller=alice" in line
    assert "status=OK" in line
    assert "cached=true" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_client_chose_cannot_make_a_line(log_format):
    hostile = "x\nINFO call status=OK \x1b[31m\u2028" + "y" * 10_000
    line = log_of(a_record(request_id=hostile), log_format)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert "\x1b" not in line
    assert len(line) < 1000


def test_prompts_are_not_logged_unless_asked_for():
    record, open_record = a_record(), a_record(keeps_prompts=True)
    for one in (record, open_record):
        one.parsed([["secret", " plan"]])
    assert "secret" not in log_of(record, "json")
    assert json.loads(log_of(open_record, "json"))["prompts"] == ["secret plan"]


def test_levels():
    assert " ERROR " in log_of(a_record(status="INTERNAL"), "text")
    health = a_record(method="grpc.health.v1.Health/Check")
    assert not log_of(health, "text")
    assert " DEBUG " in log_of(health, "text", logging.DEBUG)
    assert not log_of(a_record(), "text", logging.WARNING)


def test_stack_traces_are_one_line_of_json():
    stream = io.StringIO()
    configure_logging("json", logging.INFO, stream)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("x").exception("it %s", "broke", extra={FIELDS: {"error_id": "e1"}})
    said = json.loads(stream.getvalue())
    assert (said["message"], said["error_id"], said["level"]) == ("it broke", "e1", "error")
    assert "ValueError: odd" in said["exception"]


def test_the_record_of_a_call_is_its_own():
    record = a_record()
    with recorded(record, []):
        assert current_record() is record
    assert record.seconds > 0


STEERING = "a\u2028b\u2029c\x85d\x1b[31me\x7ff\u202eg\ud800h"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_a_client_chose_stays_on_its_line_and_steers_no_terminal(log_format):
    said = log_of(a_record(request_id=STEERING), log_format)
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert len(said.splitlines()) == 1
    if log_format == "json":
        assert json.loads(said)["request_id"] == STEERING


def test_messages_stay_on_their_line_too():
    stream = io.StringIO()
    configure_logging("text", logging.INFO, stream)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logging.getLogger("x").exception("file %s", "a\nb")
    first, *trace = stream.getvalue().splitlines()
    assert first.endswith("file a\\u000ab")
    assert trace[-1] == "ValueError: \\u001b[2J"
