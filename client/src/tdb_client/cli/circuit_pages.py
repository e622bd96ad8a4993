"""What `tdb circuit` prints: the circuit's nodes, and faithfulness against size."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tdb_client.circuit import Circuit
from tdb_client.cli.numbers import RAISES, effect
from tdb_client.number_text import number
from tdb_client.token_text import loss_words, printable, quoted

BAR_WIDTH = 40
FULL, EMPTY = "#", "."
"""Plain characters, which every terminal, file and mail shows alike."""


def circuit_page(circuit: Circuit) -> Group:
    """What is kept, the nodes by layer, and the curve."""
    words = [
        [quoted(one) if isinstance(one, str) else f"token {one}" for one in tokens]
        for tokens in (circuit.target, circuit.distractor)
    ]
    values = circuit.best.values
    lines: list[RenderableType] = [
        Text(f"{circuit.model_name}, {circuit.n_measured} circuits measured", "dim"),
        Text.assemble(("prompt: ", "dim"), printable(circuit.prompt)),
        *(
            Text.assemble(("baseline: ", "dim"), printable(one))
            for one in circuit.baseline or ("none: others are set to 0",)
        ),
        Text(""),
        Text.assemble(
            f"{loss_words('logit_diff', *words)} = ",
            (number(values.objective), "bold"),
            f" of {number(values.of_prompt)}; baseline {number(values.of_baseline)}",
        ),
        Text.assemble(
            "faithfulness ",
            (f"{circuit.faithfulness:.3f}", "bold"),
            f" with {len(circuit)} of {circuit.n_components} heads and MLPs ({circuit.share:.1%})",
        ),
    ]
    if not circuit.is_faithful:
        lines.append(Text(f"none was found that keeps {circuit.wanted:g}; --max-calls allows more"))
    return Group(*lines, Text(""), _nodes(circuit), Text(""), _curve(circuit))


def _nodes(circuit: Circuit) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", no_wrap=True)
    table.add_column("estimated effect", justify="right", no_wrap=True)
    estimates = dict(circuit.ranking)
    for node in circuit.nodes:
        table.add_row(str(node), effect(estimates.get(node, 0.0)))
    return table


def _curve(circuit: Circuit) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("faithfulness", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for step in circuit.path:
        n_full = round(BAR_WIDTH * min(max(step.faithfulness, 0.0), 1.0))
        is_best = step is circuit.best
        bar = Text(FULL * n_full + EMPTY * (BAR_WIDTH - n_full), RAISES if is_best else "")
        table.add_row(f"{len(step)}{' <' if is_best else '  '}", f"{step.faithfulness:.3f}", bar)
    return table
