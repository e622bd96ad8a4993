"""Where dictionaries read and write, under the names that other libraries have for it.

TransformerLens (and with it SAELens and circuit-tracer) numbers blocks, `blocks.3.hook_mlp_out`; transformers
(and with it sparsify and Gemma Scope 2) names modules and says whether their input or their output is meant.
What a file cannot say, entries `site` and `layer` in its folder's JSON file do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.dictionaries.stored import Place

SITE, LAYER, INPUT_GAIN = "site", "layer", "input_gain"
"""Settings that say it in our own words."""

_HOOKS = {
    "hook_mlp_out": Site.RESID_DELTA_MLP,
    "mlp.hook_post": Site.MLP_POST_ACT,
    "hook_attn_out": Site.RESID_DELTA_ATTN,
    "attn.hook_z": Site.ATTN_V_OUT,
    "hook_resid_mid": Site.RESID_POST_ATTN,
    "hook_resid_post": Site.RESID_POST_MLP,
}
_TRANSCODER_INPUTS = {"ln2.hook_normalized": False, "mlp.hook_in": True}
"""Of TransformerLens: whether they have the norm's gain."""
_TRANSCODER_OUTPUTS = ("hook_mlp_out", "mlp.hook_out")
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")

_MODULES = {
    "": Site.RESID_POST_MLP,
    "mlp": Site.RESID_DELTA_MLP,
    "post_feedforward_layernorm": Site.RESID_DELTA_MLP,
    "attn": Site.RESID_DELTA_ATTN,
    "attention": Site.RESID_DELTA_ATTN,
    "self_attn": Site.RESID_DELTA_ATTN,
}
"""Of transformers, by their outputs; without a name the whole block."""
_MODULE = re.compile(r"(?:[A-Za-z_]+\.)*(?:layers|h)\.(\d+)((?:\.\w+)*)")


def place_of_hook(path: Path, hook: str, hook_out: str | None, *, folds_gain: bool = False) -> Place:
    """Where a dictionary is that was trained on hooks of TransformerLens.

    Args:
        path: the file that says so, for people.
        hook: where it reads.
        hook_out: where it writes; None where it reads.
        folds_gain: whether it was trained on a model whose norms had no gain of their own.

    Raises:
        AutoencoderBroken: that is no place where dictionaries are read.
    """
    match, out = _HOOK.fullmatch(hook), _HOOK.fullmatch(hook_out or hook)
    if match is None or out is None:
        raise _unknown_hook(path, hook)
    layer_index, name = int(match[1]), match[2]
    if name in _TRANSCODER_INPUTS and out[2] in _TRANSCODER_OUTPUTS:
        if out[1] != match[1]:
            raise AutoencoderBroken(f"{path}: reads {hook!r} and writes {hook_out!r}, another layer's")
        has_gain = _TRANSCODER_INPUTS[name] and not folds_gain
        is_normalized = name == "ln2.hook_normalized" and not folds_gain
        return Place(Site.MLP_TRANSCODER, layer_index, has_gain, out[2] == "mlp.hook_out", is_normalized)
    if hook_out not in (None, hook):
        raise AutoencoderBroken(
            f"{path}: reads {hook!r} and writes {hook_out!r}; transcoders read "
            "blocks.N.ln2.hook_normalized or blocks.N.mlp.hook_in and write blocks.N.hook_mlp_out"
        )
    if name == "hook_resid_pre" and layer_index > 0:  # what the layer before leaves behind
        return Place(Site.RESID_POST_MLP, layer_index - 1)
    if name == "hook_resid_pre":
        raise AutoencoderBroken(f"{path}: trained on {hook!r}, the embeddings, where no dictionary is read")
    if name not in _HOOKS:
        raise _unknown_hook(path, hook)
    return Place(_HOOKS[name], layer_index)


def _unknown_hook(path: Path, hook: str) -> AutoencoderBroken:
    known = ", ".join(f"blocks.N.{name} ({site.value})" for name, site in _HOOKS.items())
    before = f"blocks.N.hook_resid_pre ({Site.RESID_POST_MLP.value} of layer N - 1)"
    reason = f"trained on hook_name {hook!r}, which is not one of {known}, {before}"
    return needs_place(path, reason) if path.suffix == ".json" else AutoencoderBroken(f"{path}: {reason}")


