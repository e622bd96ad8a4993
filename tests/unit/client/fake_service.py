"""A transformer debugger service in this process, with answers written by hand."""

# ruff: noqa: N802 - methods are named as in the protos

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import google_crc32c
import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status
from tdb_client.circuit_nodes import CircuitNode
from tdb_client.debug_result import DEBUG_RESULTS, DebugResult, debug_result
from tdb_client.encoding import debug_request, node_index
from tdb_client.events import inference_results
from tdb_client.nodes import Node
from tdb_client.requests import DebugSubRequest, resolve
from tdb_client.streams import EventReader
from transformer_debugger.v1 import (
    ablation_pb2,
    activation_pb2,
    call_pb2,
    circuit_pb2,
    edges_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    node_pb2,
    processing_pb2,
    result_pb2,
    tensor_pb2,
)
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1 import transformer_debugger_service_pb2_grpc as service_pb2_grpc
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType, GroupId
from transformer_debugger.v1.processing_pb2 import NamedProcessingSpec

TOKENS = ("When", " Mary", " gave", " to")
NODES = (
    "embedding @ 1",
    "L1 head 2 @ 3 -> 1",
    "L0 neuron 5 @ 3",
    "L1 mlp latent 9 @ 2",
    "L1 attention latent 4 @ 3",
)
SCALARS = {
    GroupId.GROUP_ID_WRITE_NORM: (5.5, 2.25, 0.125, 1.0, 0.5),
    GroupId.GROUP_ID_ACT_TIMES_GRAD: (0.75, 3.5, -0.25, 0.0625, 0.0),
    GroupId.GROUP_ID_DIRECTION_WRITE: (0.0, 4.0, -0.5, 1e-5, 0.25),
    GroupId.GROUP_ID_ACTIVATION: (1.0, 0.875, 12.5, 123.0, 4321.0),
}
VOCABULARY = {" Mary": 7, " John": 8, " [bold]the": 9}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for one in messages %}[{{ one.role }}]{{ one.content }}{% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)
REFUSED, SLOW, BUSY, BROKEN = "refuse me", "be slow", "be busy", "be broken"
TOO_LONG = "be long"


def tensor(values: object, *dims: int, dtype: str = "<f4") -> tensor_pb2.Tensor:
    array = np.array(values, dtype)
    kind = {
        "<f4": tensor_pb2.D_TYPE_FLOAT32,
        "<f8": tensor_pb2.D_TYPE_FLOAT64,
        "<i4": tensor_pb2.D_TYPE_INT32,
    }[dtype]
    return tensor_pb2.Tensor(dtype=kind, shape=array.shape, dims=dims, data=array.tobytes())


def announce(whole: tensor_pb2.Tensor, tensor_id: int, chunk_bytes: int) -> list[tensor_pb2.TensorChunk]:
    """Takes the data out of a tensor; returns it as chunks."""
    data = whole.data
    whole.chunked.CopyFrom(
        tensor_pb2.ChunkedContents(
            tensor_id=tensor_id, total_bytes=len(data), crc32c=google_crc32c.value(data)
        )
    )
    return [
        tensor_pb2.TensorChunk(tensor_id=tensor_id, offset=offset, data=data[offset : offset + chunk_bytes])
        for offset in range(0, len(data), chunk_bytes)
    ]


def node_indices(spelled: Iterable[str]) -> list[node_pb2.NodeIndex]:
    return [node_index(Node.parse(one)) for one in spelled]


def ranked(*tokens: tuple[str, float]) -> result_pb2.RankedTokens:
    return result_pb2.RankedTokens(
        token_ids=[VOCABULARY[token] for token, _ in tokens],
        tokens=[token for token, _ in tokens],
        scalars=[score for _, score in tokens],
        normalized_scalars=[score / 4 for _, score in tokens],
    )


def top_tokens() -> result_pb2.TopTokens:
    return result_pb2.TopTokens(
        top=ranked((" Mary", 4.0), (" [bold]the", 2.0)), bottom=ranked((" John", -1.0))
    )


