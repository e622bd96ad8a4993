"""`tdb activations`: the values at a place of the model, or the gradients there, in a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tdb_client.cli import chats, commands
from tdb_client.cli.connecting import client
from tdb_client.cli.console import console
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.progress import shown_waiting
from tdb_client.inference import HOLD_FINAL_NORM_SCALE, ActivationsSpec, InferenceSubRequest, Loss
from tdb_client.number_text import number
from tdb_client.results import ActivationsResult, InferenceResult


def activations(options: argparse.Namespace) -> ExitCode:
    """Asks for a place, writes it into a file and says what it holds."""
    has_targets = bool(options.target or options.target_id)
    if options.gradients != has_targets:
        options.parser.error(
            "--gradients and --target or --target-id belong together: gradients are of a loss"
        )
    if options.out.suffix != ".npz":
        options.parser.error(f"--out: {options.out} does not end in .npz, as files of numpy arrays do")
    loss = None
    if options.gradients:
        target, distractor = (
            (*options.target, *options.target_id),
            (*options.distractor, *options.distractor_id),
        )
        loss = Loss("logit_diff", target, distractor)
    spec = ActivationsSpec(
        options.place, options.layers, options.at, "backward" if options.gradients else "forward"
    )
    with client(options) as one:
        prompt, _, add_bos = chats.prompts(one, options)
        sub_request = InferenceSubRequest(
            prompt,
            loss,
            ablate=(HOLD_FINAL_NORM_SCALE,) if options.gradients else (),
            results={"place": spec},
            add_bos=add_bos,
        )
        with shown_waiting("asking for the place"):
            (answer,) = one.infer([sub_request])
    found = answer.results["place"]
    assert isinstance(found, ActivationsResult)
    with commands.naming_file(options.out):
        _write(options.out, answer, found)
    console().print(_page(found))
    print(f"tdb: wrote {options.out}", file=sys.stderr)
    return ExitCode.DONE


def _write(file: Path, answer: InferenceResult, found: ActivationsResult) -> None:
    """An array for each layer, and what the first axis is: tokens, their numbers, texts and ids."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "all_layers" if layer is None else f"layer_{layer}": one.array for layer, one in found.layers.items()
    }
    arrays["dimensions"] = np.array(next(iter(found.layers.values())).dimensions)
    arrays["token_indices"] = np.array(found.at)
    arrays["tokens"] = np.array([answer.prompt.tokens[at] for at in found.at])
    arrays["token_ids"] = np.array([answer.prompt.token_ids[at] for at in found.at])
    with file.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **arrays)


def _page(found: ActivationsResult) -> Group:
    """A row for each layer: the shape of its array, and its smallest, mean and largest number."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("layer", "shape", "smallest", "mean", "largest"):
        table.add_column(title, justify="right")
    for layer, one in found.layers.items():
        shape = " × ".join(map(str, one.array.shape))
        numbers = one.array[np.isfinite(one.array)]
        sizes = (numbers.min(), numbers.mean(), numbers.max()) if numbers.size else ()
        table.add_row("" if layer is None else str(layer), shape, *(number(float(one)) for one in sizes))
    axes = " × ".join(one.replace("_", " ") for one in next(iter(found.layers.values())).dimensions)
    are_finite = all(np.isfinite(one.array).all() for one in found.layers.values())
    note = "" if are_finite else "; what is not finite, as attention to later tokens, does not count"
    return Group(table, Text(f"{axes}{note}", "dim"))
