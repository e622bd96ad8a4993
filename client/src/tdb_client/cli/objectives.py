"""The objective that the command line means: `--target`, `--distractor`, `--loss` and `--at`."""

from __future__ import annotations

import argparse

from tdb_client.inference import Loss


def has_objective(options: argparse.Namespace) -> bool:
    """Whether there is one; a divergence from the baseline needs no targets."""
    return bool(options.target or options.target_id or options.loss == "kl_from_baseline")


def objective(options: argparse.Namespace) -> Loss:
    """The loss, of the tokens that count for it and against it."""
    target = (*options.target, *options.target_id)
    return Loss(options.loss, target, (*options.distractor, *options.distractor_id), token=options.at)


def check_objective(options: argparse.Namespace) -> None:
    """Ends with a usage message where there is none."""
    if not has_objective(options):
        options.parser.error("the following arguments are required: --target or --target-id")
