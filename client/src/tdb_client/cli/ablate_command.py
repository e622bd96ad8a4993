"""`tdb ablate`: how much each of many nodes matters, measured and not estimated."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tdb_client.ablation_effects import AblationEffects
from tdb_client.cli import chats, json_output
from tdb_client.cli.connecting import client
from tdb_client.cli.console import console
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.numbers import difference, plain, tokens_of
from tdb_client.cli.objectives import check_objective, objective
from tdb_client.cli.progress import shown_waiting
from tdb_client.debug_result import DebugResult
from tdb_client.encoding import ABLATABLE
from tdb_client.errors import InvalidValueError, NodeError
from tdb_client.interventions import Ablation
from tdb_client.node_table import NodeScalar
from tdb_client.nodes import Node
from tdb_client.number_text import number


def ablate(options: argparse.Namespace) -> ExitCode:
    """Ablates each node by itself, and says how the objective changes."""
    check_objective(options)
    if not (options.nodes or options.nodes_from or options.strongest):
        options.parser.error("say which nodes: NODE..., --nodes-from FILE or --strongest K")
    loss = objective(options)
    nodes = [one.read for one in options.nodes]
    if options.nodes_from is not None:
        nodes += _listed(options.nodes_from, options.sort)[: options.strongest]
    with client(options) as one:
        prompt, baseline, add_bos = chats.prompts(one, options)
        if options.strongest is not None and options.nodes_from is None:
            with shown_waiting("looking for the strongest nodes"):
                compared = baseline if loss.name == "kl_from_baseline" else ()  # else nodes are set to 0
                n_listed = max(options.strongest, 10)
                answer = one.debug(prompt, loss=loss, k=n_listed, baseline=compared, add_bos=add_bos)
            nodes += _strongest(answer, options.sort)[: options.strongest]
        with shown_waiting(f"ablating {len(nodes)} nodes, each by itself"):
            effects = one.ablate_each(prompt, nodes=nodes, loss=loss, baseline=baseline, add_bos=add_bos)
    if options.json:
        print(json.dumps(json_output.ablations(effects), allow_nan=False))
    elif options.csv:
        _print_csv(effects)
    else:
        console().print(_page(effects, options.rows))
    return ExitCode.DONE


def _strongest(answer: DebugResult, by: NodeScalar) -> list[Ablation]:
    """The nodes of an answer that can be ablated, strongest first."""
    nodes = [answer.nodes.nodes[row] for row in answer.nodes.strongest(by)]
    return [Ablation(node) for node in nodes if node.type in ABLATABLE]


def _listed(file: Path, by: str) -> list[Ablation]:
    """The nodes of what `tdb debug --json` has printed that can be ablated, strongest first.

    Raises:
        OSError: the file cannot be read.
        InvalidValueError: it holds something else.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidValueError("--nodes-from", f"{file} is no text: {error}") from None
    try:
        rows: list[dict[str, Any]] = json.loads(text)["sub_requests"][-1]["result"]["nodes"]
        ranked = sorted(rows, key=lambda row: -abs(row[by] or 0.0))
        nodes = [Node.parse(row["node"]) for row in ranked]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, NodeError):
        raise InvalidValueError(
            "--nodes-from", f"{file} does not hold what `tdb debug --json` prints"
        ) from None
    return [Ablation(node) for node in nodes if node.type in ABLATABLE]


def _page(effects: AblationEffects, n_rows: int) -> Group:
    """The objective, and the nodes without which it changes most."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("without", no_wrap=True)
    table.add_column("@", no_wrap=True, style="dim")
    for title in ("objective", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = np.argsort(-np.abs(effects.change), kind="stable")[: n_rows or None]
    for row in rows:
        ablation = effects.ablations[row]
        name = effects.words[row] + ablation.change
        cells = plain(float(effects.ablated[row])), difference(float(effects.change[row]))
        table.add_row(Text(name), tokens_of(ablation.node), *cells)
    more = "" if len(rows) == len(effects) else "; --rows 0 shows all"
    caption = Text(f"{len(rows)} of {len(effects)} nodes, each ablated by itself{more}", "dim")
    value = (number(effects.objective), "bold")
    line = Text.assemble(effects.objective_name, " = ", value, " with nothing ablated")
    return Group(line, Text(), table, caption)


def _print_csv(effects: AblationEffects) -> None:
    """A row per node in the columns of AblationEffects.to_frame."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        [
            *("node", "words", "type", "layer", "index", "token", "attended_to"),
            *("value", "value_type", "objective", "change"),
        ]
    )
    words: Sequence[str] = effects.words
    for row, ablation in enumerate(effects.ablations):
        node = ablation.node
        writer.writerow(
            [
                str(node),
                words[row],
                node.kind,
                node.layer,
                node.index,
                node.token,
                node.attended_to,
                f"{ablation.value:.9g}",
                ablation.value_type,
                f"{effects.ablated[row]:.9g}",
                f"{effects.change[row]:.9g}",
            ]
        )
