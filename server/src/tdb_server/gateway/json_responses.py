"""Answers of the service as bodies of the reference's HTTP API."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic.alias_generators import to_camel
from transformer_debugger.v1 import edges_pb2, result_pb2
from transformer_debugger.v1.call_pb2 import Timings
from transformer_debugger.v1.model_service_pb2 import ModelInfo
from transformer_debugger.v1.node_pb2 import NODE_TYPE_ATTENTION_HEAD, NodeIndex
from transformer_debugger.v1.tensor_pb2 import Tensor
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugResponse,
    InferEdgesResponse,
    InferResponse,
)

from tdb_server.domain.node import NodeType
from tdb_server.service.enum_names import (
    DERIVED_SCALARS,
    DIMENSIONS,
    EDGE_READER_TYPES,
    EDGE_WRITER_TYPES,
    GROUP_IDS,
    NODE_TYPES,
    PASS_TYPES,
    SITES,
)
from tdb_server.service.tensor_messages import tensor_array

Body = dict[str, Any]

NOT_FINITE = -999.0
"""What the reference writes for numbers of lists that are not finite, which JSON cannot say."""


def batched_response(response: DebugResponse | InferResponse | InferEdgesResponse) -> Body:
    """The body that `/batched`, `/batched_tdb` and `/v1/edges` answer with."""
    return {
        "inferenceSubResponses": [
            {
                "inferenceResponse": {"inferenceAndTokenData": _inference(one, response.timings)},
                "processingResponseDataByName": _lazy_results(one),
            }
            for one in response.sub_responses
        ]
    }


def single_response(response: InferResponse) -> Body:
    """The body that endpoints of one spec answer with; its key for the answer is the result's name."""
    (sub_response,) = response.sub_responses
    return {
        "inferenceAndTokenData": _inference(sub_response, response.timings),
        **_lazy_results(sub_response),
    }


def model_info_response(info: ModelInfo) -> Body:
    """The body that `/model_info` answers with."""
    # The viewer looks for these names, with hyphens, among the parts of its address, cut at underscores.
    sites = [SITES.members[one.site] for one in info.autoencoders]
    names = {one.node_type: one.value.replace("_", "-") for one in sites}
    of_mlp, of_attention = NodeType.MLP_AUTOENCODER_LATENT, NodeType.ATTENTION_AUTOENCODER_LATENT
    return {
        "modelName": info.name,
        "hasMlpAutoencoder": of_mlp in names,
        "mlpAutoencoderName": names.get(of_mlp),
        "hasAttentionAutoencoder": of_attention in names,
        "attentionAutoencoderName": names.get(of_attention),
        "nLayers": info.n_layers,
    }


def _inference(sub_response: result_pb2.SubResponse, timings: Timings) -> Body:
    traced = sub_response.HasField("activation_value_for_backward_pass")
    return {
        "inferenceTime": timings.forward_seconds + timings.backward_seconds,
        "memoryUsedBefore": None,
        "memoryUsedAfter": None,
        "log": None,
        "loss": sub_response.loss if sub_response.HasField("loss") else None,
        "activationValueForBackwardPass": (
            sub_response.activation_value_for_backward_pass if traced else None
        ),
        "tokensAsInts": list(sub_response.token_ids),
        "tokensAsStrings": list(sub_response.token_strings),
        **_optional_parts(sub_response),
    }


def _optional_parts(sub_response: result_pb2.SubResponse) -> Body:
    """What an answer has only where it was asked for."""
    parts: Body = {}
    if sub_response.baselines:
        parts["baselines"] = [
            {"tokensAsInts": list(one.token_ids), "tokensAsStrings": list(one.token_strings)}
            for one in sub_response.baselines
        ]
    if sub_response.HasField("circuit"):
        circuit = sub_response.circuit
        parts["circuit"] = {
            "objective": circuit.objective,
            "objectiveOfPrompt": circuit.objective_of_prompt,
            "objectiveOfBaseline": circuit.objective_of_baseline,
            "faithfulness": circuit.faithfulness if circuit.HasField("faithfulness") else None,
        }
    return parts


def _lazy_results(sub_response: result_pb2.SubResponse) -> Body:
    """The results by name, each of which is made when its turn to be written comes."""
    return {
        result.name: partial(_BODIES[kind], getattr(result, kind))
        for result in sub_response.results
        if (kind := result.WhichOneof("result"))
    }


