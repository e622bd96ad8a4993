"""What was set in a run, as messages: so that an answer says what it is about."""

from __future__ import annotations

from transformer_debugger.v1.ablation_pb2 import AblationSpec as AblationSpecMessage
from transformer_debugger.v1.activation_pb2 import ActivationIndex, TensorIndex

from tdb_server.domain.requests import AblationSpec
from tdb_server.service.enum_names import PASS_TYPES, PLACES


def ablation_message(ablation: AblationSpec) -> AblationSpecMessage:
    """The message for an ablation of cells."""
    index = ablation.index
    return AblationSpecMessage(
        index=ActivationIndex(
            activation_location_type=PLACES.numbers[index.hook_point],
            layer_index=index.layer_index,
            tensor_indices=[
                TensorIndex(all=True) if one is None else TensorIndex(index=one)
                for one in index.tensor_indices
            ],
            pass_type=PASS_TYPES.numbers[index.pass_type],
        ),
        value=ablation.value,
    )
