"""What the command line of `tdb` may say."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tdb_client.cli import commands
from tdb_client.connection import DEFAULT_SERVER
from tdb_client.errors import NodeError
from tdb_client.interventions import Ablation, Trace

Parsed = TypeVar("Parsed")

_EXAMPLES = """\
examples:
  tdb info
  tdb tokenize "When Mary and John"
  tdb debug --prompt "When Mary and John went to the store, John gave a drink to" \\
            --target " Mary" --distractor " John"
  tdb debug --prompt ... --target " Mary" --ablate "L23 head 1 @ -1"
  tdb trace "L23 head 1 @ -1 -> 2" --type QK --prompt ...
"""
_NODES = """\
nodes:
  L9 head 6 @ 13 -> 2      head 6 of layer 9, token 13 attending to token 2
  L9 head 6 @ -1           the same head at the last token, whatever it attends to (to ablate)
  L5 neuron 123 @ 7        an MLP neuron; L5 mlp latent 9 @ 7, L5 attention latent 9 @ 7 are latents
  L5 neuron 123 @ 7 = 2.5  to ablate to another value than 0
  ... through V            to trace a head, what lets the gradient through: Q, K, QK or V
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; exits with a usage message and code 2 when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="tdb",
        description="Says why a language model predicts one token rather than another.",
        epilog=_EXAMPLES + "\n" + _NODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_connection(parser, is_default=True)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, usage: Sequence[str], run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            usage=" ".join(["tdb", name, *usage, "[options]"]),
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_NODES if name in ("debug", "trace") else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        _add_connection(sub, is_default=False)
        return sub

    command("info", (), commands.info, "describe the model and the server's limits")
    tokenize = command("tokenize", ["TEXT"], commands.tokenize, "split text into the model's tokens")
    tokenize.add_argument("text", metavar="TEXT")
    debug = command(
        "debug",
        ["--prompt TEXT", "--target TOKEN"],
        commands.debug,
        "explain why the model predicts the target",
    )
    _add_run(debug, needs_target=True)
    trace = command("trace", ["NODE", "--prompt TEXT"], commands.trace, "explain why a node is active")
    trace.add_argument("node", metavar="NODE", type=_reads(Trace.parse), help="the node to explain")
    trace.add_argument(
        "--type", choices=["Q", "K", "QK", "V"], help="for a head, what lets the gradient through"
    )
    trace.add_argument(
        "--downstream",
        metavar="NODE",
        type=_reads(Trace.parse),
        help="for V, the node that reads what is written",
    )
    _add_run(trace, needs_target=False)
    return parser.parse_args(arguments)


def _add_connection(parser: argparse.ArgumentParser, *, is_default: bool) -> None:
    """Options that may stand before and after the command; what stands after wins."""

    def add(name: str, default: object, **how: object) -> None:
        group.add_argument(name, default=default if is_default else argparse.SUPPRESS, **how)  # type: ignore[arg-type]

    group = parser.add_argument_group("connection")
    server = os.environ.get("TDB_SERVER") or DEFAULT_SERVER
    add(
        "--server",
        server,
        metavar="HOST:PORT",
        help=f"server to ask (default: $TDB_SERVER, else {DEFAULT_SERVER})",
    )
    add("--timeout", 120.0, metavar="SECONDS", type=_positive, help="how long a call may take (default: 120)")
    add("--token-file", None, metavar="FILE", type=Path, help="file with the bearer token")
    add("--tls", False, action="store_true", help="use TLS; implied by the following")
    add("--tls-ca", None, metavar="FILE", type=Path, help="certificates that vouch for the server (PEM)")
    add("--tls-cert", None, metavar="FILE", type=Path, help="our certificate (PEM)")
    add("--tls-key", None, metavar="FILE", type=Path, help="its private key (PEM)")
    add("--tls-server-name", None, metavar="NAME", help="name in the server's certificate")


def _add_run(parser: argparse.ArgumentParser, *, needs_target: bool) -> None:
    run = parser.add_argument_group("what to run")
    run.add_argument("--prompt", required=True, metavar="TEXT", help="the prompt")
    run.add_argument(
        "--target",
        required=needs_target,
        default=[],
        nargs="+",
        action="extend",
        metavar="TOKEN",
        help='token that counts for the objective, such as " Mary"',
    )
    run.add_argument(
        "--distractor",
        default=[],
        nargs="+",
        action="extend",
        metavar="TOKEN",
        help="token that counts against it",
    )
    run.add_argument(
        "--ablate",
        default=[],
        nargs="+",
        action="extend",
        type=_reads(Ablation.parse),
        metavar="NODE",
        help="node to set; shown side by side with the run without",
    )
    run.add_argument(
        "-k", type=int, default=10, metavar="K", help="nodes from each end of a ranking (default: 10)"
    )
    run.add_argument("--mlp", choices=["neuron", "autoencoder_latent"], default="neuron")
    run.add_argument(
        "--attention", choices=["attention_head", "autoencoder_latent"], default="attention_head"
    )
    run.add_argument(
        "--hide-early-layers", action="store_true", help="leave out nodes before the first ablated layer"
    )
    shown = parser.add_argument_group("what to show")
    shown.add_argument(
        "--sort",
        choices=["direct_effect", "act_times_grad", "write_norm", "activation"],
        default="direct_effect",
        help="what nodes are sorted by (default: direct_effect)",
    )
    shown.add_argument(
        "--rows", type=_count, default=20, metavar="N", help="nodes to show, 0 for all (default: 20)"
    )
    shown.add_argument(
        "--logits", type=_count, default=10, metavar="N", help="top logits to show (default: 10)"
    )


def _reads(read: Callable[[str], Parsed]) -> Callable[[str], Parsed]:
    def read_argument(text: str) -> Parsed:
        try:
            return read(text)
        except NodeError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_argument


def _positive(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return count
