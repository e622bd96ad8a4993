"""From the wire's requests to what the workers run, with every mistake of a request named at once."""

from __future__ import annotations

from collections.abc import Sequence

from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferRequest,
)
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugSubRequest as DebugSubRequestMessage

from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.ablation_validation import node_ablation_violations
from tdb_server.domain.debug import inference_sub_request, node_ablation_spec, traces_towards_loss
from tdb_server.domain.hook_point import NODE_HOOK_POINTS
from tdb_server.domain.index_validation import autoencoder_violations
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import NodeType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AblationSpec,
    AttentionComponent,
    DebugSubRequest,
    InferenceSubRequest,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    Trace,
)
from tdb_server.domain.spec_relations import difference_violations
from tdb_server.domain.trace_validation import trace_violations
from tdb_server.service.enum_names import ATTENTION_COMPONENTS, MLP_COMPONENTS
from tdb_server.service.inference_parsing import parse_inference_sub_request
from tdb_server.service.node_parsing import parse_node_ablation, parse_node_to_trace
from tdb_server.service.request_reader import Encoder, RequestReader

MAX_REQUEST_ID_CHARACTERS = 128
_N_TOKENS_SHOWN = 64


def parse_debug_request(
    request: DebugRequest, info: ModelInfo, limits: Limits, tokenizer: Encoder
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
    reader = RequestReader(info, limits, tokenizer)
    _check_call(reader, request.request_id, request.sub_requests)
    parsed = [
        _parse_debug_sub_request(reader, one, f"sub_requests[{i}]")
        for i, one in enumerate(request.sub_requests)
    ]
    found = tuple(inference_sub_request(one) for one in parsed if one is not None)
    _check_lengths(reader, found)
    _check_components(reader, [one for one in parsed if one is not None])
    reader.raise_violations()
    return found


def parse_infer_request(
    request: InferRequest, info: ModelInfo, limits: Limits, tokenizer: Encoder
) -> tuple[InferenceSubRequest, ...]:
    """What a general request stands for; as `parse_debug_request`."""
    reader = RequestReader(info, limits, tokenizer)
    _check_call(reader, request.request_id, request.sub_requests)
    parsed = [
        parse_inference_sub_request(reader, one, f"sub_requests[{i}]")
        for i, one in enumerate(request.sub_requests)
    ]
    found = tuple(one for one in parsed if one is not None)
    _check_lengths(reader, found)
    _check_rankings(reader, parsed)
    reader.raise_violations()
    return found


def _check_call(reader: RequestReader, request_id: str, sub_requests: Sequence[object]) -> None:
    """What concerns the call as a whole. Too many sub-requests are refused unread.

    Raises:
        OverLimit: there are too many sub-requests.
    """
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS or not _is_plain(request_id):
        reader.refuse(
            "request_id",
            f"must be at most {MAX_REQUEST_ID_CHARACTERS} printable ASCII characters",
            Reason.MALFORMED_REQUEST,
        )
    if not sub_requests:
        reader.refuse("sub_requests", "at least one is required", Reason.FIELD_REQUIRED)
    limit = reader.limits.max_sub_requests
    if not reader.at_most(sub_requests, limit, "sub_requests", Reason.TOO_MANY_SUB_REQUESTS):
        reader.raise_violations()


def _is_plain(text: str) -> bool:
    return all(" " <= character <= "~" for character in text)


def _check_lengths(reader: RequestReader, sub_requests: Sequence[InferenceSubRequest]) -> None:
    prompts = [one.inference.token_ids for one in sub_requests]
    if len({len(prompt) for prompt in prompts}) <= 1:
        return
    lengths = ", ".join(str(len(prompt)) for prompt in prompts)
    tokens = "; ".join(str(reader.tokenizer.token_strings(prompt[:_N_TOKENS_SHOWN])) for prompt in prompts)
    reader.refuse(
        "sub_requests",
        f"the prompts of one call must have the same number of tokens, not {lengths}: {tokens}",
        Reason.UNEQUAL_PROMPT_LENGTHS,
    )


def _check_components(reader: RequestReader, sub_requests: Sequence[DebugSubRequest]) -> None:
    """Sub-requests of one call share their nodes, so that they must be made of the same components."""
    for i, one in enumerate(sub_requests):
        first = sub_requests[0]
        for field, same in (
            ("component_type_for_mlp", one.mlp_component is first.mlp_component),
            ("component_type_for_attention", one.attention_component is first.attention_component),
        ):
            if not same:
                reader.refuse(
                    f"sub_requests[{i}].{field}",
                    "must be the same in all sub-requests of a call, which share their nodes",
                    Reason.SPECS_DIFFER,
                )


def _check_rankings(reader: RequestReader, sub_requests: Sequence[InferenceSubRequest | None]) -> None:
    rankings = [
        (f"sub_requests[{i}].processing_specs[{j}].multiple_top_k", name, spec)
        for i, one in enumerate(sub_requests)
        if one is not None
        for j, (name, spec) in enumerate(one.processing.items())
        if isinstance(spec, MultipleTopKSpec)
    ]
    reader.note(difference_violations(rankings))


def _parse_debug_sub_request(
    reader: RequestReader, message: DebugSubRequestMessage, path: str
) -> DebugSubRequest | None:
    """A debug sub-request; None where it is refused. What is wrong is noted in the reader."""
    n_violations = reader.n_violations
    prompt = reader.prompt(message, path)
    n_tokens = None if prompt is None else len(prompt.token_ids)
    targets = reader.single_tokens(message.target_tokens, message.target_token_ids, f"{path}.target_token")
    distractors = reader.single_tokens(
        message.distractor_tokens, message.distractor_token_ids, f"{path}.distractor_token"
    )
    mlp, attention = _parse_components(reader, message, path)
    k = _parse_k(reader, message, f"{path}.top_and_bottom_k")
    ablations = _parse_node_ablations(reader, message, n_tokens, path)
    trace = _parse_nodes_to_trace(reader, message, n_tokens, path)
    if targets == () and (trace is None or traces_towards_loss(trace)):
        reader.refuse(f"{path}.target_tokens", "at least one is required", Reason.FIELD_REQUIRED)
    if reader.n_violations > n_violations or prompt is None or targets is None or distractors is None:
        return None
    return DebugSubRequest(
        prompt.token_ids,
        targets,
        distractors,
        mlp or MlpComponent.NEURON,
        attention or AttentionComponent.ATTENTION_HEAD,
        k,
        message.hide_early_layers_when_ablating,
        ablations,
        trace,
        prompt.bos_added,
    )


def _parse_components(
    reader: RequestReader, message: DebugSubRequestMessage, path: str
) -> tuple[MlpComponent | None, AttentionComponent | None]:
    mlp_path, attention_path = f"{path}.component_type_for_mlp", f"{path}.component_type_for_attention"
    mlp = reader.member(message.component_type_for_mlp, MLP_COMPONENTS, mlp_path, MlpComponent.NEURON)
    attention = reader.member(
        message.component_type_for_attention,
        ATTENTION_COMPONENTS,
        attention_path,
        AttentionComponent.ATTENTION_HEAD,
    )
    if mlp is MlpComponent.AUTOENCODER_LATENT:
        hook_point = NODE_HOOK_POINTS[NodeType.MLP_AUTOENCODER_LATENT]
        reader.note(autoencoder_violations(hook_point, None, reader.info, mlp_path, mlp_path))
    if attention is AttentionComponent.AUTOENCODER_LATENT:
        hook_point = NODE_HOOK_POINTS[NodeType.ATTENTION_AUTOENCODER_LATENT]
        reader.note(autoencoder_violations(hook_point, None, reader.info, attention_path, attention_path))
    return mlp, attention


def _parse_k(reader: RequestReader, message: DebugSubRequestMessage, path: str) -> int:
    if not message.HasField("top_and_bottom_k"):
        return reader.limits.default_top_and_bottom_k
    k, limit = message.top_and_bottom_k, reader.limits.max_top_and_bottom_k
    if k < 1:
        reader.refuse(path, f"must be 1 or more, not {k}", Reason.OUT_OF_RANGE)
    elif k > limit:
        reader.refuse(path, f"{k} is over the limit of {limit}", Reason.K_TOO_LARGE)
    return k


def _parse_node_ablations(
    reader: RequestReader, message: DebugSubRequestMessage, n_tokens: int | None, path: str
) -> tuple[NodeAblation, ...]:
    list_path = f"{path}.node_ablations"
    limit = reader.limits.max_node_ablations
    if not reader.at_most(message.node_ablations, limit, list_path, Reason.TOO_MANY_ABLATIONS):
        return ()
    sound: list[NodeAblation] = []
    cells: list[tuple[str, AblationSpec]] = []
    for i, one in enumerate(message.node_ablations):
        one_path = f"{list_path}[{i}]"
        ablation = parse_node_ablation(reader, one, one_path)
        if ablation is None or not reader.note(
            node_ablation_violations(ablation, reader.info, n_tokens, one_path)
        ):
            continue
        sound.append(ablation)
        cells.append((one_path, node_ablation_spec(ablation)))
    reader.note(conflict_violations(cells, reader.info))
    return tuple(sound)


def _parse_nodes_to_trace(
    reader: RequestReader, message: DebugSubRequestMessage, n_tokens: int | None, path: str
) -> Trace | None:
    upstream_path, downstream_path = f"{path}.upstream_node_to_trace", f"{path}.downstream_node_to_trace"
    downstream = None
    if message.HasField("downstream_node_to_trace"):
        downstream = parse_node_to_trace(reader, message.downstream_node_to_trace, downstream_path)
    if not message.HasField("upstream_node_to_trace"):
        if message.HasField("downstream_node_to_trace"):
            reader.refuse(
                upstream_path,
                "a downstream node gives a direction to the head that is traced; name that head",
                Reason.DOWNSTREAM_WITHOUT_UPSTREAM,
            )
        return None
    upstream = parse_node_to_trace(reader, message.upstream_node_to_trace, upstream_path)
    if upstream is None:
        return None
    trace = Trace(upstream.node, upstream.attention_trace_type, downstream=downstream)
    reader.note(trace_violations(trace, reader.info, n_tokens, upstream_path, downstream_path))
    return trace
