"""The bodies of answers in the reference's HTTP API, for clients made from `/openapi.json`.

They describe what `json_responses` writes. What is not finite is -999 in lists that the reference has as
well, and null in those that it has not.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgeReaderType, EdgeWriterType
from tdb_server.domain.node import Dimension
from tdb_server.gateway.json_bodies import Body, MirroredNodeIndex


class ErrorMessage(Body):
    """What went wrong."""

    message: str
    """For people."""


class BaselineTokens(Body):
    """A baseline prompt's tokens."""

    tokens_as_ints: list[int]
    tokens_as_strings: list[str]


class CircuitValues(Body):
    """How much of the objective a circuit keeps."""

    objective: float
    objective_of_prompt: float
    objective_of_baseline: float
    faithfulness: float | None
    """Null where the prompt and its baseline have the same objective."""


class InferenceAndTokenData(Body):
    """A run and its prompt's tokens."""

    inference_time: float
    """Seconds of the forward and the backward pass."""
    memory_used_before: float | None
    memory_used_after: float | None
    log: str | None
    loss: float | None
    activation_value_for_backward_pass: float | None
    tokens_as_ints: list[int]
    tokens_as_strings: list[str]
    baselines: list[BaselineTokens] | None = None
    """Given where the request has baseline prompts: act times grad and direct effects are of differences."""
    circuit: CircuitValues | None = None
    """Given where the request keeps a circuit alone."""


class InferenceResponse(Body):
    """A run."""

    inference_and_token_data: InferenceAndTokenData


class TokenAndScalar(Body):
    """A token and a number about it."""

    token: str
    scalar: float
    normalized_scalar: float


class TopTokens(Body):
    """The tokens at both ends of a ranking."""

    top: list[TokenAndScalar]
    bottom: list[TokenAndScalar]


class TensorType(Enum):
    """How many dimensions a tensor has."""

    TENSOR_0D = "tensor_0d"
    TENSOR_1D = "tensor_1d"
    TENSOR_2D = "tensor_2d"
    TENSOR_3D = "tensor_3d"


class Tensor(Body):
    """A number, or numbers in lists of lists."""

    tensor_type: TensorType
    value: Any


class MultipleTopKDerivedScalarsResponseData(Body):
    """The most important nodes: each group's numbers of them, in their order, and sums over all nodes."""

    response_data_type: Literal["multiple_top_k_derived_scalars_response_data"]
    activations_by_group_id: dict[GroupId, list[float]]
    node_indices: list[MirroredNodeIndex]
    vocab_token_strings_for_indices: list[str] | None
    intermediate_sum_activations_by_dst_by_group_id: dict[GroupId, dict[DerivedScalar, Tensor]]


class DerivedScalarsResponseData(Body):
    """One component at every token."""

    response_data_type: Literal["derived_scalars_response_data"]
    activations: list[float]
    normalized_activations: list[float] | None
    node_indices: list[MirroredNodeIndex]
    top_tokens: TopTokens | None


class TokenAndAttentionScalars(Body):
    """A token, and a number for every token up to it, that it attends to."""

    token: str
    scalars: list[float]
    normalized_scalars: list[float]
    total_scalar_in: float
    normalized_total_scalar_in: float
    max_scalar_in: float
    normalized_max_scalar_in: float
    total_scalar_out: float
    normalized_total_scalar_out: float
    max_scalar_out: float
    normalized_max_scalar_out: float


class DerivedAttentionScalarsResponseData(Body):
    """One attention component for every pair of tokens."""

    response_data_type: Literal["derived_attention_scalars_response_data"]
    token_and_attention_scalars_list: list[TokenAndAttentionScalars]


class ScoredTokensResponseData(Body):
    """Tokens of each node of a ranking; null for nodes that have none of the kind."""

    response_data_type: Literal["scored_tokens_response_data"]
    node_indices: list[MirroredNodeIndex]
    top_tokens_list: list[TopTokens | None]


class TopTokensAttendedTo(Body):
    """The attended-to tokens that excite a latent most."""

    token_indices: list[int]
    attributions: list[float]


class TokenPairAttributionResponseData(Body):
    """Attended-to tokens of each node of a ranking; null for all but active attention latents."""

    response_data_type: Literal["token_pair_attribution_response_data"]
    node_indices: list[MirroredNodeIndex]
    top_tokens_attended_to_list: list[TopTokensAttendedTo | None]


class ComponentTotalsResponseData(Body):
    """Derived scalars summed over all tokens: of heads by layer and head, of others by layer."""

    response_data_type: Literal["component_totals_response_data"]
    totals_by_dst: dict[DerivedScalar, Tensor]


Numbers = list[float | None]
"""Null for what is not finite."""


class LensToken(Body):
    """A likely token of a lens."""

    token: str
    token_id: int
    logit: float | None


