"""The server's answers about a real Gemma beside those of transformers, which reads the same file."""

from __future__ import annotations

import numpy as np
import pytest
from tdb_client import Client, InferenceSubRequest, MultipleTopKResult, MultipleTopKSpec

from tests.gemma.conftest import PROMPTS, Oracle

TOLERANCE = 0.02
N_LOGITS = 10


def test_what_is_served(client: Client) -> None:
    info = client.model_info()
    assert (info.family, info.n_layers, info.d_model, info.bos_token_id) == ("gemma3_text", 18, 640, 2)
    assert info.adds_bos


def top_logits(client: Client, prompt: str, last: int, add_bos: bool | None) -> tuple[list[int], np.ndarray]:
    """Vocabulary indices and logits behind a prompt's last token, the highest first."""
    spec = MultipleTopKSpec({"logits": ("logits",)}, k=N_LOGITS, token=last)
    (result,) = client.infer([InferenceSubRequest(prompt, results={"top": spec}, add_bos=add_bos)])
    found = result.results["top"]
    assert isinstance(found, MultipleTopKResult)
    logits = found.groups["logits"].activations
    order = np.argsort(-logits, kind="stable")[:N_LOGITS]
    return [found.nodes[row].index for row in order], logits[order]


@pytest.mark.filterwarnings("ignore::tdb_client.TokenCountWarning")  # where they stand is meant so
@pytest.mark.parametrize("add_bos", [None, True, False])
def test_top_logits(client: Client, oracle: Oracle, add_bos: bool | None) -> None:
    """None is as the model's own tokenizer does, which puts the token in front."""
    judged = oracle.without_bos if add_bos is False else oracle.with_bos
    largest = 0.0
    for prompt, expected in zip(PROMPTS, judged, strict=True):
        ids, logits = top_logits(client, prompt, len(oracle.cut[prompt]) - (add_bos is False), add_bos)
        assert len(set(ids)) == N_LOGITS
        np.testing.assert_allclose(logits, expected[ids], atol=TOLERANCE, rtol=0, err_msg=prompt)
        np.testing.assert_allclose(logits, np.sort(expected)[: -N_LOGITS - 1 : -1], atol=TOLERANCE, rtol=0)
        largest = max(largest, float(np.abs(logits - expected[ids]).max()))
    print(f"\nadd_bos {add_bos}: the top {N_LOGITS} logits differ by at most {largest:.2g}")


@pytest.mark.parametrize(
    ("add_bos", "top"),
    [(None, {" Mary": 23.37, " the": 20.48, " his": 19.84}), (False, {" the": 25.89})],
)
def test_mary(client: Client, add_bos: bool | None, top: dict[str, float]) -> None:
    logits = client.debug(PROMPTS[0], " Mary", " John", add_bos=add_bos).logits
    assert list(logits.tokens[: len(top)]) == list(top)
    np.testing.assert_allclose(logits.logits[: len(top)], list(top.values()), atol=TOLERANCE, rtol=0)


def test_direct_effects_add_up_to_the_difference(client: Client) -> None:
    """Through norms before and behind every block, at a real model's scales."""
    result = client.debug(PROMPTS[0], " Mary", " John")
    total = sum(float(one.sum()) for one in result.sums["direction_write"].values())
    assert total == pytest.approx(result.loss, abs=1e-3)


def test_texts_are_cut_alike(client: Client, oracle: Oracle) -> None:
    for text, ids in oracle.cut.items():
        if text:
            assert list(client.tokenize(text).token_ids) == ids, repr(text)
