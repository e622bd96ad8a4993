"""What the command line of `tdb` may say."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from transformer_debugger.v1.activation_pb2 import ActivationLocationType

from tdb_client.circuit import MAX_CALLS
from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitNode
from tdb_client.cli import (
    ablate_command,
    activations_command,
    circuit_command,
    commands,
    lens_command,
    sweep_command,
    workbench_command,
)
from tdb_client.cli.connecting import add_connection, offer_files
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.flags import typed
from tdb_client.cli.help_text import EXAMPLES, FIRST_STEPS
from tdb_client.compatibility import API_VERSION, client_version
from tdb_client.interventions import Ablation, Trace
from tdb_client.names import known_names, plain_name
from tdb_client.nodes import NodeType

Run = Callable[[argparse.Namespace], ExitCode]
Add = Callable[[argparse.ArgumentParser], None]
SHELLS = ("bash", "zsh", "fish")
"""Those that completion is tested with."""
LATENTS = [one for one in get_args(NodeType) if one.endswith("latent")]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; exits with a usage message and code 2 when it makes no sense."""
    return command_parser().parse_args(arguments)


def command_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="tdb",
        description="Says why a language model predicts one token rather than another.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"tdb {client_version()}, interface {API_VERSION}"
    parser.add_argument("--version", action="version", version=version, help="say which version this is")
    add_connection(parser, is_default=True)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, usage: str, run: Run, add: Add, text: str) -> None:
        sub = subparsers.add_parser(
            name,
            usage=" ".join(filter(None, ["tdb", name, usage, "[options]"])),
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, parser=sub, root=parser)
        add(sub)
        if run is not commands.completion:  # which asks no server
            add_connection(sub, is_default=False)

    command(
        "debug",
        "--prompt TEXT --target TOKEN",
        commands.debug,
        _add_run,
        "explain why the model predicts the target",
    )
    command("trace", "NODE --prompt TEXT", commands.trace, _add_trace, "explain why a node is active")
    command(
        "edges",
        "--prompt TEXT --baseline TEXT --target TOKEN",
        commands.edges,
        _add_edges,
        "score the edges between components",
    )
    command(
        "ablate",
        "NODE... --prompt TEXT --target TOKEN",
        ablate_command.ablate,
        _add_ablate,
        "say how the objective changes with each of many nodes ablated by itself",
    )
    command(
        "lens",
        "--prompt TEXT --tokens TOKEN...",
        lens_command.lens,
        _add_lens,
        "say what the model would predict behind each layer",
    )
    command(
        "activations",
        "--prompt TEXT --place PLACE --out FILE.npz",
        activations_command.activations,
        _add_activations,
        "write the values at a place of the model, or the gradients there, into a file",
    )
    command(
        "sweep",
        "FILE.jsonl --out FOLDER",
        sweep_command.sweep,
        _add_sweep,
        "ask one question about many prompts, and write a table of means",
    )
    command(
        "circuit",
        "--prompt TEXT --target TOKEN --baseline TEXT",
        circuit_command.circuit,
        _add_circuit,
        "find the few heads and MLPs that do most of it",
    )
    command("workbench", "", workbench_command.workbench, _add_workbench, "open a page that asks by clicking")
    command("tokenize", "TEXT", commands.tokenize, _add_tokenize, "split text into the model's tokens")
    command("info", "", commands.info, _add_json, "describe the model and the server's limits")
    command("doctor", "", commands.doctor, _add_json, "say whether the server can be used, and if not, why")
    command("completion", "SHELL", commands.completion, _add_shell, "print a script that completes commands")
    return parser


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", metavar="NODE", type=typed(Trace.parse), help="the node to explain")
    parser.add_argument(
        "--type", choices=["Q", "K", "QK", "V"], help="for a head, what lets the gradient through"
    )
    parser.add_argument(
        "--downstream",
        metavar="NODE",
        type=typed(Trace.parse),
        help="for V, the node that reads what is written",
    )
    _add_run(parser)


def _add_workbench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=_count, default=0, metavar="N", help="of this machine (default: any that is free)"
    )
    parser.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open it in the web browser (default: yes)",
    )


def _add_tokenize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="the text")
    _add_bos(parser, "default: no")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _add_shell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _add_bos(parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: str) -> None:
    parser.add_argument(
        "--add-bos",
        action=argparse.BooleanOptionalAction,
        help=f"put the beginning-of-text token in front, as token 0 ({default})",
    )


