"""Heads, MLPs and the embedding, each with its scalars summed over all tokens: what no list of nodes says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tdb_client.node_table import imported_pandas
from tdb_client.results import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

ComponentScalar = Literal["write_norm", "act_times_grad", "direct_effect"]
"""The scalars of a component."""
_ENDINGS: dict[ComponentScalar, tuple[str, str]] = {
    "write_norm": ("write_norm", "embedding_norm"),
    "act_times_grad": ("act_times_grad", "token_attribution"),
    "direct_effect": ("write_to_final_residual_grad", "proj_to_final_residual_grad"),
}
"""The endings of derived scalars' names: of components, and of the embedding."""
_LATENTS = {
    "resid_post_attn_autoencoder": "post_attn latents",
    "resid_post_mlp_autoencoder": "post_mlp latents",
    "attention_autoencoder": "attention",
}
"""By a part of a derived scalar's name, what is taken apart into latents; MLPs are called MLPs then, too."""


@dataclass(frozen=True, slots=True, eq=False)
class ComponentTable:
    """Every component of the model, the embedding first, then layer by layer. An entry each [n].

    Attributes:
        components: `embedding`, `L3 head 5`, `L3 mlp`; `L3 attention` where it is taken apart into latents;
            `L3 post_mlp latents` of the residual stream, which repeat what others write.
        layers: their layers; -1 for the embedding.
        write_norm: the sum of what its nodes write.
        act_times_grad: the estimated total effect of all of them on the objective.
        direct_effect: the effect of their writes themselves.
    """

    components: tuple[str, ...]
    layers: IntArray
    write_norm: FloatArray
    act_times_grad: FloatArray
    direct_effect: FloatArray

    def __len__(self) -> int:
        return len(self.components)

    def scalar(self, name: ComponentScalar) -> FloatArray:
        """One of the scalars by name [n]."""
        scalars: dict[ComponentScalar, FloatArray] = {
            "write_norm": self.write_norm,
            "act_times_grad": self.act_times_grad,
            "direct_effect": self.direct_effect,
        }
        return scalars[name]

    def strongest(self, by: ComponentScalar = "direct_effect") -> IntArray:
        """Row numbers, largest magnitude of a scalar first [n]."""
        return np.argsort(-np.abs(self.scalar(by)), kind="stable")

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas frame, a row per component.

        Raises:
            ImportError: pandas is not installed.
        """
        pd = imported_pandas()
        return pd.DataFrame(
            {
                "component": list(self.components),
                "layer": pd.array([None if one < 0 else one for one in self.layers.tolist()], dtype="Int64"),
                "write_norm": self.write_norm,
                "act_times_grad": self.act_times_grad,
                "direct_effect": self.direct_effect,
            }
        )


def component_table(totals: Mapping[str, FloatArray]) -> ComponentTable:
    """Arranges totals by derived scalar as a table; an empty one where there are none."""
    columns: dict[ComponentScalar, dict[str, float]] = {scalar: {} for scalar in _ENDINGS}
    layers: dict[str, int] = {}
    for name, total in totals.items():
        scalar = next(one for one, endings in _ENDINGS.items() if name.endswith(endings))
        for index in np.ndindex(total.shape):
            component = _component(name, index)
            layers[component] = index[0] if index else -1
            columns[scalar][component] = float(total[index])
    order = sorted(layers, key=lambda one: layers[one])
    arrays = {name: np.array([column[one] for one in order]) for name, column in columns.items()}
    return ComponentTable(tuple(order), np.array([layers[one] for one in order], np.int64), **arrays)


def _component(name: str, index: tuple[int, ...]) -> str:
    match index:
        case (layer, head):
            return f"L{layer} head {head}"
        case (layer,):
            return f"L{layer} {next((words for part, words in _LATENTS.items() if part in name), 'mlp')}"
        case _:
            return "embedding"
