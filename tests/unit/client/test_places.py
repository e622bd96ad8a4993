"""Lenses and raw places: on the wire, and read back."""

from __future__ import annotations

import numpy as np
import pytest
from tdb_client import ActivationsResult, ActivationsSpec, InferenceSubRequest, LensResult, LensSpec
from tdb_client.decoding import processing_result
from tdb_client.encoding import infer_request
from tdb_client.errors import ResponseError
from tdb_client.requests import tokens_from_start
from transformer_debugger.v1 import activation_pb2, node_pb2, result_pb2, tensor_pb2

REQUEST = InferenceSubRequest(
    "p",
    results={
        "lens": LensSpec((" Mary", 7), 3, layers=[2, 0], at=[-1, 4], place="resid_post_attn"),
        "raw": ActivationsSpec("attn_q", [1], [0], "backward"),
        "plain": ActivationsSpec("logits"),
        "one": LensSpec(" Mary"),  # type: ignore[arg-type]
    },
)


def tensor(array: np.ndarray) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.D_TYPE_FLOAT32,
        shape=array.shape,
        dims=[activation_pb2.DIMENSION_LAYERS] * array.ndim,
        data=array.astype("<f4").tobytes(),
    )


def test_on_the_wire() -> None:
    lens, raw, plain, one = infer_request([REQUEST]).sub_requests[0].processing_specs
    assert (list(lens.lens.vocab_tokens), list(lens.lens.vocab_token_ids)) == ([" Mary"], [7])
    assert (list(lens.lens.layer_indices), list(lens.lens.token_indices)) == ([2, 0], [-1, 4])
    assert lens.lens.place == activation_pb2.ACTIVATION_LOCATION_TYPE_RESID_POST_ATTN
    assert lens.lens.num_top_tokens == 3
    assert raw.activations.activation_location_type == activation_pb2.ACTIVATION_LOCATION_TYPE_ATTN_Q
    assert raw.activations.pass_type == node_pb2.PASS_TYPE_BACKWARD
    assert (list(raw.activations.layer_indices), list(raw.activations.token_indices)) == ([1], [0])
    assert not plain.activations.layer_indices
    assert list(one.lens.vocab_tokens) == [" Mary"]
    assert not one.lens.HasField("num_top_tokens")
    assert set(tokens_from_start(REQUEST)) == {0, 4}


def lens_message(n_top: int) -> result_pb2.NamedResult:
    logits = np.arange(8.0).reshape(2, 2, 2)
    message = result_pb2.LensResult(
        layer_indices=[3],
        token_indices=[0, 5],
        vocab_tokens=result_pb2.TokenList(token_ids=[1, 2], token_strings=["a", "b"]),
        logits=tensor(logits),
        top_tokens=[
            result_pb2.LensTokens(token_ids=[one], token_strings=["t"], logits=[0.5]) for one in range(n_top)
        ],
    )
    return result_pb2.NamedResult(name="lens", lens=message)


def test_a_lens_is_read_by_row_and_token() -> None:
    found = processing_result(lens_message(4))
    assert isinstance(found, LensResult)
    assert found.logits is not None
    assert found.logits.tolist() == np.arange(8.0).reshape(2, 2, 2).tolist()
    assert (found.layers, found.at, found.tokens, found.token_ids) == ((3,), (0, 5), ("a", "b"), (1, 2))
    assert [[one.ids.tolist() for one in row] for row in found.top_tokens] == [[[0], [1]], [[2], [3]]]
    none = processing_result(lens_message(0))
    assert isinstance(none, LensResult)
    assert none.top_tokens == ()
    with pytest.raises(ResponseError, match="3 places"):
        processing_result(lens_message(3))


def test_a_place_is_read_by_layer() -> None:
    layers = [
        result_pb2.LayerActivations(layer_index=2, activations=tensor(np.ones((2, 3)))),
        result_pb2.LayerActivations(activations=tensor(np.zeros((2, 3)))),
    ]
    message = result_pb2.ActivationsResult(layers=layers, token_indices=[1, 0])
    found = processing_result(result_pb2.NamedResult(name="raw", activations=message))
    assert isinstance(found, ActivationsResult)
    assert found.at == (1, 0)
    assert {layer: one.array.sum() for layer, one in found.layers.items()} == {2: 6, None: 0}