def component_ranking(change: float) -> result_pb2.MultipleTopKResult:
    """The node table's ranking; `change` is added to the direct effects."""
    ranking = result_pb2.MultipleTopKResult(node_indices=node_indices(NODES))
    for group_id, values in SCALARS.items():
        shift = change if group_id == GroupId.GROUP_ID_DIRECTION_WRITE else 0.0
        group = ranking.groups.add(group_id=group_id)
        group.activations.CopyFrom(
            tensor([value + shift for value in values], activation_pb2.DIMENSION_NODES)
        )
    sums = ranking.groups[1].sums
    sums.add(
        derived_scalar_type=DerivedScalarType.DERIVED_SCALAR_TYPE_TOKEN_ATTRIBUTION,
        sum=tensor([0.0, 1.5, -0.5, float("nan")], activation_pb2.DIMENSION_SEQUENCE_TOKENS),
    )
    sums.add(
        derived_scalar_type=DerivedScalarType.DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_ACT_TIMES_GRAD,
        sum=tensor(
            np.arange(16.0).reshape(4, 4),
            activation_pb2.DIMENSION_SEQUENCE_TOKENS,
            activation_pb2.DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS,
        ),
    )
    return ranking


def logit_ranking(change: float) -> result_pb2.MultipleTopKResult:
    ranking = result_pb2.MultipleTopKResult(
        node_indices=node_indices(f"logit {token_id} @ 3" for token_id in VOCABULARY.values()),
        vocab_token_strings=VOCABULARY,
    )
    ranking.groups.add(group_id=GroupId.GROUP_ID_LOGITS).activations.CopyFrom(
        tensor([11.0 + change, 8.0, 9.5], activation_pb2.DIMENSION_NODES)
    )
    return ranking


def scored(name: str, rows: Sequence[int]) -> result_pb2.NamedResult:
    entries = [
        result_pb2.NodeTopTokens(top_tokens=top_tokens() if row in rows else None)
        for row in range(len(NODES))
    ]
    scored_tokens = result_pb2.ScoredTokensResult(node_indices=node_indices(NODES), node_top_tokens=entries)
    return result_pb2.NamedResult(name=name, scored_tokens=scored_tokens)


def named_results(change: float = 0.0) -> list[result_pb2.NamedResult]:
    attended_to = result_pb2.AttendedToTokens(token_indices=[1, 0], attributions=[2.5, -0.5])
    pairs = [
        result_pb2.NodeAttendedToTokens(attended_to_tokens=attended_to if "attention latent" in one else None)
        for one in NODES
    ]
    results = [
        result_pb2.NamedResult(name=DEBUG_RESULTS[0], multiple_top_k=component_ranking(change)),
        result_pb2.NamedResult(name=DEBUG_RESULTS[1], multiple_top_k=component_ranking(change)),
        scored(DEBUG_RESULTS[2], range(5)),
        scored(DEBUG_RESULTS[3], [2, 3]),
        scored(DEBUG_RESULTS[4], [1]),
        scored(DEBUG_RESULTS[5], [1]),
        result_pb2.NamedResult(
            name=DEBUG_RESULTS[6],
            token_pair_attribution=result_pb2.TokenPairAttributionResult(
                node_indices=node_indices(NODES), node_attended_to_tokens=pairs
            ),
        ),
        result_pb2.NamedResult(name=DEBUG_RESULTS[7], multiple_top_k=logit_ranking(change)),
    ]
    assert [one.name for one in results] == list(DEBUG_RESULTS)
    return results


def summed_components() -> result_pb2.NamedResult:
    """Of L1 head 2, L0 mlp and the embedding: direct effects 4, -0.5, 0.25; half as much; twice as much."""
    heads = np.zeros((2, 6))
    heads[1, 2] = 4
    found = result_pb2.NamedResult(name="componentTotals")
    for factor, names in (
        (1.0, ("mlp_write_to", "unflattened_attn_write_to", "resid_post_embedding_proj_to")),
        (0.5, ("mlp_act_times_grad", "unflattened_attn_act_times_grad", "token_attribution")),
        (2.0, ("mlp_write_norm", "unflattened_attn_write_norm", "resid_post_embedding_norm")),
    ):
        for name, values in zip(names, ([-0.5, 0], heads, 0.25), strict=True):
            whole = f"{name}_final_residual_grad" if name.endswith("_to") else name
            scalar = DerivedScalarType.Value(f"DERIVED_SCALAR_TYPE_{whole.upper()}")
            total = found.component_totals.totals.add(derived_scalar_type=scalar)
            total.total.CopyFrom(tensor(np.multiply(values, factor)))
    return found


def ablated_loss(specs: Iterable[ablation_pb2.AblationSpec]) -> float:
    """Of a run of the general request: the loss goes down with the number of what is ablated."""
    return 3.0 - sum(0.5 + one.index.tensor_indices[-1].index / 64 + one.value for one in specs)


