"""Python client of the transformer debugger service: why does a language model predict this token?

Start with Client, or AsyncClient for asyncio; `tdb` is the same on the command line. Nodes are made by
`head`, `neuron`, `latent`, `whole_head` and `whole_mlp`, or spelled as tdb_client.nodes says.
tdb_client.errors draws what can go wrong.
"""

from tdb_client.async_client import AsyncClient
from tdb_client.chat import ChatTemplate
from tdb_client.circuit import Circuit, CircuitStep
from tdb_client.circuit_nodes import CircuitNode
from tdb_client.client import Client
from tdb_client.compatibility import ApiVersionWarning
from tdb_client.connection import Tls
from tdb_client.debug_answer import DebugAnswer
from tdb_client.debug_result import DebugResult
from tdb_client.errors import (
    CallError,
    CancelledCallError,
    ChatTemplateError,
    ChecksumError,
    DeadlineError,
    FailedPreconditionError,
    FieldViolation,
    IncompleteResponseError,
    InternalServerError,
    InvalidRequestError,
    InvalidValueError,
    NodeError,
    NotImplementedCallError,
    OlderServerError,
    PermissionDeniedError,
    ResourceExhaustedError,
    ResponseError,
    TdbError,
    UnauthenticatedError,
    UnavailableError,
    UnknownNameError,
    UnreachableError,
)
from tdb_client.events import Event, Finished, ResultReady, Started, Values
from tdb_client.inference import (
    AblationSpec,
    ActivationIndex,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    Loss,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)
from tdb_client.interventions import Ablation, Trace
from tdb_client.model_info import AutoencoderInfo, Limits, ModelInfo
from tdb_client.node_table import LogitTable, NodeTable
from tdb_client.nodes import Node, head, latent, neuron, whole_head, whole_mlp
from tdb_client.requests import DebugSubRequest
from tdb_client.results import (
    AttendedToTokens,
    AttentionTotals,
    CallInfo,
    CircuitValues,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    EstimatedCost,
    GroupResult,
    InferenceResult,
    LabelledArray,
    LossTokens,
    MultipleTopKResult,
    PromptTokens,
    RankedTokens,
    ScoredTokensResult,
    Timings,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_client.token_counting import TokenCountWarning

__all__ = [
    "Ablation",
    "AblationSpec",
    "ActivationIndex",
    "ApiVersionWarning",
    "AsyncClient",
    "AttendedToTokens",
    "AttentionTotals",
    "AutoencoderInfo",
    "CallError",
    "CallInfo",
    "CancelledCallError",
    "ChatTemplate",
    "ChatTemplateError",
    "ChecksumError",
    "Circuit",
    "CircuitNode",
    "CircuitStep",
    "CircuitValues",
    "Client",
    "DeadlineError",
    "DebugAnswer",
    "DebugResult",
    "DebugSubRequest",
    "DerivedAttentionScalarsResult",
    "DerivedAttentionScalarsSpec",
    "DerivedScalarsResult",
    "DerivedScalarsSpec",
    "EstimatedCost",
    "Event",
    "FailedPreconditionError",
    "FieldViolation",
    "Finished",
    "GroupResult",
    "IncompleteResponseError",
    "InferenceResult",
    "InferenceSubRequest",
    "InternalServerError",
    "InvalidRequestError",
    "InvalidValueError",
    "LabelledArray",
    "Limits",
    "LogitTable",
    "Loss",
    "LossTokens",
    "ModelInfo",
    "MultipleTopKResult",
    "MultipleTopKSpec",
    "Node",
    "NodeError",
    "NodeTable",
    "NotImplementedCallError",
    "OlderServerError",
    "PermissionDeniedError",
    "PromptTokens",
    "RankedTokens",
    "ResourceExhaustedError",
    "ResponseError",
    "ResultReady",
    "ScoredTokensResult",
    "ScoredTokensSpec",
    "Started",
    "TdbError",
    "Timings",
    "Tls",
    "TokenCountWarning",
    "TokenPairAttributionResult",
    "TokenPairAttributionSpec",
    "TopTokens",
    "Trace",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownNameError",
    "UnreachableError",
    "Values",
    "head",
    "latent",
    "neuron",
    "whole_head",
    "whole_mlp",
]
