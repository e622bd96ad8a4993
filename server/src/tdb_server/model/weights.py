"""Loading: from the files of a model folder to the decoder's weights.

Names and shapes are compared before anything is allocated. Then each of the decoder's tensors is allocated
once, in its final place and type, and the files are read once, from beginning to end (`tensor_reading.py`):
their tensors are copied to where they go, so that no more than the weights themselves is ever held, and their
digest is taken on the way.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tdb_server.errors import ConversionDamaged, ModelBroken, ModelError
from tdb_server.model.checkpoint import Checkpoint
from tdb_server.model.config import DecoderConfig
from tdb_server.model.decoder import Decoder
from tdb_server.model.decoder_weights import DecoderWeights, LayerWeights, NormWeights
from tdb_server.model.families import decoder_config_from_hugging_face, weight_names
from tdb_server.model.families.weight_names import WeightNames
from tdb_server.model.model_files import CONFIG_FILE, read_config, weight_files
from tdb_server.model.progress import Progress, no_progress
from tdb_server.model.rotary import inverse_frequencies
from tdb_server.model.shared_weights import SharedWeights, room_for, shared_weights
from tdb_server.model.tensor_reading import Target

_log = logging.getLogger(__name__)


def load_decoder(
    folder: Path,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress | None = None,
    shared_file: int | None = None,
    expected_digest: str | None = None,
) -> Decoder:
    """Reads a Hugging Face model folder.

    Args:
        folder: holds `config.json` and `model.safetensors`, or several files with an index.
        device: as torch names it, "cpu" or "cuda:0".
        dtype: what the weights become; None for what most of them are stored as (`Checkpoint.usual_dtype`).
        progress: told how far it is.
        shared_file: descriptor of a file in memory that holds a CPU's weights for several processes.
        expected_digest: what `weights_digest` was when the folder was written; None where nobody knows.

    Raises:
        ModelNotFound: there is no such folder.
        ConversionDamaged: the files are not what was written.
        ModelBroken: a file is missing, damaged or pickled; a tensor is missing, left over, misshapen, not
            finite, or stored twice with different values.
        UnsupportedModel: the decoder cannot compute this family or one of its options.
    """
    config = read_decoder_config(folder)
    names = weight_names(config.family)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(folder, names))
        config, names = _settle_tied_embeddings(config, names, checkpoint)
        dtype = checkpoint.usual_dtype if dtype is None else dtype
        loading = _Loading(config, names, checkpoint, torch.device(device), dtype)
        loading.check()
        if shared_file is not None and torch.device(device).type == "cpu":
            key = _files_key(folder, dtype)
            n_bytes = room_for(checkpoint.n_elements, checkpoint.n_tensors, loading.widest)
            waiting = shared_weights(shared_file, key, n_bytes, progress or no_progress)
            loading.shared = stack.enter_context(waiting)
        weights = loading.weights()
        weights.digest = loading.fill(progress or no_progress)
        if expected_digest not in (None, weights.digest):
            raise ConversionDamaged(f"{folder}: the weights are not those that were written")
    return Decoder(config, weights)


def read_decoder_config(folder: Path) -> DecoderConfig:
    """What `load_decoder` will load, from `config.json` alone.

    Raises:
        ModelBroken: it is missing or damaged.
        UnsupportedModel: as for `load_decoder`.
    """
    found = read_config(folder)
    try:
        config = decoder_config_from_hugging_face(found)
        for rotary in (config.rotary, config.sliding_rotary):
            if rotary is not None:
                inverse_frequencies(rotary)  # refuses a scaling it does not know
    except ModelError as error:
        raise type(error)(f"{folder}: {error.message}") from error
    return config


def _files_key(folder: Path, dtype: torch.dtype) -> bytes:
    """Tells apart what would be loaded, without reading it all: which files, how large, and of when."""
    files = [(str(one), one.stat()) for one in (folder / CONFIG_FILE, *weight_files(folder).paths)]
    facts = [(name, facts.st_ino, facts.st_size, facts.st_mtime_ns) for name, facts in files]
    return hashlib.sha256(repr((facts, dtype)).encode()).digest()


def _settle_tied_embeddings(
    config: DecoderConfig, names: WeightNames, checkpoint: Checkpoint
) -> tuple[DecoderConfig, WeightNames]:
    """What a configuration that ties embedding and unembedding means for what is stored, as in transformers.

    Where one of them is stored, it is both. Where both are stored and equal, one is left alone. Where they
    differ, the file is believed, and they are not tied.
    """
    if not config.tied_embeddings:
        return config, names
    unembedding = checkpoint.stored(f"{names.unembedding}.weight")
    embedding = checkpoint.stored(f"{names.token_embedding}.weight")
    if unembedding is None:
        return config, names
    if embedding is None:
        return config, replace(names, token_embedding=names.unembedding)
    if embedding.equals(unembedding):
        checkpoint.unread.discard(f"{names.unembedding}.weight")
        return config, names
    _log.warning(
        "%s: tie_word_embeddings is true in %s, but %s and %s differ: they are not tied, as in transformers",
        checkpoint.folder,
        CONFIG_FILE,
        embedding,
        unembedding,
    )
    return replace(config, tied_embeddings=False), names


Convert = Callable[[Tensor], Tensor]
"""From numbers as they are stored to the decoder's; or from its tensor to a view of it as it is stored."""


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _times(factor: float) -> Convert:
    """Multiplied in float32 at least; 1 changes nothing."""
    return _as_it_is if factor == 1 else lambda x: _at_least_float32(x) * factor


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _heads_together(config: DecoderConfig) -> Convert:
    """Rows of all queries, all keys, all values in the order of each head's query, key and value."""
    return lambda x: x.view(3, config.n_heads, config.d_head, -1).transpose(0, 1)


