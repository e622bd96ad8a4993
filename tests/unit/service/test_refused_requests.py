"""The requests that everybody agreed must be refused, as bodies of the JSON API: status and field of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tdb_server.errors import FailedPrecondition, InvalidRequest
from tdb_server.gateway.json_requests import debug_request

from tests.unit.service.tiny_requests import parse, violations

REFUSED = json.loads((Path(__file__).parents[2] / "golden" / "refused.json").read_text())
ERRORS = {"INVALID_ARGUMENT": InvalidRequest, "FAILED_PRECONDITION": FailedPrecondition}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["case"])
def test_refused_with_status_and_field(case: dict[str, Any]) -> None:
    assert case["endpoint"] == "batched_tdb"
    request = debug_request(case["request"])
    with pytest.raises(ERRORS[case["grpc_status"]]) as caught:
        parse(request)
    assert type(caught.value) is ERRORS[case["grpc_status"]]
    assert [field for field, _ in violations(request)] == [case["field"]]
