"""The bodies of requests in the reference's HTTP API: they are read by these models and described by them.

Only shapes and types are checked here; whether values make sense, and what is missing, is for the service to
say, which names all faults at once. Keys that are not known are ignored, as the reference does, and a key
with null is as good as none. Class names are the reference's, as clients made from `/openapi.json` use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgeMethod
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AttentionComponent,
    AttentionTraceType,
    BackwardRule,
    LossName,
    MlpComponent,
    ResidualStreamComponent,
    TokenScoringType,
    ValueType,
)
from tdb_server.gateway.json_faults import NO_TEXT, fault, shortened

ALL = "All"
_NEEDED = "needed"
_MAX_DOWNSTREAM_NODES = 2
"""One makes sense; a second is passed on, so that the service can say why it does not."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise fault(NO_TEXT) from error
    return text


def _whole(value: Any) -> Any:
    """2.0 as 2: some languages write every number with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_encodable)]
Integer = Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1), BeforeValidator(_whole)]
Number = Annotated[float, Field(strict=True)]
"""NaN and the infinities, which Python's JSON has, are left for the service to refuse."""
Boolean = Annotated[bool, Field(strict=True)]
FIRST_FAULT: Any = Field(fail_fast=True)
"""Of many entries only the first fault is named: a body of megabytes may hold a million."""
ItemT = TypeVar("ItemT")
Listed = Annotated[list[ItemT], FIRST_FAULT, Field(max_length=16_384)]
"""How many entries are allowed is for the service to say. More would only cost memory before it can."""
Requested = Annotated[list[ItemT], FIRST_FAULT, Field(max_length=1024)]
"""The same for entries that become large objects."""
_INTEGER: TypeAdapter[int] = TypeAdapter(Integer)


def _one_cell(value: Any) -> Any:
    if isinstance(value, str) and value != ALL:
        raise fault(f'must be a whole number or "{ALL}"')
    return value if value == ALL else _INTEGER.validate_python(value)


CellIndex = Annotated[Literal["All"] | Integer, BeforeValidator(_one_cell)]
"""An index along an axis, or all of it."""


class Body(BaseModel):
    """An object of a request's body; its keys are the fields' names in camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describes needed keys as required and without null, though they are read without."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        for name, value in described["properties"].items():
            value.pop("title", None)
            value.pop("default", None)
            if value.pop(_NEEDED, False):
                described.setdefault("required", []).append(name)
                value |= value.pop("anyOf")[0]
        return schema


def needed() -> Any:
    """A key that no request can do without."""
    return Field(default=None, json_schema_extra={_NEEDED: True})


class PreOrPostAct(Enum):
    """Whether a trace starts before or after the node's nonlinearity."""

    PRE = "pre"
    POST = "post"


class MirroredNodeIndex(Body):
    """One node."""

    node_type: NodeType | None = needed()
    tensor_indices: Listed[Integer] | None = needed()
    layer_index: Integer | None = None
    pass_type: PassType | None = None


class MirroredActivationIndex(Body):
    """Cells of a hook point."""

    activation_location_type: HookPoint | None = needed()
    tensor_indices: Listed[CellIndex] | None = None
    """An index for each axis; those that are left out at the end are "All"."""
    layer_index: Integer | None = None
    pass_type: PassType | None = None


class NodeAblation(Body):
    """Sets a node's activation."""

    node_index: MirroredNodeIndex | None = needed()
    value: Number | None = None
    value_type: ValueType | None = None
    """What is done with the value; left out, the activation is set to it."""


class AblationSpec(Body):
    """Sets activations, or with the backward pass type gradients."""

    index: MirroredActivationIndex | None = needed()
    value: Number | None = None
    value_type: ValueType | None = None
    """What is done with the value; left out, activations are set to it."""
    direction: Listed[Number] | None = None
    """Of value type add: what is added is this, along the last axis, times the value."""


class CircuitNode(Body):
    """A component, at one token or at all."""

    node_type: NodeType | None = needed()
    layer_index: Integer | None = needed()
    token_index: Integer | None = None
    """Left out: the component at every token."""
    component_index: Integer | None = None
    """Which head, neuron or latent; left out, 0."""


