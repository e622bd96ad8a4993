"""Loading: from the files of a model folder to the decoder's weights.

Names and shapes are compared before anything is allocated. Then each of the decoder's tensors is allocated
once, in its final place and type, and the files are read once, from beginning to end (`tensor_reading.py`):
their tensors are copied to where they go, so that no more than the weights themselves is ever held, and their
digest is taken on the way.
"""

from __future__ import annotations

import hashlib
import logging
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
from tdb_server.model.families import decoder_config_from_hugging_face
from tdb_server.model.model_files import CONFIG_FILE, read_config, weight_files
from tdb_server.model.progress import Progress, no_progress
from tdb_server.model.rotary import inverse_frequencies
from tdb_server.model.shared_weights import SharedWeights, room_for, shared_weights
from tdb_server.model.tensor_reading import Target
from tdb_server.model.weight_names import WeightNames, weight_names

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
    found = read_config(folder)
    try:
        config = decoder_config_from_hugging_face(found)
        if config.rotary_theta is not None:
            inverse_frequencies(config)  # refuses a scaling it does not know before gigabytes are read
    except ModelError as error:
        raise type(error)(f"{folder}: {error.message}") from error
    names = weight_names(config.family)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(folder, names.prefix))
        config, names = _settle_tied_embeddings(config, names, checkpoint)
        dtype = checkpoint.usual_dtype if dtype is None else dtype
        shared = None
        if shared_file is not None and torch.device(device).type == "cpu":
            key = _files_key(folder, dtype)
            n_bytes = room_for(checkpoint.n_elements, checkpoint.n_tensors, dtype)
            waiting = shared_weights(shared_file, key, n_bytes, progress or no_progress)
            shared = stack.enter_context(waiting)
        loading = _Loading(config, names, checkpoint, torch.device(device), dtype, shared)
        loading.check()
        weights = loading.weights()
        weights.digest = loading.fill(progress or no_progress)
        if expected_digest not in (None, weights.digest):
            raise ConversionDamaged(f"{folder}: the weights are not those that were written")
    return Decoder(config, weights)


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


@dataclass
class _Loading:
    """One run of `load_decoder`: what all of its steps need."""

    config: DecoderConfig
    names: WeightNames
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    shared: SharedWeights | None
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
            if not name.endswith(self.names.buffers):
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
        if config.rotary_theta is None:
            position_embedding = self._embedding(names.position_embedding, config.context_length)
        layers = [self._layer(f"{names.layers}.{layer_index}.") for layer_index in range(config.n_layers)]
        return DecoderWeights(
            token_embedding=token_embedding,
            position_embedding=position_embedding,
            layers=layers,
            final_norm=self._norm(names.final_norm),
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
            qkv, _shares(qkv, (heads_width, groups_width, groups_width)), config.d_model, config.qkv_bias
        )
        attn_out_weight, attn_out_bias = self._linear(
            (prefix + names.attn_out,), (config.d_model,), heads_width, config.attn_out_bias
        )
        mlp_in_weight, mlp_in_bias = self._linear(
            mlp_in, (n_inputs // len(mlp_in),) * len(mlp_in), config.d_model, config.mlp_bias
        )
        mlp_out_weight, mlp_out_bias = self._linear(
            (prefix + names.mlp_out,), (config.d_model,), config.n_neurons, config.mlp_bias
        )
        q_norm, k_norm = (
            self._vector((f"{prefix}{name}.weight",), (config.d_head,)) if config.head_norms else None
            for name in names.head_norms
        )
        return LayerWeights(
            attn_norm=self._norm(prefix + names.attn_norm),
            qkv_weight=qkv_weight,
            qkv_bias=qkv_bias,
            q_norm=q_norm,
            k_norm=k_norm,
            attn_out_weight=attn_out_weight,
            attn_out_bias=attn_out_bias,
            mlp_norm=self._norm(prefix + names.mlp_norm),
            mlp_in_weight=mlp_in_weight,
            mlp_in_bias=mlp_in_bias,
            mlp_out_weight=mlp_out_weight,
            mlp_out_bias=mlp_out_bias,
        )

    def _embedding(self, name: str, n_rows: int) -> Tensor:
        return self._joined((f"{name}.weight",), (n_rows,), (self.config.d_model,))

    def _norm(self, name: str) -> NormWeights:
        width = (self.config.d_model,)
        has_bias = self.config.norm == "layer_norm"
        gain = self._vector((f"{name}.weight",), width)
        return NormWeights(gain, self._vector((f"{name}.bias",), width) if has_bias else None)

    def _linear(
        self, parts: tuple[str, ...], n_rows: tuple[int, ...], n_columns: int, has_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Joins the parts by rows: weight [sum of n_rows, n_columns] and bias [sum of n_rows]."""
        names = tuple(f"{part}.weight" for part in parts)
        weight = self._joined(names, n_rows, (n_columns,), is_transposed=self.names.transposed)
        return weight, self._vector(tuple(f"{part}.bias" for part in parts), n_rows) if has_bias else None

    def _vector(self, names: tuple[str, ...], lengths: tuple[int, ...]) -> Tensor:
        return self._joined(names, lengths, ())

    def _joined(
        self,
        names: tuple[str, ...],
        n_rows: tuple[int, ...],
        row_shape: tuple[int, ...],
        *,
        is_transposed: bool = False,
    ) -> Tensor:
        """One tensor for several stored ones, one below the other: [sum of n_rows, *row_shape]."""
        if self.is_checking:
            for name, count in zip(names, n_rows, strict=True):
                self.checkpoint.check(name, (count, *row_shape), is_transposed=is_transposed)
            return torch.empty(0)
        joined = self._empty(sum(n_rows), *row_shape)
        for name, place in zip(names, torch.split(joined, list(n_rows)), strict=True):
            self.targets[name] = Target(place, is_transposed)
        return joined

    def _empty(self, *shape: int) -> Tensor:
        if self.shared is not None:
            return self.shared.next_tensor(shape, self.dtype)
        return torch.empty(*shape, dtype=self.dtype, device=self.device)


def _shares(parts: tuple[str, ...], n_rows: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of each part: as given, or all in one when the checkpoint has joined them already."""
    return n_rows if len(parts) == len(n_rows) else (sum(n_rows),)
