"""`tdb circuit`: the few heads and MLPs that do most of it."""

from __future__ import annotations

import argparse
import sys

from tdb_client.cli import chats, circuit_pages, commands
from tdb_client.cli.connecting import client
from tdb_client.cli.console import console
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.progress import shown_calls


def circuit(options: argparse.Namespace) -> ExitCode:
    """Finds a circuit, and writes it where that was asked for."""
    if not (options.target or options.target_id):
        options.parser.error("the following arguments are required: --target or --target-id")
    with client(options) as one:
        prompt, baseline, add_bos = chats.prompts(one, options)
        if options.show_tokens:
            commands.show_tokens(one, prompt, add_bos)
        with shown_calls(options.max_calls + 1) as on_measured:
            found = one.circuit(
                prompt,
                (*options.target, *options.target_id),
                (*options.distractor, *options.distractor_id),
                baseline=baseline,
                faithfulness=options.faithfulness,
                rank_by=options.rank_by,
                max_calls=options.max_calls,
                add_bos=add_bos,
                on_measured=on_measured,
            )
    for file, text in ((options.html, found.to_html), (options.json, found.to_json)):
        if file is not None:
            commands.write(file, text())
            print(f"tdb: wrote {file}", file=sys.stderr)
    console().print(circuit_pages.circuit_page(found))
    return ExitCode.DONE
