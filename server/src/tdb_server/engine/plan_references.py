"""The plan of references: the prompts that a batch's rows are compared with, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tdb_server.domain.hook_point import ABLATABLE_HOOK_POINTS, HookPoint
from tdb_server.domain.requests import Circuit, InferenceSpec, InferenceSubRequest, ValueType
from tdb_server.engine.keeping import Keeping, kept_at, kept_for
from tdb_server.engine.plan_rows import CircuitReferences, Row
from tdb_server.model.autoencoder import Autoencoder


class PlannedReferences:
    """Collects the prompts that rows are compared with: equal ones are run once.

    Attributes:
        kept: of their forward pass.
    """

    def __init__(self, autoencoders: Sequence[Autoencoder], is_parallel: bool) -> None:
        self._autoencoders, self._is_parallel = autoencoders, is_parallel
        self._places: dict[tuple[tuple[int, ...], Circuit | None], int] = {}
        self.kept = Keeping()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Them, as rows of a batch of their own."""
        return tuple(
            Row(0, at, InferenceSpec(ids, circuit=circuit), {}, None, (len(ids) - 1,), None)
            for (ids, circuit), at in self._places.items()
        )

    def with_references(self, row: Row) -> Row:
        """A row, with what it is compared with, which is noted here."""
        inference, circuit = row.inference, row.inference.circuit
        baselines = tuple(self._place(one) for one in inference.baselines)
        circuit_references = None
        if circuit is not None:
            empty_circuit = Circuit(circuit.node_types, ())
            compared = baselines or (self._place(inference.token_ids, empty_circuit),)
            circuit_references = CircuitReferences(self._place(inference.token_ids), compared)
            if row.stream is not None:
                self.kept.add(row.stream.hook_point)
        if baselines:
            self._keep_for(row)
        return replace(row, baselines=baselines, circuit_references=circuit_references)

    def _place(self, token_ids: tuple[int, ...], circuit: Circuit | None = None) -> int:
        return self._places.setdefault((token_ids, circuit), len(self._places))

    def _keep_for(self, row: Row) -> None:
        """Notes what of its baselines a row is compared with, or is set to."""
        whole = InferenceSubRequest(row.inference, row.processing)
        for kept, _ in kept_for(whole, self._autoencoders, is_parallel=self._is_parallel):
            self.kept.add(kept)
        set_at = [one for one in row.inference.ablations if one.value_type is ValueType.BASELINE]
        hook_points = [one.index.hook_point for one in set_at]
        if any(one.attended_to_token is not None for one in set_at):
            hook_points += [HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V]
        if row.inference.circuit is not None:
            hook_points += [ABLATABLE_HOOK_POINTS[one] for one in row.inference.circuit.node_types]
        for one in hook_points:
            self.kept.add(kept_at(one, self._autoencoders))
