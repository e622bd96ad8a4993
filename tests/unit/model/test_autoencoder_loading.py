"""Autoencoders from every kind of folder, and what is said of folders that do not fit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder_loading import fit_dictionaries, read_dictionaries
from tdb_server.model.decoder import Decoder
from tdb_server.model.weights import load_decoder
from torch import Tensor

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny-a"
AUTOENCODERS = FIXTURE / "autoencoders"
D_MODEL, N_NEURONS, N_LATENTS = 48, 192, 96
WIDTHS = {Site.MLP_POST_ACT: N_NEURONS, Site.RESID_DELTA_MLP: D_MODEL, Site.RESID_DELTA_ATTN: D_MODEL}
SAELENS_SETTINGS = {"architecture": "standard", "sae_lens_training_version": "4.0"}
HOOKS = {
    "blocks.1.hook_mlp_out": Site.RESID_DELTA_MLP,
    "blocks.1.mlp.hook_post": Site.MLP_POST_ACT,
    "blocks.1.hook_attn_out": Site.RESID_DELTA_ATTN,
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(FIXTURE, "cpu", torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of an autoencoder's folder, to be spoilt."""
    copy = tmp_path / "autoencoder"
    shutil.copytree(AUTOENCODERS / "resid_delta_mlp", copy)
    return copy


@pytest.mark.parametrize("site", WIDTHS, ids=lambda site: site.value)
def test_the_fixtures_folders(decoder: Decoder, site: Site) -> None:
    (found,) = fit_dictionaries(read_dictionaries([AUTOENCODERS / site.value], decoder.config), decoder)
    assert found.site is site
    assert found.info.layers == (0, 1, 2)
    assert (found.info.n_latents, found.info.activation) == (N_LATENTS, "relu")
    state = load_file(AUTOENCODERS / site.value / "1.safetensors")
    layer = found.layers[1]
    assert torch.equal(layer.directions, state["decoder.weight"].T)
    x = torch.randn(5, WIDTHS[site])
    expected = torch.relu((x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])
    torch.testing.assert_close(layer.encode(x), expected)
    assert layer.write_norms is not None
    writes = found.write_directions(decoder, 1, torch.arange(N_LATENTS))
    torch.testing.assert_close(layer.write_norms, writes.norm(dim=-1))


def test_one_for_the_mlp_and_one_for_attention(decoder: Decoder) -> None:
    folders = [AUTOENCODERS / "resid_delta_attn", AUTOENCODERS / "mlp_post_act"]
    assert [one.site for one in fit_dictionaries(read_dictionaries(folders, decoder.config), decoder)] == [
        Site.RESID_DELTA_ATTN,
        Site.MLP_POST_ACT,
    ]
    assert fit_dictionaries(read_dictionaries([], decoder.config), decoder) == []


def test_folders_of_one_site_are_joined(decoder: Decoder, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "config.json", other)
    shutil.move(folder / "2.safetensors", other)
    (found,) = fit_dictionaries(read_dictionaries([other, folder], decoder.config), decoder)
    assert found.info.layers == (0, 1, 2)


def test_top_k_of_the_config(decoder: Decoder, folder: Path) -> None:
    write_config(folder, site="resid_delta_mlp", activation="topk", k=4)
    (found,) = fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    assert found.info.activation == "topk(4)"
    assert found.layers[0].encode(torch.randn(7, D_MODEL)).count_nonzero(dim=-1).max() <= 4


@pytest.mark.parametrize("top_k", [None, 3])
def test_the_references_state_dicts(decoder: Decoder, tmp_path: Path, top_k: int | None) -> None:
    state: dict[str, Any] = dict(load_file(AUTOENCODERS / "resid_delta_mlp" / "0.safetensors"))
    expected = {name: tensor.clone() for name, tensor in state.items()}
    state["stats_last_nonzero"] = torch.zeros(N_LATENTS, dtype=torch.long)
    state["activation"] = "ReLU" if top_k is None else "TopK"
    state["activation_state_dict"] = {} if top_k is None else {"k": top_k, "postact_fn": "ReLU"}
    torch.save(state, tmp_path / "0.pt")
    write_config(tmp_path, site="resid_delta_mlp", normalize_activations="none")
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    assert found.layers[0].top_k == top_k
    assert torch.equal(found.layers[0].encoder_weight, expected["encoder.weight"])