class Circuit(Body):
    """Nodes that alone are kept: all others of these types are set to the baseline's, or to 0 without one."""

    node_types: Listed[NodeType] | None = needed()
    nodes: Listed[CircuitNode] | None = None


def _not_here(value: Any) -> None:
    if value is not None:
        hint = "must be null; give the downstream node as downstreamNodeToTrace"
        raise fault(hint, Reason.FIELD_NOT_ALLOWED)


class NodeToTrace(Body):
    """A node to trace."""

    node_index: MirroredNodeIndex | None = needed()
    attention_trace_type: AttentionTraceType | None = None
    downstream_trace_config: Annotated[None, BeforeValidator(_not_here)] = None


def _held_constant(value: bool) -> bool:
    if not value:
        raise fault("a trace holds the scale of the norm it reads through", Reason.FIELD_NOT_ALLOWED)
    return value


def _not_too_deep(value: Any) -> Any:
    key, path, inner = "downstreamTraceConfig", [], value
    while isinstance(inner, Mapping) and inner.get(key) is not None:
        path.append(key)
        if len(path) > _MAX_DOWNSTREAM_NODES:
            raise fault("is nested too deeply", path=path)
        inner = inner[key]
    return value


class MirroredTraceConfig(Body):
    """A node taken as the objective."""

    node_index: MirroredNodeIndex | None = needed()
    attention_trace_type: AttentionTraceType | None = None
    pre_or_post_act: PreOrPostAct | None = None
    detach_layer_norm_scale: (
        Annotated[Boolean, Field(json_schema_extra={"const": True}), AfterValidator(_held_constant)] | None
    ) = None
    downstream_trace_config: MirroredTraceConfig | None = None


class ResidualDirection(Body):
    """A vector at one hook point of the residual stream."""

    place: HookPoint | None = needed()
    layer_index: Integer | None = None
    vector: Annotated[list[Number], FIRST_FAULT, Field(max_length=65_536)] | None = needed()


class LossFnConfig(Body):
    """A loss of one token's logits, or along a direction."""

    name: LossName | None = needed()
    target_tokens: Listed[Text] | None = None
    distractor_tokens: Listed[Text] | None = None
    target_token_ids: Listed[Integer] | None = None
    """Targets that text does not name, by their vocabulary indices, after those given as text."""
    distractor_token_ids: Listed[Integer] | None = None
    """The same for distractors."""
    token_index: Integer | None = None
    """The token at which the loss is taken; left out or -1, the last."""
    target_weights: Listed[Number] | None = None
    """What each target counts; left out, its share of their mean."""
    direction: ResidualDirection | None = None
    """Of the loss called direction: what the residual stream is projected onto."""


class InferenceRequestSpec(Body):
    """How to run a prompt."""

    prompt: Text | None = needed()
    loss_fn_config: LossFnConfig | None = None
    trace_config: Annotated[MirroredTraceConfig | None, BeforeValidator(_not_too_deep)] = None
    ablation_specs: Listed[AblationSpec] | None = None
    activation_index_for_within_layer_grad: MirroredActivationIndex | None = None
    """The latent that attn_write_to_latent_summed_over_heads is about."""
    add_bos: Boolean | None = None
    """Whether the beginning-of-text token stands in front of the prompt; left out, as the tokenizer does."""
    backward_rule: BackwardRule | None = None
    """How gradients go back through what is not linear; left out, by the derivative."""
    attention_pattern_gradients: Boolean | None = None
    """With relp, lets attention patterns pass gradients on."""
    baseline_prompts: Listed[Text] | None = None
    """Prompts of as many tokens to compare with: act times grad and direct effects are of the difference."""
    only_these: Circuit | None = None
    """Nodes that alone are kept. Needs a loss."""


class NodeIdAndDatasets(Body):
    """A component, and the data sets whose records about it are wanted. This server has one at most."""

    dst: Text | None = needed()
    layer_index: Integer | None = needed()
    activation_index: Integer | None = needed()
    datasets: Listed[Text] | None = needed()


