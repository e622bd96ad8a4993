"""Checks of what is wanted from a run: derived scalars that exist, fit together, and have what they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tdb_server.domain.axes import hook_point_of_scalar, scalar_axes, specific_hook_point
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.index_validation import (
    absence_violations,
    layer_violations,
    presence_violations,
    range_violations,
)
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import Dimension, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    ActivationsSpec,
    ComponentTotalsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    LensSpec,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)
from tdb_server.domain.spec_relations import kind_violations
from tdb_server.errors import FieldViolation

_TO_LATENT = DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS
_PAIRS_AND_HEAD = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS, Dimension.ATTN_HEADS)
_LENSES = (HookPoint.RESID_POST_MLP, HookPoint.RESID_POST_ATTN)
_READ = DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION
_READ_HOOK_POINTS = (
    HookPoint.MLP_POST_ACT,
    HookPoint.ONLINE_MLP_AUTOENCODER_LATENT,
    HookPoint.ONLINE_MLP_TRANSCODER_LATENT,
)


@dataclass(frozen=True, slots=True)
class ProcessingCheck:
    """Checks processing specs of one sub-request.

    Attributes:
        info: the model.
        limits: what the server is willing to do.
        n_tokens: tokens of the prompt; None where the prompt itself is refused.
        has_objective: whether a loss or a trace is given.
        within_layer_gradient: the latent whose gradient within its layer is wanted, where one is.
        ablations: what is set in the run.
    """

    info: ModelInfo
    limits: Limits
    n_tokens: int | None
    has_objective: bool
    within_layer_gradient: ActivationIndex | None = None
    ablations: tuple[AblationSpec, ...] = ()

    def violations(self, spec: ProcessingSpec, path: str) -> Iterator[FieldViolation]:
        """What keeps a spec from being computed, whatever else is asked for."""
        match spec:
            case MultipleTopKSpec():
                yield from self._multiple_top_k(spec, path)
            case DerivedScalarsSpec():
                yield from self._derived_scalars(spec, path)
            case DerivedAttentionScalarsSpec():
                yield from self._derived_attention_scalars(spec, path)
            case ComponentTotalsSpec():
                yield from self._component_totals(spec, path)
            case LensSpec():
                yield from self._lens(spec, path)
            case ActivationsSpec():
                yield from self._activations(spec, path)
            case ScoredTokensSpec():
                yield from self._count(spec.n_tokens, f"{path}.num_tokens")
            case TokenPairAttributionSpec():
                yield from self._count(spec.n_tokens_attended_to, f"{path}.num_tokens_attended_to")

    def _multiple_top_k(self, spec: MultipleTopKSpec, path: str) -> Iterator[FieldViolation]:
        yield from self._count(spec.top_and_bottom_k, f"{path}.top_and_bottom_k")
        if spec.token_index is not None:
            yield from range_violations(spec.token_index, self.n_tokens, "token", f"{path}.token_index")
        for i, (_, scalars) in enumerate(spec.groups):
            for j, scalar in enumerate(scalars):
                scalar_path = f"{path}.groups[{i}].derived_scalar_types[{j}]"
                if scalar is _TO_LATENT:
                    yield self._does_not_fit(scalar, scalar_path, "it is one of derived attention scalars")
                yield from self._scalar(scalar, None, spec.pass_type, scalar_path, scalar_path)
        yield from kind_violations(spec, path)

    def _component_totals(self, spec: ComponentTotalsSpec, path: str) -> Iterator[FieldViolation]:
        for i, scalar in enumerate(spec.derived_scalars):
            scalar_path = f"{path}.derived_scalar_types[{i}]"
            if not scalar.declared.adds_up:
                yield self._does_not_fit(scalar, scalar_path, "its sum over tokens says nothing")
                continue
            if scalar in spec.derived_scalars[:i]:
                yield FieldViolation(scalar_path, f"{scalar.value} is asked for twice", Reason.DUPLICATE_NAME)
            yield from self._scalar(scalar, None, PassType.FORWARD, scalar_path, scalar_path)

    def _lens(self, spec: LensSpec, path: str) -> Iterator[FieldViolation]:
        if spec.hook_point not in _LENSES:
            known = " or ".join(one.value for one in _LENSES)
            yield FieldViolation(f"{path}.place", f"must be {known}", Reason.FIELD_NOT_ALLOWED)
        yield from absence_violations(spec.hook_point, self.info, f"{path}.place")
        yield from self._layers(spec.layers, is_per_layer=True, path=path)
        yield from self._tokens(spec.token_indices, path)
        if spec.n_top_tokens:
            yield from self._count(spec.n_top_tokens, f"{path}.num_top_tokens")
        elif not spec.vocabulary_tokens:
            yield FieldViolation(
                f"{path}.num_top_tokens", "say how many tokens, or which ones", Reason.FIELD_REQUIRED
            )

    def _activations(self, spec: ActivationsSpec, path: str) -> Iterator[FieldViolation]:
        place_path, hook_point = f"{path}.activation_location_type", spec.hook_point
        wrong_layers = list(self._layers(spec.layers, is_per_layer=hook_point.is_per_layer, path=path))
        yield from wrong_layers
        for i, layer in enumerate(() if wrong_layers else spec.layers):
            layer_path = f"{path}.layer_indices[{i}]"
            refused = list(presence_violations(hook_point, layer, self.info, place_path, layer_path))
            yield from refused
            if any(one.field == place_path for one in refused):
                break
        yield from self._tokens(spec.token_indices, path)
        if spec.pass_type is PassType.BACKWARD and not self.has_objective:
            yield FieldViolation(
                f"{path}.pass_type", "gradients need a loss or a trace", Reason.OBJECTIVE_REQUIRED
            )

    def _layers(
        self, layers: Sequence[int | None], *, is_per_layer: bool, path: str
    ) -> Iterator[FieldViolation]:
        for i, layer in enumerate(layers):
            layer_path = f"{path}.layer_indices[{i}]"
            yield from layer_violations(layer, is_per_layer, self.info, layer_path)
            if layer in layers[:i]:
                yield FieldViolation(layer_path, f"layer {layer} is named twice", Reason.DUPLICATE_NAME)

    def _tokens(self, token_indices: Sequence[int], path: str) -> Iterator[FieldViolation]:
        for i, token in enumerate(token_indices):
            token_path = f"{path}.token_indices[{i}]"
            yield from range_violations(token, self.n_tokens, "token", token_path)
            if token in token_indices[:i]:
                yield FieldViolation(token_path, f"token {token} is named twice", Reason.DUPLICATE_NAME)

    def _derived_scalars(self, spec: DerivedScalarsSpec, path: str) -> Iterator[FieldViolation]:
        scalar, shape = spec.derived_scalar, spec.derived_scalar.declared
        scalar_path, layer_path = f"{path}.derived_scalar_type", f"{path}.layer_index"
        if len(shape.dimensions) != 2 or scalar is _TO_LATENT:
            yield self._does_not_fit(scalar, scalar_path, "it is not one number per token and component")
            return
        wrong_layer = list(layer_violations(spec.layer_index, shape.is_per_layer, self.info, layer_path))
        yield from wrong_layer
        known_layer = None if wrong_layer else spec.layer_index
        refused = list(self._scalar(scalar, known_layer, spec.pass_type, scalar_path, layer_path))
        yield from refused
        yield from self._component(scalar, spec.activation_index, refused, path)
        yield from self._normalizer(spec.normalizing_value, f"{path}.normalizer")
        if spec.normalizes_by_prompt_maximum and spec.normalizing_value is not None:
            yield FieldViolation(
                f"{path}.normalizer",
                "the prompt's own maximum is asked for, by normalize_by_prompt_maximum",
                Reason.FIELD_NOT_ALLOWED,
            )
        if spec.n_top_tokens is not None:
            yield from self._count(spec.n_top_tokens, f"{path}.num_top_tokens")

    def _derived_attention_scalars(
        self, spec: DerivedAttentionScalarsSpec, path: str
    ) -> Iterator[FieldViolation]:
        scalar, shape = spec.derived_scalar, spec.derived_scalar.declared
        scalar_path, layer_path = f"{path}.derived_scalar_type", f"{path}.layer_index"
        if scalar is not _TO_LATENT and shape.dimensions != _PAIRS_AND_HEAD:
            yield self._does_not_fit(scalar, scalar_path, "it is not one number per token pair and head")
            return
        yield from layer_violations(spec.layer_index, True, self.info, layer_path)
        yield from self._scalar(scalar, None, PassType.FORWARD, scalar_path, layer_path)
        if scalar is not _TO_LATENT:
            yield from self._component(scalar, spec.activation_index, [], path)
        yield from self._normalizer(spec.max_scalar, f"{path}.max_scalar")
        yield from self._normalizer(spec.max_total_in, f"{path}.max_total_scalar_in")
        yield from self._normalizer(spec.max_total_out, f"{path}.max_total_scalar_out")
        if scalar is _TO_LATENT:
            yield from self._same_layer_as_latent(spec.layer_index, scalar_path, layer_path)

    def _same_layer_as_latent(
        self, layer_index: int, scalar_path: str, layer_path: str
    ) -> Iterator[FieldViolation]:
        if self.within_layer_gradient is None:
            yield FieldViolation(
                scalar_path,
                f"{_TO_LATENT.value} needs inference_spec.activation_index_for_within_layer_grad, which says "
                "what latent is written to",
                Reason.FIELD_REQUIRED,
            )
        elif self.within_layer_gradient.layer_index != layer_index:
            yield FieldViolation(
                layer_path,
                f"the latent of activation_index_for_within_layer_grad is in layer "
                f"{self.within_layer_gradient.layer_index}, not {layer_index}",
                Reason.DERIVED_SCALAR_DOES_NOT_FIT,
            )

    def _scalar(
        self,
        scalar: DerivedScalar,
        layer_index: int | None,
        pass_type: PassType,
        scalar_path: str,
        layer_path: str,
    ) -> Iterator[FieldViolation]:
        hook_point = hook_point_of_scalar(scalar)
        if hook_point is not None:
            yield from presence_violations(hook_point, layer_index, self.info, scalar_path, layer_path)
        elif scalar.declared.hook_point is not None:
            yield from absence_violations(scalar.declared.hook_point, self.info, scalar_path)
        if pass_type is PassType.BACKWARD and not scalar.declared.has_backward_pass:
            yield self._does_not_fit(
                scalar, scalar_path, "it has no gradient of its own, so no backward pass"
            )
        elif scalar.declared.needs_objective(pass_type) and not self.has_objective:
            yield FieldViolation(
                scalar_path,
                f"{scalar.value} needs gradients; give a loss or a trace",
                Reason.OBJECTIVE_REQUIRED,
            )
        if scalar is _READ and not self._names_what_is_read():
            yield self._does_not_fit(
                scalar,
                scalar_path,
                "what is read is named by ablations of the gradient at mlp.post_act or at MLP latents, each "
                "of one neuron or latent",
            )

    def _names_what_is_read(self) -> bool:
        """Whether the gradient is set at neurons or MLP latents, one by one."""
        components = [
            one.index.tensor_indices[-1]
            for one in self.ablations
            if specific_hook_point(one.index.hook_point, self.info) in _READ_HOOK_POINTS
            and one.index.pass_type is PassType.BACKWARD
        ]
        return bool(components) and None not in components

    def _component(
        self, scalar: DerivedScalar, index: int, refused: list[FieldViolation], path: str
    ) -> Iterator[FieldViolation]:
        """The component of a scalar whose autoencoder may be among what was refused."""
        has_no_autoencoder = any(one.field == f"{path}.derived_scalar_type" for one in refused)
        size = None if has_no_autoencoder else scalar_axes(scalar, self.info, 0)[-1]
        yield from range_violations(index, size, "component", f"{path}.activation_index")

    def _count(self, count: int, path: str) -> Iterator[FieldViolation]:
        limit = self.limits.max_top_and_bottom_k
        if count < 1:
            yield FieldViolation(path, f"must be 1 or more, not {count}", Reason.OUT_OF_RANGE)
        elif count > limit:
            yield FieldViolation(path, f"{count} is over the limit of {limit}", Reason.K_TOO_LARGE)

    def _normalizer(self, value: float | None, path: str) -> Iterator[FieldViolation]:
        if value is None:
            return
        if not math.isfinite(value):
            yield FieldViolation(path, f"{value} is not a finite number", Reason.NOT_FINITE)
        elif value <= 0:
            yield FieldViolation(path, f"must be above 0, not {value:g}", Reason.OUT_OF_RANGE)

    def _does_not_fit(self, scalar: DerivedScalar, path: str, why: str) -> FieldViolation:
        return FieldViolation(
            path, f"{scalar.value} cannot be asked for here: {why}", Reason.DERIVED_SCALAR_DOES_NOT_FIT
        )
