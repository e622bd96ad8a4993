"""Dictionaries of every format against the latents and reconstructions of SAELens 6.

`tests/fixtures/saelens` holds what SAELens saved and what it computed. The other formats are written here
from the same weights, so that the same numbers must come out, but for what a format scales.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tdb_server.command import run
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.autoencoder_loading import (
    find_layers,
    fit_dictionaries,
    read_dictionaries,
    refuse_other_models,
)
from tdb_server.model.decoder import Decoder
from tdb_server.model.dictionaries.gemma_scope import read_npz
from tdb_server.model.hooks import NORM_SCALES, Hooks
from tdb_server.model.mlp_inputs import MlpInputs
from tdb_server.model.weights import load_decoder
from torch import Tensor

FIXTURES = Path(__file__).parents[2] / "fixtures"
SAELENS = FIXTURES / "saelens"
OURS = FIXTURES / "tiny-a" / "autoencoders"
PLACES = {
    "standard": (Site.RESID_DELTA_MLP, 1),
    "standard_layer_norm": (Site.RESID_POST_MLP, 1),
    "standard_heads": (Site.ATTN_V_OUT, 1),
    "gated": (Site.RESID_POST_MLP, 1),
    "topk": (Site.RESID_POST_ATTN, 1),
    "topk_rescaled": (Site.RESID_DELTA_ATTN, 1),
    "jumprelu": (Site.RESID_POST_MLP, 1),
    "batchtopk": (Site.RESID_POST_MLP, 1),
    "matryoshka_batchtopk": (Site.RESID_POST_MLP, 1),
    "transcoder": (Site.MLP_TRANSCODER, 1),
    "skip_transcoder": (Site.MLP_TRANSCODER, 1),
    "jumprelu_transcoder": (Site.MLP_TRANSCODER, 1),
    "jumprelu_skip_transcoder": (Site.MLP_TRANSCODER, 1),
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(FIXTURES / "tiny-a", "cpu", torch.float32)


def check(
    folder: Path,
    decoder: Decoder,
    name: str,
    place: tuple[Site, int] | None = None,
    *,
    has_gain: bool = False,
    scales: Tensor | None = None,
) -> Autoencoder:
    """Compares the only dictionary of a folder with SAELens's numbers for the fixture called `name`.

    Args:
        has_gain: whether inputs have the gain and the bias of the norm before the MLP.
        scales: what the format multiplies latents with.
    """
    (found,) = fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    assert (found.site, found.info.layers) == ((place or PLACES[name])[0], ((place or PLACES[name])[1],))
    expected = load_file(SAELENS / name / "expected.safetensors")
    (layer,) = found.layers.values()
    x = expected["inputs"]
    if has_gain:
        norm = decoder.blocks[found.info.layers[0]].mlp.norm
        assert norm.bias is not None
        x = (x - norm.bias) / norm.gain
    wanted = expected["latents"] if scales is None else expected["latents"] * scales
    latents = layer.encode(x)
    assert 0 < (wanted > 0).sum() < wanted.numel()
    assert torch.equal(latents > 0, wanted > 0)
    torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        layer.reconstruct(latents, x), expected["reconstructions"], atol=1e-4, rtol=1e-4
    )
    return found


def weights_of(name: str) -> dict[str, Tensor]:
    return load_file(SAELENS / name / "sae_weights.safetensors")


@pytest.mark.parametrize("name", PLACES)
def test_saelens(decoder: Decoder, name: str) -> None:
    check(SAELENS / name, decoder, name, has_gain=name.endswith("transcoder"))


def test_a_layer_norm_that_was_folded_has_no_gain(decoder: Decoder, tmp_path: Path) -> None:
    """Else TransformerLens's `hook_normalized` of layer norms is behind gain and bias."""
    copy = tmp_path / "transcoder"
    shutil.copytree(SAELENS / "transcoder", copy)
    config = json.loads((copy / "cfg.json").read_text())
    settings = config.setdefault("metadata", {}).get("model_from_pretrained_kwargs") or {}
    config["metadata"]["model_from_pretrained_kwargs"] = {**settings, "fold_ln": True}
    (copy / "cfg.json").write_text(json.dumps(config))
    check(copy, decoder, "transcoder", has_gain=False)


