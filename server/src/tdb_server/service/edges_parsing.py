"""From the wire's requests for edges to sub-requests that want them, with every mistake named at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformer_debugger.v1.edges_pb2 import EdgesSubRequest
from transformer_debugger.v1.loss_pb2 import LOSS_FN_NAME_KL_FROM_BASELINE
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferEdgesRequest

from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.edges import DEFAULT_STEPS, EdgeMethod, EdgesSpec
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.number_blocks import too_many_numbers
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import InferenceSpec, InferenceSubRequest
from tdb_server.errors import FieldViolation
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.enum_names import EDGE_METHODS
from tdb_server.service.loss_parsing import parse_loss
from tdb_server.service.request_parsing import check_call, check_lengths
from tdb_server.service.request_reader import MessageReader, RequestReader

EDGES = "edges"
"""The name of the result."""


def parse_edges_request(
    request: InferEdgesRequest, info: ModelInfo, limits: Limits, tokenizer: Tokenizer
) -> tuple[InferenceSubRequest, ...]:
    """What a request for edges stands for; as `parse_debug_request`.

    Raises:
        InvalidRequest: the request can never work; every violation is named.
        FailedPrecondition: it asks for a beginning of text that the model does not have.
        OverLimit: it asks for more than the limits allow.
    """
    reader = MessageReader(RequestReader(info, limits, tokenizer), request)
    check_call(reader)
    parsed = [_parse_edges_sub_request(one) for one in reader.entries("sub_requests")]
    reader.request.note(_row_violations(parsed, limits.max_sub_requests))
    found = tuple(one for one in parsed if one is not None)
    check_lengths(reader, found)
    reader.request.raise_violations()
    fault = too_many_numbers(info, found, limits.max_spool_bytes // 2)  # what one caller alone may hold
    if fault is not None:
        reader.refuse(*fault, Reason.RESPONSE_TOO_LARGE)
    reader.request.raise_violations()
    return found


def _parse_edges_sub_request(sub_request: MessageReader[EdgesSubRequest]) -> InferenceSubRequest | None:
    """A sub-request; None where it is refused. What is wrong is noted in the reader."""
    n_violations = sub_request.request.n_violations
    prompt = sub_request.prompt()
    baselines = sub_request.baselines(prompt)
    is_divergence = sub_request.message.loss_fn_config.name == LOSS_FN_NAME_KL_FROM_BASELINE
    if not sub_request.value("baseline_prompts") and not is_divergence:  # for which the loss refuses it
        description = "at least one is required: an edge is scored by what is written there instead"
        sub_request.refuse("baseline_prompts", description, Reason.BASELINE_REQUIRED)
    loss = parse_loss(sub_request, None if prompt is None else len(prompt.token_ids))
    if not sub_request.has("loss_fn_config"):
        description = "edges are scored by the gradient of a loss; give one"
        sub_request.refuse("loss_fn_config", description, Reason.OBJECTIVE_REQUIRED)
    spec = _parse_spec(sub_request)
    if prompt is None or sub_request.request.n_violations > n_violations:
        return None
    inference = InferenceSpec(
        prompt.token_ids,
        loss,
        ablations=(HOLD_FINAL_NORM_SCALE,),
        bos_added=prompt.bos_added,
        baselines=baselines,
    )
    return InferenceSubRequest(inference, {EDGES: spec})


def _parse_spec(sub_request: MessageReader[EdgesSubRequest]) -> EdgesSpec:
    limits = sub_request.request.limits
    method = sub_request.member("method", EDGE_METHODS, EdgeMethod.EAP)
    n_steps, k = sub_request.optional("steps"), sub_request.optional("top_k")
    if n_steps is not None and method is EdgeMethod.EAP:
        description = "EAP takes gradients at the prompt alone; steps belong to EAP_IG"
        sub_request.refuse("steps", description, Reason.FIELD_NOT_ALLOWED)
    elif n_steps is not None and n_steps < 1:
        sub_request.refuse("steps", f"must be 1 or more, not {n_steps}", Reason.OUT_OF_RANGE)
    if k is None:
        k = limits.default_top_and_bottom_k
    elif k < 1:
        sub_request.refuse("top_k", f"must be 1 or more, not {k}", Reason.OUT_OF_RANGE)
    elif k > limits.max_top_and_bottom_k:
        description = f"{k} edges are over the limit of {limits.max_top_and_bottom_k}"
        sub_request.refuse("top_k", description, Reason.K_TOO_LARGE)
    if method is EdgeMethod.EAP:
        n_steps = 1
    elif n_steps is None:
        n_steps = DEFAULT_STEPS
    return EdgesSpec(k, n_steps, sub_request.value("whole_matrix"))


def _row_violations(
    sub_requests: Sequence[InferenceSubRequest | None], limit: int
) -> Iterator[FieldViolation]:
    """Steps that make more rows of all sub-requests together than there may be sub-requests."""
    n_rows = 0
    for i, one in enumerate(sub_requests):
        own = 1 if one is None else one.n_rows
        n_rows += own
        if n_rows > limit and own > 1:
            yield FieldViolation(
                f"sub_requests[{i}].steps",
                f"each step is run as a sub-request is, and {n_rows} of them are over the limit of {limit}",
                Reason.TOO_MANY_SUB_REQUESTS,
            )
            return