class LensResponseData(Body):
    """What the model would predict from the residual stream behind the embedding and behind each layer.

    Rows are the embedding, then the layers.
    """

    response_data_type: Literal["lens_response_data"]
    layer_indices: list[int]
    """The layers: of row i + 1 the layer is entry i."""
    token_indices: list[int]
    """The prompt's tokens, from 0."""
    vocab_tokens: list[str]
    """The tokens that were chosen: those given as text first."""
    vocab_token_ids: list[int]
    logits: list[list[Numbers]] | None
    """Their logits, by row, token of the prompt and chosen token. Null where none were chosen."""
    top_tokens: list[list[list[LensToken]]] | None
    """The likeliest tokens, by row and token of the prompt. Null where not asked for."""


class LayerActivations(Body):
    """A hook point's values in one layer."""

    layer_index: int | None
    dimensions: list[Dimension]
    """What each axis runs over; the first, the tokens asked for."""
    activations: list[Any]
    """Numbers in lists of lists, null for those that are not finite."""


class ActivationsResponseData(Body):
    """A hook point's values, by layer."""

    response_data_type: Literal["activations_response_data"]
    token_indices: list[int]
    layers: list[LayerActivations]


class EdgeWriter(Body):
    """Where edges start."""

    writer_type: EdgeWriterType
    layer_index: int | None
    head_index: int | None


class EdgeReader(Body):
    """Where edges lead."""

    reader_type: EdgeReaderType
    layer_index: int | None
    head_index: int | None
    """Of a query, which head; of a key or a value, which key/value head."""


class Edge(Body):
    """A listed edge."""

    writer: int
    """Which entry of the writers it starts from."""
    reader: int
    """Which entry of the readers it leads to."""
    score: float | None
    """In units of the loss; null where it is not finite."""


class EdgesResponseData(Body):
    """Edges between components, largest absolute score first."""

    response_data_type: Literal["edges_response_data"]
    writers: list[EdgeWriter]
    readers: list[EdgeReader]
    writers_before: list[int]
    """Of each reader, how many writers come before it: the first so many."""
    edges: list[Edge]
    scores: list[Numbers] | None
    """Of all pairs, writers by readers; 0 where the writer does not come first. Null where not asked for."""


class InferenceResponseAndResponseDict(Body):
    """A run, and what was wanted from it, by name."""

    inference_response: InferenceResponse
    processing_response_data_by_name: dict[
        str,
        MultipleTopKDerivedScalarsResponseData
        | DerivedScalarsResponseData
        | DerivedAttentionScalarsResponseData
        | ScoredTokensResponseData
        | TokenPairAttributionResponseData
        | ComponentTotalsResponseData
        | LensResponseData
        | ActivationsResponseData
        | EdgesResponseData,
    ]


class BatchedResponse(Body):
    """An answer for each sub-request, in order."""

    inference_sub_responses: list[InferenceResponseAndResponseDict]


class DerivedScalarsResponse(InferenceResponse):
    """A run, and one component at every token."""

    derived_scalars_response_data: DerivedScalarsResponseData


class DerivedAttentionScalarsResponse(InferenceResponse):
    """A run, and one attention component for every pair of tokens."""

    derived_attention_scalars_response_data: DerivedAttentionScalarsResponseData


class MultipleTopKDerivedScalarsResponse(InferenceResponse):
    """A run, and its most important nodes."""

    multiple_top_k_derived_scalars_response_data: MultipleTopKDerivedScalarsResponseData


class ModelInfoResponse(Body):
    """The model and its autoencoders."""

    model_name: str
    has_mlp_autoencoder: bool
    mlp_autoencoder_name: str | None
    has_attention_autoencoder: bool
    attention_autoencoder_name: str | None
    n_layers: int


class NeuronDatasetMetadata(Body):
    """A data set of neuron records: the texts that examples were made from."""

    short_name: str
    derived_scalar_type: str
    user_visible_name: str
    neuron_dataset_path: str


class NeuronRecordResponse(Body):
    """Texts that activate a component of every token."""

    dataset: str
    max_activation: float
    top_activations: list[list[TokenAndScalar]]
    random_sample: list[list[TokenAndScalar]]


class AttentionHeadRecordResponse(Body):
    """Texts that activate a component of every pair of tokens."""

    dataset: str
    max_attention_activation: float
    most_positive_token_sequences: list[list[TokenAndAttentionScalars]]
    random_token_sequences: list[list[TokenAndAttentionScalars]]


class AttributedScoredExplanation(Body):
    """What a language model wrote about a component, and how well it predicts it."""

    explanation: str
    score: float | None
    dataset_name: str


class ExplanationResult(Body):
    """What a language model writes about a component."""

    explanations: list[str]
    dataset: str


class ScoreResult(Body):
    """How well an explanation predicts a component."""

    score: float
    dataset_path: str
