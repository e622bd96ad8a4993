"""Makes top examples: reads texts, runs them, saves what was found, and writes it in the end.

Runs in the process of the command, alone: nobody waits for answers meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tdb_server.domain.model_info import ModelInfo
from tdb_server.errors import ConfigurationBroken, OverLimit
from tdb_server.examples.files import INDEX_FILE, Index
from tdb_server.examples.histogram import N_BINS
from tdb_server.examples.kinds import Amounts, Kind, kept_bytes, kinds_of
from tdb_server.examples.progress_files import Position, ProgressFiles, RunBasis
from tdb_server.examples.random_sample import RandomSample
from tdb_server.examples.texts import Piece, Text, fingerprint, pieces_of, read_texts
from tdb_server.examples_settings import ExamplesSettings
from tdb_server.model.progress import Progress
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.messages import Configuration

if TYPE_CHECKING:
    from tdb_server.engine.example_collector import ExampleCollector

_log = logging.getLogger(__name__)
_BATCHES_TOGETHER = 4
"""So many batches are read at once and sorted by length, so that little of a batch is padding."""
_MIB = 2**20


def make_examples(settings: ExamplesSettings, progress: Progress) -> Index:
    """Goes through the texts, from where a run before this one came to.

    Args:
        progress: told how far it is.

    Returns:
        What the folder is of.

    Raises:
        ConfigurationBroken: the texts, or what is in the folder, cannot be used.
        OverLimit: what is to be kept does not fit into memory.
        TdbError: the model cannot be loaded.
        OSError: a file cannot be read or written.
    """
    texts, out = _needed(settings.texts, "--texts"), _needed(settings.out, "--out")
    if (out / INDEX_FILE).exists():
        raise ConfigurationBroken(f"--out: {out} has examples already; give another folder")
    own_print = fingerprint(texts)
    engine, ready = load_engine(_configuration(settings), progress)
    # These lead to torch, which is there by now; and to what comes with an extra.
    from tdb_server.engine.example_collector import ExampleCollector, batch_bytes, batch_rows
    from tdb_server.examples.writing import ExampleWriter

    info, tokenizer = ready.info, Tokenizer(ready.tokenizer_folder)
    kinds = _kinds(settings, info)
    amounts = Amounts(settings.k, settings.n_lowest, settings.n_random, settings.context)
    if amounts.context > info.context_length:
        raise ConfigurationBroken(
            f"--context: {amounts.context} is more than {info.context_length}, the model's own"
        )
    n_rows = batch_rows(kinds, amounts.context, engine.model.decoder.device.type)
    needed = kept_bytes(kinds, amounts, N_BINS + 1) + batch_bytes(kinds, amounts.context, n_rows)
    _check_room(needed, ready.room_bytes, ready.device, kinds)
    basis = RunBasis(
        info.digest,
        info.dtype,
        own_print,
        amounts.k,
        amounts.n_lowest,
        amounts.n_random,
        amounts.context,
        tuple(kind.node_type.value for kind in kinds),
        settings.seed,
        settings.max_texts,
        n_rows,
    )
    with ProgressFiles(out, amounts.context) as files:
        collector = ExampleCollector(engine, kinds, amounts)
        position = _Run(settings, texts, files, collector, tokenizer, progress).go(basis)
        if not position.n_pieces:
            raise ConfigurationBroken(f"--texts: {texts}: no text has two tokens")
        progress("writing", 0.0)
        counts = (position.n_texts, position.n_pieces, position.n_tokens, position.n_pairs)
        of_texts = f"{texts.name} {own_print}"
        of_model = (info.name, info.digest, info.dtype)
        index = Index(*of_model, amounts, tuple(kinds), of_texts, settings.seed, *counts)
        random_rows = [row for _, _, row in files.rows(np.array(position.random_pieces, np.int64))]
        writer = ExampleWriter(out, index, files, tokenizer.token_strings)
        writer.write(collector.found(random_rows, position.random_pieces))
        files.remove()
    progress("writing", 1.0)
    return index


class _Run:
    """One pass through the texts, or the rest of one."""

    def __init__(
        self,
        settings: ExamplesSettings,
        texts: Path,
        files: ProgressFiles,
        collector: ExampleCollector,
        tokenizer: Tokenizer,
        progress: Progress,
    ) -> None:
        self._settings, self._texts, self._files = settings, texts, files
        self._collector, self._tokenizer, self._progress = collector, tokenizer, progress
        self._n_bytes = max(texts.stat().st_size, 1)

    def go(self, basis: RunBasis) -> Position:
        """Runs what is left of the texts.

        Returns:
            The end.
        """
        basis, position = self._files.begin(basis, self._collector.restore)
        if position.n_pieces:
            _log.info("going on after %d texts", position.n_texts)
        sample = RandomSample(basis.n_random, basis.seed)
        for piece in position.random_pieces:
            sample.see(piece)
        saved = begun = time.monotonic()
        n_before, has_saved = position.n_tokens, False

        def tokens_so_far(n_tokens: int) -> str:
            per_second = (n_tokens - n_before) / max(time.monotonic() - begun, 1e-9)
            return f"{n_tokens} tokens, {per_second:.0f} tokens/s"

        for pieces, end in self._portions(basis, position):
            first = position.n_pieces
            self._files.add(pieces)
            for n_pieces, n_tokens in self._run(pieces, first, basis.batch):
                offset = position.offset + (end.end - position.offset) * n_pieces / len(pieces)
                self._progress(tokens_so_far(position.n_tokens + n_tokens), offset / self._n_bytes)
            for number in range(first, first + len(pieces)):
                sample.see(number)
            lengths = np.array([len(piece.token_ids) for piece in pieces], np.int64)
            position = Position(
                end.end,
                end.number + 1,
                first + len(pieces),
                position.n_tokens + int((lengths - 1).sum()),
                position.n_pairs + int((lengths * (lengths - 1) // 2).sum()),
                tuple(sample.pieces),
            )
            now = time.monotonic()
            if now - saved >= (self._settings.save_seconds or 0.0):
                self._files.save(basis, position, self._collector.kept())
                saved = time.monotonic()
                if not has_saved:
                    _log.info("saved: cut off from now on, the same command goes on from its last save")
                has_saved = True
            what = f"{position.n_texts} texts, {tokens_so_far(position.n_tokens)}"
            self._progress(what, position.offset / self._n_bytes)
        return position

    def _portions(self, basis: RunBasis, position: Position) -> Iterator[tuple[list[Piece], Text]]:
        """The pieces of some texts together, and the last of these texts."""
        texts = read_texts(self._texts, position.offset, position.n_texts)
        if basis.max_texts is not None:
            texts = itertools.islice(texts, max(basis.max_texts - position.n_texts, 0))
        leading = self._tokenizer.bos_token_id if self._tokenizer.adds_bos else None
        pieces: list[Piece] = []
        text: Text | None = None
        for text in texts:
            token_ids = self._tokenizer.encode(text.content)
            pieces += pieces_of(text.number, token_ids, leading, basis.context)
            if len(pieces) >= _BATCHES_TOGETHER * basis.batch:
                yield pieces, text
                pieces, text = [], None
        if text is not None:
            yield pieces, text

    def _run(self, pieces: list[Piece], first: int, n_rows: int) -> Iterator[tuple[int, int]]:
        """Runs them batch by batch.

        Yields:
            Behind each batch but the last, how many pieces were run, and how many of their tokens count.
        """
        order = sorted(range(len(pieces)), key=lambda at: len(pieces[at].token_ids))
        n_tokens = 0
        for start in range(0, len(order), n_rows):
            batch = order[start : start + n_rows]
            self._collector.run([pieces[at].token_ids for at in batch], [first + at for at in batch])
            n_tokens += sum(len(pieces[at].token_ids) - 1 for at in batch)
            if start + n_rows < len(order):
                yield start + n_rows, n_tokens


def _configuration(settings: ExamplesSettings) -> Configuration:
    n_threads = settings.n_threads or len(os.sched_getaffinity(0))
    return Configuration(
        settings.model, settings.autoencoders, settings.device, 0, settings.dtype, n_threads, "exact"
    )


def _needed(path: Path | None, flag: str) -> Path:
    if path is None:
        raise ConfigurationBroken(f"{flag}: is needed")
    return path


def _kinds(settings: ExamplesSettings, info: ModelInfo) -> list[Kind]:
    kinds = kinds_of(info)
    if settings.nodes is None:
        return kinds
    there = {kind.node_type.value: kind for kind in kinds}
    if absent := [name for name in settings.nodes if name not in there]:
        names = ", ".join(there)
        raise ConfigurationBroken(f"--nodes: {absent[0]}: is not in the model, which has {names}")
    return [kind for name, kind in there.items() if name in settings.nodes]


def _check_room(needed: int, room: int, device: str, kinds: list[Kind]) -> None:
    of_what = ", ".join(f"{len(kind.layers) * kind.n_nodes} {kind.node_type.value}" for kind in kinds)
    _log.info("examples of %s take %d MiB on %s", of_what, needed // _MIB, device)
    if needed > room:
        raise OverLimit(
            f"examples of {of_what} take {needed // _MIB} MiB on {device} beside the model, where "
            f"{room // _MIB} are free; give a smaller --k, --lowest, --random or --context, or fewer --nodes",
            "TOO_LITTLE_MEMORY",
        )
