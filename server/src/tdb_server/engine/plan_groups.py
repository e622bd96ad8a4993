"""Groups of a batch's rows: those that ask for the same rankings and sums stand together."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.domain.axes import TOKEN_DIMENSIONS
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.node import Dimension, PassType
from tdb_server.domain.requests import MultipleTopKSpec


@dataclass(frozen=True)
class NodeRanking:
    """Which nodes of a derived scalar are wanted.

    Attributes:
        pass_type: of the numbers that are ranked.
        largest: the largest, or the smallest.
        token_of: the spec at whose `token_index` they are, where it names one token.
        first_layer_index: only those of this layer and later ones, where given.
    """

    scalar: DerivedScalar
    pass_type: PassType
    largest: bool
    token_of: str | None
    first_layer_index: int | None


@dataclass(frozen=True)
class Summing:
    """A derived scalar's sum over all layers and all axes but some.

    Attributes:
        pass_types: those that are added up.
        keep: the axes that are left, in node order.
        by_layer: whether layers are kept apart.
    """

    scalar: DerivedScalar
    pass_types: tuple[PassType, ...]
    keep: tuple[Dimension, ...]
    by_layer: bool = False


@dataclass(frozen=True)
class Group:
    """Rows of a batch that stand together and ask for the same rankings and sums.

    Attributes:
        start: the first row.
        stop: the row behind the last one.
        specs: the multiple-top-k specs of the first row; others differ in k and in the token they look at.
        totals: derived scalars that are summed by component, and whether also by token.
    """

    start: int
    stop: int
    specs: dict[str, MultipleTopKSpec]
    totals: tuple[tuple[DerivedScalar, bool], ...] = ()

    @property
    def rows(self) -> slice:
        """The rows."""
        return slice(self.start, self.stop)

    def rankings(self, *, only_logits: bool) -> list[NodeRanking]:
        """All rankings that some spec wants, of specs that do (not) rank logits alone."""
        found = (
            ranking
            for name, spec in self.specs.items()
            for group, scalars in spec.groups
            for scalar in scalars
            for ranking in rankings_of(name, spec, group, scalar)
            if ranks_only_logits(spec) == only_logits
        )
        return list(dict.fromkeys(found))

    def sums(self, *, only_logits: bool) -> list[Summing]:
        """All sums that some spec wants."""
        found = (
            summing_of(spec, scalar)
            for spec in self.specs.values()
            for scalar in spec.derived_scalars
            if ranks_only_logits(spec) == only_logits and not spec.omits_sums
        )
        by_component = () if only_logits else (total_of(*one) for one in self.totals)
        return list(dict.fromkeys([*found, *by_component]))


def total_of(scalar: DerivedScalar, by_token: bool) -> Summing:
    """The sum by component: by layer, and of heads by head; by the token where it writes, too, if wanted."""
    kept = (Dimension.ATTN_HEADS, *([Dimension.SEQUENCE_TOKENS] if by_token else ()))
    keep = tuple(one for one in scalar.declared.dimensions if one in kept)
    return Summing(scalar, (PassType.FORWARD,), keep, by_layer=True)


def rankings_of(
    name: str, spec: MultipleTopKSpec, group: GroupId, scalar: DerivedScalar
) -> list[NodeRanking]:
    """The best nodes, and the worst where the group has them.

    A hook point read backward still ranks its activations; that is what the reference answers.
    """
    pass_type = ranked_pass(spec, scalar)
    token_of = None if spec.token_index is None else name
    return [
        NodeRanking(scalar, pass_type, largest, token_of, spec.first_layer_index)
        for largest in ((True, False) if group.has_bottom else (True,))
    ]


def ranked_pass(spec: MultipleTopKSpec, scalar: DerivedScalar) -> PassType:
    """The pass whose numbers are ranked, and told of each node."""
    return spec.pass_type if scalar.declared.is_previous_layer else PassType.FORWARD


def summing_of(spec: MultipleTopKSpec, scalar: DerivedScalar) -> Summing:
    """The sum that a spec wants: a hook point read backward adds its gradients to its activations."""
    declared = scalar.declared
    kept = spec.dimensions_to_keep or TOKEN_DIMENSIONS
    keep = tuple(one for one in declared.dimensions if one in kept)
    if declared.reads is None or spec.pass_type is PassType.FORWARD:
        return Summing(scalar, (spec.pass_type,), keep)
    return Summing(scalar, (PassType.FORWARD, PassType.BACKWARD), keep)


def ranks_only_logits(spec: MultipleTopKSpec) -> bool:
    """Whether it can be answered before the backward pass."""
    return spec.pass_type is PassType.FORWARD and set(spec.derived_scalars) <= {DerivedScalar.LOGITS}
