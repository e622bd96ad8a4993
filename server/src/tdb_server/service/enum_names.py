"""Enums of the wire and of the domain, matched by name.

The wire's names carry a prefix and an UNSPECIFIED zero; what is left is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Generic, TypeVar

from transformer_debugger.v1 import (
    ablation_pb2,
    activation_pb2,
    backward_rule_pb2,
    call_pb2,
    derived_scalar_pb2,
    edges_pb2,
    loss_pb2,
    model_service_pb2,
    node_pb2,
    processing_pb2,
    trace_pb2,
)
from transformer_debugger.v1 import transformer_debugger_service_pb2 as debugger_pb2

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgeMethod, EdgeReaderType, EdgeWriterType
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import KernelOutcome, Site
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.priority import Priority
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

MemberT = TypeVar("MemberT", bound=Enum)
NumberT = TypeVar("NumberT", bound=int)


class EnumNames(Generic[MemberT, NumberT]):
    """One enum's members in the domain and their numbers on the wire.

    Args:
        items: the wire's names and numbers, UNSPECIFIED first.
        members: the domain's enum.
    """

    def __init__(self, items: Sequence[tuple[str, NumberT]], members: type[MemberT]) -> None:
        by_name = dict(items)
        zero, self.unspecified = items[0]
        self.numbers: dict[MemberT, NumberT] = {
            one: by_name[zero.replace("UNSPECIFIED", one.name)] for one in members
        }
        self.members: dict[int, MemberT] = {number: member for member, number in self.numbers.items()}

    def number(self, member: MemberT | None) -> NumberT:
        """The wire's number of a member; UNSPECIFIED for None."""
        return self.unspecified if member is None else self.numbers[member]


NODE_TYPES = EnumNames(node_pb2.NodeType.items(), NodeType)
VALUE_TYPES = EnumNames(ablation_pb2.AblationValueType.items(), ValueType)
PASS_TYPES = EnumNames(node_pb2.PassType.items(), PassType)
HOOK_POINTS = EnumNames(activation_pb2.ActivationLocationType.items(), HookPoint)
DIMENSIONS = EnumNames(activation_pb2.Dimension.items(), Dimension)
DERIVED_SCALARS = EnumNames(derived_scalar_pb2.DerivedScalarType.items(), DerivedScalar)
GROUP_IDS = EnumNames(derived_scalar_pb2.GroupId.items(), GroupId)
EDGE_METHODS = EnumNames(edges_pb2.EdgeMethod.items(), EdgeMethod)
EDGE_WRITER_TYPES = EnumNames(edges_pb2.EdgeWriterType.items(), EdgeWriterType)
EDGE_READER_TYPES = EnumNames(edges_pb2.EdgeReaderType.items(), EdgeReaderType)
LOSS_NAMES = EnumNames(loss_pb2.LossFnName.items(), LossName)
ATTENTION_TRACE_TYPES = EnumNames(trace_pb2.AttentionTraceType.items(), AttentionTraceType)
BACKWARD_RULES = EnumNames(backward_rule_pb2.BackwardRule.items(), BackwardRule)
TOKEN_SCORING_TYPES = EnumNames(processing_pb2.TokenScoringType.items(), TokenScoringType)
MLP_COMPONENTS = EnumNames(debugger_pb2.ComponentTypeForMlp.items(), MlpComponent)
ATTENTION_COMPONENTS = EnumNames(debugger_pb2.ComponentTypeForAttention.items(), AttentionComponent)
RESIDUAL_STREAM_COMPONENTS = EnumNames(
    debugger_pb2.ComponentTypeForResidualStream.items(), ResidualStreamComponent
)
SITES = EnumNames(model_service_pb2.AutoencoderSite.items(), Site)
KERNEL_OUTCOMES = EnumNames(model_service_pb2.KernelOutcome.items(), KernelOutcome)
PRIORITIES = EnumNames(call_pb2.Priority.items(), Priority)