def call_info(request_id: str) -> call_pb2.CallInfo:
    return call_pb2.CallInfo(request_id=request_id or "made-up", model_name="tiny", model_digest="00ff")


def started(n_sub_requests: int, request_id: str = "") -> call_pb2.Started:
    prompt = call_pb2.SubRequestTokens(token_ids=range(len(TOKENS)), token_strings=TOKENS)
    return call_pb2.Started(
        info=call_info(request_id), queue_seconds=0.25, sub_requests=[prompt] * n_sub_requests
    )


def token_list(texts: Sequence[str], token_ids: Sequence[int]) -> result_pb2.TokenList:
    """Targets or distractors: those asked for as text, then those asked for by number."""
    spelled = {token_id: text for text, token_id in VOCABULARY.items()}
    return result_pb2.TokenList(
        token_ids=[*(VOCABULARY.get(one, 0) for one in texts), *token_ids],
        token_strings=[*texts, *(spelled[one] for one in token_ids)],
    )


def debug_stream(
    request: service_pb2.DebugRequest, *, adds_bos: bool = False
) -> Iterator[service_pb2.StreamDebugResponse]:
    """The events of a debug stream; ablations change numbers, the attention sum comes in chunks.

    Baselines are told and change nothing.

    The first token of the prompt passes for the beginning-of-text token.
    """
    first = started(len(request.sub_requests), request.request_id)
    for tokens, sub_request in zip(first.sub_requests, request.sub_requests, strict=True):
        tell_what_is_compared(tokens, sub_request)
        tokens.ablation_specs.extend(
            ablation_pb2.AblationSpec(value=one.value, value_type=one.value_type)
            for one in sub_request.node_ablations
            if one.value_type
        )
        tokens.bos_added = sub_request.add_bos if sub_request.HasField("add_bos") else adds_bos
        tokens.backward_rule = sub_request.backward_rule
        tokens.targets.CopyFrom(token_list(sub_request.target_tokens, sub_request.target_token_ids))
        tokens.distractors.CopyFrom(
            token_list(sub_request.distractor_tokens, sub_request.distractor_token_ids)
        )
    yield service_pb2.StreamDebugResponse(started=first)
    for index, sub_request in enumerate(request.sub_requests):
        change = -0.5 * len(sub_request.node_ablations)
        totals = [summed_components()] if sub_request.component_totals else []
        for result in [*named_results(change), *totals]:
            chunks = []
            if result.name == "componentSumsForTokenDisplay":
                chunks = announce(result.multiple_top_k.groups[1].sums[1].sum, index + 1, 24)
            part = call_pb2.ResultPart(sub_request_index=index, result=result, last_part=True)
            yield service_pb2.StreamDebugResponse(result=part)
            for chunk in chunks:
                yield service_pb2.StreamDebugResponse(tensor_chunk=chunk)
        values = call_pb2.SubRequestValues(sub_request_index=index)
        if sub_request.HasField("upstream_node_to_trace"):
            values.activation_value_for_backward_pass = 2.75 + change
        else:
            values.loss = 3.0 + change
        if sub_request.HasField("only_these"):
            values.circuit.CopyFrom(circuit_values(sub_request.only_these))
        yield service_pb2.StreamDebugResponse(values=values)
    timings = call_pb2.Timings(forward_seconds=0.5, backward_seconds=0.25)
    yield service_pb2.StreamDebugResponse(finished=call_pb2.Finished(timings=timings, peak_memory_bytes=1000))


def tell_what_is_compared(
    tokens: call_pb2.SubRequestTokens, run: service_pb2.DebugSubRequest | service_pb2.InferenceSpec
) -> None:
    """Every baseline prompt passes for the prompt itself."""
    for _ in run.baseline_prompts:
        tokens.baselines.add(token_ids=range(len(TOKENS)), token_strings=TOKENS)


WHOLE_MLP = node_pb2.NODE_TYPE_WHOLE_MLP
WEIGHTS = {"L1 whole head 2": 0.5, "L0 mlp": 0.25, "L1 mlp": 0.125, "L0 whole head 4": 0.0625}
"""What components do for the objective; the others share the rest."""


def weight(node: CircuitNode) -> float:
    return WEIGHTS.get(str(node), 0.0625 / 10)