def test_saelens_checkpoint_of_batch_top_k(decoder: Decoder, tmp_path: Path) -> None:
    """While it trains, SAELens saves one threshold for all, and latents still to be scaled."""
    weights, norms = weights_of("batchtopk"), torch.rand(20) + 0.5
    threshold = weights.pop("threshold")[0].double()
    weights |= {
        "W_enc": weights["W_enc"] / norms,
        "b_enc": weights["b_enc"] / norms,
        "W_dec": weights["W_dec"] * norms[:, None] / weights["W_dec"].norm(dim=1, keepdim=True),
        "topk_threshold": threshold,
    }
    save_file({key: one.contiguous() for key, one in weights.items()}, tmp_path / "sae_weights.safetensors")
    config = json.loads((SAELENS / "batchtopk" / "cfg.json").read_text())
    config |= {"architecture": "batchtopk", "k": 4, "rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    expected = load_file(SAELENS / "batchtopk" / "expected.safetensors")
    latents = found.layers[1].encode(expected["inputs"])
    torch.testing.assert_close(latents, expected["latents"], atol=1e-4, rtol=1e-4)


def write_gemma_scope(folder: Path, weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: one.numpy() for name, one in weights.items()})  # type: ignore[arg-type]


def test_gemma_scope(decoder: Decoder, tmp_path: Path) -> None:
    folder = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / "layer_1" / "width_16k"
    write_gemma_scope(folder, weights_of("jumprelu"))
    check(folder, decoder, "jumprelu")
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_1"
    write_gemma_scope(folder, weights_of("jumprelu_transcoder"))
    check(folder, decoder, "jumprelu_transcoder")


def test_gemma_scope_needs_to_be_told_where_it_belongs(decoder: Decoder, tmp_path: Path) -> None:
    folder = tmp_path / "somewhere"
    write_gemma_scope(folder, weights_of("jumprelu"))
    with pytest.raises(AutoencoderBroken, match=r'config\.json: "site": one of .*"layer": NUMBER'):
        fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    (folder / "config.json").write_text('{"site": "resid_post_attn", "layer": 2}')
    check(folder, decoder, "jumprelu", (Site.RESID_POST_ATTN, 2))


def npy(header: bytes, content: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("W_enc.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,)}", b"1234")),
        ("W_enc.npy", npy(b"{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"12345678")),
        ("W_enc.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", b"1234")),
        ("W_enc.npy", b"nothing"),
        ("W_enc.npy", npy(b"(" * 300, b"")),  # which Python's own parser gives up
    ],
)
def test_arrays_that_are_not_what_they_say(
    decoder: Decoder, tmp_path: Path, name: str, content: bytes
) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(AutoencoderBroken, match=r"params\.npz: not a sound archive"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_archives(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w", packing) as archive:
        archive.writestr(
            "W_enc.npy", bytes(torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0)))
        )
    content = bytearray((tmp_path / "params.npz").read_bytes())
    content[45:200] = bytes(one ^ 0x55 for one in content[45:200])
    (tmp_path / "params.npz").write_bytes(content)
    with pytest.raises(AutoencoderBroken, match=r"params\.npz: not a sound archive"):
        find_layers(tmp_path)


def test_a_byte_of_an_array_that_has_changed_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "scope"
    write_gemma_scope(folder, weights_of("jumprelu"))
    path = folder / "params.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AutoencoderBroken, match=r"params\.npz: not a sound archive"):
        read_npz(path)


def test_folders_of_gemma_scope_that_say_two_things(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-res" / "old" / "gemma-scope-2b-pt-mlp" / "layer_1"
    write_gemma_scope(folder, weights_of("jumprelu"))
    with pytest.raises(AutoencoderBroken, match="names of its folders say two things"):
        find_layers(folder)


def test_packed_arrays_are_not_unpacked(decoder: Decoder, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "params.npz", W_enc=np.zeros(100_000))
    with pytest.raises(AutoencoderBroken, match="never packed"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def write_gemma_scope_2(folder: Path, weights: dict[str, Tensor], hook: str, out: str, **config: Any) -> None:
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    renamed = {names.get(name, name): one for name, one in weights.items()}
    if "W_skip" in renamed:
        renamed["affine_skip_connection"] = renamed.pop("W_skip").T.contiguous()
    save_file(renamed, folder / "params.safetensors")
    settings = {"architecture": "jump_relu", "width": 20, "l0": 60, "model_name": "google/gemma-3-270m-pt"}
    settings |= {"hf_hook_point_in": hook, "hf_hook_point_out": out, **config}
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("model.layers.1.output", Site.RESID_POST_MLP),
        ("model.layers.1.self_attn.o_proj.input", Site.ATTN_V_OUT),
        ("model.layers.1.post_feedforward_layernorm.output", Site.RESID_DELTA_MLP),
    ],
)
def test_gemma_scope_2(decoder: Decoder, tmp_path: Path, module: str, site: Site) -> None:
    write_gemma_scope_2(tmp_path, weights_of("jumprelu"), module, module, type="sae", affine_connection=False)
    check(tmp_path, decoder, "jumprelu", (site, 1))


