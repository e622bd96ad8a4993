"""Calls of every kind: short and long, ablated, traced, of neurons and heads and of latents.

No token stands twice in a prompt, so that no two nodes tie.
"""

from __future__ import annotations

from dataclasses import replace

from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    AttentionTraceType,
    DebugSubRequest,
    InferenceSubRequest,
    MlpComponent,
    NodeAblation,
    Trace,
)

SITES = ("resid_delta_mlp", "resid_delta_attn")
"""The autoencoders that the calls need."""
HEAD = NodeIndex(NodeType.ATTENTION_HEAD, 1, (5, 2, 1))
NEURON = NodeIndex(NodeType.MLP_NEURON, 1, (4, 7))


def question(n_tokens: int, k: int = 64, first_token: int = 3) -> DebugSubRequest:
    """About neurons and heads; with as many `k` as tokens, ties of the embedding leave out none."""
    return DebugSubRequest(
        token_ids=tuple(range(first_token, first_token + n_tokens)),
        target_tokens=(1,),
        distractor_tokens=(2,),
        mlp_component=MlpComponent.NEURON,
        attention_component=AttentionComponent.ATTENTION_HEAD,
        top_and_bottom_k=k,
    )


def of_latents(one: DebugSubRequest) -> DebugSubRequest:
    """The same about latents."""
    return replace(
        one,
        mlp_component=MlpComponent.AUTOENCODER_LATENT,
        attention_component=AttentionComponent.AUTOENCODER_LATENT,
    )


def calls_of_every_kind() -> list[list[InferenceSubRequest]]:
    """Calls that fit the small models of the fixtures."""
    calls = [
        [question(1)],
        [question(6)],
        [question(60)],
        [of_latents(question(20))],
        [replace(question(8), node_ablations=(NodeAblation(HEAD), NodeAblation(NEURON, 0.5)))],
        [replace(question(9), upstream_trace=Trace(NEURON))],
        [of_latents(replace(question(10), upstream_trace=Trace(HEAD, AttentionTraceType.V)))],
        [replace(question(11), upstream_trace=Trace(HEAD, AttentionTraceType.QK))],
        [question(12), replace(question(12, first_token=200), node_ablations=(NodeAblation(HEAD),))],
    ]
    return [[inference_sub_request(one) for one in call] for call in calls]