def write_state(folder: Path, **entries: Any) -> dict[str, Any]:
    """A TopK state dict of the reference's second generation for layer 0."""
    state = dict(load_file(AUTOENCODERS / "resid_delta_mlp" / "0.safetensors"))
    state |= {
        "stats_last_nonzero": torch.zeros(N_LATENTS, dtype=torch.long),
        "latents_activation_frequency": torch.ones(N_LATENTS, dtype=torch.long),
        "latents_mean_square": torch.zeros(N_LATENTS),
        "activation": "TopK",
        "activation_state_dict": {"k": 4, "postact_fn": "ReLU"},
    }
    state |= entries
    torch.save(state, folder / "0.pt")
    return state


def test_a_top_k_state_dict_needs_to_be_told_whether_inputs_are_normed(
    decoder: Decoder, tmp_path: Path
) -> None:
    state = write_state(tmp_path)
    write_config(tmp_path, site="resid_delta_mlp")
    with pytest.raises(
        AutoencoderBroken, match=r'0\.pt: .*/config\.json: "normalize_activations": "layer_norm"'
    ):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    x = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(1))
    mean, deviation = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
    for kind, inputs in (("layer_norm", (x - mean) / (deviation + 1e-5)), ("none", x)):
        write_config(tmp_path, site="resid_delta_mlp", normalize_activations=kind)
        (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
        assert found.info.norms_inputs == (kind == "layer_norm")
        pre = (inputs - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
        values, places = pre.topk(4, dim=-1)
        latents = torch.zeros_like(pre).scatter(-1, places, values.relu())
        torch.testing.assert_close(found.layers[0].encode(x), latents)
        reconstruction = latents @ state["decoder.weight"].T + state["pre_bias"]
        if kind == "layer_norm":
            reconstruction = reconstruction * deviation + mean
        torch.testing.assert_close(found.layers[0].reconstruct(latents, x), reconstruction)


@pytest.mark.parametrize(
    ("entries", "config", "message"),
    [
        ({"threshold": torch.ones(N_LATENTS)}, {}, r"0\.pt: threshold would not be read"),
        ({"normalize": True}, {}, "normalize would not be read"),
        ({}, {"activation": "relu"}, r"its activation is top 4, but .*config\.json says activation 'relu'"),
        ({}, {"activation": "topk", "k": 5}, "its activation is top 4, but .* k 5"),
        ({}, {"k": 5}, "its activation is top 4, but .* k 5"),
        ({"decoder.linear.weight": torch.ones(N_LATENTS, D_MODEL)}, {}, r"decoder\.linear\.weight would not"),
    ],
)
def test_state_dicts_that_are_refused(
    decoder: Decoder, tmp_path: Path, entries: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    write_state(tmp_path, **entries)
    write_config(tmp_path, site="resid_delta_mlp", normalize_activations="none", **config)
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def test_a_factor_for_inputs(decoder: Decoder, folder: Path) -> None:
    state = load_file(folder / "1.safetensors")
    setting = {"normalize_activations": "expected_average_only_in"}
    write_config(folder, site="resid_delta_mlp", **setting)
    with pytest.raises(AutoencoderBroken, match='"norm_scaling_factor": NUMBER'):
        fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    write_config(folder, site="resid_delta_mlp", **setting, norm_scaling_factor=2.5)
    (found,) = fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    x = torch.randn(5, D_MODEL)
    latents = torch.relu((2.5 * x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])
    torch.testing.assert_close(found.layers[1].encode(x), latents, atol=1e-4, rtol=1e-4)
    reconstruction = (latents @ state["decoder.weight"].T + state["pre_bias"]) / 2.5
    torch.testing.assert_close(found.layers[1].reconstruct(latents, x), reconstruction)


def test_settings_that_are_not_known_are_refused(decoder: Decoder, folder: Path) -> None:
    write_config(folder, site="resid_delta_mlp", normalise_activations="layer_norm", threshold=0.1)
    with pytest.raises(AutoencoderBroken, match=r"config\.json: normalise_activations, threshold may change"):
        fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    write_config(folder, site="resid_delta_mlp", source="a paper", name="first try")
    assert len(fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)) == 1


def test_a_tied_state_dict(decoder: Decoder, tmp_path: Path) -> None:
    state = load_file(AUTOENCODERS / "resid_delta_mlp" / "0.safetensors")
    del state["decoder.weight"]
    torch.save({**state, "decoder.linear.weight": state["encoder.weight"]}, tmp_path / "0.pt")
    write_config(tmp_path, site="resid_delta_mlp")
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    assert torch.equal(found.layers[0].directions, state["encoder.weight"])
    torch.save({**state, "decoder.linear.weight": state["encoder.weight"] + 1}, tmp_path / "0.pt")
    with pytest.raises(AutoencoderBroken, match=r"decoder\.linear\.weight is not encoder\.weight"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def test_a_pickled_file_runs_no_code(decoder: Decoder, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return (tmp_path / "attacked").touch, ()  # type: ignore[return-value]

    (tmp_path / "0.pt").write_bytes(pickle.dumps({"pre_bias": Attack()}, protocol=2))
    write_config(tmp_path, site="resid_delta_mlp")
    with pytest.raises(AutoencoderBroken, match="safely"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    assert not (tmp_path / "attacked").exists()


def write_config(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def change_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "1.safetensors"
        state = load_file(path)
        state[name] = change(state[name]).contiguous()
        save_file(state, path)

    return spoil


def drop_tensor(folder: Path) -> None:
    state = load_file(folder / "1.safetensors")
    del state["latent_bias"]
    save_file(state, folder / "1.safetensors")


def fewer_latents(folder: Path) -> None:
    state = load_file(folder / "1.safetensors")
    cut = {
        "pre_bias": state["pre_bias"],
        "encoder.weight": state["encoder.weight"][:10],
        "latent_bias": state["latent_bias"][:10],
        "decoder.weight": state["decoder.weight"][:, :10].contiguous(),
    }
    save_file(cut, folder / "1.safetensors")
    write_config(folder, site="resid_delta_mlp")


def add_tensor(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / "1.safetensors")
        save_file({**state, name: torch.ones(N_LATENTS)}, folder / "1.safetensors")

    return spoil


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda one: (one / "config.json").unlink(), "no dictionary here"),
    (lambda one: (one / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda one: (one / "config.json").write_text("[]"), "not a JSON object"),
    (lambda one: (one / "config.json").write_text('{"k": 1, "k": 2}'), "k is 1 and 2"),
    (
        lambda one: write_config(one, site="resid_pre"),
        "mlp_post_act, resid_delta_mlp, resid_delta_attn, attn_v_out, resid",
    ),
    (lambda one: write_config(one, site="mlp_post_act"), r"has shape \[48\].*has \[192\]"),
    (
        lambda one: write_config(one, site="resid_delta_mlp", activation="jumprelu"),
        "no tensor called threshold",
    ),
    (lambda one: write_config(one, site="resid_delta_mlp", activation="topk"), "topk"),
    (lambda one: [path.unlink() for path in one.glob("*.safetensors")], "no <layer>.safetensors"),
    (lambda one: (one / "1.safetensors").rename(one / "one.safetensors"), "layer's number"),
    (lambda one: (one / "1.safetensors").rename(one / "7.safetensors"), "layers 0 to 2"),
    (lambda one: (one / "1.safetensors").rename(one / "02.safetensors"), "given twice"),
    (lambda one: (one / "1.safetensors").write_bytes(b"nothing"), "not a safetensors file"),
    (drop_tensor, "no tensor called latent_bias"),
    (fewer_latents, "must be alike"),
    (change_tensor("encoder.weight", lambda x: x[:, :40]), "encoder has shape"),
    (change_tensor("decoder.weight", lambda x: x.T), "decoder, transposed, has shape"),
    (change_tensor("decoder.weight", lambda x: x[0]), "must be a matrix"),
    (change_tensor("latent_bias", lambda x: x * torch.nan), "not finite"),
    (change_tensor("latent_bias", lambda x: x.to(torch.int32)), r"latent_bias is stored as torch\.int32"),
    (add_tensor("threshold"), r"1\.safetensors: threshold would not be read"),
    (add_tensor("encoder.bias"), r"encoder\.bias would not be read"),
    (lambda one: write_config(one, site="resid_delta_mlp", n_latents=95), r"n_latents 95, but .* has 96"),
    (lambda one: write_config(one, site="resid_delta_mlp", n_inputs=192), r"n_inputs 192, but .* has 48"),
    (lambda one: write_config(one, site="resid_delta_mlp", k=4), "activation 'relu' with k 4"),
    (lambda one: write_config(one, site="resid_delta_mlp", activation="topk", k=True), "with k True"),
    (lambda one: write_config(one, site="resid_delta_mlp", normalize_activations="rms"), "'rms' is none of"),
    (lambda one: write_config(one, site="resid_delta_mlp", norm_scaling_factor=2.0), "belongs to"),
    (lambda one: (one / "cfg.json").write_text("{}"), r"config\.json with a site beside cfg\.json"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_what_does_not_fit_is_told(
    decoder: Decoder, folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(AutoencoderBroken, match=message) as caught:
        fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    assert str(folder) in caught.value.message


def test_two_for_the_mlp(decoder: Decoder) -> None:
    with pytest.raises(AutoencoderBroken, match="two dictionaries for the MLP"):
        fit_dictionaries(
            read_dictionaries(
                [AUTOENCODERS / "mlp_post_act", AUTOENCODERS / "resid_delta_mlp"], decoder.config
            ),
            decoder,
        )


def test_the_same_layers_twice(decoder: Decoder, folder: Path) -> None:
    with pytest.raises(AutoencoderBroken, match="given twice"):
        fit_dictionaries(
            read_dictionaries([AUTOENCODERS / "resid_delta_mlp", folder], decoder.config), decoder
        )


def write_saelens(folder: Path, hook: str, **config: Any) -> dict[str, Tensor]:
    """A folder as SAELens writes it; returns the weights."""
    n_inputs = WIDTHS[HOOKS.get(hook, Site.RESID_DELTA_MLP)]
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {
        "W_enc": random(n_inputs, 20),
        "b_enc": random(20),
        "W_dec": random(20, n_inputs),
        "b_dec": random(n_inputs),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**SAELENS_SETTINGS, "hook_name": hook, **config}))
    return weights


@pytest.mark.parametrize(("hook", "site"), HOOKS.items())
@pytest.mark.parametrize("subtracts_bias", [True, False])
def test_saelens(decoder: Decoder, tmp_path: Path, hook: str, site: Site, subtracts_bias: bool) -> None:
    weights = write_saelens(tmp_path, hook, apply_b_dec_to_input=subtracts_bias, normalize_activations="none")
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    assert (found.site, list(found.layers)) == (site, [1])
    x = torch.randn(6, WIDTHS[site])
    inputs = x - weights["b_dec"] if subtracts_bias else x
    latents = torch.relu(inputs @ weights["W_enc"] + weights["b_enc"])
    layer = found.layers[1]
    torch.testing.assert_close(layer.encode(x), latents, atol=1e-4, rtol=1e-4)
    expected = latents @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(layer.reconstruct(latents, x), expected)


def test_saelens_of_a_model_with_centred_writes(decoder: Decoder, tmp_path: Path) -> None:
    kwargs = {"center_writing_weights": True}
    weights = write_saelens(
        tmp_path, "blocks.1.hook_mlp_out", metadata={"model_from_pretrained_kwargs": kwargs}
    )
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    x = torch.randn(6, D_MODEL)
    inputs = x - x.mean(dim=-1, keepdim=True) - weights["b_dec"]
    latents = torch.relu(inputs @ weights["W_enc"] + weights["b_enc"])
    torch.testing.assert_close(found.layers[1].encode(x), latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "topk", "k": 5},
        {"architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": 5}},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
    ],
)
def test_saelens_top_k(decoder: Decoder, tmp_path: Path, config: dict[str, Any]) -> None:
    write_saelens(tmp_path, "blocks.1.hook_mlp_out", **config)
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    assert found.layers[1].top_k == 5


@pytest.mark.parametrize(
    ("hook", "config", "message"),
    [
        ("blocks.0.hook_resid_pre", {}, "the embeddings, where no dictionary is read"),
        (
            "blocks.1.hook_mlp_in",
            {},
            r"mlp_out \(resid_delta_mlp\), .*post \(mlp_post_act\), .*attn_out \(resid_delta_attn\)",
        ),
        ("blocks.1.attn.hook_q", {}, "hook_q"),
        ("blocks.1.hook_mlp_out", {"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ("blocks.1.hook_mlp_out", {"architecture": "temporal"}, "'temporal' is not supported"),
        ("blocks.1.hook_mlp_out", {"architecture": "transcoder"}, "'transcoder' beside resid_delta_mlp"),
        ("blocks.9.hook_mlp_out", {}, "layers 0 to 2"),
        ("blocks.1.hook_mlp_out", {"architecture": "jumprelu"}, "no tensor called threshold"),
        ("blocks.1.hook_mlp_out", {"architecture": "gated"}, "no tensor called b_gate"),
        ("blocks.1.hook_mlp_out", {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ("blocks.1.hook_mlp_out", {"architecture": "topk"}, "without a k"),
        (
            "blocks.1.hook_mlp_out",
            {"normalize_activations": "constant_norm_rescale"},
            "normalize_activations 'constant_norm_rescale' is none of",
        ),
        (
            "blocks.1.hook_mlp_out",
            {"normalize_activations": "expected_average_only_in"},
            '"norm_scaling_factor": NUMBER',
        ),
        ("blocks.1.hook_mlp_out", {"normalize_activations": True}, '"norm_scaling_factor": NUMBER'),
        ("blocks.1.hook_mlp_out", {"apply_b_dec_to_input": None}, "apply_b_dec_to_input must be true or"),
        ("blocks.1.hook_mlp_out", {"rescale_acts_by_decoder_norm": True}, "topk alone"),
        ("blocks.1.hook_mlp_out", {"hook_layer": 0}, r"hook_name 'blocks\.1\..*' beside hook_layer 0"),
        ("blocks.{layer}.hook_mlp_out", {}, r"hook_name 'blocks\.\{layer\}\.hook_mlp_out'"),
        ("blocks.1.hook_mlp_out", {"hook_point": "blocks.0.hook_mlp_out"}, "hook_point .* for hook_name"),
        (
            "blocks.1.hook_mlp_out",
            {"metadata": {"hook_name": "blocks.0.hook_mlp_out"}},
            r"metadata\.hook_name .* for hook_name",
        ),
        ("blocks.1.hook_mlp_out", {"hook_name_out": "blocks.2.hook_mlp_out"}, "transcoders read"),
        ("blocks.1.hook_mlp_out", {"hook_head_index": 3}, "hook_head_index 3"),
        ("blocks.1.hook_mlp_out", {"architecture": "topk", "k": 4.0}, "whole number above 0, not 4.0"),
        (
            "blocks.1.hook_mlp_out",
            {"architecture": "topk", "k": 4, "activation_fn_kwargs": {"k": 5}},
            r"k 4 beside activation_fn_kwargs\.k 5",
        ),
        ("blocks.1.hook_mlp_out", {"k": 4}, "k 4 beside architecture 'standard'"),
        ("blocks.1.hook_mlp_out", {"d_sae": 21}, r"d_sae 21, but .*sae_weights\.safetensors has 20"),
        ("blocks.1.hook_mlp_out", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ],
)
def test_saelens_that_is_not_supported(
    decoder: Decoder, tmp_path: Path, hook: str, config: dict[str, Any], message: str
) -> None:
    write_saelens(tmp_path, hook, **config)
    with pytest.raises(AutoencoderBroken, match=message):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


@pytest.mark.parametrize("missing", ["W_enc", "b_dec"])
def test_saelens_without_a_tensor(decoder: Decoder, tmp_path: Path, missing: str) -> None:
    weights = write_saelens(tmp_path, "blocks.1.hook_mlp_out")
    del weights[missing]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(AutoencoderBroken, match=missing):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


@pytest.mark.parametrize("extra", ["threshold", "r_mag", "W_skip", "scaling_factor"])
def test_saelens_with_a_tensor_that_would_not_be_read(decoder: Decoder, tmp_path: Path, extra: str) -> None:
    weights = write_saelens(tmp_path, "blocks.1.hook_mlp_out")
    save_file({**weights, extra: torch.full((20,), 2.0)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(AutoencoderBroken, match=rf"sae_weights\.safetensors: {extra} would not be read"):
        fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)


def test_saelens_as_it_is_met(decoder: Decoder, tmp_path: Path) -> None:
    """Biases of shape [1, n], factors of 1, a template for the layer, settings in `metadata`, old words."""
    weights = write_saelens(
        tmp_path,
        "blocks.{layer}.hook_mlp_out",
        hook_layer=1,
        activation_fn_str="relu",
        metadata={"hook_point_head_index": None, "hook_name": "blocks.{layer}.hook_mlp_out"},
    )
    odd = {"b_dec": weights["b_dec"][None], "b_enc": weights["b_enc"][None], "scaling_factor": torch.ones(20)}
    save_file(weights | odd, tmp_path / "sae_weights.safetensors")
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    x = torch.randn(6, D_MODEL)
    latents = torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
    torch.testing.assert_close(found.layers[1].encode(x), latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("subtracts_bias", [True, False])
def test_saelens_with_layer_normed_inputs(decoder: Decoder, tmp_path: Path, subtracts_bias: bool) -> None:
    weights = write_saelens(
        tmp_path,
        "blocks.1.hook_mlp_out",
        normalize_activations="layer_norm",
        apply_b_dec_to_input=subtracts_bias,
    )
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    x = 3 * torch.randn(6, D_MODEL) + 1
    mean, deviation = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
    inputs = (x - mean) / (deviation + 1e-5) - weights["b_dec"] * subtracts_bias
    latents = torch.relu(inputs @ weights["W_enc"] + weights["b_enc"])
    torch.testing.assert_close(found.layers[1].encode(x), latents, atol=1e-4, rtol=1e-4)
    reconstruction = (latents @ weights["W_dec"] + weights["b_dec"]) * deviation + mean
    found_again = found.layers[1].reconstruct(latents, x)
    torch.testing.assert_close(found_again, reconstruction, atol=1e-4, rtol=1e-4)


def test_saelens_with_a_factor_and_latents_scaled_by_their_directions(
    decoder: Decoder, tmp_path: Path
) -> None:
    weights = write_saelens(
        tmp_path,
        "blocks.1.hook_mlp_out",
        architecture="topk",
        k=5,
        rescale_acts_by_decoder_norm=True,
        normalize_activations="expected_average_only_in",
        norm_scaling_factor=0.5,
    )
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    x = torch.randn(6, D_MODEL)
    norms = (weights["W_dec"] / 0.5).norm(dim=1)
    pre = ((0.5 * x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    values, places = pre.topk(5, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, places, values.relu())
    torch.testing.assert_close(found.layers[1].encode(x), latents, atol=1e-3, rtol=1e-4)
    reconstruction = (latents / norms) @ (weights["W_dec"] / 0.5) + weights["b_dec"] / 0.5
    found_again = found.layers[1].reconstruct(latents, x)
    torch.testing.assert_close(found_again, reconstruction, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_saelens_thresholds_of_scaled_latents_with_a_factor(
    decoder: Decoder, tmp_path: Path, factor: float
) -> None:
    """The threshold was found for directions as they are stored, which the factor has not divided yet."""
    weights = write_saelens(
        tmp_path,
        "blocks.1.hook_mlp_out",
        architecture="batchtopk",
        rescale_acts_by_decoder_norm=True,
        normalize_activations="expected_average_only_in",
        norm_scaling_factor=factor,
    )
    x = torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(1))
    pre = (factor * x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    in_training = pre * weights["W_dec"].norm(dim=1)
    threshold = in_training.quantile(0.8)
    save_file(weights | {"topk_threshold": threshold}, tmp_path / "sae_weights.safetensors")
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], decoder.config), decoder)
    kept = in_training * (in_training > threshold)
    torch.testing.assert_close(found.layers[1].encode(x), kept / factor, atol=1e-3, rtol=1e-4)
    directions = weights["W_dec"] / weights["W_dec"].norm(dim=1, keepdim=True)
    reconstruction = (kept @ directions + weights["b_dec"]) / factor
    found_again = found.layers[1].reconstruct(kept / factor, x)
    torch.testing.assert_close(found_again, reconstruction, atol=1e-3, rtol=1e-4)


def test_writes_of_a_model_without_layer_norms_are_never_centred(tmp_path: Path) -> None:
    """TransformerLens leaves them alone, whatever it is asked for."""
    llama = load_decoder(FIXTURE.parent / "tiny-llama-c", "cpu", torch.float32)
    kwargs = {"center_writing_weights": True}
    d_model = llama.config.d_model
    weights = {"W_enc": torch.randn(d_model, 20), "b_enc": torch.zeros(20)}
    weights |= {"W_dec": torch.randn(20, d_model), "b_dec": torch.zeros(d_model)}
    save_file(weights, tmp_path / "sae_weights.safetensors")
    config = {"hook_name": "blocks.1.hook_mlp_out", "model_from_pretrained_kwargs": kwargs}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    (found,) = fit_dictionaries(read_dictionaries([tmp_path], llama.config), llama)
    assert torch.equal(found.layers[1].encoder_weight, weights["W_enc"].T)