def test_gemma_scope_2_transcoder(decoder: Decoder, tmp_path: Path) -> None:
    hooks = (
        "model.layers.1.pre_feedforward_layernorm.output",
        "model.layers.1.post_feedforward_layernorm.output",
    )
    write_gemma_scope_2(
        tmp_path,
        weights_of("jumprelu_skip_transcoder"),
        *hooks,
        type="transcoder",
        affine_connection=True,
    )
    check(tmp_path, decoder, "jumprelu_skip_transcoder", has_gain=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "topk"}, "architecture 'topk' is not jump_relu"),
        ({"type": "clt"}, "type 'clt' is neither"),
        ({"type": "transcoder"}, "type 'transcoder' reads"),
        ({"affine_connection": True}, "no tensor called affine_skip_connection"),
        ({"width": 21}, "width 21, but .* has 20"),
        ({"hf_hook_point_in": "model.embed_tokens"}, "is no place we know"),
        ({"input_scale": 2.0}, "input_scale may change the latents"),
    ],
)
def test_gemma_scope_2_that_is_refused(
    decoder: Decoder, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    module = "model.layers.1.output"
    write_gemma_scope_2(tmp_path, weights_of("jumprelu"), module, module, **config)
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def write_dictionary_learning(folder: Path, kind: str, state: dict[str, Any], **trainer: Any) -> None:
    torch.save(state, folder / "ae.pt")
    settings = {"dict_class": kind, "layer": 1, "activation_dim": 48, "dict_size": 20, "lm_name": "tiny"}
    settings |= {"submodule_name": "resid_post_layer_1", **trainer}
    (folder / "config.json").write_text(
        json.dumps({"trainer": settings, "buffer": {"io": "out", "ctx_len": 8}})
    )


def as_linear(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
    }


def test_dictionary_learning(decoder: Decoder, tmp_path: Path) -> None:
    place = Site.RESID_POST_MLP, 1
    weights = weights_of("standard")
    write_dictionary_learning(tmp_path, "AutoEncoder", as_linear(weights) | {"bias": weights["b_dec"]})
    check(tmp_path, decoder, "standard", place)

    weights = weights_of("standard_heads")  # nothing is subtracted from its inputs
    write_dictionary_learning(
        tmp_path, "AutoEncoderNew", as_linear(weights) | {"decoder.bias": weights["b_dec"]}
    )
    check(tmp_path, decoder, "standard_heads", place)

    weights = weights_of("topk")
    state = as_linear(weights) | {
        "b_dec": weights["b_dec"],
        "k": torch.tensor(4, dtype=torch.int),
        "threshold": torch.tensor(-1.0),
    }
    write_dictionary_learning(tmp_path, "AutoEncoderTopK", state, k=4)
    check(tmp_path, decoder, "topk", place)

    weights = weights_of("batchtopk")
    state = as_linear(weights) | {
        "b_dec": weights["b_dec"],
        "k": torch.tensor(4, dtype=torch.int),
        "threshold": weights["threshold"][0],
    }
    write_dictionary_learning(tmp_path, "BatchTopKSAE", state, k=4)
    check(tmp_path, decoder, "batchtopk", place)
    state["threshold"] = torch.tensor(-1.0)
    write_dictionary_learning(tmp_path, "BatchTopKSAE", state, k=4)
    with pytest.raises(AutoencoderBroken, match="training was too short"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)

    weights = weights_of("matryoshka_batchtopk")
    state = weights | {
        "threshold": weights["threshold"][0],
        "k": torch.tensor(4),
        "group_sizes": torch.tensor([8, 12]),
    }
    write_dictionary_learning(tmp_path, "MatryoshkaBatchTopKSAE", state, k=4, group_sizes=[8, 12])
    check(tmp_path, decoder, "matryoshka_batchtopk", place)

    weights = weights_of("jumprelu")
    write_dictionary_learning(tmp_path, "JumpReluAutoEncoder", dict(weights))
    check(tmp_path, decoder, "jumprelu", place, scales=weights["W_dec"].norm(dim=1))

    weights = weights_of("gated")
    state = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "decoder_bias": weights["b_dec"],
        "r_mag": weights["r_mag"],
        "gate_bias": weights["b_gate"],
        "mag_bias": weights["b_mag"],
    }
    write_dictionary_learning(tmp_path, "GatedAutoEncoder", state)
    check(tmp_path, decoder, "gated", place, scales=weights["W_dec"].norm(dim=1))


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class 'CrossCoder' is not supported"),
        ({"submodule_name": None}, "submodule_name None with io 'out' does not say where"),
        ({"submodule_name": "resid_post_layer_2"}, "beside layer 1"),
        ({"dict_size": 21}, "dict_size 21, but .* has 20"),
        ({"layer": 7, "submodule_name": "resid_post_layer_7"}, "layers 0 to 2"),
    ],
)
def test_dictionary_learning_that_is_refused(
    decoder: Decoder, tmp_path: Path, trainer: dict[str, Any], message: str
) -> None:
    weights = weights_of("standard")
    write_dictionary_learning(
        tmp_path, "AutoEncoder", as_linear(weights) | {"bias": weights["b_dec"]}, **trainer
    )
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


