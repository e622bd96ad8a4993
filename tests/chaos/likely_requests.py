"""Random general requests that are sound, or nearly: every derived scalar, every place, every kind of result.

What is known of shapes and needs comes from the server's own tables. Some requests are still refused, such
as those that set one activation twice; extreme values are part of them.
"""

from __future__ import annotations

import random

from tdb_server.domain.axes import (
    LATENT_TYPES,
    autoencoders_of_hook_point,
    hook_point_axes,
    hook_point_of_scalar,
)
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import NODE_HOOK_POINTS, HookPoint
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import Dimension, NodeType
from tdb_server.domain.spec_relations import kind_of
from tdb_server.service.enum_names import DERIVED_SCALARS, HOOK_POINTS, NODE_TYPES
from transformer_debugger.v1 import (
    ablation_pb2,
    activation_pb2,
    circuit_pb2,
    node_pb2,
    processing_pb2,
    trace_pb2,
)
from transformer_debugger.v1.backward_rule_pb2 import BackwardRule
from transformer_debugger.v1.derived_scalar_pb2 import GroupId
from transformer_debugger.v1.edges_pb2 import EDGE_METHOD_EAP_IG
from transformer_debugger.v1.loss_pb2 import (
    LOSS_FN_NAME_DIRECTION,
    LOSS_FN_NAME_KL_FROM_BASELINE,
    LOSS_FN_NAME_LOGIT_DIFF,
    LossFnConfig,
    LossFnName,
)
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    InferEdgesRequest,
    InferenceSpec,
    InferenceSubRequest,
    InferRequest,
)

PROMPTS = {" the mat": 2, "the cat sat on the": 5, " the" * 8: 8, " the" * 60: 60}
"""With their numbers of tokens."""
VALUES = (0.0, 0.0, 0.0, 1.0, -3.0, 1e-40, 1e30, -1e30, 1e300)
KEPT = (node_pb2.NODE_TYPE_WHOLE_HEAD, node_pb2.NODE_TYPE_WHOLE_MLP)
"""Of circuits."""
LARGE_INDEX = 4
PAIR_PLACES = {HookPoint.ATTN_QK_LOGITS, HookPoint.ATTN_QK_PROBS}
PAIRS_AND_HEAD = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS, Dimension.ATTN_HEADS)
TO_LATENT = DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS
READ = DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION


