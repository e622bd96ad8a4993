"""What each command does: ask, then print."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import shtab

from tdb_client.cli import chats, csv_output, doctor_page, edge_tables, json_output, model_page, pages
from tdb_client.cli.connecting import client, connection
from tdb_client.cli.console import console
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.objectives import check_objective, has_objective, objective
from tdb_client.cli.progress import shown_progress, shown_waiting
from tdb_client.client import Client
from tdb_client.debug_result import DebugResult
from tdb_client.diagnosis import diagnose
from tdb_client.edges import EdgesSubRequest
from tdb_client.interventions import Trace, traces_towards_loss
from tdb_client.requests import DebugSubRequest
from tdb_client.results import EstimatedCost
from tdb_client.token_text import quoted


def info(options: argparse.Namespace) -> ExitCode:
    """Describes the model."""
    with client(options) as one, shown_waiting("asking about the model"):
        model = one.model_info()
    if options.json:
        _print_json(json_output.model(model))
    else:
        console().print(model_page.model_page(model))
    return ExitCode.DONE


def tokenize(options: argparse.Namespace) -> ExitCode:
    """Splits text into tokens."""
    with client(options) as one, shown_waiting("asking for the tokens"):
        tokens = one.tokenize(options.text, add_bos=options.add_bos)
    if options.json:
        facts = {"prompt_adds_bos": tokens.prompt_adds_bos, "special": list(tokens.special)}
        _print_json(json_output.tokens(tokens) | facts)
    else:
        console().print(model_page.token_table(tokens))
    return ExitCode.DONE


def debug(options: argparse.Namespace) -> ExitCode:
    """Explains the loss, also with ablations side by side."""
    check_objective(options)
    _check_view(options)
    return _explain(options, _sub_request(options))


def trace(options: argparse.Namespace) -> ExitCode:
    """Explains a node, also with ablations side by side."""
    _check_view(options)
    traced = _traced(options)
    downstream = options.downstream and options.downstream.read
    if traces_towards_loss(traced, downstream) and not has_objective(options):
        options.parser.error(
            "a trace through V needs --downstream, or --target for the loss to give the direction"
        )
    return _explain(options, replace(_sub_request(options), trace=traced, downstream=downstream))


def edges(options: argparse.Namespace) -> ExitCode:
    """Scores the edges between components."""
    check_objective(options)
    if options.steps is not None and options.method != "eap_ig":
        options.parser.error("--steps is for --method eap_ig")
    sub_request = EdgesSubRequest.of(
        options.prompt,
        baseline=options.baseline,
        loss=objective(options),
        method=options.method,
        steps=options.steps,
        k=options.k,
        matrix=options.matrix or options.mib is not None,
        add_bos=options.add_bos,
    )
    with client(options) as one, shown_progress(1) as on_event:
        (found,) = one.edges_many([sub_request], on_event=on_event)
    for file, write in ((options.mib, found.to_mib_json), (options.graph, found.to_attribution_graph)):
        if file is not None:
            with naming_file(file):
                write(file)
            print(f"tdb: wrote {file}", file=sys.stderr)
    if options.json:
        _print_json(json_output.edges(found))
    elif options.mib is None and options.graph is None:
        console().print(edge_tables.edge_page(found, options.rows))
    return ExitCode.DONE


def doctor(options: argparse.Namespace) -> ExitCode:
    """Says whether the server can be used."""
    checks = []
    terminal = console()
    for check in diagnose(lambda: connection(options)):
        checks.append(check)
        if not options.json:
            terminal.print(doctor_page.check_line(check))
    if options.json:
        _print_json(json_output.diagnosis(checks))
    else:
        terminal.print(doctor_page.conclusion(checks))
    return ExitCode.PROBLEM if any(one.outcome == "problem" for one in checks) else ExitCode.DONE


def completion(options: argparse.Namespace) -> ExitCode:
    """Prints a shell's completion script."""
    print(shtab.complete(options.root, options.shell), end="")
    return ExitCode.DONE


def _check_view(options: argparse.Namespace) -> None:
    if options.by == "component" and options.sort == "activation":
        options.parser.error("components have no activation to sort by: their nodes' add up to nothing")


def _traced(options: argparse.Namespace) -> Trace:
    traced: Trace = options.node.read
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


