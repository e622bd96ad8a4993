"""Circuits: all nodes of some types are set but a few, to see how much of the objective those keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tdb_server.domain.hook_point import ABLATABLE_HOOK_POINTS
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, ValueType
from tdb_server.engine.interventions import Cell, Intervention
from tdb_server.engine.latents import autoencoder_of
from tdb_server.engine.plan_rows import Row
from tdb_server.model.autoencoder import Autoencoder


def circuit_interventions(
    row: Row, row_index: int, n_layers: int, autoencoders: Sequence[Autoencoder]
) -> Iterator[Intervention]:
    """What sets all nodes of a row but those of its circuit, one intervention for each type and layer.

    They are set to the baselines' mean, or to 0 where there is none.

    Args:
        row: with or without a circuit.
        row_index: of the batch.
        n_layers: of the model.
        autoencoders: that are loaded.
    """
    circuit = row.inference.circuit
    if circuit is None:
        return
    kept: defaultdict[tuple[NodeType, int], list[Cell]] = defaultdict(list)
    for node in circuit.nodes:
        of_component = None if node.node_type is NodeType.WHOLE_MLP else node.component_index
        kept[node.node_type, node.layer_index].append((node.token_index, of_component))
    value_type = ValueType.BASELINE if row.baselines else ValueType.NUMBER
    for node_type in sorted(circuit.node_types, key=lambda one: one.value):
        hook_point = ABLATABLE_HOOK_POINTS[node_type]
        everywhere = (None,) * len(hook_point.dimensions)
        layers: Iterable[int] = range(n_layers)
        if node_type.is_latent:
            layers = sorted(autoencoder_of(node_type, autoencoders).layers)
        for layer in layers:
            index = ActivationIndex(hook_point, layer, everywhere)
            spec = AblationSpec(index, 0.0, value_type)
            yield Intervention(row_index, row.n_tokens, spec, frozenset(kept[node_type, layer]))
