"""Parts of general requests, each as a change to a sound one."""

from __future__ import annotations

from typing import Any

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.service.enum_names import DERIVED_SCALARS, GROUP_IDS, HOOK_POINTS
from transformer_debugger.v1.activation_pb2 import ActivationIndex as ActivationIndexMessage
from transformer_debugger.v1.activation_pb2 import TensorIndex
from transformer_debugger.v1.processing_pb2 import NamedProcessingSpec
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferenceSubRequest

from tests.unit.service.tiny_requests import Change, model

HEAD, NEURON = 1, 4
BACKWARD = 2
ALL = TensorIndex(all=True)
MLP_AUTOENCODER, ATTENTION_AUTOENCODER = model(Site.MLP_POST_ACT), model(Site.RESID_DELTA_ATTN)


def without_loss(message: InferenceSubRequest) -> None:
    message.inference_spec.ClearField("loss_fn_config")


def loss(name: int, targets: tuple[str, ...] = (" the",), distractors: tuple[str, ...] = ()) -> Change:
    def change(message: InferenceSubRequest) -> None:
        config = message.inference_spec.loss_fn_config
        config.Clear()
        config.name = name
        config.target_tokens.extend(targets)
        config.distractor_tokens.extend(distractors)

    return change


def at(
    place: HookPoint, layer: int | None, *indices: int | TensorIndex, pass_type: int = 0
) -> ActivationIndexMessage:
    cells = [one if isinstance(one, TensorIndex) else TensorIndex(index=one) for one in indices]
    return ActivationIndexMessage(
        activation_location_type=HOOK_POINTS.numbers[place],
        layer_index=layer,
        tensor_indices=cells,
        pass_type=pass_type,  # type: ignore[arg-type]
    )


def ablated(index: ActivationIndexMessage, value: float = 0.0) -> Change:
    def change(message: InferenceSubRequest) -> None:
        message.inference_spec.ablation_specs.add(index=index, value=value)

    return change


def traced(node_index: Any, trace_type: int = 0, pre_or_post_act: int = 0, downstream: Any = None) -> Change:
    def change(message: InferenceSubRequest) -> None:
        config = message.inference_spec.trace_config
        config.node_index.CopyFrom(node_index)
        config.attention_trace_type = trace_type  # type: ignore[assignment]
        config.pre_or_post_act = pre_or_post_act  # type: ignore[assignment]
        if downstream is not None:
            config.downstream_trace_config.node_index.CopyFrom(downstream)

    return change


def latent(index: ActivationIndexMessage) -> Change:
    return lambda one: one.inference_spec.activation_index_for_within_layer_grad.CopyFrom(index)


def wanted(name: str, kind: str, **fields: Any) -> Change:
    """Another processing spec. Derived scalars and groups are given as the domain's."""
    if "derived_scalar_type" in fields:
        fields["derived_scalar_type"] = DERIVED_SCALARS.numbers[fields["derived_scalar_type"]]
    if "groups" in fields:
        fields["groups"] = [
            {
                "group_id": GROUP_IDS.numbers[group],
                "derived_scalar_types": [DERIVED_SCALARS.numbers[scalar] for scalar in scalars],
            }
            for group, scalars in fields["groups"]
        ]
    spec = NamedProcessingSpec(name=name, **{kind: fields})  # type: ignore[arg-type]
    return lambda one: one.processing_specs.append(spec)


def ranked(name: str = "top", *groups: tuple[GroupId, list[DerivedScalar]], **fields: Any) -> Change:
    groups = groups or ((GroupId.SINGLETON, [DerivedScalar.MLP_POST_ACT]),)
    return wanted(name, "multiple_top_k", **{"groups": groups, "top_and_bottom_k": 3, **fields})


def one(scalar: DerivedScalar, layer: int | None = 0, **fields: Any) -> Change:
    return wanted("one", "derived_scalars", derived_scalar_type=scalar, layer_index=layer, **fields)


def pairs(scalar: DerivedScalar, layer: int | None = 0, **fields: Any) -> Change:
    return wanted(
        "pairs", "derived_attention_scalars", derived_scalar_type=scalar, layer_index=layer, **fields
    )


def scored(**fields: Any) -> Change:
    return wanted(
        "scored", "scored_tokens", **{"depends_on": "top", "token_scoring_type": 1, "num_tokens": 2, **fields}
    )