@pytest.mark.parametrize("submodule", ["mlp_out_layer_1", "attn_out_layer_1", "resid_post_layer_1"])
def test_modules_of_dictionary_learning_are_before_norms_of_what_is_added(
    decoder: Decoder, tmp_path: Path, submodule: str
) -> None:
    weights = weights_of("standard")
    state = as_linear(weights) | {"bias": weights["b_dec"]}
    write_dictionary_learning(tmp_path, "AutoEncoder", state, submodule_name=submodule)
    ((_, layer),) = find_layers(tmp_path)
    refuse_other_models(layer, decoder.config)
    with_post_norms = replace(decoder.config, post_norms=True)
    if submodule.startswith("resid"):
        refuse_other_models(layer, with_post_norms)
        return
    with pytest.raises(AutoencoderBroken, match="before its post-norm"):
        refuse_other_models(layer, with_post_norms)


def test_tensors_larger_than_what_is_stored_of_them(tmp_path: Path) -> None:
    """A state dict may say that one number fills any shape; whoever copied that would never end."""
    state = as_linear(weights_of("standard")) | {"bias": torch.zeros(48)}
    state["encoder.weight"] = torch.ones(1).expand(10**9, 10**9)
    write_dictionary_learning(tmp_path, "AutoEncoder", state)
    with pytest.raises(AutoencoderBroken, match="4000000000000000000 bytes, but 4 are stored"):
        find_layers(tmp_path)


def test_an_archive_that_spans_disks(tmp_path: Path) -> None:
    write_dictionary_learning(tmp_path, "AutoEncoder", as_linear(weights_of("standard")))
    content = bytearray((tmp_path / "ae.pt").read_bytes())
    locator = content.rindex(b"PK\x06\x07")
    content[locator + 16] = 2
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(AutoencoderBroken, match="not an archive that can be read safely"):
        find_layers(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("r_mag", -20.0, "latent 3 has r_mag -20.0, too small beside its bias of magnitudes 0.5"),
        ("decoder.weight", 0.0, "the direction of latent 3 is 0, and is divided by its length"),
    ],
)
def test_gates_that_cannot_be_told_and_directions_without_length(
    tmp_path: Path, name: str, value: float, message: str
) -> None:
    weights = weights_of("gated")
    state = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "decoder_bias": weights["b_dec"],
        "r_mag": weights["r_mag"],
        "gate_bias": weights["b_gate"],
        "mag_bias": torch.full((20,), 0.5),
    }
    state[name][..., 3] = value
    write_dictionary_learning(tmp_path, "GatedAutoEncoder", state)
    with pytest.raises(AutoencoderBroken, match=message):
        find_layers(tmp_path)


def write_sparsify(folder: Path, weights: dict[str, Tensor], **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    stored = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        **{name: one for name, one in weights.items() if name in ("W_dec", "b_dec", "W_skip")},
    }
    save_file(stored, folder / "sae.safetensors")
    settings = {"activation": "topk", "k": 4, "d_in": 48, "expansion_factor": 32, "num_latents": 0}
    (folder / "cfg.json").write_text(json.dumps(settings | {"normalize_decoder": True, **config}))


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("layers.1", Site.RESID_POST_MLP),
        ("h.1.mlp", Site.RESID_DELTA_MLP),
        ("h.1.attn", Site.RESID_DELTA_ATTN),
    ],
)
def test_sparsify(decoder: Decoder, tmp_path: Path, module: str, site: Site) -> None:
    write_sparsify(tmp_path / module, weights_of("topk"))
    check(tmp_path / module, decoder, "topk", (site, 1))
    check(tmp_path, decoder, "topk", (site, 1))  # the folder of all hook points


def test_sparsify_transcoder(decoder: Decoder, tmp_path: Path) -> None:
    """All latents are kept, as the fixture's: with k of all of them, TopK is ReLU."""
    folder = tmp_path / "h.1.mlp"
    write_sparsify(folder, weights_of("skip_transcoder"), transcode=True, skip_connection=True, k=20)
    check(folder, decoder, "skip_transcoder", has_gain=True)