class MultipleTopKDerivedScalarsRequestSpec(Body):
    """Asks for the most important nodes."""

    spec_type: Literal["multiple_top_k_derived_scalars_request_spec"] | None = None
    dst_list_by_group_id: Annotated[dict[GroupId, Listed[DerivedScalar]], FIRST_FAULT] | None = needed()
    token_index: Integer | None = None
    top_and_bottom_k: Integer | None = needed()
    pass_type: PassType | None = None
    dimensions_to_keep_for_intermediate_sum: Annotated[Listed[Dimension], Field(min_length=1)] | None = None
    """Left out: the tokens."""
    omit_sums: Boolean | None = None
    """Leaves the sums out: only nodes are wanted."""


class DerivedScalarsRequestSpec(Body):
    """Asks for one component at every token."""

    spec_type: Literal["derived_scalars_request_spec"] | None = None
    dst: DerivedScalar | None = needed()
    layer_index: Integer | None = None
    activation_index: Integer | None = None
    normalize_activations_using_neuron_record: NodeIdAndDatasets | None = None
    """Given: activations are also normalized, by their maximum in the prompt, as there are no records."""
    pass_type: PassType | None = None
    num_top_tokens: Integer | None = None


class DerivedAttentionScalarsRequestSpec(Body):
    """Asks for one attention component for every pair of tokens."""

    spec_type: Literal["derived_attention_scalars_request_spec"] | None = None
    dst: DerivedScalar | None = needed()
    layer_index: Integer | None = needed()
    activation_index: Integer | None = None
    """The head. Not looked at for attn_write_to_latent_summed_over_heads."""
    normalize_activations_using_neuron_record: NodeIdAndDatasets | None = None
    """Changes nothing: scalars are always normalized by their maximum in the prompt."""


class ScoredTokensRequestSpec(Body):
    """Asks for tokens scored against nodes."""

    spec_type: Literal["scored_tokens_request_spec"] | None = None
    token_scoring_type: TokenScoringType | None = needed()
    num_tokens: Integer | None = needed()
    depends_on_spec_name: Text | None = needed()


class TokenPairAttributionRequestSpec(Body):
    """Asks which attended-to tokens excite attention latents."""

    spec_type: Literal["token_pair_attribution_request_spec"] | None = None
    num_tokens_attended_to: Integer | None = needed()
    depends_on_spec_name: Text | None = needed()


class ComponentTotalsRequestSpec(Body):
    """Asks for derived scalars summed over all tokens, by layer and head, and by token if asked."""

    spec_type: Literal["component_totals_request_spec"] | None = None
    derived_scalar_types: Listed[DerivedScalar] | None = needed()
    by_token: Boolean | None = None


class LensRequestSpec(Body):
    """Asks what the model would predict from the residual stream behind the embedding and each layer."""

    spec_type: Literal["lens_request_spec"] | None = needed()
    """Required: no other key shows that this is such a spec."""
    place: HookPoint | None = None
    """Which stream of a layer: resid.post_mlp, which is meant where it is left out, or resid.post_attn."""
    layer_indices: Listed[Integer] | None = None
    """Left out: all. The embedding is always there too."""
    token_indices: Listed[Integer] | None = None
    """Tokens of the prompt, -1 for the last; left out, the last."""
    vocab_tokens: Listed[Text] | None = None
    """Vocabulary tokens whose logits are wanted."""
    vocab_token_ids: Listed[Integer] | None = None
    """More of them, by their vocabulary indices."""
    num_top_tokens: Integer | None = None
    """How many of the likeliest tokens to name; left out, none."""


class ActivationsRequestSpec(Body):
    """Asks for the values of a hook point, or for the gradients there."""

    spec_type: Literal["activations_request_spec"] | None = None
    activation_location_type: HookPoint | None = needed()
    layer_indices: Listed[Integer] | None = None
    """Left out: all that have the hook point."""
    token_indices: Listed[Integer] | None = None
    """Tokens, -1 for the last; of pairs of tokens, those attended from. Left out: all."""
    pass_type: PassType | None = None
    """Values, or with backward the gradients, which need a loss or a trace."""