class LikelyRequests:
    """Makes requests for a model.

    Args:
        chance: what all choices come from.
        info: the model, with the autoencoders that are loaded.
    """

    def __init__(self, chance: random.Random, info: ModelInfo) -> None:
        self._chance = chance
        self._info = info
        unclear = {
            one for one in LATENT_TYPES if len(autoencoders_of_hook_point(one, info)) != 1
        }  # of no dictionary, or of several
        self._places = [one for one in HookPoint if one not in unclear]
        self._scalars = [one for one in DerivedScalar if hook_point_of_scalar(one) not in unclear]
        self._nodes = [one for one, place in NODE_HOOK_POINTS.items() if place not in unclear]

    def request(self) -> InferRequest:
        """One to three sub-requests with prompts of one length."""
        prompt, n_tokens = self._chance.choice(list(PROMPTS.items()))
        n_sub_requests = self._chance.choice((1, 1, 1, 2, 3))
        return InferRequest(
            sub_requests=[self._sub_request(prompt, n_tokens, number) for number in range(n_sub_requests)]
        )

    def _sub_request(self, prompt: str, n_tokens: int, number: int) -> InferenceSubRequest:
        spec = InferenceSpec(prompt=prompt)
        objective = self._chance.random()
        if objective < 0.6:
            spec.loss_fn_config.CopyFrom(self._loss())
        elif objective < 0.9:
            spec.trace_config.CopyFrom(self._trace(n_tokens))
        for _ in range(self._chance.choice((0, 0, 1))):
            spec.baseline_prompts.append(self._chance.choice((prompt, prompt.replace(" the", " of"))))
        if objective < 0.9:
            spec.backward_rule = self._chance.choice((0, 0, *BackwardRule.values()))
        if objective < 0.6 and self._chance.random() < 0.2:
            spec.only_these.CopyFrom(self._circuit(n_tokens))
        for _ in range(self._chance.choice((0, 0, 1, 2))):
            index = self._index(self._chance.choice(self._places), n_tokens, has_objective=objective < 0.9)
            spec.ablation_specs.append(self._ablation(index, has_baseline=bool(spec.baseline_prompts)))
        # Results of the same name would have to be alike in all sub-requests.
        ranking = self._ranking(f"ranking {number}", has_objective=objective < 0.9)
        n_others = self._chance.randrange(4)
        others = [self._other(f"{number}.{other}", ranking.name) for other in range(n_others)]
        return InferenceSubRequest(inference_spec=spec, processing_specs=[ranking, *others])

    def _ablation(
        self, index: activation_pb2.ActivationIndex, *, has_baseline: bool
    ) -> ablation_pb2.AblationSpec:
        ablation = ablation_pb2.AblationSpec(index=index, value=self._chance.choice(VALUES))
        kinds = [ablation_pb2.ABLATION_VALUE_TYPE_SCALE, ablation_pb2.ABLATION_VALUE_TYPE_ADD]
        if has_baseline:
            kinds.append(ablation_pb2.ABLATION_VALUE_TYPE_BASELINE)
        if self._chance.random() < 0.3:
            ablation.value_type = self._chance.choice(kinds)
        if ablation.value_type == ablation_pb2.ABLATION_VALUE_TYPE_BASELINE:
            ablation.ClearField("value")
        return ablation

    def _circuit(self, n_tokens: int) -> circuit_pb2.Circuit:
        kinds = self._chance.sample(KEPT, self._chance.choice((1, 2)))
        circuit = circuit_pb2.Circuit(node_types=kinds)
        for kind in kinds * self._chance.choice((0, 1, 3)):
            node = circuit.nodes.add(node_type=kind, layer_index=self._chance.randrange(self._info.n_layers))
            if kind == node_pb2.NODE_TYPE_WHOLE_HEAD:
                node.component_index = self._chance.randrange(self._info.n_heads)
            if self._chance.random() < 0.5:
                node.token_index = self._chance.randrange(n_tokens)
        return circuit

    def _loss(self) -> LossFnConfig:
        loss = LossFnConfig(name=self._chance.randrange(1, len(LossFnName.values())))
        if self._chance.random() < 0.2:
            loss.token_index = self._chance.choice((-1, 0, 1))
        if loss.name == LOSS_FN_NAME_DIRECTION:
            loss.direction.place = activation_pb2.ACTIVATION_LOCATION_TYPE_RESID_POST_MLP
            loss.direction.layer_index = self._chance.randrange(self._info.n_layers)
            loss.direction.vector.extend([self._chance.choice((1.0, -1e30))] * self._info.d_model)
            return loss
        if loss.name != LOSS_FN_NAME_KL_FROM_BASELINE:
            loss.target_tokens.append(" the")
        if loss.name == LOSS_FN_NAME_LOGIT_DIFF:
            loss.distractor_tokens.extend([" of"] * self._chance.randrange(2))
        return loss

    def _trace(self, n_tokens: int) -> trace_pb2.TraceConfig:
        node_type = self._chance.choice([NodeType.ATTENTION_HEAD, *self._nodes])
        index = self._index(NODE_HOOK_POINTS[node_type], n_tokens, has_objective=False)
        indices = [one.index for one in index.tensor_indices]
        node = node_pb2.NodeIndex(
            node_type=NODE_TYPES.numbers[node_type], layer_index=index.layer_index, tensor_indices=indices
        )
        is_head = node_type is NodeType.ATTENTION_HEAD
        return trace_pb2.TraceConfig(
            node_index=node,
            attention_trace_type=self._chance.randrange(1, 4) if is_head else 0,
            pre_or_post_act=self._chance.randrange(3),
        )

    def _index(
        self, place: HookPoint, n_tokens: int, *, has_objective: bool
    ) -> activation_pb2.ActivationIndex:
        shape = place
        sizes = [min(one, LARGE_INDEX) for one in hook_point_axes(place, self._info, n_tokens)]
        chosen = sorted((self._chance.randrange(size) for size in sizes[:2]), reverse=place in PAIR_PLACES)
        positions = [*chosen, *(self._chance.randrange(size) for size in sizes[2:])]
        if place not in PAIR_PLACES:
            positions = [min(position, size - 1) for position, size in zip(positions, sizes, strict=True)]
        axes = [activation_pb2.TensorIndex(index=position) for position in positions]
        index = activation_pb2.ActivationIndex(
            activation_location_type=HOOK_POINTS.numbers[place],
            tensor_indices=axes,
            pass_type=self._chance.randrange(3) if has_objective else 1,
        )
        if has_objective and self._chance.random() < 0.4:
            index.tensor_indices[0].all = True
        if shape.is_per_layer:
            index.layer_index = self._chance.randrange(self._info.n_layers)
        return index

    def _ranking(self, name: str, *, has_objective: bool) -> processing_pb2.NamedProcessingSpec:
        """Groups of the same derived scalars, no two of which are numbers of the same kind of node."""
        candidates = [one for one in self._scalars if one not in (TO_LATENT, READ)]
        chosen = self._chance.sample(candidates, self._chance.choice((1, 2, 4)))
        scalars = {kind_of(one): one for one in chosen}
        is_backward = has_objective and all(one.declared.has_backward_pass for one in scalars.values())
        named = processing_pb2.NamedProcessingSpec(name=name)
        groups = self._chance.sample(sorted(set(GroupId.values()) - {0}), self._chance.choice((1, 1, 2)))
        for group in groups:
            numbers = [DERIVED_SCALARS.numbers[one] for one in scalars.values()]
            named.multiple_top_k.groups.add(group_id=group, derived_scalar_types=numbers)
        named.multiple_top_k.top_and_bottom_k = self._chance.choice((1, 5, 100))
        named.multiple_top_k.pass_type = self._chance.randrange(3) if is_backward else 1
        kept = self._chance.sample(range(1, 11), self._chance.choice((0, 0, 1, 2)))
        named.multiple_top_k.dimensions_to_keep_for_sum.extend(kept)
        if self._chance.random() < 0.2:
            named.multiple_top_k.token_index = 1
        return named

    def _other(self, name: str, ranking: str) -> processing_pb2.NamedProcessingSpec:
        named = processing_pb2.NamedProcessingSpec(name=name)
        fill = self._chance.choice(
            (
                self._fill_scalars,
                self._fill_attention,
                self._fill_scored_tokens,
                self._fill_pairs,
                self._fill_lens,
                self._fill_activations,
                self._fill_totals,
            )
        )
        fill(named, ranking)
        return named

    def _fill_scalars(self, named: processing_pb2.NamedProcessingSpec, _: str) -> None:
        spec, scalar = named.derived_scalars, self._chance.choice(self._of_shape(2))
        spec.derived_scalar_type = DERIVED_SCALARS.numbers[scalar]
        if scalar.declared.is_per_layer:
            spec.layer_index = self._chance.randrange(self._info.n_layers)
        if self._chance.random() < 0.3:
            spec.normalizer = self._chance.choice((1.0, 1e-300, 1e300))
        if self._chance.random() < 0.3:
            spec.num_top_tokens = self._chance.choice((1, 10, 1000))

    def _fill_attention(self, named: processing_pb2.NamedProcessingSpec, _: str) -> None:
        spec = named.derived_attention_scalars
        spec.derived_scalar_type = DERIVED_SCALARS.numbers[self._chance.choice(self._of_shape(3))]
        spec.layer_index = self._chance.randrange(self._info.n_layers)

    def _fill_scored_tokens(self, named: processing_pb2.NamedProcessingSpec, ranking: str) -> None:
        spec = named.scored_tokens
        spec.depends_on, spec.num_tokens = ranking, self._chance.choice((1, 10, 1000))
        spec.token_scoring_type = self._chance.randrange(1, 5)

    def _fill_pairs(self, named: processing_pb2.NamedProcessingSpec, ranking: str) -> None:
        spec = named.token_pair_attribution
        spec.depends_on, spec.num_tokens_attended_to = ranking, self._chance.choice((1, 3, 100))

    def _fill_lens(self, named: processing_pb2.NamedProcessingSpec, _: str) -> None:
        spec = named.lens
        spec.token_indices.extend(self._chance.choice(([], [-1], [0, 1])))
        spec.layer_indices.extend(self._chance.choice(([], [0], [self._info.n_layers - 1, 0])))
        spec.vocab_tokens.extend(self._chance.choice(([], [" the"], [" of", " the"])))
        if not spec.vocab_tokens or self._chance.random() < 0.5:
            spec.num_top_tokens = self._chance.choice((1, 10, 1000))

    def _fill_activations(self, named: processing_pb2.NamedProcessingSpec, _: str) -> None:
        spec = named.activations
        spec.activation_location_type = HOOK_POINTS.numbers[self._chance.choice(self._places)]
        spec.token_indices.extend(self._chance.choice(([], [-1], [1, 0])))
        spec.pass_type = self._chance.choice((0, 0, node_pb2.PASS_TYPE_BACKWARD))

    def _fill_totals(self, named: processing_pb2.NamedProcessingSpec, _: str) -> None:
        scalars = self._chance.sample([one for one in self._scalars if one.declared.adds_up], 3)
        named.component_totals.derived_scalar_types.extend(DERIVED_SCALARS.numbers[one] for one in scalars)

    def edges(self) -> InferEdgesRequest:
        """One or two prompts whose edges are wanted."""
        prompt = self._chance.choice(list(PROMPTS))
        request = InferEdgesRequest()
        for _ in range(self._chance.choice((1, 1, 2))):
            one = request.sub_requests.add(prompt=prompt, loss_fn_config=self._loss())
            one.baseline_prompts.extend(
                [prompt.replace(" the", " of"), prompt][: self._chance.choice((1, 2))]
            )
            one.whole_matrix = self._chance.random() < 0.5
            if self._chance.random() < 0.5:
                one.method, one.steps = EDGE_METHOD_EAP_IG, self._chance.choice((1, 3))
            if self._chance.random() < 0.5:
                one.top_k = self._chance.choice((1, 1000))
        return request

    def _of_shape(self, n_axes: int) -> list[DerivedScalar]:
        """One number per token and component, or one per token pair and head."""
        shapes = {one: one.declared.dimensions for one in self._scalars}
        if n_axes == 3:
            return [one for one, axes in shapes.items() if axes == PAIRS_AND_HEAD]
        return [one for one, axes in shapes.items() if len(axes) == 2 and one not in (TO_LATENT, READ)]
