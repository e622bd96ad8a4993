"""What interventions with values and circuits do to the plain model's forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from tdb_server.domain.hook_point import NODE_HOOK_POINTS, WHOLE_HOOK_POINTS, HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import AblationSpec, Circuit, ValueType
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.plain_dictionaries import dense_latents, mlp_reads, read_by
from tests.property.plain_edits import PAIR_PLACES, add, written_by
from tests.property.plain_gradients import mean
from tests.property.plain_model import Edit, PlainModel, Seen, Spot

Change = Callable[[Tensor, Tensor | None], Tensor]
"""Of a place's values [c, ...], and what they are in the baselines [...], to those that are set."""
SeenLatents = dict[tuple[Site, int], tuple[Tensor, Tensor]]
"""What dictionaries read, and their latents as they are set."""
Changes = dict[tuple[HookPoint, int | None], list[Change]]


def value_edits(
    model: PlainModel,
    specs: Sequence[AblationSpec],
    baselines: Sequence[Seen],
    dictionaries: Sequence[Autoencoder] = (),
    circuit: Circuit | None = None,
    seen_latents: SeenLatents | None = None,
) -> dict[Spot, Edit]:
    """Edits for what is set of places and latents; a circuit's come first.

    Args:
        seen_latents: where latents that are set in a run are noted.
    """
    changes: Changes = defaultdict(list)
    if circuit is not None:
        _add_circuit(changes, model, circuit, dictionaries)
    pairs: dict[int, list[AblationSpec]] = defaultdict(list)
    for one in specs:
        layer = one.index.layer_index
        if one.attended_to_token is None:
            changes[one.index.hook_point, layer].append(_change(model, one))
        elif one not in pairs[layer or 0]:
            pairs[layer or 0].append(one)
    edits: dict[Spot, Edit] = {}
    by_latents = {one.site.latent_hook_point: one for one in dictionaries}
    of_places = {spot: own for spot, own in changes.items() if spot[0] not in by_latents}
    # What comes from one token is set before all that a head reads is.
    for is_read_by_heads in (False, True):
        for spot, own in of_places.items():
            if (spot[0] is HookPoint.ATTN_V_OUT) == is_read_by_heads:
                add(edits, spot, _edit(own, [one[spot][0] for one in baselines]))
        for layer, of_pairs in () if is_read_by_heads else pairs.items():
            _add_contributions(edits, model, layer, of_pairs, baselines)
    of_latents = [
        (by_latents[place], layer, own) for (place, layer), own in changes.items() if place in by_latents
    ]
    for dictionary, at, own in sorted(of_latents, key=_when):
        assert at is not None
        _add_latents(
            edits, model, dictionary, at, own, baselines, {} if seen_latents is None else seen_latents
        )
    return edits


def _change(model: PlainModel, spec: AblationSpec) -> Change:
    index = spec.index

    def change(x: Tensor, baseline: Tensor | None) -> Tensor:
        cells = torch.zeros(x.shape[1:], dtype=torch.bool)
        cells[tuple(slice(None) if one is None else one for one in index.tensor_indices)] = True
        if index.hook_point in PAIR_PLACES:
            assert index.layer_index is not None
            cells &= ~model.masked(x.shape[1], index.layer_index)[:, :, None]
        match spec.value_type:
            case ValueType.NUMBER:
                new = torch.full_like(x, spec.value)
            case ValueType.BASELINE:
                assert baseline is not None
                new = baseline.expand_as(x)
            case ValueType.SCALE:
                new = torch.where(cells, x, 0) * spec.value
            case ValueType.ADD:
                along = 1.0 if spec.direction is None else torch.tensor(spec.direction, dtype=x.dtype)
                new = x + spec.value * along
        return torch.where(cells, new, x)

    return change


def _edit(changes: Sequence[Change], baselines: Sequence[Tensor]) -> Edit:
    def edit(x: Tensor) -> Tensor:
        for one in changes:
            x = one(x, mean(baselines) if baselines else None)
        return x

    return edit


def _add_circuit(
    changes: Changes, model: PlainModel, circuit: Circuit, dictionaries: Sequence[Autoencoder]
) -> None:
    for node_type in circuit.node_types:
        place = (NODE_HOOK_POINTS | WHOLE_HOOK_POINTS)[node_type]
        layers = range(model.n_layers)
        for dictionary in dictionaries:
            if dictionary.site.node_type is node_type:
                layers = list(dictionary.layers)  # type: ignore[assignment]
        for layer in layers:

            def change(
                x: Tensor, baseline: Tensor | None, node_type: NodeType = node_type, layer: int = layer
            ) -> Tensor:
                kept = torch.zeros(x.shape[1:], dtype=torch.bool)
                for node in circuit.nodes:
                    if (node.node_type, node.layer_index) == (node_type, layer):
                        token = slice(None) if node.token_index is None else node.token_index
                        component = slice(None) if node_type is NodeType.WHOLE_MLP else node.component_index
                        kept[token, component] = True
                return torch.where(kept, x, torch.zeros_like(x) if baseline is None else baseline)

            changes[place, layer].append(change)


def _add_contributions(
    edits: dict[Spot, Edit],
    model: PlainModel,
    layer: int,
    specs: Sequence[AblationSpec],
    baselines: Sequence[Seen],
) -> None:
    """What heads read from one token is set to the mean of what they read from it in the baselines."""
    seen: Seen = {}
    probs, values, v_out = (
        (one, layer) for one in (HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V, HookPoint.ATTN_V_OUT)
    )

    def read(of: Seen, query: int, key: int, head: int) -> Tensor:
        return of[probs][:, query, key, head, None] * model.for_heads(of[values])[:, key, head]

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        for one in specs:
            (query, head, _), key = one.index.tensor_indices, one.attended_to_token
            assert query is not None
            assert head is not None
            assert key is not None
            other = mean([read(of, query, key, head) for of in baselines])
            x[:, query, head] += other - read(seen, query, key, head)
        return x

    for spot in (probs, values):
        add(edits, spot, _keep(seen, spot))
    add(edits, v_out, edit)


def _when(of_latents: tuple[Autoencoder, int | None, list[Change]]) -> tuple[int, int, bool]:
    """As the forward pass comes to them: a transcoder may read a stream whose latents are set."""
    site, layer = of_latents[0].site, of_latents[1]
    assert layer is not None
    return layer, list(HookPoint).index(site.hook_point), site is not Site.MLP_TRANSCODER


def _add_latents(
    edits: dict[Spot, Edit],
    model: PlainModel,
    dictionary: Autoencoder,
    layer: int,
    changes: Sequence[Change],
    baselines: Sequence[Seen],
    seen_latents: SeenLatents,
) -> None:
    site, weights, seen = dictionary.site, dictionary.layers[layer], Seen()
    others = [dense_latents(weights, read_by(model, site, one, layer))[0] for one in baselines]
    set_latents = _edit(changes, others)

    def edit(x: Tensor) -> Tensor:
        inputs = read_by(model, site, {**seen, (site.hook_point, layer): x}, layer)
        latents = dense_latents(weights, inputs)
        altered = set_latents(latents)
        seen_latents[site, layer] = inputs.detach(), altered.detach()
        return x + written_by(weights, altered - latents, inputs).view_as(x)

    for spot in mlp_reads(model, layer) if site is Site.MLP_TRANSCODER else ():
        add(edits, spot, _keep(seen, spot))
    add(edits, (site.hook_point, layer), edit)


def _keep(seen: Seen, spot: Spot) -> Edit:
    def keep(x: Tensor) -> Tensor:
        seen[spot] = x
        return x

    return keep
