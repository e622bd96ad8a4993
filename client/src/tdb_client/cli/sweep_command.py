"""`tdb sweep`: one question about many prompts."""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tdb_client.async_client import AsyncClient
from tdb_client.cli.connecting import async_client
from tdb_client.cli.console import console
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.progress import shown_count
from tdb_client.errors import InvalidValueError
from tdb_client.model_info import ModelInfo
from tdb_client.number_text import number
from tdb_client.sweep import running, tables
from tdb_client.sweep.journal import Journal, open_journal
from tdb_client.sweep.lines import SweepInput, SweepLine, read_input
from tdb_client.sweep.means import By, Columns, table_of_ablations, table_of_nodes
from tdb_client.sweep.running import Question

NOT_SHOWN = frozenset({"write_norm", "activation"})
"""Columns that are in the files, and not shown in the terminal."""


def sweep(options: argparse.Namespace) -> ExitCode:
    """Runs a sweep, or goes on with it, and writes its tables."""
    nodes = tuple(one.read for one in options.ablate_each)
    if nodes and options.by == "node":
        options.parser.error("--by is for tables of nodes that were not asked for; --ablate-each names them")
    if options.parquet:
        tables.check_parquet()
    question = Question(
        options.k,
        options.mlp,
        options.attention,
        tuple(options.residual_stream),
        options.rule,
        options.attention_pattern_gradients,
        options.add_bos,
        nodes,
    )
    lines = read_input(options.file)
    columns = asyncio.run(_run(options, lines, question))
    console().print(_page(columns, options.rows, len(lines.lines)))
    return ExitCode.DONE


async def _run(options: argparse.Namespace, lines: SweepInput, question: Question) -> Columns:
    """Everything but what is shown at the end."""
    async with async_client(options, default_priority="sweep") as client:
        model = await client.model_info()
        heading = running.heading(lines, question, model)
        with open_journal(options.out, heading) as journal:
            running.warn_of_numbers(question, model)
            await _ask(client, lines, question, model, journal, options.by)
            return _write(options, question, journal)


async def _ask(
    client: AsyncClient,
    lines: SweepInput,
    question: Question,
    model: ModelInfo,
    journal: Journal,
    by: By,
) -> None:
    """Has what is left checked, then asks about it."""
    left = [one for one in lines.lines if one.number not in journal.n_tokens]
    n_done = len(lines.lines) - len(left)
    if n_done and left:
        print(f"tdb: {n_done} of {len(lines.lines)} lines are done; going on", file=sys.stderr)
    with shown_count("checking lines", len(left)) as on_done:
        n_tokens = await running.check(client, left, question, model, on_done)
    if by == "node":
        _check_lengths(lines.lines, journal.n_tokens | n_tokens)
    left.sort(key=lambda one: n_tokens[one.number])
    with shown_count("asking about lines", len(lines.lines), n_done) as on_done:
        await running.ask(client, left, question, model, journal, on_done)


def _check_lengths(lines: Sequence[SweepLine], n_tokens: dict[int, int]) -> None:
    first = lines[0]
    for one in lines:
        if n_tokens[one.number] != n_tokens[first.number]:
            what = (
                f"needs prompts of one length, and line {first.number} has {n_tokens[first.number]} tokens,"
                f" line {one.number} {n_tokens[one.number]}"
            )
            raise InvalidValueError("--by node", what)


def _write(options: argparse.Namespace, question: Question, journal: Journal) -> Columns:
    """Writes the table and the objectives; returns the table."""
    folder: Path = options.out
    spelled = [str(one) for one in question.nodes]
    if spelled:
        columns = table_of_ablations(journal.records(), spelled)
    else:
        columns = table_of_nodes(journal.records(), options.by)
    table = folder / ("table.parquet" if options.parquet else "table.csv")
    (tables.write_parquet if options.parquet else tables.write_csv)(columns, table)
    tables.write_objectives(journal.records(), spelled, folder / tables.OBJECTIVES)
    print(f"tdb: wrote {table} and {folder / tables.OBJECTIVES}", file=sys.stderr)
    return columns


def _page(columns: Columns, n_rows: int, n_lines: int) -> Group:
    """The first rows of the table: means, each with its standard error."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    name, *_ = columns
    table.add_column(name, no_wrap=True)
    means = [one for one in columns if f"{one}_standard_error" in columns and one not in NOT_SHOWN]
    for title in ("lines", *(one.replace("_", " ").replace("times", "×") for one in means)):
        table.add_column(title, justify="right", no_wrap=True)
    n_shown = min(n_rows or len(columns[name]), len(columns[name]))
    for row in range(n_shown):
        cells = [_with_error(columns[one][row], columns[f"{one}_standard_error"][row]) for one in means]
        table.add_row(Text(str(columns[name][row])), Text(str(columns["lines"][row])), *map(Text, cells))
    more = "" if n_shown == len(columns[name]) else "; --rows 0 shows all"
    caption = f"{n_shown} of {len(columns[name])} rows, means over {n_lines} lines ± standard errors{more}"
    return Group(table, Text(caption, "dim"))


def _with_error(mean: object, standard_error: object) -> str:
    """A mean with its standard error, which one line alone does not have."""
    is_known = isinstance(standard_error, float) and math.isfinite(standard_error)
    return f"{_number(mean)} ± {_number(standard_error)}" if is_known else _number(mean)


def _number(value: object) -> str:
    return number(value) if isinstance(value, float) else ""