_SPEC_MODELS: dict[str, type[Body]] = {
    "multiple_top_k_derived_scalars_request_spec": MultipleTopKDerivedScalarsRequestSpec,
    "derived_scalars_request_spec": DerivedScalarsRequestSpec,
    "derived_attention_scalars_request_spec": DerivedAttentionScalarsRequestSpec,
    "scored_tokens_request_spec": ScoredTokensRequestSpec,
    "token_pair_attribution_request_spec": TokenPairAttributionRequestSpec,
    "component_totals_request_spec": ComponentTotalsRequestSpec,
    "lens_request_spec": LensRequestSpec,
    "activations_request_spec": ActivationsRequestSpec,
}
_KEYS_OF_SPECS: dict[str, type[Body]] = {
    "dstListByGroupId": MultipleTopKDerivedScalarsRequestSpec,
    "tokenScoringType": ScoredTokensRequestSpec,
    "numTokensAttendedTo": TokenPairAttributionRequestSpec,
    "derivedScalarTypes": ComponentTotalsRequestSpec,
    "activationLocationType": ActivationsRequestSpec,
}
_SCALARS_OF_PAIRS = {
    scalar.value
    for scalar in DerivedScalar
    if Dimension.ATTENDED_TO_SEQUENCE_TOKENS in scalar.declared.dimensions[1:]
}


def _specific(value: Any) -> Any:
    """A processing spec, of the kind that it says or, where it says none, that its keys show."""
    if not isinstance(value, Mapping):
        return DerivedScalarsRequestSpec.model_validate(value)
    kind = value.get("specType")
    if kind is not None:
        model = _SPEC_MODELS.get(kind) if isinstance(kind, str) else None
        if model is None:
            known = ", ".join(_SPEC_MODELS)
            raise fault(f"{shortened(kind)} is not one of {known}", Reason.UNKNOWN_ENUM_VALUE, ["specType"])
        return model.model_validate(value)
    for key, model in _KEYS_OF_SPECS.items():
        if value.get(key) is not None:
            return model.model_validate(value)
    scalar = value.get("dst")
    if scalar is None:
        raise fault("is needed to tell what is wanted", Reason.FIELD_REQUIRED, ["specType"])
    is_of_pairs = isinstance(scalar, str) and scalar in _SCALARS_OF_PAIRS
    chosen = DerivedAttentionScalarsRequestSpec if is_of_pairs else DerivedScalarsRequestSpec
    return chosen.model_validate(value)


ProcessingRequestSpec = (
    MultipleTopKDerivedScalarsRequestSpec
    | DerivedScalarsRequestSpec
    | DerivedAttentionScalarsRequestSpec
    | ScoredTokensRequestSpec
    | TokenPairAttributionRequestSpec
    | ComponentTotalsRequestSpec
    | LensRequestSpec
    | ActivationsRequestSpec
)


class InferenceSubRequest(Body):
    """A run, and what is wanted from it, by name."""

    inference_request_spec: InferenceRequestSpec | None = needed()
    processing_request_spec_by_name: (
        Annotated[
            dict[Text, Annotated[ProcessingRequestSpec, BeforeValidator(_specific)]],
            FIRST_FAULT,
            Field(max_length=1024),
        ]
        | None
    ) = None
    """What a spec asks for is said by its `specType`, or without one by its keys."""


class BatchedRequest(Body):
    """General requests that share their nodes."""

    inference_sub_requests: Requested[InferenceSubRequest] | None = needed()


class DerivedScalarsRequest(Body):
    """One component at every token."""

    inference_request_spec: InferenceRequestSpec | None = needed()
    derived_scalars_request_spec: DerivedScalarsRequestSpec | None = needed()


class DerivedAttentionScalarsRequest(Body):
    """One attention component for every pair of tokens."""

    inference_request_spec: InferenceRequestSpec | None = needed()
    derived_attention_scalars_request_spec: DerivedAttentionScalarsRequestSpec | None = needed()


