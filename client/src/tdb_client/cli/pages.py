"""Everything that `tdb debug` and `tdb trace` print, from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tdb_client.cli.component_tables import component_table
from tdb_client.cli.model_page import debug_option
from tdb_client.cli.node_tables import comparison_table, node_table
from tdb_client.cli.numbers import LOWERS, RAISES, difference, plain
from tdb_client.cli.prompt_line import coloured_prompt, strongest_tokens
from tdb_client.debug_result import DebugResult
from tdb_client.node_table import NodeScalar
from tdb_client.number_text import number
from tdb_client.report.data import circuit_words
from tdb_client.token_text import printable, quoted


@dataclass(frozen=True, slots=True)
class View:
    """How much to show.

    Attributes:
        by: the scalar that nodes are sorted by.
        n_nodes: nodes to show; 0 for all.
        n_logits: top logits to show; without any, no table of them.
        width: columns of the terminal.
        of: whether nodes or components are listed.
    """

    by: NodeScalar
    n_nodes: int
    n_logits: int
    width: int
    of: Literal["node", "component"] = "node"


def result_page(result: DebugResult, view: View) -> Group:
    """One result: the prompt, what is explained, the node table and the top logits."""
    return Group(
        _heading(result),
        *_prompt("prompt", result),
        *_compared(result),
        _spaced(Text.assemble(result.objective, " = ", (_value(result), "bold"))),
        _spaced(_table([result], view)),
        *_latents_to_ask_for(result),
        *_logits([result], view.n_logits),
    )


def comparison_page(plain_result: DebugResult, ablated: DebugResult, view: View) -> Group:
    """Two results side by side: without and with the second one's ablations."""
    line = Text.assemble(
        plain_result.objective,
        " = ",
        (_value(plain_result), "bold"),
        " plain, ",
        (_value(ablated), "bold"),
        " ablated",
    )
    before, after = plain_result.objective_value, ablated.objective_value
    if before is not None and after is not None:
        line = Text.assemble(line, ", difference ", difference(after - before))
    ablations = ", ".join(f"{one} (whole row)" if one.is_row else str(one) for one in ablated.request.ablate)
    return Group(
        _heading(plain_result),
        *_prompt("plain", plain_result),
        *_prompt("ablated", ablated),
        *_compared(ablated),
        _spaced(Text.assemble("ablated: ", (ablations, "bold"))),
        line,
        _spaced(_table([plain_result, ablated], view)),
        *_latents_to_ask_for(plain_result),
        *_logits([plain_result, ablated], view.n_logits),
    )


def _table(results: Sequence[DebugResult], view: View) -> RenderableType:
    """The strongest nodes or components of one result, or those that differ most between two."""
    if view.of == "node":
        if len(results) == 1:
            return node_table(results[0], view.by, view.n_nodes, view.width)
        return comparison_table(results[0], results[1], view.by, view.n_nodes, view.width)
    if not results[0].totals:
        return Text("the server is older than sums by component")
    assert view.by != "activation"
    return component_table(results, view.by, view.n_nodes)


def _heading(result: DebugResult) -> Text:
    seconds = result.timings
    compute = (
        seconds.forward_seconds + seconds.backward_seconds + seconds.derive_seconds + seconds.score_seconds
    )
    cached = ", cached" if result.cached else ""
    line = f"{result.call.model_name}, {len(result.prompt)} tokens, {compute:.2f} s compute{cached}"
    if result.backward_rule != "gradient":
        line += f"; backward rule {result.backward_rule}, which holds all norm scales constant"
    elif result.held_norm_scales == ("resid_ln_f_scale",):
        held = "the final one alone is"
        if result.request.trace is not None:
            held = "the final one and the traced node's own are"
        line += f"; of norm scales, {held} held constant"
    return Text(line, "dim")


def _latents_to_ask_for(result: DebugResult) -> list[RenderableType]:
    """The options that list latents of loaded dictionaries, where components were left at their defaults."""
    model, request = result.model, result.request
    loaded = () if model is None else model.autoencoders
    is_default = (request.mlp, request.attention) == ("neuron", "attention_head")
    options = dict.fromkeys(option for one in loaded if (option := debug_option(one)))
    if not options or not is_default or request.residual_stream:
        return []
    return [Text(f"to list latents of loaded dictionaries: {', '.join(options)}", "dim")]


def _prompt(name: str, result: DebugResult) -> list[RenderableType]:
    tokens, attribution = result.prompt.tokens, result.token_attribution
    return [
        Text.assemble((f"{name}: ", "dim"), coloured_prompt(tokens, attribution)),
        Text.assemble(
            (f"strongest tokens, in {result.objective_unit}{_of_differences(result)}: ", "dim"),
            strongest_tokens(tokens, attribution),
        ),
    ]


def _of_differences(result: DebugResult) -> str:
    return " of the difference from the baseline" if result.baselines else ""


def _compared(result: DebugResult) -> list[RenderableType]:
    """What the run was compared with, and what alone was kept of it."""
    lines = [
        Text.assemble(("baseline: ", "dim"), "".join(map(printable, one.tokens))) for one in result.baselines
    ]
    if result.circuit is not None:
        lines.append(Text(circuit_words(result)))
    return list(lines)


def _value(result: DebugResult) -> str:
    return "none" if result.objective_value is None else number(result.objective_value)


def _logits(results: list[DebugResult], n_logits: int) -> list[RenderableType]:
    return [_spaced(_logit_table(results, n_logits))] if n_logits else []


def _logit_table(results: list[DebugResult], n_logits: int) -> Table:
    """Top logits of the first result; with a second one, its logits of the same tokens and differences."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("top logits", no_wrap=True)
    for title in ["logit"] if len(results) == 1 else ["plain", "ablated", "difference"]:
        table.add_column(title, justify="right", no_wrap=True)
    first = results[0].logits
    others = [dict(zip(one.logits.token_ids, one.logits.logits, strict=True)) for one in results[1:]]
    for token, token_id, logit in list(zip(first.tokens, first.token_ids, first.logits, strict=True))[
        :n_logits
    ]:
        style = {"target": RAISES, "distractor": LOWERS, None: ""}[results[0].role(int(token_id), token)]
        cells = [plain(float(logit))]
        for other in others:
            cells += [plain(float(other[token_id])), difference(float(other[token_id] - logit))]
        table.add_row(Text(quoted(token), style), *cells)
    return table


def _spaced(renderable: RenderableType) -> Padding:
    return Padding(renderable, (1, 0, 0, 0))