@dataclass
class _Loading:
    """One run of `load_decoder`: what all of its steps need."""

    config: DecoderConfig
    names: WeightNames
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    shared: SharedWeights | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    is_checking: bool = False

    def check(self) -> None:
        """Goes through all tensors that the configuration demands, and allocates none of them.

        Raises:
            ModelBroken: one is missing, has another shape, or there are more.
        """
        self.is_checking = True
        self.weights()
        self.is_checking = False
        # A tensor that nothing uses means that the configuration does not fit the model.
        for name in sorted(self.checkpoint.unread):
            if not name.endswith(self.names.left_alone) and not name.startswith(self.names.parts_left_alone):
                raise ModelBroken(
                    f"{self.checkpoint.folder}: tensor {self.checkpoint.stored(name)} has no place in the "
                    f"{self.config.family} model of {self.config.n_layers} layers that config.json describes"
                )

    def fill(self, progress: Progress) -> str:
        """Reads the files, unless a sibling has done so, and returns their digest."""
        if self.shared is not None and self.shared.is_filled:
            return self.shared.digest
        digest = hashlib.sha256((self.checkpoint.folder / CONFIG_FILE).read_bytes())
        self.checkpoint.read(self.targets, digest, progress)
        if self.shared is not None:
            self.shared.digest = digest.hexdigest()
        return digest.hexdigest()

    def weights(self) -> DecoderWeights:
        """The decoder's tensors, to be filled; in a check they are empty."""
        config, names = self.config, self.names
        token_embedding = self._embedding(names.token_embedding, config.vocabulary_size)
        position_embedding = None
        if config.rotary is None:
            position_embedding = self._embedding(names.position_embedding, config.context_length)
        layers = [self._layer(f"{names.layers}.{layer_index}.") for layer_index in range(config.n_layers)]
        return DecoderWeights(
            token_embedding=token_embedding,
            position_embedding=position_embedding,
            layers=layers,
            final_norm=self._norm(names.final_norm, divisor=config.logit_divisor),
            unembedding=(
                token_embedding
                if config.tied_embeddings
                else self._embedding(names.unembedding, config.vocabulary_size)
            ),
        )

    def _layer(self, prefix: str) -> LayerWeights:
        config, names = self.config, self.names
        heads_width = config.n_heads * config.d_head
        groups_width = config.n_key_value_heads * config.d_head
        n_inputs = (2 if config.gated else 1) * config.n_neurons
        qkv = tuple(prefix + name for name in names.qkv)
        mlp_in = tuple(prefix + name for name in names.mlp_in)
        qkv_weight, qkv_bias = self._linear(
            qkv,
            _shares(qkv, (heads_width, groups_width, groups_width)),
            config.d_model,
            config.qkv_bias,
            as_stored=_heads_together(config) if names.matrices == "heads_interleaved" else _as_it_is,
        )
        out = _times(config.residual_multiplier)
        attn_out_weight, attn_out_bias = self._linear(
            (prefix + names.attn_out,), (config.d_model,), heads_width, config.attn_out_bias, out
        )
        mlp_in_weight, mlp_in_bias = self._linear(
            mlp_in, (n_inputs // len(mlp_in),) * len(mlp_in), config.d_model, config.mlp_bias
        )
        mlp_out_weight, mlp_out_bias = self._linear(
            (prefix + names.mlp_out,), (config.d_model,), config.n_neurons, config.mlp_bias, out
        )
        q_width, k_width = (heads_width, groups_width) if config.qk_norm == "full" else (config.d_head,) * 2
        q_norm, k_norm = (
            self._gain(prefix + name, width) if config.qk_norm else None
            for name, width in zip(names.qk_norms, (q_width, k_width), strict=True)
        )
        return LayerWeights(
            attn_norm=self._norm(prefix + names.attn_norm) if config.pre_norms else None,
            qkv_weight=qkv_weight,
            qkv_bias=qkv_bias,
            q_norm=q_norm,
            k_norm=k_norm,
            attn_out_weight=attn_out_weight,
            attn_out_bias=attn_out_bias,
            attn_post_norm=self._norm(prefix + names.attn_post_norm) if config.post_norms else None,
            mlp_norm=self._norm(prefix + names.mlp_norm) if config.pre_norms else None,
            mlp_in_weight=mlp_in_weight,
            mlp_in_bias=mlp_in_bias,
            mlp_out_weight=mlp_out_weight,
            mlp_out_bias=mlp_out_bias,
            mlp_post_norm=self._norm(prefix + names.mlp_post_norm) if config.post_norms else None,
        )

    def _embedding(self, name: str, n_rows: int) -> Tensor:
        return self._joined((f"{name}.weight",), (n_rows,), (self.config.d_model,))

    def _norm(self, name: str, divisor: float = 1.0) -> NormWeights:
        width, over = self.config.d_model, _times(1 / divisor)
        has_bias = self.config.norm == "layer_norm"
        bias = self._vector((f"{name}.bias",), (width,), over) if has_bias else None
        return NormWeights(self._gain(name, width, over), bias)

    def _gain(self, name: str, width: int, converted: Convert = _as_it_is) -> Tensor:
        """A norm's gain [width]. A sum with 1 is made, and kept, in float32 at least."""
        if not self.config.adds_one_to_gains:
            return self._vector((f"{name}.weight",), (width,), converted)
        return self._joined(
            (f"{name}.weight",), (width,), (), lambda x: converted(1 + x.to(self.widest)), dtype=self.widest
        )

    @property
    def widest(self) -> torch.dtype:
        """The type of gains that are sums: half precision would round them."""
        return torch.promote_types(self.dtype, torch.float32) if self.config.adds_one_to_gains else self.dtype

    def _linear(
        self,
        parts: tuple[str, ...],
        n_rows: tuple[int, ...],
        n_columns: int,
        has_bias: bool,
        converted: Convert = _as_it_is,
        as_stored: Convert = _as_it_is,
    ) -> tuple[Tensor, Tensor | None]:
        """Joins the parts by rows: weight [sum of n_rows, n_columns] and bias [sum of n_rows]."""
        names = tuple(f"{part}.weight" for part in parts)
        is_transposed = self.names.matrices == "transposed"
        weight = self._joined(names, n_rows, (n_columns,), converted, as_stored, is_transposed=is_transposed)
        bias = tuple(f"{part}.bias" for part in parts)
        return weight, self._vector(bias, n_rows, converted, as_stored) if has_bias else None

    def _vector(
        self,
        names: tuple[str, ...],
        lengths: tuple[int, ...],
        converted: Convert = _as_it_is,
        as_stored: Convert = _as_it_is,
    ) -> Tensor:
        return self._joined(names, lengths, (), converted, as_stored)

    def _joined(
        self,
        names: tuple[str, ...],
        n_rows: tuple[int, ...],
        row_shape: tuple[int, ...],
        converted: Convert = _as_it_is,
        as_stored: Convert = _as_it_is,
        *,
        dtype: torch.dtype | None = None,
        is_transposed: bool = False,
    ) -> Tensor:
        """One tensor for several stored ones, one below the other: [sum of n_rows, *row_shape].

        Args:
            names: of the stored ones.
            n_rows: of each.
            row_shape: of all.
            converted: from some stored numbers to those that are kept.
            as_stored: a view of what is kept, in the order of what is stored.
            dtype: of what is kept, where it is not that of the other weights.
            is_transposed: whether each is stored as [inputs, outputs].
        """
        if self.is_checking:
            for name, count in zip(names, n_rows, strict=True):
                self.checkpoint.check(name, (count, *row_shape), is_transposed=is_transposed)
            return torch.empty(0)
        joined = self._empty(dtype or self.dtype, sum(n_rows), *row_shape)
        for name, place in zip(names, torch.split(joined, list(n_rows)), strict=True):
            self.targets[name] = Target(place.T if is_transposed else as_stored(place), converted)
        return joined

    def _empty(self, dtype: torch.dtype, *shape: int) -> Tensor:
        if self.shared is not None:
            return self.shared.next_tensor(shape, dtype)
        return torch.empty(*shape, dtype=dtype, device=self.device)


def _shares(parts: tuple[str, ...], n_rows: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of each part: as given, or all in one when the checkpoint has joined them already."""
    return n_rows if len(parts) == len(n_rows) else (sum(n_rows),)