def _add_prompt(run: argparse._ArgumentGroup, *, shows_tokens: bool = True) -> None:
    prompts = run.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="the prompt; with --chat what the user says")
    file = prompts.add_argument(
        "--chat-file",
        metavar="FILE",
        type=Path,
        help='a chat as JSON: [{"role": "user", "content": TEXT}, ...]; - for stdin',
    )
    offer_files(file)
    run.add_argument("--chat", action="store_true", help="make the prompt with the model's chat template")
    run.add_argument("--system", metavar="TEXT", help="in a chat, a system message before the others")
    run.add_argument("--reply", metavar="TEXT", help="in a chat, what the model has answered so far")
    if shows_tokens:
        run.add_argument(
            "--show-tokens",
            action="store_true",
            help="first list the prompt's tokens and their numbers, on stderr",
        )


def _add_baseline(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--baseline",
        default=[],
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="prompt of as many tokens to compare with; effects are then of the difference to it",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("what to run")
    _add_prompt(run)
    _add_bos(run, "default: as the model's own tokenizer does")
    _add_objective(run)
    run.add_argument(
        "--ablate",
        default=[],
        nargs="+",
        action="extend",
        type=typed(Ablation.parse),
        metavar="NODE",
        help="node to set to 0, or '= 2.5', '= baseline', '* 0.5', '+ 2'; shown beside the run without",
    )
    _add_components(run)
    _add_compared(run)
    run.add_argument(
        "--hide-early-layers", action="store_true", help="leave out nodes before the first ablated layer"
    )
    run.add_argument(
        "--no-token-lists",
        dest="token_lists",
        action="store_false",
        help="leave out what tokens nodes raise and read, which large answers are mostly made of",
    )
    shown = parser.add_argument_group("what to show in the terminal")
    shown.add_argument(
        "--by",
        choices=["node", "component"],
        default="node",
        help="list the strongest nodes, or heads and MLPs by their sums over all tokens (default: node)",
    )
    _add_sort(shown, "what nodes are sorted by")
    _add_rows(shown, "nodes")
    shown.add_argument(
        "--logits", type=_count, default=10, metavar="N", help="top logits to show, 0 for none (default: 10)"
    )
    instead = parser.add_argument_group("what to write instead")
    instead.add_argument(
        "--estimate", action="store_true", help="compute nothing, and say what it would cost"
    )
    page = instead.add_argument(
        "--html", metavar="FILE", type=Path, help="write a page with pictures, which needs no network"
    )
    offer_files(page)
    forms = instead.add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="print the node table as CSV, a row per node")
    forms.add_argument("--json", action="store_true", help="print everything as JSON for programs")


def _add_objective(run: argparse._ArgumentGroup) -> None:
    _add_tokens(run, "--target", 'token that counts for the objective, such as " Mary"')
    _add_tokens(run, "--distractor", "token that counts against the objective")
    run.add_argument(
        "--loss",
        choices=["logit_diff", "logit_minus_mean", "probs", "log_prob", "kl_from_baseline"],
        default="logit_diff",
        help="what is computed of the logits (default: logit_diff); kl_from_baseline has no targets",
    )
    run.add_argument(
        "--at", type=int, metavar="TOKEN", help="the token whose logits count (default: the last, -1)"
    )


def _add_components(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "-k",
        type=_whole_number,
        default=10,
        metavar="K",
        help="nodes from each end of a ranking (default: 10)",
    )
    run.add_argument(
        "--mlp",
        choices=["neuron", "autoencoder_latent", "transcoder_latent", "whole_mlp"],
        default="neuron",
        help="what MLPs are taken apart into (default: neuron)",
    )
    run.add_argument(
        "--attention",
        choices=["attention_head", "autoencoder_latent", "whole_head"],
        default="attention_head",
        help="what attention is taken apart into (default: attention_head)",
    )
    run.add_argument(
        "--residual-stream",
        choices=["post_attn_latent", "post_mlp_latent"],
        default=[],
        nargs="+",
        action="extend",
        help="latents of the residual stream to list as well; their direct effects repeat each other",
    )
    run.add_argument(
        "--rule",
        choices=["gradient", "frozen_norms", "relp", "gim"],
        default="gradient",
        help="how gradients go back through what is not linear (default: gradient)",
    )
    run.add_argument(
        "--attention-pattern-gradients",
        action="store_true",
        help="with --rule relp, let attention patterns pass gradients on",
    )