def circuit_values(circuit: circuit_pb2.Circuit) -> circuit_pb2.CircuitValues:
    """What components do adds up, as it does in no model."""
    kept = sum(
        weight(
            CircuitNode(
                "whole_mlp" if one.node_type == WHOLE_MLP else "whole_head",
                one.layer_index,
                one.component_index,
            )
        )
        for one in circuit.nodes
    )
    return circuit_pb2.CircuitValues(
        objective=3.0 * kept - 1.0, objective_of_prompt=2.0, objective_of_baseline=-1.0, faithfulness=kept
    )


def component_totals(spec: processing_pb2.ComponentTotalsSpec) -> result_pb2.ComponentTotalsResult:
    """An estimate of whole heads and MLPs that has the strongest wrong."""
    of_heads = [
        [weight(CircuitNode("whole_head", layer, head)) % 0.5 for head in range(6)] for layer in (0, 1)
    ]
    of_mlps = [weight(CircuitNode("whole_mlp", layer)) for layer in (0, 1)]
    found = result_pb2.ComponentTotalsResult()
    for kind, values in zip(spec.derived_scalar_types, (of_heads, of_mlps), strict=True):
        found.totals.add(derived_scalar_type=kind, total=tensor(values))
    return found


def debug_results(*requests: DebugSubRequest) -> list[DebugResult]:
    """What the fake service answers, without a server between."""
    message = debug_request([resolve(one, {(one.prompt, one.add_bos): len(TOKENS)}) for one in requests])
    reader = EventReader(len(requests))
    events = [event for part in debug_stream(message) for event in reader.read(part)]
    return [debug_result(*one) for one in zip(requests, inference_results(events), strict=True)]


def refusal(code: int, reason: str, *details: Any, message: str = "", **metadata: str) -> grpc.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="transformer-debugger", metadata=metadata)
    status = status_pb2.Status(code=code, message=message or reason.lower())
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def bad_request(path_of_all: str = "sub_requests[0]", /, **violations: str) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=f"{path_of_all}.{path}", description=text, reason="NOT_ONE_TOKEN"
            )
            for path, text in violations.items()
        ]
    )


def _refuse(prompt: str, context: grpc.ServicerContext, path: str) -> None:
    match prompt:
        case "refuse me":
            bad = bad_request(path, prompt="is a joke", target_tokens="is two tokens")
            context.abort_with_status(refusal(code_pb2.INVALID_ARGUMENT, "NOT_ONE_TOKEN", bad))
        case "be busy":
            retry = error_details_pb2.RetryInfo(
                retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)
            )
            context.abort_with_status(
                refusal(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry, message="queue full")
            )
        case "be broken":
            context.abort_with_status(
                refusal(code_pb2.INTERNAL, "INTERNAL", message="a fault", error_id="e-42")
            )
        case "be slow":
            while context.is_active():
                time.sleep(0.01)


def _refuse_text(text: str, context: grpc.ServicerContext) -> None:
    if text == TOO_LONG:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="text", description="is too long", reason="PROMPT_TOO_LONG")
        context.abort_with_status(refusal(code_pb2.INVALID_ARGUMENT, "PROMPT_TOO_LONG", bad))


def as_it_is(spec: NamedProcessingSpec) -> result_pb2.NamedResult | None:
    """A lens of both layers, or a place of layer 1, which all but its first number are infinite in."""
    match spec.WhichOneof("spec"):
        case "lens":
            at = [one % 4 for one in spec.lens.token_indices] or [3]
            vocab = [(5, " Mary"), (6, " John")][: len(spec.lens.vocab_tokens)]
            lens = result_pb2.LensResult(layer_indices=[0, 1], token_indices=at)
            if vocab:
                lens.vocab_tokens.token_ids.extend(token_id for token_id, _ in vocab)
                lens.vocab_tokens.token_strings.extend(text for _, text in vocab)
                shape = (3, len(at), len(vocab))
                lens.logits.CopyFrom(tensor(np.arange(np.prod(shape)).reshape(shape)))
            for _ in range(3 * len(at) if spec.lens.num_top_tokens else 0):
                lens.top_tokens.add(token_ids=[7, 8], token_strings=[" Mary", "\n"], logits=[9.5, -0.25])
            return result_pb2.NamedResult(name=spec.name, lens=lens)
        case "activations":
            place = result_pb2.ActivationsResult(token_indices=[0, 3])
            numbers = np.full((2, 3), -np.inf)
            numbers[0, 0] = 2.5
            place.layers.add(layer_index=1, activations=tensor(numbers, 1, 6))
            return result_pb2.NamedResult(name=spec.name, activations=place)
    return None


