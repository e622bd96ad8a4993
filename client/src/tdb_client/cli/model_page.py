"""What `tdb info` and `tdb tokenize` print."""

from __future__ import annotations

from dataclasses import fields

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tdb_client.model_info import AutoencoderInfo, ModelInfo
from tdb_client.results import PromptTokens
from tdb_client.token_text import quoted


def model_page(model: ModelInfo) -> Group:
    """The model, its autoencoders and the limits."""
    heads = f"{model.n_heads} of {model.d_head} channels"
    if model.n_key_value_heads != model.n_heads:
        heads += f", {model.n_key_value_heads} key/value heads"
    facts = {
        "model": model.name,
        "digest": model.digest,
        "family": f"{model.family}, {model.dtype}",
        "layers": f"{model.n_layers}",
        "residual stream": f"{model.d_model} channels",
        "attention heads": heads,
        "MLP neurons": f"{model.n_mlp_neurons} per layer",
        "vocabulary": f"{model.vocab_size} tokens",
        "beginning of text": _beginning(model),
        "chats": "no template" if model.chat_template is None else "written with the model's chat template",
        "context": f"{model.context_length} tokens",
        "autoencoders": "\n".join(map(_autoencoder, model.autoencoders)) or "none",
        "derived scalars": f"{len(model.derived_scalars)} (--json lists them)",
        "ablatable places": f"{len(model.ablatable_hook_points)} (--json lists them)",
        "kernels": ", ".join(f"{operation}: {way}" for operation, way in model.kernels.items()),
        "server": f"{model.server_version}, interface {model.api_version}",
    }
    limits = {
        one.name.replace("_", " "): value if isinstance(value, str) else f"{value:,}"
        for one in fields(model.limits)
        for value in (getattr(model.limits, one.name),)
    }
    return Group(_facts(facts), Text("\nlimits", "dim"), _facts(limits))


def token_table(tokens: PromptTokens) -> Group:
    """Position, text and index of every token, special ones marked; a note where prompts count otherwise."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("@", justify="right", style="dim")
    table.add_column("token")
    table.add_column("id", justify="right")
    if tokens.special:
        table.add_column("", style="dim")
    for position, (token, token_id) in enumerate(zip(tokens.tokens, tokens.token_ids, strict=True)):
        mark = ("special",) if position in tokens.special else ()
        table.add_row(str(position), Text(quoted(token), "bold" if mark else ""), str(token_id), *mark)
    if tokens.bos_added or not tokens.prompt_adds_bos:
        return Group(table)
    note = "in a prompt the beginning-of-text token is @ 0, and each of these one further: see --add-bos"
    return Group(table, Text(f"\n{note}", "dim"))


def _beginning(model: ModelInfo) -> str:
    if model.bos_token_id is None:
        return "no token"
    usual = "in front of prompts" if model.adds_bos else "not added to prompts unless asked for"
    return f"{quoted(model.bos_token)} ({model.bos_token_id}), {usual}"


def _facts(facts: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    return table


def debug_option(info: AutoencoderInfo) -> str | None:
    """The option of `tdb debug` that lists a dictionary's latents; None where there is none."""
    if info.debug_argument is None:
        return None
    name, component = info.debug_argument
    return f"--{name.replace('_', '-')} {component}"


def _autoencoder(info: AutoencoderInfo) -> str:
    activation = info.activation if info.k is None else f"{info.activation} {info.k}"
    layers = ", ".join(map(str, info.layers))
    normed = ", inputs layer normed" if info.input_norm == "layer_norm" else ""
    n_labels = sum(map(len, info.labels.values()))
    labels = f", {n_labels} labels" if n_labels else ""
    links = "".join(f", links such as {info.link(layer, 0)}" for layer in list(info.links)[:1])
    option = debug_option(info)
    shown = f" ({option})" if option else ""
    return (
        f"{info.site}{shown}: {info.n_latents} latents, {activation}{normed}, layers {layers}{labels}{links}"
    )