def _add_compared(run: argparse._ArgumentGroup) -> None:
    """What a run is compared with, and what alone is kept of it."""
    _add_baseline(run)
    run.add_argument(
        "--only-these",
        nargs="*",
        action="extend",
        type=typed(CircuitNode.parse),
        metavar="NODE",
        help="nodes that alone are kept, '@ TOKEN' or at all; others are set to the baseline's, or to 0",
    )
    run.add_argument(
        "--node-types",
        choices=["whole_head", "whole_mlp", "mlp_neuron", *LATENTS],
        metavar="TYPE",
        default=list(WHOLE_NODE_TYPES),
        nargs="+",
        help="with --only-these, the types whose other nodes are set (default: whole_head whole_mlp)",
    )


def _add_sort(group: argparse._ArgumentGroup, text: str) -> None:
    scalars = ["direct_effect", "act_times_grad", "write_norm", "activation"]
    group.add_argument(
        "--sort", choices=scalars, default="direct_effect", help=f"{text} (default: direct_effect)"
    )


def _add_rows(group: argparse._ArgumentGroup, what: str) -> None:
    group.add_argument(
        "--rows", type=_count, default=20, metavar="N", help=f"{what} to show, 0 for all (default: 20)"
    )


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "nodes", metavar="NODE", nargs="*", type=typed(Ablation.parse), help="nodes, each set to 0 by itself"
    )
    run = parser.add_argument_group("what to run")
    _add_prompt(run, shows_tokens=False)
    _add_bos(run, "default: as the model's own tokenizer does")
    _add_objective(run)
    _add_baseline(run)
    which = parser.add_argument_group("which nodes, beside those named")
    file = which.add_argument(
        "--nodes-from",
        metavar="FILE",
        type=Path,
        help="nodes in what `tdb debug --json` has printed; - for stdin",
    )
    offer_files(file)
    which.add_argument(
        "--strongest",
        metavar="K",
        type=_positive_count,
        help="the K strongest of them; without --nodes-from, of this prompt's table",
    )
    _add_sort(which, "what makes a node strong")
    _add_rows(parser.add_argument_group("what to show in the terminal"), "nodes")
    forms = parser.add_argument_group("what to write instead").add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="print a row per node as CSV")
    forms.add_argument("--json", action="store_true", help="print everything as JSON for programs")