class MultipleTopKDerivedScalarsRequest(Body):
    """The most important nodes."""

    inference_request_spec: InferenceRequestSpec | None = needed()
    multiple_top_k_derived_scalars_request_spec: MultipleTopKDerivedScalarsRequestSpec | None = needed()


class TdbRequestSpec(Body):
    """What the viewer's main page asks of one prompt."""

    prompt: Text | None = needed()
    target_tokens: Listed[Text] | None = None
    distractor_tokens: Listed[Text] | None = None
    component_type_for_mlp: MlpComponent | None = None
    component_type_for_attention: AttentionComponent | None = None
    top_and_bottom_k_for_node_table: Integer | None = needed()
    hide_early_layers_when_ablating: Boolean | None = None
    """Leaves nodes before the first ablated layer out of the answers to all of the batch's sub-requests."""
    node_ablations: Listed[NodeAblation] | None = None
    upstream_node_to_trace: NodeToTrace | None = None
    downstream_node_to_trace: NodeToTrace | None = None
    target_token_ids: Listed[Integer] | None = None
    """Targets that text does not name, by their vocabulary indices, after those given as text."""
    distractor_token_ids: Listed[Integer] | None = None
    """The same for distractors."""
    add_bos: Boolean | None = None
    """Whether the beginning-of-text token stands in front of the prompt; left out, as the tokenizer does."""
    component_types_for_residual_stream: Listed[ResidualStreamComponent] | None = None
    """What the residual stream is taken apart into as well; left out, into nothing."""
    backward_rule: BackwardRule | None = None
    """How gradients go back through what is not linear; left out, by the derivative."""
    attention_pattern_gradients: Boolean | None = None
    """With relp, lets attention patterns pass gradients on."""
    loss_fn_config: LossFnConfig | None = None
    """Another objective in place of target and distractor tokens."""
    component_totals: Boolean | None = None
    """Adds sums over all tokens for every layer and head, as componentTotals."""
    omit_token_lists: Boolean | None = None
    """Leaves the lists of tokens of every node out."""
    omit_top_k_sums: Boolean | None = None
    """Leaves the sums of topKComponents out, which have a number per pair of tokens."""
    baseline_prompts: Listed[Text] | None = None
    """Prompts of as many tokens to compare with: act times grad and direct effects are of the difference."""
    only_these: Circuit | None = None
    """Nodes that alone are kept. Not with a traced node."""


class BatchedTdbRequest(Body):
    """Prompts to explain, which share their nodes."""

    sub_requests: Requested[TdbRequestSpec] | None = needed()


class EdgesSubRequest(Body):
    """A prompt whose edges are wanted."""

    prompt: Text | None = needed()
    add_bos: Boolean | None = None
    """Whether the beginning-of-text token stands in front of the prompt; left out, as the tokenizer does."""
    baseline_prompts: Listed[Text] | None = needed()
    """Prompts of as many tokens to compare with."""
    loss_fn_config: LossFnConfig | None = needed()
    """The objective."""
    method: EdgeMethod | None = None
    """Where gradients are taken; left out, at the prompt."""
    steps: Integer | None = None
    """Of eap_ig, how many runs; left out, 5."""
    top_k: Integer | None = None
    """How many edges to list, those of the largest absolute scores."""
    whole_matrix: Boolean | None = None
    """Adds the scores of all edges."""


class EdgesRequest(Body):
    """Prompts whose edges are wanted."""

    sub_requests: Requested[EdgesSubRequest] | None = needed()


class ExistingExplanationsRequest(Body):
    """A component whose explanations are wanted, and where to look for them."""

    dst: Text | None = needed()
    layer_index: Integer | None = needed()
    activation_index: Integer | None = needed()
    explanation_datasets: Listed[Text] | None = None
    neuron_dataset: Text | None = None


class ScoreRequest(NodeIdAndDatasets):
    """An explanation to be scored."""

    explanation: Text | None = needed()
    max_sequences: Integer | None = None
