"""What the reference's viewer asks, page by page, and what its pages rely on in the answers.

The viewer compares the nodes of lists that belong together one by one, as JSON text, and shows an empty page
where they differ. It reads keys without looking whether they are there.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.failing_starts import serve_and_fail
from tests.running_server import TINY_MODEL, start, stop

SITES = ("mlp_post_act", "resid_delta_attn")
TOKEN_LISTS = (
    "upvotedOutputTokens",
    "inputTokensThatUpvoteMlp",
    "inputTokensThatUpvoteAttnQ",
    "inputTokensThatUpvoteAttnK",
)
GROUPS = ("write_norm", "direction_write", "act_times_grad", "activation")
PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER_TEXT = "The old king of France went to the store of the world"
DICTIONARIES = [f"--autoencoder={TINY_MODEL / 'autoencoders' / site}" for site in SITES]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    texts = folder / "texts.txt"
    texts.write_text(f"{PROMPT} her\n{OTHER_TEXT}\n" * 3)
    told = f"--texts {texts} --out {folder}/out --model {TINY_MODEL} --device cpu --k 4 --context 12"
    command = [sys.executable, "-m", "tdb_server", "examples", *told.split(), *DICTIONARIES]
    subprocess.run(command, check=True, timeout=120)
    return folder / "out"


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Iterator[httpx.Client]:
    """A browser's page on this machine, with a server that holds both autoencoders, and examples of texts."""
    folder = tmp_path_factory.mktemp("viewer")
    server = start(folder, "--http-port", "0", f"--examples={examples}", *DICTIONARIES)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.http_port}",
        headers={"Origin": "http://localhost:1234", "Accept": "application/json"},
        timeout=60,
    ) as client:
        yield client
    stop(server)


