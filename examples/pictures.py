"""Takes the pictures of the docs with the default model: a terminal, a report, the workbench."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import REQUEST, running_server
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from tdb_client.cli import main

from tests.integration.workbench_page import Workbench, workbench

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
ABLATION = ["--ablate", "L23 head 3 @ -1"]
TERMINAL = ["--rows", "12", "--logits", "5"]
COLUMNS = 112
REPORT_PIXELS = (1366, 955)
TERMINAL_PIXELS = (1010, 600)
LAPTOP, PHONE = (1366, 900), (360, 740)
LIGHT = TerminalTheme((255, 255, 255), (22, 25, 29), [(22, 25, 29)] * 8, [(22, 25, 29)] * 8)
PAGE = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 18px 22px; background: white; }}
pre {{ font: 14px/1.36 "DejaVu Sans Mono", monospace; margin: 0; }} {stylesheet}</style><pre>{code}</pre>"""


def photograph(page: Path, picture: Path, pixels: tuple[int, int]) -> None:
    """Opens a page in a browser without a window and writes what is seen."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("needs chromium: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    size = f"--window-size={pixels[0]},{pixels[1]}"
    subprocess.run(
        [browser, *flags, size, f"--screenshot={picture}", page.as_uri()],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    print(f"wrote {picture}", file=sys.stderr)


def terminal_page(arguments: list[str]) -> str:
    """What `tdb` prints in a terminal of many colours, as a page."""
    terminal = {
        "FORCE_COLOR": "1",
        "COLORTERM": "truecolor",
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
    }
    script = "import sys; from tdb_client.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **terminal},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(done.stdout.rstrip()))
    return console.export_html(theme=LIGHT, code_format=PAGE)


def take(bench: Workbench, name: str, top: str = "") -> None:
    """Writes what the window shows, scrolled to an element."""
    bench.page.evaluate(f"document.querySelector('{top}').scrollIntoView()" if top else "scrollTo(0, 0)")
    bench.page.screenshot(PICTURES / f"{name}.png", whole=False)
    print(f"wrote {PICTURES / name}.png", file=sys.stderr)


def workbench_pictures(address: str) -> None:
    """The strongest head is patched by clicking, what comes of it is looked at, and edges are drawn."""
    with workbench(address, *LAPTOP) as bench:
        bench.run()
        bench.act("L23 head 3 @ 13 -> 9", "patch")
        bench.answered()
        take(bench, "workbench")
        bench.click(f"{bench.row('L29 head 1 @ 13 -> 13')} button.node")
        bench.page.evaluate("document.querySelector('#nodes-section').scrollIntoView()")
        bench.click(f"{bench.row('L29 head 1 @ 13 -> 13')} button.do")
        take(bench, "workbench-nodes", "#nodes-section")
        bench.page.press("Escape")
        bench.open_picture("graph")
        bench.wait_for("#graph-picture .edge")
        take(bench, "workbench-edges", "#graph-picture")
        here = bench.page.evaluate("location.href")
    with workbench(here, *PHONE) as bench:
        bench.answered()
        take(bench, "workbench-phone")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    with running_server("--http-port", "0") as ports, tempfile.TemporaryDirectory() as folder:
        at = ["--server", f"127.0.0.1:{ports['grpc_port']}"]
        workbench_pictures(f"http://127.0.0.1:{ports['http_port']}/")
        report, terminal = Path(folder, "report.html"), Path(folder, "terminal.html")
        if main([*REQUEST, *ABLATION, *at, "--html", str(report)]):
            sys.exit(1)
        terminal.write_text(terminal_page([*REQUEST, *TERMINAL, *at]), encoding="utf-8")
        photograph(report, PICTURES / "report.png", REPORT_PIXELS)
        photograph(terminal, PICTURES / "terminal.png", TERMINAL_PIXELS)
