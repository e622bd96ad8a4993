"""From the wire's general sub-request to the domain's: how a prompt is run, and what is wanted of it."""

from __future__ import annotations

from dataclasses import replace

from transformer_debugger.v1.trace_pb2 import TraceConfig
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferenceSpec as InferenceSpecMessage
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    InferenceSubRequest as InferenceSubRequestMessage,
)

from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.ablation_validation import ablation_violations, baseline_violations
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.processing_validation import ProcessingCheck
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionTraceType,
    Circuit,
    InferenceSpec,
    InferenceSubRequest,
    Trace,
)
from tdb_server.domain.spec_relations import within_layer_gradient_violations
from tdb_server.domain.trace_validation import trace_violations
from tdb_server.service.loss_parsing import check_loss_of_value, parse_loss
from tdb_server.service.node_parsing import (
    parse_ablation,
    parse_activation_index,
    parse_circuit,
    parse_trace,
)
from tdb_server.service.processing_parsing import parse_processing
from tdb_server.service.request_reader import MessageReader


def parse_inference_sub_request(
    sub_request: MessageReader[InferenceSubRequestMessage],
) -> InferenceSubRequest | None:
    """A general sub-request; None where it is refused. What is wrong is noted in the reader."""
    request = sub_request.request
    n_violations = request.n_violations
    sub_request.requires("inference_spec")
    spec: MessageReader[InferenceSpecMessage] = sub_request.inner("inference_spec")
    inference = _parse_inference(spec)
    limit = request.limits.max_processing_specs
    if not sub_request.at_most("processing_specs", limit, Reason.TOO_MANY_PROCESSING_SPECS):
        return None
    check = ProcessingCheck(
        request.info,
        request.limits,
        None if inference is None else len(inference.token_ids),
        _has_objective(spec),
        None if inference is None else inference.within_layer_gradient,
        () if inference is None else inference.ablations,
    )
    specs = parse_processing(sub_request, check)
    if inference is None or request.n_violations > n_violations:
        return None
    return InferenceSubRequest(inference, {name: one for name, one in specs.items() if one is not None})


def _parse_inference(spec: MessageReader[InferenceSpecMessage]) -> InferenceSpec | None:
    """How a prompt is run; None where the prompt is refused. Parts that cannot be read are left out."""
    prompt = spec.prompt()
    n_tokens = None if prompt is None else len(prompt.token_ids)
    loss = parse_loss(spec, n_tokens)
    trace = _parse_trace(spec, n_tokens)
    ablations = _parse_ablations(spec, n_tokens)
    within_layer_gradient = _parse_within_layer_gradient(spec, n_tokens)
    baselines = spec.baselines(prompt)
    circuit = _parse_circuit(spec, n_tokens)
    spec.request.note(
        baseline_violations(
            [(f"{spec.at('ablation_specs')}[{i}]", one) for i, one in enumerate(ablations)],
            bool(spec.value("baseline_prompts")),
        )
    )
    rule, pattern_gradients = spec.backward_rule(has_objective=_has_objective(spec))
    if prompt is None or rule is None:
        return None
    return InferenceSpec(
        prompt.token_ids,
        loss,
        trace,
        ablations,
        within_layer_gradient,
        prompt.bos_added,
        baselines,
        circuit,
        rule,
        pattern_gradients,
    )


def _parse_circuit(spec: MessageReader[InferenceSpecMessage], n_tokens: int | None) -> Circuit | None:
    field = "only_these"
    if not spec.has(field):
        return None
    if not spec.has("loss_fn_config") or spec.has("trace_config"):
        description = "says how much of a loss is kept; give a loss, and no trace"
        spec.refuse(field, description, Reason.OBJECTIVE_REQUIRED)
    return parse_circuit(spec.inner(field), n_tokens)


def _parse_trace(spec: MessageReader[InferenceSpecMessage], n_tokens: int | None) -> Trace | None:
    if not spec.has("trace_config"):
        return None
    config: MessageReader[TraceConfig] = spec.inner("trace_config")
    trace = parse_trace(config)
    if trace is not None:
        downstream_path = config.at("downstream_trace_config")
        spec.request.note(trace_violations(trace, spec.request.info, n_tokens, config.path, downstream_path))
        _check_loss_beside_trace(spec, trace)
    return trace


def _check_loss_beside_trace(spec: MessageReader[InferenceSpecMessage], trace: Trace) -> None:
    is_towards_loss = trace.attention_trace_type is AttentionTraceType.V and trace.downstream is None
    has_loss = spec.has("loss_fn_config")
    if has_loss and not is_towards_loss:
        spec.refuse(
            "loss_fn_config",
            "a loss and a trace exclude each other, but for a head traced through V with no downstream node",
            Reason.LOSS_AND_TRACE,
        )
    elif has_loss:
        check_loss_of_value(spec.inner("loss_fn_config"))
    elif is_towards_loss:
        spec.refuse(
            "loss_fn_config",
            "a head traced through V with no downstream node needs a loss, which gives it a direction",
            Reason.OBJECTIVE_REQUIRED,
        )


def _parse_ablations(
    spec: MessageReader[InferenceSpecMessage], n_tokens: int | None
) -> tuple[AblationSpec, ...]:
    request, has_objective = spec.request, _has_objective(spec)
    if not spec.at_most("ablation_specs", request.limits.max_node_ablations, Reason.TOO_MANY_ABLATIONS):
        return ()
    sound: list[tuple[str, AblationSpec]] = []
    for one in spec.entries("ablation_specs"):
        ablation = parse_ablation(one)
        if ablation is not None and request.note(
            ablation_violations(ablation, request.info, n_tokens, has_objective, one.path)
        ):
            sound.append((one.path, ablation))
    request.note(conflict_violations(sound, request.info))
    return tuple(ablation for _, ablation in sound)


def _parse_within_layer_gradient(
    spec: MessageReader[InferenceSpecMessage], n_tokens: int | None
) -> ActivationIndex | None:
    field, info = "activation_index_for_within_layer_grad", spec.request.info
    index = parse_activation_index(spec.inner(field)) if spec.has(field) else None
    if index is not None:
        if index.hook_point is HookPoint.ONLINE_AUTOENCODER_LATENT and len(info.autoencoders) > 1:
            # No other autoencoder than attention's can be meant.
            index = replace(index, hook_point=HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT)
        spec.request.note(within_layer_gradient_violations(index, info, n_tokens, spec.at(field)))
    return index


def _has_objective(spec: MessageReader[InferenceSpecMessage]) -> bool:
    return spec.has("loss_fn_config") or spec.has("trace_config")