def post(viewer: httpx.Client, endpoint: str, body: Any = None) -> Any:
    response = viewer.post(f"/{endpoint}") if body is None else viewer.post(f"/{endpoint}", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["access-control-allow-origin"] == "http://localhost:1234"
    return response.json()


def tdb(*node_ablations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The main page's question about one prompt, with its switches as they are at first."""
    return {
        "prompt": PROMPT,
        "targetTokens": [" the"],
        "distractorTokens": [" of"],
        "componentTypeForMlp": "neuron",
        "componentTypeForAttention": "attention_head",
        "topAndBottomKForNodeTable": 10,
        "hideEarlyLayersWhenAblating": True,
        "nodeAblations": list(node_ablations),
        **changes,
    }


def ablation(node_type: str, layer: int, *indices: int) -> dict[str, Any]:
    node = {"nodeType": node_type, "layerIndex": layer, "tensorIndices": list(indices), "passType": "forward"}
    return {"nodeIndex": node, "value": 0}


def assert_shows(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The node table can be made of the answers: all of their lists have the same nodes in the same order."""
    first: list[dict[str, Any]] = answers[0]["processingResponseDataByName"]["topKComponents"]["nodeIndices"]
    text = json.dumps(first)
    assert first
    for answer in answers:
        results = answer["processingResponseDataByName"]
        for name in ("topKComponents", *TOKEN_LISTS, "tokenPairAttribution"):
            assert json.dumps(results[name]["nodeIndices"]) == text, name
        for group in GROUPS:
            assert len(results["topKComponents"]["activationsByGroupId"][group]) == len(first)
        for name in TOKEN_LISTS:
            assert len(results[name]["topTokensList"]) == len(first)
        assert len(results["tokenPairAttribution"]["topTokensAttendedToList"]) == len(first)
        data = answer["inferenceResponse"]["inferenceAndTokenData"]
        assert "".join(data["tokensAsStrings"]) == PROMPT
        logits = results["topOutputTokenLogits"]
        assert (
            len(logits["vocabTokenStringsForIndices"]) == len(logits["activationsByGroupId"]["logits"]) == 100
        )
        sums = results["componentSumsForTokenDisplay"]["intermediateSumActivationsByDstByGroupId"]
        assert set(sums) == set(GROUPS)
    return first


def test_the_welcome_page(viewer: httpx.Client) -> None:
    """It links to the main page, with the autoencoders' names in the address, cut at underscores later."""
    found = post(viewer, "neuron_datasets_metadata")
    scalars = {one["derivedScalarType"] for one in found}
    assert scalars == {"attn_write_norm", *(offline for _, offline, *_ in PER_TOKEN)}
    assert {one["shortName"] for one in found} == {dataset for *_, dataset in PER_TOKEN}
    info = post(viewer, "model_info")
    address = "_".join(info[key] for key in ("modelName", "mlpAutoencoderName", "attentionAutoencoderName"))
    assert address.split("_")[-2:] == ["mlp-post-act", "resid-delta-attn"]
    assert info["hasMlpAutoencoder"]
    assert info["hasAttentionAutoencoder"]
    assert info["nLayers"] == 3


@pytest.mark.parametrize("mlp", ["neuron", "autoencoder_latent"])
@pytest.mark.parametrize("attention", ["attention_head", "autoencoder_latent"])
def test_the_page_of_a_prompt(viewer: httpx.Client, mlp: str, attention: str) -> None:
    asked = tdb(componentTypeForMlp=mlp, componentTypeForAttention=attention)
    answers = post(viewer, "batched_tdb", {"subRequests": [asked]})["inferenceSubResponses"]
    assert_shows(answers)


@pytest.mark.parametrize(
    "ablated",
    [
        ablation("mlp_neuron", 1, 3, 7),
        ablation("attention_head", 2, 5, 2, 1),
        ablation("mlp_autoencoder_latent", 2, 4, 9),
        ablation("attention_autoencoder_latent", 1, 4, 9),
    ],
    ids=lambda one: one["nodeIndex"]["nodeType"],
)
def test_after_a_click_on_ablate(viewer: httpx.Client, ablated: dict[str, Any]) -> None:
    """With earlier layers hidden, as the switch is at first; the second question is without ablation."""
    components = {
        "componentTypeForMlp": "autoencoder_latent" if "mlp_auto" in str(ablated) else "neuron",
        "componentTypeForAttention": (
            "autoencoder_latent" if "attention_auto" in str(ablated) else "attention_head"
        ),
    }
    sub_requests = [tdb(ablated, **components), tdb(**components)]
    answers = post(viewer, "batched_tdb", {"subRequests": sub_requests})["inferenceSubResponses"]
    nodes = assert_shows(answers)
    first_layer = ablated["nodeIndex"]["layerIndex"]
    assert {one["layerIndex"] for one in nodes} == {None, *range(first_layer, 3)}


def test_two_prompts_with_a_node_traced(viewer: httpx.Client) -> None:
    """Both take the left one's ablations and trace; the trace's last key is there and null."""
    node = ablation("attention_head", 2, 5, 2, 1)["nodeIndex"]
    trace = {"nodeIndex": node, "attentionTraceType": "QK", "downstreamTraceConfig": None}
    asked = tdb(ablation("mlp_neuron", 1, 3, 7), upstreamNodeToTrace=trace)
    answers = post(viewer, "batched_tdb", {"subRequests": [asked, asked]})["inferenceSubResponses"]
    assert {one["layerIndex"] for one in assert_shows(answers)} == {None, 1, 2}
    assert (
        answers[0]["inferenceResponse"]["inferenceAndTokenData"]["activationValueForBackwardPass"] is not None
    )


def component(dst: str, layer: int, index: int, dataset: str) -> dict[str, Any]:
    return {"dst": dst, "layerIndex": layer, "activationIndex": index, "datasets": [dataset]}


PER_TOKEN = [
    ("mlp_post_act", "mlp_post_act", "mlp.post_act", "tiny-a"),
    (
        "online_mlp_autoencoder_latent",
        "mlp_autoencoder_latent",
        "online_mlp_autoencoder_latent",
        "tiny-a_mlp-post-act",
    ),
    (
        "online_attention_autoencoder_latent",
        "attention_autoencoder_latent",
        "online_attention_autoencoder_latent",
        "tiny-a_resid-delta-attn",
    ),
]


@pytest.mark.parametrize(("online", "offline", "place", "dataset"), PER_TOKEN)
def test_the_page_of_a_neuron_or_latent(
    viewer: httpx.Client, online: str, offline: str, place: str, dataset: str
) -> None:
    """Its activations on a prompt, texts, explanations, and the tokens that it reads and writes."""
    node = component(offline, 1, 5, dataset)
    found = post(
        viewer,
        "derived_scalars",
        {
            "inferenceRequestSpec": {"prompt": PROMPT},
            "derivedScalarsRequestSpec": {
                "dst": online,
                "layerIndex": 1,
                "activationIndex": 5,
                "normalizeActivationsUsingNeuronRecord": node,
            },
        },
    )
    activations = found["derivedScalarsResponseData"]["activations"]
    normalized = found["derivedScalarsResponseData"]["normalizedActivations"]
    largest = max(max(activations), 0) or 1
    assert normalized == pytest.approx([max(one, 0) / largest for one in activations])
    assert len(normalized) == len(found["inferenceAndTokenData"]["tokensAsStrings"])
    assert_shows_texts(post(viewer, "neuron_record", node), dataset)
    asked = {key: node[key] for key in ("dst", "layerIndex", "activationIndex")}
    asked |= {"explanationDatasets": [], "neuronDataset": dataset}
    assert post(viewer, "existing_explanations", asked) == []
    assert_has_token_lists(viewer, online, place, has_input="attention" not in online)


def assert_shows_texts(record: dict[str, Any], dataset: str) -> None:
    assert record["dataset"] == dataset
    top, at_random = record["topActivations"], record["randomSample"]
    assert (len(top), len(at_random)) == (4 if record["maxActivation"] > 0 else 0, 5)
    peaks = [max(one["scalar"] for one in sequence[1:]) for sequence in top]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[:1] == ([record["maxActivation"]] if peaks else [])
    for sequence in (*top, *at_random):
        assert {key for one in sequence for key in one} == {"token", "scalar", "normalizedScalar"}
        assert all(0 <= one["normalizedScalar"] <= 1 for one in sequence)
        text = "".join(one["token"] for one in sequence)
        assert text in f"{PROMPT} her" or text in OTHER_TEXT


def assert_has_token_lists(viewer: httpx.Client, dst: str, place: str, *, has_input: bool) -> None:
    """The "logit lens": a made-up prompt; the gradient is set to read, the activation to write."""

    def ablated(pass_type: str) -> dict[str, Any]:
        index = {
            "activationLocationType": place,
            "tensorIndices": [0, 5],
            "layerIndex": 1,
            "passType": pass_type,
        }
        return {"index": index, "value": 1}

    reads = {
        "inferenceRequestSpec": {
            "prompt": "a",
            "ablationSpecs": [ablated("backward")],
            "lossFnConfig": {"name": "zero"},
        },
        "processingRequestSpecByName": {
            "singleton": {
                "dst": "vocab_token_write_to_input_direction",
                "activationIndex": 0,
                "numTopTokens": 100,
            }
        },
    }
    writes = {
        "inferenceRequestSpec": {"prompt": "a", "ablationSpecs": [ablated("forward")]},
        "processingRequestSpecByName": {
            "singleton": {"dst": dst, "layerIndex": 1, "activationIndex": 5, "numTopTokens": 100}
        },
    }
    asked = [reads, writes] if has_input else [writes]
    answers = post(viewer, "batched", {"inferenceSubRequests": asked})["inferenceSubResponses"]
    assert len(answers) == len(asked)
    for answer in answers:
        tokens = answer["processingResponseDataByName"]["singleton"]["topTokens"]
        top, bottom = ([one["scalar"] for one in tokens[side]] for side in ("top", "bottom"))
        assert len(top) == len(bottom) == 100
        assert top == sorted(top, reverse=True)
        assert bottom == sorted(bottom)
        assert top[0] > bottom[0]
        assert all(-1 <= one["normalizedScalar"] <= 1 for one in (*tokens["top"], *tokens["bottom"]))


def assert_is_triangle(answer: dict[str, Any], n_tokens: int) -> None:
    rows = answer["derivedAttentionScalarsResponseData"]["tokenAndAttentionScalarsList"]
    assert [len(one["scalars"]) for one in rows] == list(range(1, n_tokens + 1))
    largest = max(max(one["scalars"]) for one in rows)
    assert max(max(one["normalizedScalars"]) for one in rows) == pytest.approx(float(largest > 0))
    assert all(math.isfinite(value) for one in rows for key, value in one.items() if "ScalarIn" in key)


def test_the_page_of_an_attention_head(viewer: httpx.Client) -> None:
    node = component("attn_write_norm", 1, 2, "tiny-a")
    spec = {
        "dst": "unflattened_attn_write_norm",
        "layerIndex": 1,
        "activationIndex": 2,
        "normalizeActivationsUsingNeuronRecord": node,
    }
    body = {"inferenceRequestSpec": {"prompt": PROMPT}, "derivedAttentionScalarsRequestSpec": spec}
    found = post(viewer, "derived_attention_scalars", body)
    assert_is_triangle(found, len(found["inferenceAndTokenData"]["tokensAsInts"]))
    record = post(viewer, "attention_head_record", node)
    assert record["dataset"] == "tiny-a"
    assert record["maxAttentionActivation"] > 0
    sequences = [*record["mostPositiveTokenSequences"], *record["randomTokenSequences"]]
    assert len(sequences) == 4 + 5
    (like, *_) = found["derivedAttentionScalarsResponseData"]["tokenAndAttentionScalarsList"]
    for sequence in sequences:
        assert [len(one["scalars"]) for one in sequence] == list(range(1, len(sequence) + 1))
        assert all(one.keys() == like.keys() for one in sequence)


def test_the_page_of_an_attention_latent_by_token_pair(viewer: httpx.Client) -> None:
    """The latent's place is the plain one, though two autoencoders are loaded; its index is sent twice."""
    latent = active_attention_latent(viewer)
    node = component("flattened_attn_write_to_latent_summed_over_heads", 1, latent, "tiny-a_resid-delta-attn")
    index = {
        "layerIndex": 1,
        "activationLocationType": "online_autoencoder_latent",
        "tensorIndices": ["All", latent],
        "passType": "forward",
    }
    spec = {
        "dst": "attn_write_to_latent_summed_over_heads",
        "layerIndex": 1,
        "activationIndex": latent,
        "normalizeActivationsUsingNeuronRecord": node,
    }
    body = {
        "inferenceRequestSpec": {"prompt": PROMPT, "activationIndexForWithinLayerGrad": index},
        "derivedAttentionScalarsRequestSpec": spec,
    }
    found = post(viewer, "derived_attention_scalars", body)
    assert_is_triangle(found, len(found["inferenceAndTokenData"]["tokensAsInts"]))
    rows = found["derivedAttentionScalarsResponseData"]["tokenAndAttentionScalarsList"]
    assert any(scalar != 0 for one in rows for scalar in one["scalars"])
    assert post(viewer, "attention_head_record", node)["mostPositiveTokenSequences"] == []


def active_attention_latent(viewer: httpx.Client) -> int:
    asked = tdb(componentTypeForAttention="autoencoder_latent")
    (answer,) = post(viewer, "batched_tdb", {"subRequests": [asked]})["inferenceSubResponses"]
    nodes = answer["processingResponseDataByName"]["topKComponents"]["nodeIndices"]
    found: int = next(
        one["tensorIndices"][1]
        for one in nodes
        if one["nodeType"] == "attention_autoencoder_latent"
        and one["layerIndex"] == 1
        and one["tensorIndices"][1] > 0
    )
    return found


@pytest.mark.parametrize("endpoint", ["explain", "score"])
def test_explanations_end_in_an_error_that_the_viewer_shows(viewer: httpx.Client, endpoint: str) -> None:
    """An empty list would leave it waiting. It reads the message of any status that is no success."""
    node = component("mlp_post_act", 1, 5, "tiny-a")
    body = node if endpoint == "explain" else {**node, "explanation": "names", "maxSequences": 2}
    response = viewer.post(f"/{endpoint}", json=body)
    assert response.status_code == 400
    assert "no neuron records" in response.json()["message"]
    assert response.headers["access-control-allow-origin"] == "http://localhost:1234"


def test_examples_of_another_model_are_not_served(examples: Path) -> None:
    """The digest is that of weights and dictionaries."""
    flags = ["--model", str(TINY_MODEL), "--http-port", "0", "--examples", str(examples)]
    failed = serve_and_fail(*flags, "--log-level", "warning")
    assert failed.returncode == 1
    assert "digest: the examples are of tiny-a with digest" in failed.stderr


def test_a_folder_without_examples_is_refused_at_once(tmp_path: Path) -> None:
    failed = serve_and_fail("--model", "/nowhere", "--http-port", "0", "--examples", str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"tdb-server: --examples: {tmp_path / 'examples.json'}: No such file")
