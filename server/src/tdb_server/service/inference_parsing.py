"""From the wire's general sub-request to the domain's: how a prompt is run, and what is wanted of it."""

from __future__ import annotations

from dataclasses import replace

from transformer_debugger.v1.loss_pb2 import LossFnConfig
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferenceSpec as InferenceSpecMessage
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    InferenceSubRequest as InferenceSubRequestMessage,
)

from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.ablation_validation import ablation_violations
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.processing_validation import ProcessingCheck
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AblationSpec,
    AttentionTraceType,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    Trace,
)
from tdb_server.domain.spec_relations import within_layer_gradient_violations
from tdb_server.domain.trace_validation import trace_violations
from tdb_server.service.enum_names import LOSS_NAMES
from tdb_server.service.node_parsing import parse_ablation, parse_activation_index, parse_trace
from tdb_server.service.processing_parsing import parse_processing
from tdb_server.service.request_reader import RequestReader


def parse_inference_sub_request(
    reader: RequestReader, message: InferenceSubRequestMessage, path: str
) -> InferenceSubRequest | None:
    """A general sub-request; None where it is refused. What is wrong is noted in the reader."""
    n_violations = reader.n_violations
    if not message.HasField("inference_spec"):
        reader.refuse(f"{path}.inference_spec", "is required", Reason.FIELD_REQUIRED)
    inference = _parse_inference(reader, message.inference_spec, f"{path}.inference_spec")
    n_tokens = None if inference is None else len(inference.token_ids)
    specs_path = f"{path}.processing_specs"
    reason = Reason.TOO_MANY_PROCESSING_SPECS
    if not reader.at_most(message.processing_specs, reader.limits.max_processing_specs, specs_path, reason):
        return None
    check = ProcessingCheck(
        reader.info,
        reader.limits,
        n_tokens,
        _has_objective(message.inference_spec),
        None if inference is None else inference.within_layer_gradient,
        () if inference is None else inference.ablations,
    )
    specs = parse_processing(reader, message.processing_specs, check, specs_path)
    if inference is None or reader.n_violations > n_violations:
        return None
    return InferenceSubRequest(inference, {name: one for name, one in specs.items() if one is not None})


def _parse_inference(reader: RequestReader, message: InferenceSpecMessage, path: str) -> InferenceSpec | None:
    """How a prompt is run; None where the prompt is refused. Parts that cannot be read are left out."""
    prompt = reader.prompt(message, path)
    n_tokens = None if prompt is None else len(prompt.token_ids)
    loss = (
        _parse_loss(reader, message.loss_fn_config, f"{path}.loss_fn_config") if _has_loss(message) else None
    )
    trace = _parse_trace(reader, message, n_tokens, path)
    if trace is not None:
        _check_loss_beside_trace(reader, trace, _has_loss(message), path)
    ablations = _parse_ablations(reader, message, n_tokens, path)
    within_layer_gradient = None
    if message.HasField("activation_index_for_within_layer_grad"):
        index_path = f"{path}.activation_index_for_within_layer_grad"
        index = parse_activation_index(reader, message.activation_index_for_within_layer_grad, index_path)
        if index is not None:
            if index.hook_point is HookPoint.ONLINE_AUTOENCODER_LATENT and len(reader.info.autoencoders) > 1:
                # No other autoencoder than attention's can be meant.
                index = replace(index, hook_point=HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT)
            reader.note(within_layer_gradient_violations(index, reader.info, n_tokens, index_path))
        within_layer_gradient = index
    if prompt is None:
        return None
    return InferenceSpec(
        prompt.token_ids, loss, trace, ablations, within_layer_gradient, bos_added=prompt.bos_added
    )


def _parse_trace(
    reader: RequestReader, message: InferenceSpecMessage, n_tokens: int | None, path: str
) -> Trace | None:
    if not message.HasField("trace_config"):
        return None
    trace_path = f"{path}.trace_config"
    trace = parse_trace(reader, message.trace_config, trace_path)
    if trace is not None:
        downstream_path = f"{trace_path}.downstream_trace_config"
        reader.note(trace_violations(trace, reader.info, n_tokens, trace_path, downstream_path))
    return trace


def _check_loss_beside_trace(reader: RequestReader, trace: Trace, has_loss: bool, path: str) -> None:
    is_towards_loss = trace.attention_trace_type is AttentionTraceType.V and trace.downstream is None
    if has_loss and not is_towards_loss:
        reader.refuse(
            f"{path}.loss_fn_config",
            "a loss and a trace exclude each other, but for a head traced through V with no downstream node",
            Reason.LOSS_AND_TRACE,
        )
    elif is_towards_loss and not has_loss:
        reader.refuse(
            f"{path}.loss_fn_config",
            "a head traced through V with no downstream node needs a loss, which gives it a direction",
            Reason.OBJECTIVE_REQUIRED,
        )


def _parse_loss(reader: RequestReader, message: LossFnConfig, path: str) -> LossConfig | None:
    name = reader.member(message.name, LOSS_NAMES, f"{path}.name")
    targets = reader.single_tokens(message.target_tokens, message.target_token_ids, f"{path}.target_token")
    distractors = reader.single_tokens(
        message.distractor_tokens, message.distractor_token_ids, f"{path}.distractor_token"
    )
    if name is not None and name is not LossName.ZERO and targets == ():
        reader.refuse(
            f"{path}.target_tokens", f"{name.value} needs at least one target token", Reason.FIELD_REQUIRED
        )
    if name is not None and name is not LossName.LOGIT_DIFF:
        for field in ("distractor_tokens", "distractor_token_ids"):
            if getattr(message, field):
                reader.refuse(f"{path}.{field}", f"{name.value} has no distractors", Reason.FIELD_NOT_ALLOWED)
    if name is None or targets is None or distractors is None:
        return None
    return LossConfig(name, targets, distractors)


def _parse_ablations(
    reader: RequestReader, message: InferenceSpecMessage, n_tokens: int | None, path: str
) -> tuple[AblationSpec, ...]:
    list_path = f"{path}.ablation_specs"
    limit = reader.limits.max_node_ablations
    if not reader.at_most(message.ablation_specs, limit, list_path, Reason.TOO_MANY_ABLATIONS):
        return ()
    sound: list[tuple[str, AblationSpec]] = []
    for i, one in enumerate(message.ablation_specs):
        one_path = f"{list_path}[{i}]"
        ablation = parse_ablation(reader, one, one_path)
        if ablation is not None and reader.note(
            ablation_violations(ablation, reader.info, n_tokens, _has_objective(message), one_path)
        ):
            sound.append((one_path, ablation))
    reader.note(conflict_violations(sound, reader.info))
    return tuple(ablation for _, ablation in sound)


def _has_loss(message: InferenceSpecMessage) -> bool:
    return message.HasField("loss_fn_config")


def _has_objective(message: InferenceSpecMessage) -> bool:
    return _has_loss(message) or message.HasField("trace_config")