def place_of_module(path: Path, module: str, module_out: str | None = None) -> Place | None:
    """Where a dictionary is that was trained on modules of transformers; None where that is not known.

    Args:
        path: the file that says so, for people.
        module: what it reads, like `layers.3.mlp`, `h.3` or `model.layers.3.self_attn.o_proj.input`.
        module_out: what it writes; None where it reads.

    Raises:
        AutoencoderBroken: it writes in another layer than it reads.
    """
    match, out = _MODULE.fullmatch(module), _MODULE.fullmatch(module_out or module)
    if match is None or out is None:
        return None
    layer_index, name, written = int(match[1]), match[2].lstrip("."), out[2].lstrip(".")
    if written.removesuffix(".output") in ("mlp", "post_feedforward_layernorm") and name in (
        "mlp.input",
        "pre_feedforward_layernorm.output",
    ):
        if out[1] != match[1]:
            raise AutoencoderBroken(f"{path}: reads {module!r} and writes {module_out!r}, another layer's")
        is_before = not written.startswith("post_")
        return Place(Site.MLP_TRANSCODER, layer_index, has_gain=True, is_before_post_norm=is_before)
    if module_out not in (None, module):
        return None
    if name == "self_attn.o_proj.input":
        return Place(Site.ATTN_V_OUT, layer_index)
    name = "" if name == "output" else name.removesuffix(".output")
    if name not in _MODULES:
        return None
    is_before = name != "" and not name.startswith("post_")
    return Place(_MODULES[name], layer_index, is_before_post_norm=is_before)


def explicit_place(path: Path, config: Mapping[str, object], layer: object = None) -> Place | None:
    """The place that settings name in our own words; None where they do not.

    Args:
        path: the file of the settings, for people.
        config: the settings.
        layer: the layer, where something else says it.

    Raises:
        AutoencoderBroken: they name none that there is, or not all of it.
    """
    if config.get(SITE) is None:
        return None
    try:
        site = Site(config[SITE])
    except ValueError as error:
        sites = ", ".join(site.value for site in Site)
        raise AutoencoderBroken(f"{path}: site {config[SITE]!r} is not one of {sites}") from error
    layer_index, has_gain = config.get(LAYER, layer), config.get(INPUT_GAIN)
    if isinstance(layer_index, bool) or not isinstance(layer_index, int) or layer_index < 0:
        raise AutoencoderBroken(f'{path}: no "{LAYER}": NUMBER beside {SITE} {site.value}')
    if (site is Site.MLP_TRANSCODER) != isinstance(has_gain, bool):
        raise AutoencoderBroken(
            f'{path}: "{INPUT_GAIN}" is {has_gain!r}; beside {SITE} {Site.MLP_TRANSCODER.value}, and '
            "nowhere else, it must say whether inputs have the gain of the MLP's norm, true or false"
        )
    return Place(site, layer_index, has_gain is True)


def needs_place(path: Path, reason: str, *, needs_layer: bool = True) -> AutoencoderBroken:
    """The error of a file that does not say where it belongs.

    Args:
        path: the file: of settings, where it may say the place, or of weights.
        reason: what is wrong.
        needs_layer: whether the settings must say the layer, too.
    """
    settings = path if path.suffix == ".json" else path.parent / "config.json"
    sites = ", ".join(site.value for site in Site)
    return AutoencoderBroken(
        f'{path}: {reason}. Say where it reads and writes in {settings}: "{SITE}": one of {sites}; '
        + (f'"{LAYER}": NUMBER; ' if needs_layer else "")
        + f'of a transcoder also "{INPUT_GAIN}": whether its inputs have the gain of the MLP\'s norm'
    )


def refuse_two_places(path: Path, explicit: Place, inferred: Place) -> None:
    """Refuses settings that name another place in our own words than follows from the file's own names.

    Raises:
        AutoencoderBroken: naming both.
    """
    if (explicit.site, explicit.layer_index) != (inferred.site, inferred.layer_index):
        raise AutoencoderBroken(
            f"{path}: {SITE} {explicit.site.value} of layer {explicit.layer_index}, but the file's own names "
            f"say {inferred.site.value} of layer {inferred.layer_index}"
        )