def _add_edges(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("what to run")
    run.add_argument("--prompt", metavar="TEXT", required=True, help="the prompt")
    run.add_argument(
        "--baseline",
        metavar="TEXT",
        required=True,
        nargs="+",
        action="extend",
        help="prompt to compare with, of as many tokens; of several, the mean",
    )
    _add_bos(run, "default: as the model's own tokenizer does")
    _add_objective(run)
    run.add_argument(
        "--method",
        choices=["eap", "eap_ig"],
        default="eap",
        help="where gradients are taken: at the prompt, or in runs between both (default: eap)",
    )
    run.add_argument("--steps", type=_count, metavar="N", help="for eap_ig, how many runs (default: 5)")
    run.add_argument(
        "-k", type=_whole_number, default=100, metavar="K", help="how many edges to list (default: 100)"
    )
    run.add_argument("--matrix", action="store_true", help="with --json, the scores of all edges too")
    shown = parser.add_argument_group("what to show in the terminal")
    shown.add_argument(
        "--rows", type=_count, default=20, metavar="N", help="edges to show, 0 for all (default: 20)"
    )
    instead = parser.add_argument_group("what to write instead")
    files = (
        ("--mib", "write the scores of all edges for MIB's circuit track"),
        ("--graph", "write the listed edges as an attribution graph"),
    )
    for flag, text in files:
        offer_files(instead.add_argument(flag, metavar="FILE", type=Path, help=text))
    instead.add_argument("--json", action="store_true", help="print everything as JSON for programs")


def _add_lens(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("what to run")
    _add_prompt(run, shows_tokens=False)
    _add_bos(run, "default: as the model's own tokenizer does")
    parser.set_defaults(baseline=[])
    _add_tokens(run, "--tokens", 'tokens whose logits are wanted, such as " Mary" " John"')
    _add_numbers(run, "--at", "tokens of the prompt, -1 for the last (default: the last)")
    _add_numbers(run, "--layers", "layers; the embedding is always there (default: all)")
    run.add_argument(
        "--place",
        choices=["resid_post_mlp", "resid_post_attn"],
        default="resid_post_mlp",
        help="which stream of a layer (default: resid_post_mlp)",
    )
    run.add_argument(
        "--top", type=_count, default=3, metavar="K", help="likeliest tokens of each layer (default: 3)"
    )
    forms = parser.add_argument_group("what to write instead").add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="print a row per logit as CSV")
    forms.add_argument("--json", action="store_true", help="print everything as JSON for programs")


def _add_activations(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("what to run")
    _add_prompt(run, shows_tokens=False)
    _add_bos(run, "default: as the model's own tokenizer does")
    parser.set_defaults(baseline=[])
    run.add_argument(
        "--place",
        metavar="PLACE",
        type=plain_name,
        choices=known_names(ActivationLocationType),
        required=True,
        help="such as mlp_post_act or attn_qk_probs",
    )
    _add_numbers(run, "--layers", "layers (default: all that have the place)")
    _add_numbers(
        run, "--at", "tokens of the prompt, -1 for the last; of pairs, those attended from (default: all)"
    )
    run.add_argument(
        "--gradients", action="store_true", help="the objective's gradients there, not the values"
    )
    _add_tokens(run, "--target", "with --gradients, token that counts for the objective")
    _add_tokens(run, "--distractor", "token that counts against the objective")
    file = parser.add_argument_group("what to write").add_argument(
        "--out",
        metavar="FILE.npz",
        type=Path,
        required=True,
        help="numpy arrays by layer: numpy.load reads them",
    )
    offer_files(file)


def _add_numbers(run: argparse._ArgumentGroup, flag: str, text: str) -> None:
    run.add_argument(flag, default=[], nargs="+", action="extend", type=_whole_number, metavar="N", help=text)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    file = parser.add_argument("file", metavar="FILE.jsonl", type=Path, help="a prompt in each line, as JSON")
    offer_files(file)
    run = parser.add_argument_group("what to run")
    _add_bos(run, "default: as the model's own tokenizer does")
    _add_components(run)
    run.add_argument(
        "--ablate-each",
        default=[],
        nargs="+",
        action="extend",
        type=typed(Ablation.parse),
        metavar="NODE",
        help="in place of all that, only the objective, with each of these nodes ablated by itself",
    )
    written = parser.add_argument_group("what to write")
    out = written.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="where to write the table, the objectives, and what is done so far, to go on with",
    )
    offer_files(out)
    written.add_argument(
        "--by",
        choices=["component", "node"],
        default="component",
        help="rows of the table: heads, MLPs and such over all tokens, or, for prompts of one length, nodes"
        " (default: component)",
    )
    written.add_argument("--parquet", action="store_true", help="write the table as Parquet and not as CSV")
    _add_rows(parser.add_argument_group("what to show in the terminal"), "rows")


def _add_circuit(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("what to run")
    _add_prompt(run)
    _add_bos(run, "default: as the model's own tokenizer does")
    _add_tokens(run, "--target", 'token that counts for the objective, such as " Mary"')
    _add_tokens(run, "--distractor", "token that counts against the objective")
    _add_baseline(run)
    search = parser.add_argument_group("how to search")
    search.add_argument(
        "--faithfulness",
        type=float,
        default=0.85,
        metavar="F",
        help="share of the objective that the circuit must keep (default: 0.85)",
    )
    search.add_argument(
        "--rank-by",
        choices=["act_times_grad", "direct_effect"],
        default="act_times_grad",
        help="what components are ranked by at first (default: act_times_grad)",
    )
    search.add_argument(
        "--max-calls",
        type=_count,
        default=MAX_CALLS,
        metavar="N",
        help=f"calls that may measure circuits, as many as the server takes each (default: {MAX_CALLS})",
    )
    instead = parser.add_argument_group("what to write")
    page = instead.add_argument(
        "--html", metavar="FILE", type=Path, help="write a page with the curve, which needs no network"
    )
    kept = instead.add_argument(
        "--json", metavar="FILE", type=Path, help="write the circuit for programs; Circuit.load reads it"
    )
    for one in (page, kept):
        offer_files(one)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _token_id(text: str) -> int:
    token_id = _whole_number(text)
    if not 0 <= token_id < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is no vocabulary index")
    return token_id


def _count(text: str) -> int:
    count = _whole_number(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return count


def _positive_count(text: str) -> int:
    count = _whole_number(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return count


def _add_tokens(run: argparse._ArgumentGroup, flag: str, text: str) -> None:
    """The flag for tokens by their text, and the one for their indices."""
    run.add_argument(flag, default=[], nargs="+", action="extend", metavar="TOKEN", help=text)
    run.add_argument(
        f"{flag}-id",
        default=[],
        nargs="+",
        action="extend",
        type=_token_id,
        metavar="ID",
        help="the same by vocabulary index, such as 198",
    )