@dataclass
class FakeService(
    service_pb2_grpc.TransformerDebuggerServiceServicer, model_service_pb2_grpc.ModelServiceServicer
):
    """Answers by hand; keeps what it was asked, but only counts who asks for the model."""

    requests: list[Any] = field(default_factory=list)
    n_model_infos: int = 0
    api_version: str = "v1"
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    adds_bos: bool = False
    chat_template: str | None = CHAT_TEMPLATE
    sites: tuple[int, ...] = (model_service_pb2.AUTOENCODER_SITE_MLP_POST_ACT,)
    labels: dict[int, str] = field(default_factory=dict)
    link: str = ""
    digest: str = "00ff"
    is_silent: bool = False
    estimated_seconds: float | None = None
    max_circuit_nodes: int = 16
    n_unavailable: int = 0
    n_closing: int = 0
    n_broken_off: int = 0
    streams_were_whole: list[bool] = field(default_factory=list)
    n_tokens: dict[str, int] = field(default_factory=dict)
    max_sub_requests: int = 0
    max_request_bytes: int = 0
    n_affordable: int = 1000
    n_busy: int = 0
    is_slow: bool = True
    max_concurrent_calls: int = 0
    open_calls: set[object] = field(default_factory=set)
    most_open: int = 0
    seconds: float = 0.0

    def _check(self, request: Any, prompts: Sequence[str], context: grpc.ServicerContext) -> None:
        """Refuses as the server does: prompts of several lengths, and what is too much."""
        lengths = {self.n_tokens.get(one, len(TOKENS)) for one in prompts}
        n_asked = len(request.sub_requests)
        if len(lengths) > 1:
            context.abort_with_status(refusal(code_pb2.INVALID_ARGUMENT, "UNEQUAL_PROMPT_LENGTHS"))
        if self.max_sub_requests and n_asked > self.max_sub_requests:
            context.abort_with_status(refusal(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_SUB_REQUESTS"))
        if self.max_request_bytes and request.ByteSize() > self.max_request_bytes:
            context.abort_with_status(refusal(code_pb2.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE"))
        if n_asked > self.n_affordable:
            context.abort_with_status(refusal(code_pb2.RESOURCE_EXHAUSTED, "COST_TOO_HIGH"))
        if self.n_busy > 0:
            self.n_busy -= 1
            retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000))
            context.abort_with_status(refusal(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry))
        for number, prompt in enumerate(prompts):
            if prompt == SLOW and (request.validate_only or not self.is_slow):
                continue
            inner = "" if isinstance(request, service_pb2.DebugRequest) else ".inference_spec"
            _refuse(prompt, context, f"sub_requests[{number}]{inner}")

    def _take(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.n_unavailable > 0:
            self.n_unavailable -= 1
            context.abort_with_status(
                refusal(code_pb2.UNAVAILABLE, "NO_WORKER_READY", message="still loading")
            )

        if self.n_closing > 0:
            self.n_closing -= 1
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")

    def StreamDebug(self, request: service_pb2.DebugRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        self._take(request, context)
        self._check(request, [one.prompt for one in request.sub_requests], context)
        is_whole = False
        try:
            if self.n_broken_off > 0:
                self.n_broken_off -= 1
                yield from islice(debug_stream(request, adds_bos=self.adds_bos), 3)
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield from debug_stream(request, adds_bos=self.adds_bos)
            is_whole = True
        finally:  # gRPC drops the generator of a call that was cancelled
            self.streams_were_whole.append(is_whole)

    def Debug(
        self, request: service_pb2.DebugRequest, context: grpc.ServicerContext
    ) -> service_pb2.DebugResponse:
        self._take(request, context)
        assert request.validate_only
        self._check(request, [one.prompt for one in request.sub_requests], context)
        cost = call_pb2.EstimatedCost(
            activation_bytes=1234, response_bytes=56, seconds=self.estimated_seconds
        )
        return service_pb2.DebugResponse(info=call_info(request.request_id), estimated_cost=cost)

    def StreamInfer(self, request: service_pb2.InferRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        self._take(request, context)
        self._check(request, [one.inference_spec.prompt for one in request.sub_requests], context)
        self.open_calls.add(context)
        self.most_open = max(self.most_open, len(self.open_calls))
        time.sleep(self.seconds)
        first = started(len(request.sub_requests), request.request_id)
        for tokens, sub_request in zip(first.sub_requests, request.sub_requests, strict=True):
            spec = sub_request.inference_spec
            tokens.bos_added = spec.add_bos if spec.HasField("add_bos") else self.adds_bos
            loss = sub_request.inference_spec.loss_fn_config
            if sub_request.inference_spec.HasField("loss_fn_config"):
                tokens.targets.CopyFrom(token_list(loss.target_tokens, loss.target_token_ids))
                tokens.distractors.CopyFrom(token_list(loss.distractor_tokens, loss.distractor_token_ids))
            tell_what_is_compared(tokens, spec)
            tokens.ablation_specs.extend(spec.ablation_specs)
            tokens.backward_rule = spec.backward_rule
        yield service_pb2.StreamInferResponse(started=first)
        attention = result_pb2.DerivedAttentionScalarsResult(tokens=TOKENS)
        for kind in attention.DESCRIPTOR.fields[1:]:
            getattr(attention, kind.name).CopyFrom(
                tensor(np.full([4, 4] if kind.number < 4 else [4], kind.number))
            )
        scalars = result_pb2.DerivedScalarsResult(
            node_indices=node_indices(["L0 neuron 5 @ 0"]), activations=tensor([1.5], dtype="<f8")
        )
        results = [
            result_pb2.NamedResult(name="attention", derived_attention_scalars=attention),
            result_pb2.NamedResult(name="scalars", derived_scalars=scalars),
        ]
        for index, sub_request in enumerate(request.sub_requests):
            asked = [one.name for one in sub_request.processing_specs if "head" in one.name]
            named = [result_pb2.NamedResult(name=one, derived_attention_scalars=attention) for one in asked]
            spec = sub_request.inference_spec
            for one in sub_request.processing_specs:
                if one.HasField("component_totals"):
                    totals = component_totals(one.component_totals)
                    named = [result_pb2.NamedResult(name=one.name, component_totals=totals)]
            named += [found for one in sub_request.processing_specs if (found := as_it_is(one)) is not None]
            is_objective_alone = spec.HasField("loss_fn_config") and not sub_request.processing_specs
            for result in [] if is_objective_alone else named or results:
                part = call_pb2.ResultPart(sub_request_index=index, result=result, last_part=True)
                yield service_pb2.StreamInferResponse(result=part)
            if spec.HasField("loss_fn_config"):
                values = call_pb2.SubRequestValues(
                    sub_request_index=index, loss=ablated_loss(spec.ablation_specs)
                )
                if spec.HasField("only_these"):
                    values.circuit.CopyFrom(circuit_values(spec.only_these))
                yield service_pb2.StreamInferResponse(values=values)
        self.open_calls.discard(context)
        yield service_pb2.StreamInferResponse(finished=call_pb2.Finished())

    def StreamInferEdges(
        self, request: service_pb2.InferEdgesRequest, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        self._take(request, context)
        first = started(len(request.sub_requests), request.request_id)
        for one in first.sub_requests:
            one.targets.token_strings.append(" Mary")
            one.targets.token_ids.append(5)
            one.distractors.SetInParent()
        yield service_pb2.StreamInferEdgesResponse(started=first)
        result = edges_pb2.EdgesResult(edge_writers=[1, 0], edge_readers=[2, 0], edge_scores=[-2.5, 0.5])
        result.writers.add(writer_type=edges_pb2.EDGE_WRITER_TYPE_EMBEDDING)
        result.writers.add(writer_type=edges_pb2.EDGE_WRITER_TYPE_HEAD, layer_index=0, head_index=0)
        result.readers.add(reader_type=edges_pb2.EDGE_READER_TYPE_HEAD_KEY, layer_index=0, head_index=0)
        result.readers.add(reader_type=edges_pb2.EDGE_READER_TYPE_MLP, layer_index=0)
        result.readers.add(reader_type=edges_pb2.EDGE_READER_TYPE_LOGITS)
        result.writers_before.extend([1, 2, 2])
        for index in range(len(request.sub_requests)):
            named = result_pb2.NamedResult(name="edges", edges=result)
            values = call_pb2.SubRequestValues(sub_request_index=index, loss=1.5)
            part = call_pb2.ResultPart(sub_request_index=index, result=named, last_part=True)
            yield service_pb2.StreamInferEdgesResponse(values=values)
            yield service_pb2.StreamInferEdgesResponse(result=part)
        yield service_pb2.StreamInferEdgesResponse(finished=call_pb2.Finished())

    def InferEdges(
        self, request: service_pb2.InferEdgesRequest, context: grpc.ServicerContext
    ) -> service_pb2.InferEdgesResponse:
        self._take(request, context)
        assert request.validate_only
        cost = call_pb2.EstimatedCost(activation_bytes=77, response_bytes=7)
        return service_pb2.InferEdgesResponse(info=call_info(request.request_id), estimated_cost=cost)

    def Infer(
        self, request: service_pb2.InferRequest, context: grpc.ServicerContext
    ) -> service_pb2.InferResponse:
        self._take(request, context)
        assert request.validate_only
        self._check(request, [one.inference_spec.prompt for one in request.sub_requests], context)
        cost = call_pb2.EstimatedCost(activation_bytes=4321, response_bytes=65)
        return service_pb2.InferResponse(info=call_info(request.request_id), estimated_cost=cost)

    def GetModelInfo(
        self, request: Any, context: grpc.ServicerContext
    ) -> model_service_pb2.GetModelInfoResponse:
        self.n_model_infos += 1
        self.metadata.append(dict(context.invocation_metadata()))
        if self.is_silent:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "says nothing about its model")
        info = model_service_pb2.ModelInfo(
            name="tiny",
            digest=self.digest,
            family="llama",
            n_layers=2,
            d_model=48,
            n_heads=6,
            n_key_value_heads=2,
            d_head=8,
            n_mlp_neurons=96,
            vocab_size=10,
            context_length=64,
            dtype=tensor_pb2.D_TYPE_FLOAT32,
            api_version=self.api_version,
            server_version="0.1.0",
            adds_bos=self.adds_bos,
            bos_token_id=1 if self.adds_bos else None,
            bos_token="<s>" if self.adds_bos else "",
            derived_scalar_types=[DerivedScalarType.DERIVED_SCALAR_TYPE_LOGITS, 9999],
            ablatable_location_types=[activation_pb2.ACTIVATION_LOCATION_TYPE_MLP_POST_ACT],
        )
        for site in self.sites:
            info.autoencoders.add(
                site=site,  # type: ignore[arg-type]  # its number
                n_latents=80,
                activation=model_service_pb2.AUTOENCODER_ACTIVATION_TOPK,
                k=4,
                layer_indices=[0, 1],
                input_norm=model_service_pb2.AUTOENCODER_INPUT_NORM_LAYER_NORM,
            )
        if self.labels or self.link:  # of layer 1
            info.autoencoders[0].notes.add(layer_index=1, link=self.link, labels=self.labels)
        info.limits.max_prompt_tokens = 64
        info.limits.max_sub_requests = self.max_sub_requests or 8
        info.limits.max_top_and_bottom_k = 100
        info.limits.max_request_bytes = self.max_request_bytes
        info.limits.max_concurrent_calls = self.max_concurrent_calls
        info.limits.max_circuit_nodes = self.max_circuit_nodes
        if self.chat_template is not None:
            info.chat_template.source = self.chat_template
            info.chat_template.special_tokens["bos_token"] = "<s>"
        return model_service_pb2.GetModelInfoResponse(model_info=info)

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> model_service_pb2.TokenizeResponse:
        self._take(request, context)
        _refuse_text(request.text, context)
        n_tokens = self.n_tokens.get(request.text, len(TOKENS))
        return model_service_pb2.TokenizeResponse(
            token_ids=range(n_tokens),
            token_strings=islice(cycle(TOKENS), n_tokens),
            bos_added=request.add_bos,
            prompt_adds_bos=self.adds_bos,
            special_token_indices=[0] if request.text.startswith("<s>") else [],
        )

    def Detokenize(self, request: Any, context: grpc.ServicerContext) -> model_service_pb2.DetokenizeResponse:
        self._take(request, context)
        tokens = [TOKENS[one] for one in request.token_ids]
        return model_service_pb2.DetokenizeResponse(text="".join(tokens), token_strings=tokens)


@contextmanager
def running() -> Iterator[tuple[str, FakeService]]:
    """A server with the fake service on a free port: its address and the service."""
    service = FakeService()
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_TransformerDebuggerServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        server.stop(None).wait()
