"""`tdb lens` and `tdb activations`: what is asked, and what is printed and written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from tdb_client.cli import main
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.names import known_names
from transformer_debugger.v1 import activation_pb2, loss_pb2, node_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferenceSubRequest

from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
LENS = ["lens", "--prompt", "When Mary gave to"]
PLACE = ["activations", "--prompt", "When Mary gave to", "--place", "mlp_post_act"]


def asked(fake: Fake) -> InferenceSubRequest:
    (one,) = fake[1].requests[-1].sub_requests
    assert isinstance(one, InferenceSubRequest)
    return one


def test_a_lens_is_a_table_of_layers(fake: Fake, capsys: Output) -> None:
    assert main([*LENS, "--tokens", " Mary", " John", "--at", "1", "-1", "--server", fake[0]]) == 0
    out = capsys.readouterr().out
    spec = asked(fake).processing_specs[0].lens
    assert list(spec.vocab_tokens) == [" Mary", " John"]
    assert (list(spec.token_indices), spec.num_top_tokens) == ([1, -1], 3)
    assert not asked(fake).inference_spec.HasField("loss_fn_config")
    first, second = out.split("token 3, ")
    assert "token 1, ' Mary'" in first
    rows = [line.split() for line in second.splitlines() if line.strip()]
    assert rows[1][:4] == ["layer", "'", "Mary'", "'"]
    assert rows[3][:3] == ["embedding", "2.000", "3.000"]
    assert rows[5][:3] == ["1", "10.00", "11.00"]
    assert rows[5][3:] == ["'", "Mary'", "9.500", r"'\n'", "-0.250"]


def test_a_lens_without_tokens_names_the_likeliest(fake: Fake, capsys: Output) -> None:
    places = ["--layers", "0", "1", "--place", "resid_post_attn", "--top", "2"]
    assert main([*LENS, *places, "--json", "--server", fake[0]]) == 0
    spec = asked(fake).processing_specs[0].lens
    assert list(spec.layer_indices) == [0, 1]
    assert spec.place == activation_pb2.ACTIVATION_LOCATION_TYPE_RESID_POST_ATTN
    told = json.loads(capsys.readouterr().out)
    assert (told["logits"], told["layers"], told["at"]) == (None, [0, 1], [3])
    assert len(told["top_tokens"]) == 3
    assert told["top_tokens"][2][0][1] == {"token": "\n", "token_id": 8, "logit": -0.25}


def test_a_lens_as_csv(fake: Fake, capsys: Output) -> None:
    assert main([*LENS, "--tokens", " Mary", "--csv", "--server", fake[0]]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 3 * (1 + 2)
    assert [(one["layer"], one["rank"], one["logit"]) for one in rows[3:6]] == [
        ("0", "", "1"),
        ("0", "1", "9.5"),
        ("0", "2", "-0.25"),
    ]
    assert (json.loads(rows[5]["vocab_token"]), rows[5]["token_id"], rows[5]["token"]) == ("\n", "8", "3")


def test_a_lens_of_nothing(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main([*LENS, "--top", "0"])
    assert "--top 0 leaves nothing" in capsys.readouterr().err


def test_a_place_is_written_by_layer(fake: Fake, capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "place.npz"
    wanted = ["--layers", "1", "--at", "0", "-1", "--out", str(file)]
    assert main([*PLACE, *wanted, "--server", fake[0]]) == 0
    spec = asked(fake).processing_specs[0].activations
    assert spec.activation_location_type == activation_pb2.ACTIVATION_LOCATION_TYPE_MLP_POST_ACT
    assert (list(spec.layer_indices), list(spec.token_indices)) == ([1], [0, -1])
    assert spec.pass_type == node_pb2.PASS_TYPE_FORWARD
    assert not asked(fake).inference_spec.HasField("loss_fn_config")
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["layer_1"].tolist()[0] == [2.5, -np.inf, -np.inf]
        assert arrays["token_indices"].tolist() == [0, 3]
        assert arrays["tokens"].tolist()[1] == " to"
        assert arrays["token_ids"].shape == (2,)
        assert arrays["dimensions"].tolist() == ["sequence_tokens", "residual_stream_channels"]
    out, err = capsys.readouterr()
    assert err == f"tdb: wrote {file}\n"
    assert out.splitlines()[2].split() == ["1", "2", "×", "3", "2.500", "2.500", "2.500"]
    assert "sequence tokens × residual stream channels; what is not finite" in out


def test_gradients_are_of_a_loss_and_hold_the_final_norm(fake: Fake, capsys: Output, tmp_path: Path) -> None:
    wanted = ["--gradients", "--target", " Mary", "--distractor", " John"]
    assert main([*PLACE, *wanted, "--out", str(tmp_path / "g.npz"), "--server", fake[0]]) == 0
    spec = asked(fake).inference_spec
    assert spec.loss_fn_config.name == loss_pb2.LOSS_FN_NAME_LOGIT_DIFF
    assert list(spec.loss_fn_config.distractor_tokens) == [" John"]
    (held,) = spec.ablation_specs
    assert held.index.activation_location_type == activation_pb2.ACTIVATION_LOCATION_TYPE_RESID_LN_F_SCALE
    assert held.index.pass_type == node_pb2.PASS_TYPE_BACKWARD
    assert (held.value, [one.all for one in held.index.tensor_indices]) == (0, [True, True])
    assert asked(fake).processing_specs[0].activations.pass_type == node_pb2.PASS_TYPE_BACKWARD


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "x.npz", "--gradients"], "belong together"),
        (["--out", "x.npz", "--target", " Mary"], "belong together"),
        (["--out", "x.csv"], "does not end in .npz"),
    ],
)
def test_what_makes_no_sense(capsys: Output, options: list[str], said: str) -> None:
    with pytest.raises(SystemExit):
        main([*PLACE, *options])
    assert said in capsys.readouterr().err


def test_a_wrong_place_is_told_which_there_are(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["activations", "--prompt", "p", "--place", "nonsense", "--out", "x.npz"])
    assert ended.value.code == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "argument --place: invalid choice: 'nonsense'" in said
    assert all(f"'{place}'" in said for place in known_names(activation_pb2.ActivationLocationType))


def test_a_place_may_be_spelled_in_capitals(fake: Fake, tmp_path: Path) -> None:
    words = ["activations", "--prompt", "p", "--place", "MLP.post_act", "--out", str(tmp_path / "x.npz")]
    assert main([*words, "--server", fake[0]]) == 0
    spec = asked(fake).processing_specs[0].activations
    assert spec.activation_location_type == activation_pb2.ACTIVATION_LOCATION_TYPE_MLP_POST_ACT


def test_a_file_that_cannot_be_written_is_named(fake: Fake, capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "x.npz"
    assert main([*PLACE, "--out", str(file), "--server", fake[0]]) == ExitCode.FAILED
    assert f"cannot write {file}: No such file or directory" in capsys.readouterr().err