def _multiple_top_k(result: result_pb2.MultipleTopKResult) -> Body:
    shown = _shown(result.node_indices)
    activations = {_group_id(one): _numbers(one.activations) for one in result.groups}
    return {
        "responseDataType": "multiple_top_k_derived_scalars_response_data",
        "activationsByGroupId": {group: [row[i] for i in shown] for group, row in activations.items()},
        "nodeIndices": (_node(result.node_indices[row]) for row in shown),
        "vocabTokenStringsForIndices": list(result.vocab_token_strings) or None,
        "intermediateSumActivationsByDstByGroupId": {
            _group_id(group): {
                DERIVED_SCALARS.members[one.derived_scalar_type].value: _tensor(one.sum) for one in group.sums
            }
            for group in result.groups
        },
    }


def _shown(nodes: Sequence[NodeIndex]) -> list[int]:
    """The rows of a ranking's nodes, or of lists about them, that clients get to see."""
    return [row for row, node in enumerate(nodes) if not _looks_masked(node)]


def _looks_masked(node: NodeIndex) -> bool:
    """Whether the reference's clients would take a node for a masked attention cell.

    They read a head's second index as the attended-to token. The scalars of a head summed over those give
    nodes `(token, head)`; with a head beyond the token such a node is left out here, and only here.
    """
    indices = node.tensor_indices
    return node.node_type == NODE_TYPE_ATTENTION_HEAD and len(indices) == 2 and indices[1] > indices[0]


def _derived_scalars(result: result_pb2.DerivedScalarsResult) -> Body:
    has_normalized = result.HasField("normalized_activations")
    return {
        "responseDataType": "derived_scalars_response_data",
        "activations": _numbers(result.activations),
        "normalizedActivations": _numbers(result.normalized_activations) if has_normalized else None,
        "nodeIndices": (_node(node) for node in result.node_indices),
        "topTokens": _top_tokens(result.top_tokens) if result.HasField("top_tokens") else None,
    }


def _derived_attention_scalars(result: result_pb2.DerivedAttentionScalarsResult) -> Body:
    tensors = {field.name: value for field, value in result.ListFields() if field.name != "tokens"}
    rows = {to_camel(name): tensor_array(tensors.pop(name)) for name in ("scalars", "normalized_scalars")}
    columns = {to_camel(name): _numbers(tensor) for name, tensor in tensors.items()}  # maxima and totals
    return {
        "responseDataType": "derived_attention_scalars_response_data",
        "tokenAndAttentionScalarsList": (
            {
                "token": token,
                **{key: _finite(row[t, : t + 1].tolist()) for key, row in rows.items()},
                **{key: column[t] for key, column in columns.items()},
            }
            for t, token in enumerate(result.tokens)
        ),
    }


def _scored_tokens(result: result_pb2.ScoredTokensResult) -> Body:
    shown = _shown(result.node_indices)
    lists = (result.node_top_tokens[row] for row in shown)
    return {
        "responseDataType": "scored_tokens_response_data",
        "nodeIndices": (_node(result.node_indices[row]) for row in shown),
        "topTokensList": (
            _top_tokens(one.top_tokens) if one.HasField("top_tokens") else None for one in lists
        ),
    }


def _token_pair_attribution(result: result_pb2.TokenPairAttributionResult) -> Body:
    shown = _shown(result.node_indices)
    lists = (result.node_attended_to_tokens[row] for row in shown)
    return {
        "responseDataType": "token_pair_attribution_response_data",
        "nodeIndices": (_node(result.node_indices[row]) for row in shown),
        "topTokensAttendedToList": (
            _attended_to(one.attended_to_tokens) if one.HasField("attended_to_tokens") else None
            for one in lists
        ),
    }


def _component_totals(result: result_pb2.ComponentTotalsResult) -> Body:
    totals = {DERIVED_SCALARS.members[one.derived_scalar_type].value: one.total for one in result.totals}
    return {
        "responseDataType": "component_totals_response_data",
        "totalsByDst": {scalar: _tensor(total) for scalar, total in totals.items()},
    }


def _lens(result: result_pb2.LensResult) -> Body:
    n_tokens = len(result.token_indices)
    listed = [
        [
            {"token": token, "tokenId": token_id, "logit": _or_null(logit)}
            for token, token_id, logit in zip(one.token_strings, one.token_ids, one.logits, strict=True)
        ]
        for one in result.top_tokens
    ]
    rows = [listed[start : start + n_tokens] for start in range(0, len(listed), n_tokens)]
    return {
        "responseDataType": "lens_response_data",
        "layerIndices": list(result.layer_indices),
        "tokenIndices": list(result.token_indices),
        "vocabTokens": list(result.vocab_tokens.token_strings),
        "vocabTokenIds": list(result.vocab_tokens.token_ids),
        "logits": _rows(result.logits) if result.HasField("logits") else None,
        "topTokens": rows or None,
    }