@pytest.mark.parametrize(
    ("module", "config", "message"),
    [
        ("layers.1", {"activation": "groupmax"}, "activation 'groupmax' is not topk"),
        ("layers.1", {"signed": True}, "signed is not supported"),
        ("layers.1", {"k": 0}, "k must be a whole number above 0"),
        ("layers.1", {"num_latents": 19}, "num_latents 19, but .* has 20"),
        ("layers.1", {"skip_connection": True}, "no tensor called W_skip"),
        ("layers.1", {"transcode": True}, "is no module we know"),
        ("layers.1", {"gelu": 1}, "gelu may change the latents"),
        ("embed_tokens", {}, "'embed_tokens' is no module we know"),
    ],
)
def test_sparsify_that_is_refused(
    decoder: Decoder, tmp_path: Path, module: str, config: dict[str, Any], message: str
) -> None:
    write_sparsify(tmp_path / module, weights_of("topk"), **config)
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([tmp_path / module], decoder.config), decoder)


def write_circuit_tracer(folder: Path, weights: dict[str, Tensor], hook: str, text: str = "") -> None:
    stored = weights | {"W_enc": weights["W_enc"].T.contiguous()}
    if "threshold" in stored:
        stored["activation_function.threshold"] = stored.pop("threshold")
    save_file(stored, folder / "layer_1.safetensors")
    config = {"model_kind": "transcoder_set", "feature_input_hook": hook, "model_name": "tiny"}
    config["feature_output_hook"] = "hook_mlp_out"
    lines = [f"{name}: {value}\n" for name, value in config.items() if not text.startswith(name)]
    (folder / "config.yaml").write_text("".join(lines) + text)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("skip_transcoder", "ln2.hook_normalized"),
        ("jumprelu_transcoder", "ln2.hook_normalized"),
        ("jumprelu_skip_transcoder", "mlp.hook_in"),
    ],
)
def test_circuit_tracer(decoder: Decoder, tmp_path: Path, name: str, hook: str) -> None:
    write_circuit_tracer(tmp_path, weights_of(name), hook)
    check(tmp_path, decoder, name, has_gain=True)  # of a layer norm's hook_normalized, too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("activation: topk\nk: 4\n", "topk there keeps latents that are negative"),
        ("activation: relu\n", r"activation_function\.threshold would not be read"),
        ("transcoders: [hf://a/b/c.npz]\n", "transcoders are files elsewhere"),
        ("input_scale: 2\n", "input_scale may change the latents"),
        ("model_kind: cross_layer_transcoder\n", "cross-layer transcoders are not supported"),
        ("feature_input_hook: hook_resid_mid\n", "reads 'blocks.1.hook_resid_mid' and writes"),
        ("a: [\n", "not readable as YAML"),
        ("k: 4\n", "k 4 beside activation None"),
        ("activation: jump_relu\nactivation: relu\n", "activation stands twice"),
        ("scan: &a [x]\nscan_name: *a\n", "aliases"),
    ],
)
def test_circuit_tracer_that_is_refused(decoder: Decoder, tmp_path: Path, text: str, message: str) -> None:
    write_circuit_tracer(tmp_path, weights_of("jumprelu_transcoder"), "ln2.hook_normalized", text)
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def test_circuit_tracer_without_the_thresholds_that_it_says(tmp_path: Path) -> None:
    write_circuit_tracer(tmp_path, weights_of("transcoder"), "ln2.hook_normalized", "activation: jump_relu\n")
    with pytest.raises(AutoencoderBroken, match=r"no tensor called activation_function\.threshold"):
        find_layers(tmp_path)


