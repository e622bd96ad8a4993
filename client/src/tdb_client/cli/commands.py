"""What each command does: ask, then print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from tdb_client.cli import json_output, model_page, pages
from tdb_client.cli.progress import shown_progress
from tdb_client.client import Client
from tdb_client.connection import Tls
from tdb_client.interventions import Trace
from tdb_client.requests import DebugSubRequest


def info(options: argparse.Namespace) -> None:
    """Describes the model."""
    with _client(options) as client:
        model = client.model_info()
    if options.json:
        _print_json(json_output.model(model))
    else:
        _console().print(model_page.model_page(model))


def tokenize(options: argparse.Namespace) -> None:
    """Splits text into tokens."""
    with _client(options) as client:
        tokens = client.tokenize(options.text)
    if options.json:
        _print_json(json_output.tokens(tokens))
    else:
        _console().print(model_page.token_table(tokens))


def debug(options: argparse.Namespace) -> None:
    """Explains the loss, also with ablations side by side."""
    with _client(options) as client:
        _explain(client, options, _sub_request(options))


def trace(options: argparse.Namespace) -> None:
    """Explains a node, also with ablations side by side."""
    traced = _traced(options)
    needs_loss = traced.through == "V" and options.downstream is None
    if needs_loss and not options.target:
        options.parser.error(
            "a trace through V needs --downstream, or --target for the loss to give the direction"
        )
    with _client(options) as client:
        sub_request = replace(_sub_request(options), trace=traced, downstream=options.downstream)
        _explain(client, options, sub_request)


def _traced(options: argparse.Namespace) -> Trace:
    traced: Trace = options.node
    if traced.node.type != "attention_head":
        if options.type:
            options.parser.error(f"--type is for heads, and {traced.node} is none")
        return traced
    if traced.node.attended_to is None:
        options.parser.error(f"say which token {traced.node} attends to, as in '{traced.node} -> 0'")
    through = options.type or traced.through
    if through is None:
        options.parser.error("a head needs --type Q, K, QK or V")
    return replace(traced, through=through)


def _explain(client: Client, options: argparse.Namespace, sub_request: DebugSubRequest) -> None:
    """Runs the sub-request; with ablations also without them, for comparison."""
    sub_requests = [sub_request]
    if sub_request.ablate:
        sub_requests.insert(0, replace(sub_request, ablate=(), hide_early_layers=False))
    with shown_progress(len(sub_requests)) as on_event:
        results = client.debug_many(sub_requests, on_event=on_event)
    if options.json:
        _print_json(json_output.debug(sub_requests, results))
        return
    console = _console()
    view = pages.View(options.sort, options.rows, options.logits, console.width)
    console.print(
        pages.comparison_page(sub_request, results[0], results[1], view)
        if sub_request.ablate
        else pages.result_page(sub_request, results[0], view)
    )


def _sub_request(options: argparse.Namespace) -> DebugSubRequest:
    return DebugSubRequest(
        prompt=options.prompt,
        target=tuple(options.target),
        distractor=tuple(options.distractor),
        k=options.k,
        ablate=tuple(options.ablate),
        mlp=options.mlp,
        attention=options.attention,
        hide_early_layers=options.hide_early_layers,
    )


def _client(options: argparse.Namespace) -> Client:
    files = Tls(options.tls_ca, options.tls_cert, options.tls_key, options.tls_server_name)
    if (options.tls_cert is None) != (options.tls_key is None):
        options.parser.error("--tls-cert and --tls-key belong together")
    token = options.token_file.read_text().strip() if options.token_file else None
    return Client(
        options.server,
        timeout=options.timeout,
        tls=files if options.tls or files != Tls() else None,
        token=token,
    )


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)  # tokens are text, whatever they look like


def _print_json(value: Mapping[str, object]) -> None:
    print(json.dumps(value, allow_nan=False))