def _activations(result: result_pb2.ActivationsResult) -> Body:
    return {
        "responseDataType": "activations_response_data",
        "tokenIndices": list(result.token_indices),
        "layers": [
            {
                "layerIndex": one.layer_index if one.HasField("layer_index") else None,
                "dimensions": [DIMENSIONS.members[axis].value for axis in one.activations.dims],
                "activations": _rows(one.activations),
            }
            for one in result.layers
        ],
    }


def _edges(result: edges_pb2.EdgesResult) -> Body:
    columns = zip(result.edge_writers, result.edge_readers, result.edge_scores, strict=True)
    return {
        "responseDataType": "edges_response_data",
        "writers": [
            {"writerType": EDGE_WRITER_TYPES.members[one.writer_type].value, **_layer_and_head(one)}
            for one in result.writers
        ],
        "readers": [
            {"readerType": EDGE_READER_TYPES.members[one.reader_type].value, **_layer_and_head(one)}
            for one in result.readers
        ],
        "writersBefore": list(result.writers_before),
        "edges": (
            {"writer": writer, "reader": reader, "score": _or_null(score)}
            for writer, reader, score in columns
        ),
        "scores": _rows(result.scores) if result.HasField("scores") else None,
    }


def _layer_and_head(end: edges_pb2.EdgeWriter | edges_pb2.EdgeReader) -> Body:
    return {
        "layerIndex": end.layer_index if end.HasField("layer_index") else None,
        "headIndex": end.head_index if end.HasField("head_index") else None,
    }


def _attended_to(tokens: result_pb2.AttendedToTokens) -> Body:
    return {"tokenIndices": list(tokens.token_indices), "attributions": _finite(tokens.attributions)}


def _node(node: NodeIndex) -> Body:
    return {
        "nodeType": NODE_TYPES.members[node.node_type].value,
        "tensorIndices": list(node.tensor_indices),
        "layerIndex": node.layer_index if node.HasField("layer_index") else None,
        "passType": PASS_TYPES.members[node.pass_type].value,
    }


def _top_tokens(tokens: result_pb2.TopTokens) -> Body:
    return {"top": _ranked(tokens.top), "bottom": _ranked(tokens.bottom)}


def _ranked(tokens: result_pb2.RankedTokens) -> list[Body]:
    columns = zip(tokens.tokens, _finite(tokens.scalars), _finite(tokens.normalized_scalars), strict=True)
    return [
        {"token": token, "scalar": scalar, "normalizedScalar": normalized}
        for token, scalar, normalized in columns
    ]


def _group_id(group: result_pb2.GroupResult) -> str:
    return str(GROUP_IDS.members[group.group_id].value)


def _tensor(tensor: Tensor) -> Body:
    """A sum. Those of several dimensions keep their infinities, which only Python's JSON can read."""
    n_dimensions = len(tensor.shape)
    numbers = tensor_array(tensor)
    match n_dimensions:
        case 0:
            value: Any = numbers.item()
        case 1:
            value = _finite(numbers.tolist())
        case _:
            value = (row.tolist() for row in numbers)
    return {"tensorType": f"tensor_{n_dimensions}d", "value": value}


def _numbers(tensor: Tensor) -> list[float]:
    return _finite(tensor_array(tensor).tolist())


def _rows(tensor: Tensor) -> Iterator[Any]:
    """Along the first axis, numbers or lists of lists; null for what is not finite."""
    for row in map(np.asarray, tensor_array(tensor)):
        numbers = row.astype(object)
        numbers[~np.isfinite(row)] = None
        yield numbers.tolist()


def _or_null(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _finite(numbers: Any) -> list[float]:
    return [number if math.isfinite(number) else NOT_FINITE for number in numbers]


_BODIES: dict[str, Callable[[Any], Body]] = {
    "multiple_top_k": _multiple_top_k,
    "derived_scalars": _derived_scalars,
    "derived_attention_scalars": _derived_attention_scalars,
    "scored_tokens": _scored_tokens,
    "token_pair_attribution": _token_pair_attribution,
    "component_totals": _component_totals,
    "lens": _lens,
    "activations": _activations,
    "edges": _edges,
}
"""What makes the body of a result, by the result's field."""