def test_ours(decoder: Decoder, tmp_path: Path) -> None:
    def write(name: str, **config: Any) -> None:
        weights = weights_of(name)
        state = {
            "pre_bias": torch.zeros(48),
            "encoder.weight": weights["W_enc"].T.contiguous(),
            "latent_bias": weights["b_enc"],
            "decoder.weight": weights["W_dec"].T.contiguous(),
            "output_bias": weights["b_dec"],
        }
        state |= {"threshold": weights["threshold"]} if "threshold" in weights else {}
        state |= {"skip.weight": weights["W_skip"]} if "W_skip" in weights else {}
        save_file(state, tmp_path / "1.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))

    write("jumprelu", site="attn_v_out", activation="jumprelu")
    check(tmp_path, decoder, "jumprelu", (Site.ATTN_V_OUT, 1))
    write("skip_transcoder", site="mlp_transcoder", input_gain=False)
    check(tmp_path, decoder, "skip_transcoder")
    write("jumprelu_skip_transcoder", site="mlp_transcoder", input_gain=True, activation="jumprelu")
    check(tmp_path, decoder, "jumprelu_skip_transcoder", has_gain=True)
    for scaling in (
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 2.0},
    ):
        write("skip_transcoder", site="mlp_transcoder", input_gain=False, **scaling)
        with pytest.raises(AutoencoderBroken, match="of a transcoder is not supported"):
            find_layers(tmp_path)
        write("skip_transcoder", site="resid_post_mlp", **scaling)
        with pytest.raises(AutoencoderBroken, match="of a dictionary with a skip is not supported"):
            find_layers(tmp_path)
    write("skip_transcoder", site="mlp_transcoder")
    with pytest.raises(AutoencoderBroken, match='"input_gain" is None'):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    write("jumprelu", site="resid_post_mlp")
    with pytest.raises(AutoencoderBroken, match="threshold would not be read"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def test_the_place_is_told_in_the_file_that_is_named(tmp_path: Path) -> None:
    """Whoever does what the message says has a dictionary that can be read."""
    told = {"site": "resid_post_attn", "layer": 1}
    folders = {name: tmp_path / name for name in ("sparsify", "SAELens", "dictionary_learning", "scope")}
    for folder in folders.values():
        folder.mkdir()
    write_sparsify(folders["sparsify"], weights_of("topk"))
    shutil.copy(SAELENS / "standard" / "sae_weights.safetensors", folders["SAELens"])
    (folders["SAELens"] / "cfg.json").write_text(
        '{"hook_name": "model.layers.1", "sae_lens_version": "6.0.0"}'
    )
    weights = weights_of("standard")
    write_dictionary_learning(
        folders["dictionary_learning"],
        "AutoEncoder",
        as_linear(weights) | {"bias": weights["b_dec"]},
        submodule_name="layer 1",
    )
    write_gemma_scope_2(folders["scope"], weights_of("jumprelu"), "somewhere", "somewhere")
    for folder in folders.values():
        with pytest.raises(AutoencoderBroken) as error:
            find_layers(folder)
        name = re.search(r"Say where it reads and writes in (\S+\.json): ", str(error.value))
        assert name is not None
        path = Path(name[1])
        path.write_text(json.dumps(json.loads(path.read_text()) | told))
        ((_, layer),) = find_layers(folder)
        assert (layer.place.site, layer.place.layer_index) == (Site.RESID_POST_ATTN, 1)


@pytest.mark.parametrize("name", ["SAELens", "Gemma Scope 2", "dictionary_learning"])
def test_a_place_that_is_told_against_the_files_own_names(tmp_path: Path, name: str) -> None:
    if name == "SAELens":
        shutil.copytree(SAELENS / "gated", tmp_path, dirs_exist_ok=True)
    elif name == "Gemma Scope 2":
        module = "model.layers.1.output"
        write_gemma_scope_2(tmp_path, weights_of("jumprelu"), module, module)
    else:
        weights = weights_of("standard")
        write_dictionary_learning(tmp_path, "AutoEncoder", as_linear(weights) | {"bias": weights["b_dec"]})
    path = next(one for one in (tmp_path / "cfg.json", tmp_path / "config.json") if one.exists())
    config = json.loads(path.read_text())
    for wrong in ({"site": "resid_post_attn", "layer": 1}, {"site": "resid_post_mlp", "layer": 2}):
        path.write_text(json.dumps(config | wrong))
        with pytest.raises(AutoencoderBroken, match="own names say resid_post_mlp of layer 1"):
            find_layers(tmp_path)
    path.write_text(json.dumps(config | {"site": "resid_post_mlp", "layer": 1}))
    assert len(find_layers(tmp_path)) == 1


def test_a_place_that_is_told_in_another_file_than_is_read(tmp_path: Path) -> None:
    write_sparsify(tmp_path / "sae", weights_of("topk"))
    (tmp_path / "sae" / "config.json").write_text('{"site": "resid_post_mlp", "layer": 1}')
    with pytest.raises(AutoencoderBroken, match=r"remove one, or say it in cfg\.json"):
        find_layers(tmp_path / "sae")


def test_what_is_no_folder_of_dictionaries(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "nowhere", "no such folder"),
        (SAELENS / "topk" / "cfg.json", "a file; name the folder"),
        (FIXTURES / "tiny-a", "the folder of a model"),
        (tmp_path, "no dictionary here"),
    ):
        with pytest.raises(AutoencoderBroken, match=message):
            find_layers(path)


