"""Enums of the wire and of the domain, matched by name.

The wire's names carry a prefix and an UNSPECIFIED zero; what is left is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Generic, TypeVar

from transformer_debugger.v1 import (
    activation_pb2,
    call_pb2,
    derived_scalar_pb2,
    loss_pb2,
    model_service_pb2,
    node_pb2,
    processing_pb2,
    trace_pb2,
    transformer_debugger_service_pb2,
)

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import KernelOutcome, Site
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.priority import Priority
from tdb_server.domain.requests import (
    AttentionComponent,
    AttentionTraceType,
    LossName,
    MlpComponent,
    TokenScoringType,
)

MemberT = TypeVar("MemberT", bound=Enum)
NumberT = TypeVar("NumberT", bound=int)


class EnumNames(Generic[MemberT, NumberT]):
    """One enum's members in the domain and their numbers on the wire.

    Args:
        items: the wire's names and numbers.
        prefix: what the wire's names begin with.
        members: the domain's enum.
    """

    def __init__(self, items: Iterable[tuple[str, NumberT]], prefix: str, members: type[MemberT]) -> None:
        by_name = dict(items)
        self.type = members
        self.unspecified = by_name[f"{prefix}_UNSPECIFIED"]
        self.numbers: dict[MemberT, NumberT] = {one: by_name[f"{prefix}_{one.name}"] for one in members}
        self.members: dict[int, MemberT] = {number: member for member, number in self.numbers.items()}

    def number(self, member: MemberT | None) -> NumberT:
        """The wire's number of a member; UNSPECIFIED for None."""
        return self.unspecified if member is None else self.numbers[member]


NODE_TYPES = EnumNames(node_pb2.NodeType.items(), "NODE_TYPE", NodeType)
PASS_TYPES = EnumNames(node_pb2.PassType.items(), "PASS_TYPE", PassType)
PLACES = EnumNames(activation_pb2.ActivationLocationType.items(), "ACTIVATION_LOCATION_TYPE", HookPoint)
DIMENSIONS = EnumNames(activation_pb2.Dimension.items(), "DIMENSION", Dimension)
DERIVED_SCALARS = EnumNames(
    derived_scalar_pb2.DerivedScalarType.items(), "DERIVED_SCALAR_TYPE", DerivedScalar
)
GROUP_IDS = EnumNames(derived_scalar_pb2.GroupId.items(), "GROUP_ID", GroupId)
LOSS_NAMES = EnumNames(loss_pb2.LossFnName.items(), "LOSS_FN_NAME", LossName)
ATTENTION_TRACE_TYPES = EnumNames(
    trace_pb2.AttentionTraceType.items(), "ATTENTION_TRACE_TYPE", AttentionTraceType
)
TOKEN_SCORING_TYPES = EnumNames(
    processing_pb2.TokenScoringType.items(), "TOKEN_SCORING_TYPE", TokenScoringType
)
MLP_COMPONENTS = EnumNames(
    transformer_debugger_service_pb2.ComponentTypeForMlp.items(), "COMPONENT_TYPE_FOR_MLP", MlpComponent
)
ATTENTION_COMPONENTS = EnumNames(
    transformer_debugger_service_pb2.ComponentTypeForAttention.items(),
    "COMPONENT_TYPE_FOR_ATTENTION",
    AttentionComponent,
)
SITES = EnumNames(model_service_pb2.AutoencoderSite.items(), "AUTOENCODER_SITE", Site)
KERNEL_OUTCOMES = EnumNames(model_service_pb2.KernelOutcome.items(), "KERNEL_OUTCOME", KernelOutcome)
PRIORITIES = EnumNames(call_pb2.Priority.items(), "PRIORITY", Priority)
