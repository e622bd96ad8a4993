"""Makes the file that binds the clients in other languages: what is asked, and what must come back.

Every example under examples/ asks this and compares. To make it anew, when numbers were meant to move:

    tdb-server serve --model tests/fixtures/tiny-a &
    python examples/vectors/make.py 127.0.0.1:50051
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tdb_client import decoding
from tdb_client.tensors import array_from_tensor
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType, GroupId
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest, TokenizeRequest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub
from transformer_debugger.v1.node_pb2 import NODE_TYPE_ATTENTION_HEAD, NodeIndex
from transformer_debugger.v1.result_pb2 import MultipleTopKResult, SubResponse
from transformer_debugger.v1.tensor_pb2 import Tensor
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, DebugSubRequest
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

VECTOR = Path(__file__).parent / "debug.json"
PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, DISTRACTOR = " her", " him"
NO_SUCH_LAYER = 1000
DECIMALS = 6
SCALARS = {
    "writeNorm": GroupId.GROUP_ID_WRITE_NORM,
    "actTimesGrad": GroupId.GROUP_ID_ACT_TIMES_GRAD,
    "directEffect": GroupId.GROUP_ID_DIRECTION_WRITE,
    "activation": GroupId.GROUP_ID_ACTIVATION,
}


def request(n_tokens: int) -> DebugRequest:
    """The prompt as it is, and the prompt with a head switched off at its last token."""
    plain = DebugSubRequest(
        prompt=PROMPT, target_tokens=[TARGET], distractor_tokens=[DISTRACTOR], top_and_bottom_k=10
    )
    ablated = DebugSubRequest()
    ablated.CopyFrom(plain)
    last = n_tokens - 1
    ablated.node_ablations.add().node_index.CopyFrom(
        NodeIndex(node_type=NODE_TYPE_ATTENTION_HEAD, layer_index=1, tensor_indices=[last, last, 0])
    )
    return DebugRequest(sub_requests=[plain, ablated])


def refused_request(n_tokens: int) -> DebugRequest:
    """The second prompt with two faults: no nodes are asked for, and a layer does not exist."""
    refused = request(n_tokens)
    refused.sub_requests[1].top_and_bottom_k = 0
    refused.sub_requests[1].node_ablations[0].node_index.layer_index = NO_SUCH_LAYER
    return refused


def vector(channel: grpc.Channel) -> dict[str, Any]:
    """What the server at the other end answers, in calls that do not stream."""
    model, debugger = ModelServiceStub(channel), TransformerDebuggerServiceStub(channel)
    information = model.GetModelInfo(GetModelInfoRequest()).model_info
    n_tokens = len(model.Tokenize(TokenizeRequest(text=PROMPT)).token_ids)
    asked = request(n_tokens)
    answers = debugger.Debug(asked).sub_responses
    return {
        "model": {
            "name": information.name,
            "digest": information.digest,
            "nLayers": information.n_layers,
            "nHeads": information.n_heads,
        },
        "request": MessageToDict(asked),
        "answers": [_answer(one) for one in answers],
        "refused": _refusal(debugger, refused_request(n_tokens)),
    }


def _answer(answer: SubResponse) -> dict[str, Any]:
    results: Mapping[str, MultipleTopKResult] = {one.name: one.multiple_top_k for one in answer.results}
    return {
        "tokens": list(answer.token_strings),
        "loss": round(answer.loss, DECIMALS),
        "nodes": list(_nodes(results["topKComponents"])),
        "sums": list(_sums(results["componentSumsForTokenDisplay"])),
    }


def _nodes(ranking: MultipleTopKResult) -> Iterator[dict[str, Any]]:
    """The nodes by their spelling, the largest direct effect first, whatever its sign."""
    columns = {group.group_id: array_from_tensor(group.activations) for group in ranking.groups}
    order = sorted(
        range(len(ranking.node_indices)), key=lambda row: -abs(columns[SCALARS["directEffect"]][row])
    )
    for row in order:
        scalars = {name: round(float(columns[group][row]), DECIMALS) for name, group in SCALARS.items()}
        yield {"node": str(decoding.node(ranking.node_indices[row])), **scalars}


def _sums(ranking: MultipleTopKResult) -> Iterator[dict[str, Any]]:
    for group in ranking.groups:
        for one in group.sums:
            yield {
                "groupId": GroupId.Name(group.group_id),
                "derivedScalarType": DerivedScalarType.Name(one.derived_scalar_type),
                "shape": list(one.sum.shape),
                "values": _flat(one.sum),
            }


def _flat(tensor: Tensor) -> list[float]:
    return [round(float(value), DECIMALS) for value in array_from_tensor(tensor).ravel()]


def _refusal(debugger: TransformerDebuggerServiceStub, refused: DebugRequest) -> dict[str, Any]:
    try:
        debugger.Debug(refused)
    except grpc.RpcError as error:
        information, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in rpc_status.from_call(error).details:
            detail.Unpack(information)
            detail.Unpack(bad_request)
        violations = [{"field": one.field, "reason": one.reason} for one in bad_request.field_violations]
        return {
            "request": MessageToDict(refused),
            "code": error.code().name,
            "reason": information.reason,
            "fieldViolations": violations,
        }
    raise ValueError("the server took a request that is wrong")


def text(value: object, n_levels: int = 4) -> str:
    """The value as JSON whose outer levels have a line for each entry: a node or a sum is a line."""
    if n_levels and isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {text(one, n_levels - 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(entries) + "\n}"
    if n_levels and isinstance(value, list):
        return "[\n" + ",\n".join(text(one, n_levels - 1) for one in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1]) as server:
        VECTOR.write_text(text(vector(server)) + "\n")
    print(f"wrote {VECTOR}")
