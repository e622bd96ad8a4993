"""One row of a finished run: its own values, gradients, latents and direction of interest, unpadded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.place import PLACE_SHAPES, Place
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import Decoder
from tdb_server.scalars.cells import HEAD_PLACES, PAIR_PLACES
from tdb_server.scalars.latents import LatentAblation, SparseLatents, autoencoder_of, encode_sparsely
from tdb_server.scalars.objectives import trace_place
from tdb_server.scalars.run import BatchRun
from tdb_server.scalars.weight_facts import WeightFacts

EMBEDDING_DEPTH = 0


def attention_depth(layer_index: int) -> int:
    """Where attention's write stands among all writes to the residual stream, the embedding being 0."""
    return 2 * layer_index + 1


def mlp_depth(layer_index: int) -> int:
    """Where the MLP's write stands among all writes to the residual stream."""
    return 2 * layer_index + 2


class RowRun:
    """What scalars are computed from. Shapes leave out the batch; T is the row's own number of tokens."""

    def __init__(self, batch: BatchRun, row_index: int) -> None:
        self._batch = batch
        self._row_index = row_index
        self._latents: dict[tuple[int, bool], SparseLatents] = {}
        self.row = batch.rows[row_index]
        self.trace = batch.traces[row_index]

    @property
    def decoder(self) -> Decoder:
        """The model that was run."""
        return self._batch.decoder

    @property
    def facts(self) -> WeightFacts:
        """What follows from its weights alone."""
        return self._batch.facts

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.row.n_tokens

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.decoder.config.n_layers

    def check_cancelled(self) -> None:
        """Ends the work of the batch when nobody wants it any more.

        Raises:
            Cancelled: every call of the batch was cancelled.
        """
        self._batch.check_cancelled()

    def value(self, place: Place, layer_index: int | None) -> Tensor:
        """A place's value after ablation; pairs are laid out [H, q, k], heads [H, T, e]."""
        return self._own(place, self._batch.values[place, layer_index][self._row_index])

    def gradient(self, place: Place, layer_index: int | None) -> Tensor:
        """Gradient of the objective at a place; zero where the objective cannot see it."""
        return self._own(place, self._batch.row_gradient((place, layer_index), self._row_index))

    def _own(self, place: Place, x: Tensor) -> Tensor:
        """A row's tensor without its padding."""
        n_tokens = self.n_tokens
        if n_tokens == self._batch.n_tokens:
            return x
        if place in PAIR_PLACES:
            return x[:, :n_tokens, :n_tokens]
        return x[:, :n_tokens] if place in HEAD_PLACES else x[:n_tokens]

    @cached_property
    def loss(self) -> float | None:
        """The loss, where one was computed."""
        found = self._batch.losses[self._row_index]
        return None if found is None else found.item()

    @cached_property
    def traced_value(self) -> float | None:
        """The traced objective, where a node was traced."""
        found = self._batch.traced[self._row_index]
        return None if found is None else found.item()

    # The direction of interest

    @property
    def direction(self) -> Tensor:
        """Gradient of the objective at the last residual stream it can see [T, d]."""
        return self._batch.directions.rows[self._row_index]

    @cached_property
    def direction_depth(self) -> int:
        """Writes at this depth or before are seen by the objective directly."""
        if self.trace is None:
            return mlp_depth(self.n_layers)
        place, layer_index = trace_place(self.trace)
        if layer_index is None:
            return EMBEDDING_DEPTH
        return attention_depth(layer_index) if place is Place.RESID_POST_ATTN else mlp_depth(layer_index)

    def seen_direction(self, depth: int) -> tuple[Tensor, Tensor]:
        """Direction of interest of a write at `depth`: its tokens [n], and it at them [n, d]."""
        tokens = self._batch.directions.tokens[self._row_index]
        direction = self._batch.directions.at_tokens[self._row_index]
        return (tokens, direction) if self._is_seen(depth) else (tokens[:0], direction[:0])

    def project_direction(self, depth: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same, projected onto what a layer's weights [d, m] write: its tokens [n], and [n, m]."""
        tokens, direction = self.seen_direction(depth)
        if not self._is_seen(depth):
            return tokens, direction @ weight
        return tokens, self._batch.directions.times(self._row_index, weight)

    def _is_seen(self, depth: int) -> bool:
        return depth <= self.direction_depth

    # Logits

    @cached_property
    def logit_tokens(self) -> Tensor:
        """The tokens whose logits are computed."""
        wanted = self.row.logit_tokens
        tokens = range(self.n_tokens) if wanted is None else sorted({*wanted, self.n_tokens - 1})
        return torch.tensor(list(tokens), device=self.decoder.device)

    @cached_property
    def logits(self) -> Tensor:
        """Logits at `logit_tokens` [n, V], the last token's last."""
        normed = self._batch.final_normed[self._row_index, self.logit_tokens[:-1]]
        earlier = F.linear(normed, self.decoder.weights.unembedding)
        for token, entry, value in self._ablated_logits():
            rows = slice(None) if token is None else (self.logit_tokens[:-1] == token).nonzero()[:, 0]
            earlier[rows, slice(None) if entry is None else entry] = value
        return torch.cat((earlier, self._batch.last_logits[self._row_index][None]))

    def _ablated_logits(self) -> list[tuple[int | None, int | None, float]]:
        specs = [one for one in self.row.inference.ablations if one.index.place is Place.LOGITS]
        return [
            (one.index.tensor_indices[0], one.index.tensor_indices[1], one.value)
            for one in specs
            if one.index.pass_type is PassType.FORWARD
        ]

    @cached_property
    def logit_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradient at the logits: the tokens where it is not zero [n], and it at them [n, V]."""
        last = self._batch.last_logits[self._row_index]
        at_last = self._batch.logit_gradients.get(self._row_index, torch.zeros_like(last))[None]
        earlier = self._batch.earlier_logit_gradients.get(self._row_index, at_last[:0])
        tokens = torch.arange(self.n_tokens, device=last.device)
        return tokens[self.n_tokens - 1 - len(earlier) :], torch.cat((earlier, at_last))

    @cached_property
    def logit_sums(self) -> Tensor:
        """Logits summed over the vocabulary, at every token [T], without computing them."""
        if self._ablated_logits():
            return self._all_logits_summed()
        return self._batch.final_normed[self._row_index, : self.n_tokens] @ self.facts.unembedding_sum

    def _all_logits_summed(self) -> Tensor:
        normed = self._batch.final_normed[self._row_index, : self.n_tokens]
        logits = F.linear(normed, self.decoder.weights.unembedding)
        for token, entry, value in self._ablated_logits():
            logits[slice(None) if token is None else token, slice(None) if entry is None else entry] = value
        return logits.sum(dim=-1)

    # Latents

    @property
    def autoencoders(self) -> Sequence[Autoencoder]:
        """Those that are loaded."""
        return self._batch.autoencoders

    def autoencoder_of_node(self, node_type: NodeType) -> Autoencoder:
        """The loaded autoencoder whose latents are nodes of this type."""
        return autoencoder_of(node_type, self._batch.autoencoders)

    def latents(self, autoencoder: Autoencoder, layer_index: int) -> SparseLatents:
        """The active latents of a layer, after ablation."""
        key = (layer_index, autoencoder.site.is_mlp)
        if key not in self._latents:
            site = self.value(autoencoder.site.place, layer_index)
            ablations = self.latent_ablations(autoencoder, layer_index)
            self._latents[key] = encode_sparsely(autoencoder.layers[layer_index], site, ablations)
        return self._latents[key]

    def latent_ablations(self, autoencoder: Autoencoder, layer_index: int) -> list[LatentAblation]:
        """This row's ablations of a layer's latents or errors."""
        found = self._batch.latent_ablations.get((autoencoder.site, layer_index), [])
        return [one for one in found if one.row == self._row_index]

    def times_write_scale(
        self, autoencoder: Autoencoder, layer_index: int, vectors: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """What latents write, or what is along it, times what their unit writes are multiplied by.

        Args:
            vectors: at every token [T, m], or at some [n, m].
            tokens: these [n].
        """
        layer = autoencoder.layers[layer_index]
        if not layer.norms_inputs:
            return vectors
        site = self.value(autoencoder.site.place, layer_index)
        return layer.times_write_scale(vectors, site if tokens is None else site[tokens])

    def site_gradient(self, autoencoder: Autoencoder, layer_index: int) -> Tensor:
        """Gradient at the site's output, after the splice [T, s]."""
        found = self._batch.site_gradients.get((autoencoder.site, layer_index))
        if found is None:
            return torch.zeros_like(self.value(autoencoder.site.place, layer_index))
        return found[self._row_index, : self.n_tokens]


def axes_of(place: Place) -> tuple[Dimension, ...]:
    """A place's axes as they are laid out in a run."""
    dimensions = PLACE_SHAPES[place].dimensions
    if place in PAIR_PLACES:
        query, key, head = dimensions
        return head, query, key
    if place in HEAD_PLACES:
        token, head, channel = dimensions
        return head, token, channel
    return dimensions
