"""What an ablation sets, by debug and by infer, and what an answer says about it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tdb_client import (
    AblationSpec,
    ActivationIndex,
    Client,
    DebugSubRequest,
    DerivedAttentionScalarsResult,
    DerivedAttentionScalarsSpec,
    InferenceSubRequest,
    Loss,
    head,
)
from tdb_client.cli import main
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1.node_pb2 import NODE_TYPE_ATTENTION_HEAD, NodeIndex

from tests.running_server import RunningServer

PROMPT = "When Mary and John went to the store, John gave a drink to"
LOSS = Loss("logit_diff", (" the",), (" of",))
HELD = AblationSpec(ActivationIndex("resid_ln_f_scale", None, (None, None), "backward"))
PATTERN = {"pattern": DerivedAttentionScalarsSpec("attn_qk_probs", layer=1, head=2)}


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as one:
        yield one


def pattern_of(client: Client, *ablations: object) -> np.ndarray:
    """What head 2 of layer 1 pays, and the loss, with ablations."""
    (answer,) = client.infer([InferenceSubRequest.of(PROMPT, LOSS, ablate=ablations, results=PATTERN)])
    result = answer.results["pattern"]
    assert isinstance(result, DerivedAttentionScalarsResult)
    return result.scalars


def loss(client: Client, ablation: object) -> float:
    result = client.debug(PROMPT, " the", " of", ablate=ablation)
    assert result.loss is not None
    return result.loss


def test_an_arrow_means_the_pair_and_none_the_row(client: Client) -> None:
    plain, pair = pattern_of(client), pattern_of(client, "L1 head 2 @ 9 -> 2")
    row, value = pattern_of(client, head(1, 2, token=9)), pattern_of(client, "L1 head 2 @ 9 -> 2 = 0.5")
    assert np.argwhere(pair != plain).tolist() == [[9, 2]]
    assert (pair[9, 2], value[9, 2]) == (0, 0.5)
    assert np.argwhere(row != plain).tolist() == [[9, token] for token in range(10)]
    assert not row[9].any()


def test_debug_and_infer_set_the_same(client: Client) -> None:
    losses = []
    for spelled, attended_to, value in [
        ("L1 head 2 @ 9 -> 2", 2, 0.0),
        ("L1 head 2 @ 9 -> 2 = 1", 2, 1.0),
        ("L1 head 2 @ 9", None, 0.0),
        ("L1 head 2 @ 9 = 0.1", None, 0.1),
    ]:
        cells = AblationSpec(ActivationIndex("attn_qk_probs", 1, (9, attended_to, 2)), value)
        by_node, by_cells = (
            client.infer([InferenceSubRequest(PROMPT, LOSS, ablate=(one,))])[0]
            for one in (spelled, cells)  # type: ignore[arg-type]
        )
        losses.append(loss(client, spelled))
        assert by_node.loss == by_cells.loss
        assert losses[-1] == pytest.approx(by_node.loss, abs=1e-5)
        assert by_node.ablations == by_cells.ablations == (cells,)
    assert len({round(one, 4) for one in losses}) == 4


def test_the_references_message_means_the_row_and_the_answer_says_so(server: RunningServer) -> None:
    request = service_pb2.DebugSubRequest(prompt=PROMPT, target_tokens=[" the"])
    index = NodeIndex(node_type=NODE_TYPE_ATTENTION_HEAD, layer_index=1, tensor_indices=[9, 2, 2])
    request.node_ablations.add(node_index=index)
    pair = service_pb2.DebugSubRequest()
    pair.CopyFrom(request)
    pair.node_ablations[0].attended_to_token_only = True
    response = server.debugger.Debug(service_pb2.DebugRequest(sub_requests=[request, pair]))
    of_row, of_pair = (one.ablation_specs[0].index.tensor_indices for one in response.sub_responses)
    assert (of_row[0].index, of_row[1].all, of_row[2].index) == (9, True, 2)
    assert (of_pair[0].index, of_pair[1].index, of_pair[2].index) == (9, 2, 2)


def test_an_answer_says_which_norm_scales_were_held(client: Client) -> None:
    result = client.debug(PROMPT, " the", " of")
    assert result.ablations == (HELD,)
    assert result.held_norm_scales == ("resid_ln_f_scale",)
    layer = AblationSpec(ActivationIndex("attn_ln_scale", 1, (None, None), "backward"))
    one_token = AblationSpec(ActivationIndex("mlp_ln_scale", 1, (3, None), "backward"))
    for ablations, held in [
        ((), ()),
        ((HELD,), ("resid_ln_f_scale",)),
        ((HELD, layer, one_token), ("resid_ln_f_scale", "L1 attn_ln_scale")),
    ]:
        (answer,) = client.infer([InferenceSubRequest(PROMPT, LOSS, ablate=ablations)])
        assert answer.held_norm_scales == held
        assert answer.ablations == ablations


def test_k_is_the_servers_where_a_message_does_not_say(client: Client, server: RunningServer) -> None:
    request = service_pb2.DebugSubRequest(prompt=PROMPT, target_tokens=[" the"], distractor_tokens=[" of"])
    response = server.debugger.Debug(service_pb2.DebugRequest(sub_requests=[request]))
    k = client.model_info().default_k
    (same,) = client.debug_many([DebugSubRequest.of(PROMPT, " the", " of", k=k)])
    assert len(response.sub_responses[0].results[0].multiple_top_k.node_indices) == len(same.nodes)
    assert k == 10


def test_the_command_says_what_it_set(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--server", f"127.0.0.1:{server.port}", "debug", "--prompt", PROMPT, "--target", " the"]
    assert main([*asked, "--ablate", "l1 head 2@9→2 = 1", "L1 head 2 @ 8"]) == 0
    out = capsys.readouterr().out
    assert "ablated: L1 head 2 @ 9 -> 2 = 1, L1 head 2 @ 8 (whole row)" in " ".join(out.split())
    assert "of norm scales, the final one alone is held constant" in " ".join(out.split())
    trace = [*asked[:2], "trace", "L1 head 2 @ 9 -> 2", "--type", "Q", "--prompt", PROMPT]
    assert main(trace) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "of norm scales, the final one and the traced node's own are held constant" in out
    assert main([*asked, "--ablate", "L99 head 2 @ 9", "l1 HEAD 2@99"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("tdb: --ablate 'L99 head 2 @ 9': there is no layer 99; layers are 0 to 2; ")
    assert "; --ablate 'l1 HEAD 2@99': there is no token 99" in err
    assert "sub_requests" not in err
