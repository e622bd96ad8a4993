"""`tdb lens`: what the model would predict from the residual stream behind each layer."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tdb_client.cli import chats, json_output
from tdb_client.cli.connecting import client
from tdb_client.cli.console import console
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.progress import shown_waiting
from tdb_client.inference import InferenceSubRequest, LensSpec
from tdb_client.number_text import number
from tdb_client.results import InferenceResult, LensResult, LensTokens
from tdb_client.token_text import quoted


def lens(options: argparse.Namespace) -> ExitCode:
    """Asks for the logits of every layer, and prints them."""
    tokens = (*options.tokens, *options.tokens_id)
    if not (tokens or options.top):
        options.parser.error("--top 0 leaves nothing to show without --tokens or --tokens-id")
    spec = LensSpec(tokens, options.top or None, options.layers, options.at, options.place)
    with client(options) as one:
        prompt, _, add_bos = chats.prompts(one, options)
        sub_request = InferenceSubRequest(prompt, results={"lens": spec}, add_bos=add_bos)
        with shown_waiting("looking through the layers"):
            (answer,) = one.infer([sub_request])
    found = answer.results["lens"]
    assert isinstance(found, LensResult)
    if options.json:
        print(json.dumps(json_output.lens(answer, found), allow_nan=False))
    elif options.csv:
        _print_csv(answer, found)
    else:
        console().print(_page(answer, found))
    return ExitCode.DONE


def _page(answer: InferenceResult, found: LensResult) -> Group:
    """A table for each token of the prompt: layers down, the chosen tokens across, then the best."""
    parts: list[Text | Table] = []
    for i, at in enumerate(found.at):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("layer", justify="right")
        for token in found.tokens:
            table.add_column(Text(quoted(token)), justify="right", no_wrap=True)
        if found.top_tokens:
            table.add_column("likeliest tokens, with their logits", overflow="fold")
        for row, layer in enumerate(("embedding", *map(str, found.layers))):
            cells = [] if found.logits is None else [number(one) for one in found.logits[row, i]]
            best = [_words(found.top_tokens[row][i])] if found.top_tokens else []
            table.add_row(layer, *map(Text, (*cells, *best)))
        parts += [Text(f"\ntoken {at}, {quoted(answer.prompt.tokens[at])}"), table]
    return Group(*parts)


def _words(best: LensTokens) -> str:
    pairs = zip(best.tokens, best.logits, strict=True)
    return "  ".join(f"{quoted(token)} {number(float(logit))}" for token, logit in pairs)


def _print_csv(answer: InferenceResult, found: LensResult) -> None:
    """A row for each logit; `rank` counts the likeliest tokens from 1, and those chosen have none."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["layer", "token", "prompt_token", "rank", "vocab_token", "token_id", "logit"])
    for row, layer in enumerate(("embedding", *found.layers)):
        for i, at in enumerate(found.at):
            for rank, token, token_id, logit in _logits(found, row, i):
                prompt_token, vocab_token = json.dumps(answer.prompt.tokens[at]), json.dumps(token)
                writer.writerow([layer, at, prompt_token, rank, vocab_token, token_id, f"{logit:.9g}"])


def _logits(found: LensResult, row: int, i: int) -> Iterator[tuple[int | str, str, int, float]]:
    """The logits of a row at the i-th token: rank, token, its vocabulary index and logit."""
    if found.logits is not None:
        for token, token_id, logit in zip(found.tokens, found.token_ids, found.logits[row, i], strict=True):
            yield "", token, token_id, float(logit)
    if found.top_tokens:
        best = found.top_tokens[row][i]
        for rank, token in enumerate(best.tokens):
            yield rank + 1, token, int(best.ids[rank]), float(best.logits[rank])