def test_files_of_two_formats(decoder: Decoder, tmp_path: Path) -> None:
    write_circuit_tracer(tmp_path, weights_of("transcoder"), "ln2.hook_normalized")
    (tmp_path / "ae.pt").touch()
    with pytest.raises(AutoencoderBroken, match=r"config\.yaml and ae\.pt: which of them"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


@pytest.mark.parametrize("change", ["fold_value_biases", "refactor_factored_attn_matrices"])
def test_heads_of_a_model_that_was_rewritten(tmp_path: Path, change: str) -> None:
    """What TransformerLens folds into biases, or turns within heads, is another input."""
    for name, refused in (("standard_heads", True), ("topk_rescaled", False)):
        copy = tmp_path / name
        shutil.copytree(SAELENS / name, copy)
        config = json.loads((copy / "cfg.json").read_text())
        config["metadata"]["model_from_pretrained_kwargs"] = {change: True}
        (copy / "cfg.json").write_text(json.dumps(config))
        if refused:
            with pytest.raises(AutoencoderBroken, match=f"heads of a model with {change}"):
                find_layers(copy)
        else:
            assert len(find_layers(copy)) == 1


def test_centring_is_never_guessed(decoder: Decoder, tmp_path: Path) -> None:
    """Early files of SAELens do not tell; its catalogue does, for three repositories."""

    def write(folder: Path, **config: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights_of("standard"), folder / "sae_weights.safetensors")
        settings = {"hook_point": "blocks.2.hook_resid_pre", "hook_point_layer": 2, **config}
        (folder / "cfg.json").write_text(json.dumps(settings))
        return folder

    with pytest.raises(AutoencoderBroken, match='"center_writing_weights": true} or false'):
        fit_dictionaries(read_dictionaries([write(tmp_path / "a")], decoder.config), decoder)
    told = write(tmp_path / "b", model_from_pretrained_kwargs={"center_writing_weights": False})
    check(told, decoder, "standard", (Site.RESID_POST_MLP, 1))
    listed = write(tmp_path / "models--jbloom--GPT2-Small-SAEs-Reformatted" / "blocks.2.hook_resid_pre")
    (found,) = fit_dictionaries(read_dictionaries([listed], decoder.config), decoder)
    expected = load_file(SAELENS / "standard" / "expected.safetensors")
    offset = torch.randn(9, 1)
    weights = weights_of("standard")
    x = expected["inputs"] - expected["inputs"].mean(dim=1, keepdim=True)
    latents = torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
    torch.testing.assert_close(found.layers[1].encode(x + offset), latents, atol=1e-4, rtol=1e-4)


def test_what_a_transcoder_reads_in_a_model(decoder: Decoder) -> None:
    """Its inputs are those of the MLP, before the norm's gain."""
    (found,) = fit_dictionaries(read_dictionaries([SAELENS / "transcoder"], decoder.config), decoder)
    mlp_inputs, seen = MlpInputs(decoder), dict[HookPoint, Tensor]()

    def hook(hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        mlp_inputs.see(hook_point, x)
        if layer_index == 1:
            seen[hook_point] = mlp_inputs.of_layer(1) if hook_point is found.site.hook_point else x
        return x

    decoder.forward(decoder.embed(torch.tensor([[1, 2, 3]])), Hooks(hook, NORM_SCALES))
    norm = decoder.blocks[1].mlp.norm
    normed = torch.nn.functional.layer_norm(seen[HookPoint.RESID_POST_ATTN], (48,), eps=norm.epsilon)
    torch.testing.assert_close(seen[HookPoint.RESID_DELTA_MLP], normed, atol=1e-5, rtol=1e-5)
    assert found.n_active is not None
    assert found.n_active > 0


def test_heads_side_by_side(decoder: Decoder) -> None:
    (found,) = fit_dictionaries(read_dictionaries([SAELENS / "standard_heads"], decoder.config), decoder)
    x = torch.randn(2, 4, 5, 12)
    flat = found.side_by_side(x)
    assert torch.equal(flat, torch.cat([x[:, head] for head in range(4)], dim=-1))
    assert torch.equal(found.as_at_hook_point(flat, x), x)
    writes = found.write_directions(decoder, 1, torch.arange(20))
    weight = decoder.weights.layers[1].attn_out_weight
    torch.testing.assert_close(writes, weights_of("standard_heads")["W_dec"] @ weight.T)
    assert (found.layers[1].write_norms == writes.norm(dim=1)).all()


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        (
            {"post_norms": True},
            "sparsify",
            "before its post-norm; in a gpt2 model that is not",
        ),
        ({"parallel_blocks": True}, "topk", "there is no resid_post_attn in a gpt2 model"),
    ],
)
def test_what_other_families_do_not_have(
    decoder: Decoder, tmp_path: Path, changes: dict[str, bool], name: str, message: str
) -> None:
    write_sparsify(tmp_path / "h.1.mlp", weights_of("topk"))
    path = tmp_path / "h.1.mlp" if name == "sparsify" else SAELENS / name
    ((_, layer),) = find_layers(path)
    refuse_other_models(layer, decoder.config)
    with pytest.raises(AutoencoderBroken, match=message):
        refuse_other_models(layer, replace(decoder.config, **changes))  # type: ignore[arg-type]


