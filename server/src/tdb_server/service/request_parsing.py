"""From the wire's requests to what the workers run, with every mistake of a request named at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferEdgesRequest,
    InferRequest,
)
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugSubRequest as DebugSubRequestMessage

from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.ablation_validation import baseline_violations, node_ablation_violations
from tdb_server.domain.debug import (
    COMPONENT_HOOK_POINTS,
    inference_sub_request,
    node_ablation_spec,
    traces_towards_loss,
)
from tdb_server.domain.index_validation import presence_violations
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AblationSpec,
    AttentionComponent,
    Circuit,
    Component,
    DebugSubRequest,
    InferenceSubRequest,
    LossConfig,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    ResidualStreamComponent,
    Trace,
    ValueType,
)
from tdb_server.domain.spec_relations import difference_violations
from tdb_server.domain.trace_validation import trace_violations
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.enum_names import (
    ATTENTION_COMPONENTS,
    MLP_COMPONENTS,
    RESIDUAL_STREAM_COMPONENTS,
)
from tdb_server.service.inference_parsing import parse_inference_sub_request
from tdb_server.service.loss_parsing import check_loss_of_value, parse_loss
from tdb_server.service.node_parsing import parse_circuit, parse_node_ablation, parse_trace
from tdb_server.service.request_reader import MessageReader, RequestReader

MAX_REQUEST_ID_CHARACTERS = 128
_N_TOKENS_SHOWN = 64
Call = TypeVar("Call", DebugRequest, InferRequest, InferEdgesRequest)


def parse_debug_request(
    request: DebugRequest, info: ModelInfo, limits: Limits, tokenizer: Tokenizer
) -> tuple[InferenceSubRequest, ...]:
    """What a debug request stands for.

    Args:
        request: the request.
        info: the model that is loaded.
        limits: what the server is willing to do.
        tokenizer: the model's tokenizer.

    Returns:
        One run per sub-request, in order.

    Raises:
        InvalidRequest: the request can never work; every violation is named.
        FailedPrecondition: it asks for latents whose autoencoder is not loaded.
        OverLimit: it asks for more than the limits allow.
    """
    reader = MessageReader(RequestReader(info, limits, tokenizer), request)
    check_call(reader)
    parsed = [_parse_debug_sub_request(one) for one in reader.entries("sub_requests")]
    sound = [one for one in parsed if one is not None]
    found = tuple(inference_sub_request(one) for one in sound)
    check_lengths(reader, found)
    _check_components(reader, sound)
    reader.request.raise_violations()
    return found


def parse_infer_request(
    request: InferRequest, info: ModelInfo, limits: Limits, tokenizer: Tokenizer
) -> tuple[InferenceSubRequest, ...]:
    """What a general request stands for; as `parse_debug_request`."""
    reader = MessageReader(RequestReader(info, limits, tokenizer), request)
    check_call(reader)
    parsed = [parse_inference_sub_request(one) for one in reader.entries("sub_requests")]
    found = tuple(one for one in parsed if one is not None)
    check_lengths(reader, found)
    _check_rankings(reader, parsed)
    reader.request.raise_violations()
    return found


def check_call(call: MessageReader[Call]) -> None:
    """What concerns the call as a whole. Too many sub-requests are refused unread.

    Raises:
        OverLimit: there are too many sub-requests.
    """
    request_id = call.message.request_id
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS or not all(" " <= one <= "~" for one in request_id):
        description = f"must be at most {MAX_REQUEST_ID_CHARACTERS} printable ASCII characters"
        call.refuse("request_id", description, Reason.MALFORMED_REQUEST)
    if not call.message.sub_requests:
        call.refuse("sub_requests", "at least one is required", Reason.FIELD_REQUIRED)
    limit = call.request.limits.max_sub_requests
    if not call.at_most("sub_requests", limit, Reason.TOO_MANY_SUB_REQUESTS):
        call.request.raise_violations()


def check_lengths(call: MessageReader[Call], sub_requests: Sequence[InferenceSubRequest]) -> None:
    """Refuses prompts of different lengths in one call."""
    prompts = [one.inference.token_ids for one in sub_requests]
    if len({len(prompt) for prompt in prompts}) <= 1:
        return
    lengths = ", ".join(str(len(prompt)) for prompt in prompts)
    token_strings = call.request.tokenizer.token_strings
    tokens = "; ".join(str(token_strings(prompt[:_N_TOKENS_SHOWN])) for prompt in prompts)
    call.refuse(
        "sub_requests",
        f"the prompts of one call must have the same number of tokens, not {lengths}: {tokens}",
        Reason.UNEQUAL_PROMPT_LENGTHS,
    )


def _check_components(call: MessageReader[Call], sub_requests: Sequence[DebugSubRequest]) -> None:
    """Sub-requests of one call share their nodes, so that they must be made of the same components."""
    for i, one in enumerate(sub_requests):
        first = sub_requests[0]
        for field, same in (
            ("component_type_for_mlp", one.mlp_component is first.mlp_component),
            ("component_type_for_attention", one.attention_component is first.attention_component),
            (
                "component_types_for_residual_stream",
                one.residual_stream_components == first.residual_stream_components,
            ),
        ):
            if not same:
                call.refuse(
                    f"sub_requests[{i}].{field}",
                    "must be the same in all sub-requests of a call, which share their nodes",
                    Reason.SPECS_DIFFER,
                )


def _check_rankings(call: MessageReader[Call], sub_requests: Sequence[InferenceSubRequest | None]) -> None:
    rankings = [
        (f"sub_requests[{i}].processing_specs[{j}].multiple_top_k", name, spec)
        for i, one in enumerate(sub_requests)
        if one is not None
        for j, (name, spec) in enumerate(one.processing.items())
        if isinstance(spec, MultipleTopKSpec)
    ]
    call.request.note(difference_violations(rankings))


def _parse_debug_sub_request(sub_request: MessageReader[DebugSubRequestMessage]) -> DebugSubRequest | None:
    """A debug sub-request; None where it is refused. What is wrong is noted in the reader."""
    n_violations = sub_request.request.n_violations
    prompt = sub_request.prompt()
    n_tokens = None if prompt is None else len(prompt.token_ids)
    targets, distractors = sub_request.targets_and_distractors()
    mlp, attention, residual_stream = _parse_components(sub_request)
    k = _parse_k(sub_request)
    ablations = _parse_node_ablations(sub_request, n_tokens)
    trace = _parse_nodes_to_trace(sub_request, n_tokens)
    baselines = sub_request.baselines(prompt)
    circuit = _parse_circuit(sub_request, n_tokens)
    rule, pattern_gradients = sub_request.backward_rule(has_objective=True)
    loss = _parse_debug_loss(sub_request, n_tokens, trace)
    if targets == () and not sub_request.has("loss_fn_config") and _needs_loss(trace):
        sub_request.refuse("target_tokens", "at least one is required", Reason.FIELD_REQUIRED)
    if sub_request.request.n_violations > n_violations:
        return None
    if prompt is None or targets is None or distractors is None:
        return None
    if mlp is None or attention is None or residual_stream is None or rule is None:
        return None
    return DebugSubRequest(
        prompt.token_ids,
        targets,
        distractors,
        mlp,
        attention,
        k,
        sub_request.message.hide_early_layers_when_ablating,
        ablations,
        trace,
        prompt.bos_added,
        baselines,
        circuit,
        residual_stream,
        rule,
        pattern_gradients,
        loss,
        sub_request.message.omit_token_lists,
        sub_request.message.omit_top_k_sums,
        sub_request.message.component_totals,
    )


def _parse_circuit(
    sub_request: MessageReader[DebugSubRequestMessage], n_tokens: int | None
) -> Circuit | None:
    field = "only_these"
    if not sub_request.has(field):
        return None
    if sub_request.has("upstream_node_to_trace"):
        description = "says how much of the loss is kept; no node can be traced"
        sub_request.refuse(field, description, Reason.FIELD_NOT_ALLOWED)
    return parse_circuit(sub_request.inner(field), n_tokens)


def _needs_loss(trace: Trace | None) -> bool:
    return trace is None or traces_towards_loss(trace)


def _parse_debug_loss(
    sub_request: MessageReader[DebugSubRequestMessage], n_tokens: int | None, trace: Trace | None
) -> LossConfig | None:
    """The loss in place of the target and distractor tokens; None where there is none."""
    field = "loss_fn_config"
    if not sub_request.has(field):
        return None
    for other in ("target_tokens", "target_token_ids", "distractor_tokens", "distractor_token_ids"):
        if sub_request.value(other):
            sub_request.refuse(other, f"{field} says what the objective is", Reason.FIELD_NOT_ALLOWED)
    if trace is not None and traces_towards_loss(trace):
        check_loss_of_value(sub_request.inner(field))
    return parse_loss(sub_request, n_tokens)


def _parse_components(
    sub_request: MessageReader[DebugSubRequestMessage],
) -> tuple[MlpComponent | None, AttentionComponent | None, tuple[ResidualStreamComponent, ...] | None]:
    of_mlp, of_attention = "component_type_for_mlp", "component_type_for_attention"
    of_stream, request = "component_types_for_residual_stream", sub_request.request
    mlp = sub_request.member(of_mlp, MLP_COMPONENTS, MlpComponent.NEURON)
    attention = sub_request.member(of_attention, ATTENTION_COMPONENTS, AttentionComponent.ATTENTION_HEAD)
    of_places = sub_request.members(of_stream, RESIDUAL_STREAM_COMPONENTS, "places")
    components: list[tuple[str, Component | None]] = [(of_mlp, mlp), (of_attention, attention)]
    components += [(f"{of_stream}[{i}]", one) for i, one in enumerate(of_places or ())]
    for field, component in components:
        if component is not None:
            path = sub_request.at(field)
            request.note(
                presence_violations(COMPONENT_HOOK_POINTS[component], None, request.info, path, path)
            )
    in_order = tuple(one for one in ResidualStreamComponent if one in (of_places or ()))
    return mlp, attention, None if of_places is None else in_order


def _parse_k(sub_request: MessageReader[DebugSubRequestMessage]) -> int:
    field, limits = "top_and_bottom_k", sub_request.request.limits
    if not sub_request.has(field):
        return limits.default_top_and_bottom_k
    k, limit = sub_request.message.top_and_bottom_k, limits.max_top_and_bottom_k
    if k < 1:
        sub_request.refuse(field, f"must be 1 or more, not {k}", Reason.OUT_OF_RANGE)
    elif k > limit:
        sub_request.refuse(field, f"{k} is over the limit of {limit}", Reason.K_TOO_LARGE)
    return k


def _parse_node_ablations(
    sub_request: MessageReader[DebugSubRequestMessage], n_tokens: int | None
) -> tuple[NodeAblation, ...]:
    request = sub_request.request
    limit = request.limits.max_node_ablations
    if not sub_request.at_most("node_ablations", limit, Reason.TOO_MANY_ABLATIONS):
        return ()
    sound: list[tuple[str, NodeAblation]] = []
    for one in sub_request.entries("node_ablations"):
        ablation = parse_node_ablation(one)
        if ablation is not None and request.note(
            node_ablation_violations(ablation, request.info, n_tokens, one.path)
        ):
            sound.append((one.path, ablation))
    cells = [(path, node_ablation_spec(ablation)) for path, ablation in sound]
    patterns = [(path, _of_pattern(ablation)) for path, ablation in sound]
    if request.note(conflict_violations(cells, request.info)):
        request.note(conflict_violations(patterns, request.info))
    request.note(baseline_violations(cells, bool(sub_request.value("baseline_prompts"))))
    return tuple(ablation for _, ablation in sound)


def _of_pattern(ablation: NodeAblation) -> AblationSpec:
    """The cells by which an ablation conflicts with others: of a head, its pattern, whatever it is set to."""
    at_pattern = node_ablation_spec(replace(ablation, value_type=ValueType.NUMBER))
    return replace(at_pattern, value_type=ablation.value_type)


def _parse_nodes_to_trace(
    sub_request: MessageReader[DebugSubRequestMessage], n_tokens: int | None
) -> Trace | None:
    upstream, downstream = "upstream_node_to_trace", "downstream_node_to_trace"
    has_downstream = sub_request.has(downstream)
    direction = parse_trace(sub_request.inner(downstream)) if has_downstream else None
    if not sub_request.has(upstream):
        if has_downstream:
            sub_request.refuse(
                upstream,
                "a downstream node gives a direction to the head that is traced; name that head",
                Reason.DOWNSTREAM_WITHOUT_UPSTREAM,
            )
        return None
    trace = parse_trace(sub_request.inner(upstream))
    if trace is None:
        return None
    trace = replace(trace, downstream=direction)
    info, paths = sub_request.request.info, (sub_request.at(upstream), sub_request.at(downstream))
    sub_request.request.note(trace_violations(trace, info, n_tokens, *paths))
    return trace
