"""How many kernels a call launches on a GPU, and how often it waits for one; counted on any machine.

python -m benchmarks.launches
python -m benchmarks.launches --tokens 64 --cases floor-sdpa,plain,ablated --batch 1,8 --json counts.json
python -m benchmarks.launches --tokens 64 --cases plain --lines 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.launch_cases import CASES, FLOORS, N_ACTIVE_LATENTS, N_LATENTS, REST, Counted, LaunchCounter
from benchmarks.models import MODELS
from benchmarks.table import table

STAGES = ("forward", "backward", "derive", "score", REST)


def main(argv: Sequence[str] | None = None) -> None:
    """Counts, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="gpt2", help="whose shape is counted")
    add("--cases", type=_cases, default=[*FLOORS, *CASES], help=f"of {', '.join((*FLOORS, *CASES))}")
    add("--tokens", type=_numbers, default=[16, 64, 256], help="of the prompts")
    add("--batch", type=_numbers, default=[1], help="calls that are merged")
    add("--latents", type=int, default=N_LATENTS, help="of each autoencoder")
    add("--active-latents", type=int, default=N_ACTIVE_LATENTS, help="at a token; 0 for all above 0")
    add("--lines", type=int, default=0, help="list so many lines that launch and wait")
    add("--json", type=Path, help="write everything that was counted here")
    options = parser.parse_args(argv)
    counter = LaunchCounter(MODELS[options.model]().folder, options.latents, options.active_latents or None)
    found = [
        counter.count(case, n_tokens, n_calls)
        for case in options.cases
        for n_calls in options.batch
        for n_tokens in options.tokens
    ]
    print(launch_table(found))
    for one in found if options.lines else ():
        print(f"\n{one.case}, {one.calls} calls, {one.tokens} tokens")
        for counts in (one.waiting, one.launching):
            print("\n".join(f"{n:6} {what}" for what, n in [*counts.items()][: options.lines]))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


def launch_table(rows: Sequence[Counted]) -> str:
    """Launches and waits, and launches by stage."""
    header = ["case", "calls", "T", "launches", "waits", *STAGES]
    cells = [
        [
            one.case, str(one.calls), str(one.tokens), str(one.launches), str(one.waits),
            *(str(one.launches_by_stage.get(stage, 0)) for stage in STAGES),
        ]
        for one in rows
    ]  # fmt: skip
    return table(header, cells)


def _cases(text: str) -> list[str]:
    cases = text.split(",")
    unknown = sorted({*cases} - {*CASES, *FLOORS})
    if unknown:
        raise argparse.ArgumentTypeError(f"no case {unknown[0]!r}; there are {', '.join((*FLOORS, *CASES))}")
    return cases


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