FORMATS: dict[str, Callable[[Path], Any]] = {
    "circuit-tracer": lambda one: write_circuit_tracer(one, weights_of("transcoder"), "ln2.hook_normalized"),
    "Gemma Scope 2": lambda one: write_gemma_scope_2(
        one, weights_of("jumprelu"), "layers.1.output", "layers.1.output"
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_says_its_format(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    ((found, _),) = find_layers(tmp_path)
    assert found.name == name


def test_labels_and_links(decoder: Decoder, tmp_path: Path) -> None:
    """They come with the weights and are handed on; nothing is fetched."""
    copy = tmp_path / "standard"
    shutil.copytree(SAELENS / "standard", copy)
    (copy / "labels.json").write_text('{"3": "cities", "19": "numbers"}')
    (found,) = fit_dictionaries(read_dictionaries([copy], decoder.config), decoder)
    (notes,) = found.info.notes
    assert notes.link == "https://www.neuronpedia.org/gpt2-small/1-res-jb/{latent}"
    assert notes.labels == {3: "cities", 19: "numbers"}

    several = tmp_path / "several"
    several.mkdir()
    for layer in (0, 2):
        shutil.copy(
            FIXTURES / "tiny-a" / "autoencoders" / "resid_delta_mlp" / f"{layer}.safetensors", several
        )
    config = {"site": "resid_delta_mlp", "link": "https://example.org/{layer}/{latent}"}
    (several / "config.json").write_text(json.dumps(config))
    (several / "labels.json").write_text('{"2": {"95": "last"}}')
    (found,) = fit_dictionaries(read_dictionaries([several], decoder.config), decoder)
    assert [(one.layer_index, one.link, dict(one.labels)) for one in found.info.notes] == [
        (0, "https://example.org/0/{latent}", {}),
        (2, "https://example.org/2/{latent}", {95: "last"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", '{"20": "x"}', "'20' is none of the latents 0 to 19"),
        ("labels.json", '{"one": "x"}', "'one' is none of the latents"),
        ("labels.json", '{"1": 2}', "the label of 1 is 2, not a text"),
        ("labels.json", '{"1": "\\ud800"}', r"the label of 1 is '\\ud800', not a text"),
        ("labels.json", json.dumps({"9" * 5000: "x"}), "is none of the latents"),
        (
            "cfg.json",
            '{"architecture": [], "metadata": {"hook_name": "blocks.1.hook_mlp_out"}}',
            "cannot be read as SAELens's",
        ),
        ("config.json", '{"link": "https://e.org/{latent}\\u001b"}', "no http address with {latent}"),
        ("labels.json", '{"4": {"1": "x"}}', "'4' is no layer of this folder"),
        ("labels.json", json.dumps({"1": "é" * 2**20}), "labels of more than 2097152 bytes"),
        ("config.json", '{"link": "javascript:alert(1)//{latent}"}', "no http address with {latent}"),
        ("config.json", '{"link": "https://example.org/"}', "no http address with {latent}"),
        ("config.json", '{"neuronpedia_id": "a/b/c"}', "neuronpedia_id 'a/b/c' is not like"),
    ],
)
def test_labels_and_links_that_are_refused(
    decoder: Decoder, tmp_path: Path, name: str, content: str, message: str
) -> None:
    copy = tmp_path / "topk"
    shutil.copytree(SAELENS / "topk", copy)
    (copy / name).write_text(content)
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([copy], decoder.config), decoder)


def test_the_command_says_what_a_folder_holds(capsys: pytest.CaptureFixture[str]) -> None:
    run(["dictionaries", str(SAELENS), "--model", str(FIXTURES / "tiny-a")])
    *lines, together, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PLACES)
    assert together.startswith("not all of them can be loaded at once: ")
    (transcoder,) = [one for one in lines if "/jumprelu_skip_transcoder: " in one]
    for told in (
        "SAELens",
        "mlp_transcoder of layer 1",
        "reads what the MLP reads, with the gain of its norm (48 channels)",
        "writes resid.delta_mlp",
        "20 latents, jumprelu",
        "with a skip",
    ):
        assert told in transcoder
    assert last.startswith("each fits tiny-a: gpt2, 3 layers")
    with pytest.raises(AutoencoderBroken, match="latents for mlp_post_act of this model"):
        run(["dictionaries", str(OURS / "mlp_post_act"), "--model", str(FIXTURES / "tiny-llama-c")])


def test_the_command_says_what_cannot_be_loaded_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sparsify(tmp_path / "layers.0", weights_of("topk"))
    write_sparsify(tmp_path / "layers.1", weights_of("topk"), k=5)
    run(["dictionaries", str(tmp_path)])
    assert "at once: " in (last := capsys.readouterr().out.splitlines()[-1])
    assert "20 latents, topk(5), unlike" in last
    run(["dictionaries", str(tmp_path / "layers.0"), str(tmp_path / "layers.0")])
    assert "layer 0 of resid_post_mlp is given twice" in capsys.readouterr().out.splitlines()[-1]
