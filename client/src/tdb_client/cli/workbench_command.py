"""`tdb workbench`: the page that asks a server by clicking, on this machine."""

from __future__ import annotations

import argparse
from contextlib import suppress
from threading import Event

from tdb_client.cli.connecting import client
from tdb_client.cli.exit_codes import ExitCode


def workbench(options: argparse.Namespace) -> ExitCode:
    """Hands the page out until it is interrupted."""
    with client(options) as one, one.workbench(port=options.port, show=False) as page:
        one.model_info()  # a server that is not there is better reported here than in the page
        print(f"the workbench of {options.server} is at {page.address}")
        print("Ctrl-C ends it", flush=True)
        if options.browser:
            page.show()
        with suppress(KeyboardInterrupt):
            Event().wait()
    return ExitCode.DONE
