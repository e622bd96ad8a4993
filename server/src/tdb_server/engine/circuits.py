"""Circuits: all nodes of some types are set but a few, to see how much of the objective those keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tdb_server.domain.hook_point import NODE_HOOK_POINTS, WHOLE_HOOK_POINTS
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, Circuit, ValueType
from tdb_server.engine.interventions import Cell, Intervention
from tdb_server.engine.latents import autoencoder_of
from tdb_server.model.autoencoder import Autoencoder


def circuit_interventions(
    circuit: Circuit,
    row: int,
    n_tokens: int,
    n_layers: int,
    autoencoders: Sequence[Autoencoder],
    *,
    has_baselines: bool,
) -> Iterator[Intervention]:
    """What sets all other nodes of a row, one intervention for each type and layer.

    Args:
        circuit: what is kept.
        row: of the batch.
        n_tokens: of the row.
        n_layers: of the model.
        autoencoders: that are loaded.
        has_baselines: whether nodes are set to the baselines' mean, or to 0.
    """
    kept: defaultdict[tuple[NodeType, int], list[Cell]] = defaultdict(list)
    for node in circuit.nodes:
        of_component = None if node.node_type is NodeType.WHOLE_MLP else node.component_index
        kept[node.node_type, node.layer_index].append((node.token_index, of_component))
    value_type = ValueType.BASELINE if has_baselines else ValueType.NUMBER
    for node_type in sorted(circuit.node_types, key=lambda one: one.value):
        hook_point = (WHOLE_HOOK_POINTS | NODE_HOOK_POINTS)[node_type]
        everywhere = (None,) * len(hook_point.dimensions)
        layers: Iterable[int] = range(n_layers)
        if node_type.is_latent:
            layers = sorted(autoencoder_of(node_type, autoencoders).layers)
        for layer in layers:
            index = ActivationIndex(hook_point, layer, everywhere)
            spec = AblationSpec(index, 0.0, value_type)
            yield Intervention(row, n_tokens, spec, tuple(kept[node_type, layer]))