def _explain(options: argparse.Namespace, sub_request: DebugSubRequest) -> ExitCode:
    """Runs the sub-request; with ablations also without them, for comparison."""
    sub_requests = [sub_request]
    if sub_request.ablate:
        sub_requests.insert(0, replace(sub_request, ablate=(), hide_early_layers=False))
    with client(options) as one:
        prompt, baseline, add_bos = chats.prompts(one, options)
        if options.show_tokens:
            show_tokens(one, prompt, add_bos)
        sub_requests = [
            replace(each, prompt=prompt, baseline=baseline, add_bos=add_bos) for each in sub_requests
        ]
        if options.estimate:
            with shown_waiting("asking for the cost"):
                cost = one.estimate(sub_requests)
            _print_cost(cost, as_json=options.json)
            return ExitCode.DONE
        with shown_progress(len(sub_requests)) as on_event:
            results = one.debug_many(sub_requests, on_event=on_event)
        if options.html is not None:
            with shown_waiting("asking for the heads' attention"):
                results = one.with_attention(results)
    _warn_of_missing_spaces(results[0])
    _print_results(options, results)
    return ExitCode.DONE


def _print_cost(cost: EstimatedCost, *, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(cost))
        return
    seconds = "unknown until something was computed" if cost.seconds is None else f"{cost.seconds:.2g} s"
    print(f"time on a worker: {seconds}")
    print(f"activations: {cost.activation_bytes / 1e6:.1f} MB")
    print(f"answer: {cost.response_bytes / 1e6:.1f} MB at the most")


def show_tokens(one: Client, prompt: str, add_bos: bool | None) -> None:
    """Lists a prompt's tokens, as they are counted in it, for those who will name some of them."""
    with shown_waiting("asking for the tokens"):
        tokens = one.tokenize(prompt, add_bos=add_bos)
        if add_bos is None and tokens.prompt_adds_bos:
            tokens = one.tokenize(prompt, add_bos=True)
    console(stderr=True).print(model_page.token_table(tokens))


def _warn_of_missing_spaces(result: DebugResult) -> None:
    """Warns of a token that is likelier with a space in front, which mostly is meant inside a text."""
    logits = dict(zip(result.logits.tokens, result.logits.logits, strict=True))
    request = result.request.objective
    for option, tokens in (("--target", request.target), ("--distractor", request.distractor)):
        for token in tokens:
            spaced = f" {token}"
            if not isinstance(token, str) or spaced not in logits or spaced in tokens:
                continue
            if logits[spaced] > logits.get(token, -math.inf):
                rank = "the likeliest" if spaced == result.logits.tokens[0] else "likelier"
                warnings.warn(
                    f"{option} {quoted(token)}: with a space in front, {quoted(spaced)} is another token,"
                    f" and {rank} (logit {logits[spaced]:.2f})",
                    stacklevel=2,
                )


def _print_results(options: argparse.Namespace, results: Sequence[DebugResult]) -> None:
    """The results in the form that was asked for: a page, JSON or CSV, or else tables."""
    *before, last = results
    if options.html is not None:
        write(options.html, last.to_html(before=before[0] if before else None))
        print(f"tdb: wrote {options.html}", file=sys.stderr)
    if options.json:
        _print_json(json_output.debug(results))
    elif options.csv:
        csv_output.print_nodes(results, sys.stdout)
    elif options.html is None:
        terminal = console()
        view = pages.View(options.sort, options.rows, options.logits, terminal.width, options.by)
        terminal.print(
            pages.comparison_page(before[0], last, view) if before else pages.result_page(last, view)
        )


def write(file: Path, page: str) -> None:
    """Writes a page, or says which file it is that cannot be written."""
    with naming_file(file):
        file.write_text(page, encoding="utf-8")


@contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """Says which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {file}: {error.strerror}") from None


def _sub_request(options: argparse.Namespace) -> DebugSubRequest:
    loss = objective(options)
    is_plain = loss.name == "logit_diff" and loss.token is None
    return DebugSubRequest(
        prompt=options.prompt or "",
        target=loss.target if is_plain else (),
        distractor=loss.distractor if is_plain else (),
        loss=None if is_plain else loss,
        k=options.k,
        ablate=tuple(one.read for one in options.ablate),
        mlp=options.mlp,
        attention=options.attention,
        residual_stream=tuple(options.residual_stream),
        hide_early_layers=options.hide_early_layers,
        add_bos=options.add_bos,
        backward_rule=options.rule,
        attention_pattern_gradients=options.attention_pattern_gradients,
        token_lists=options.token_lists,
        top_k_sums=False,  # no output shows them
        only_these=None if options.only_these is None else tuple(one.read for one in options.only_these),
        node_types=tuple(options.node_types),
    )


def _print_json(value: Mapping[str, object]) -> None:
    print(json.dumps(value, allow_nan=False))
