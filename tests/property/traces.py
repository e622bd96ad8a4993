"""Strategies for traces of every kind."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import AttentionTraceType, NodeAblation, Trace
from tdb_server.model.config import DecoderConfig

from tests.property.small_models import N_LATENTS

Q, K, QK, V = (AttentionTraceType[one] for one in ("Q", "K", "QK", "V"))


@st.composite
def traces_of(
    draw: st.DrawFn,
    kind: str,
    config: DecoderConfig,
    n_tokens: int,
    first_layer: int = 0,
    token: int | None = None,
) -> Trace:
    """A trace of one kind: "neuron", "mlp latent", "attention latent", "Q", "K" or "QK".

    Args:
        token: where the node reads the residual stream, if that is given.
    """
    layer = draw(st.integers(first_layer, config.n_layers - 1))
    post_act = draw(st.booleans())
    if kind in ("Q", "K", "QK"):
        head = draw(st.integers(0, config.n_heads - 1))
        reads_key = kind == "K"
        if token is None:
            query = draw(st.integers(0, n_tokens - 1))
            key = draw(st.integers(max(0, query - _window(config, layer) + 1), query))
        elif reads_key:
            key, query = token, draw(st.integers(token, min(n_tokens, token + _window(config, layer)) - 1))
        else:
            query, key = token, draw(st.integers(max(0, token - _window(config, layer) + 1), token))
        node = NodeIndex(NodeType.ATTENTION_HEAD, layer, (query, key, head))
        return Trace(node, AttentionTraceType(kind), post_act)
    at = draw(st.integers(0, n_tokens - 1)) if token is None else token
    node_type, n_components = {
        "neuron": (NodeType.MLP_NEURON, config.n_neurons),
        "mlp latent": (NodeType.MLP_AUTOENCODER_LATENT, N_LATENTS),
        "attention latent": (NodeType.ATTENTION_AUTOENCODER_LATENT, N_LATENTS),
    }[kind]
    index = draw(st.integers(0, n_components - 1))
    return Trace(NodeIndex(node_type, layer, (at, index)), None, post_act)


@st.composite
def value_traces(draw: st.DrawFn, downstream: str | None, config: DecoderConfig, n_tokens: int) -> Trace:
    """A trace through V, of a head whose write the downstream node sees."""
    is_same_layer_enough = downstream in (None, "neuron", "mlp latent")
    layer = draw(st.integers(0, config.n_layers - (1 if is_same_layer_enough else 2)))
    query = draw(st.integers(0, n_tokens - 1)) if downstream else n_tokens - 1
    key = draw(st.integers(max(0, query - _window(config, layer) + 1), query))
    head = draw(st.integers(0, config.n_heads - 1))
    below = None
    if downstream is not None:
        first_layer = layer if is_same_layer_enough else layer + 1
        below = draw(traces_of(downstream, config, n_tokens, first_layer, token=query))
    return Trace(NodeIndex(NodeType.ATTENTION_HEAD, layer, (query, key, head)), V, downstream=below)


def sites_for(kind: str | None, mlp_site: Site) -> Sequence[Site]:
    """The autoencoders that tracing this kind of node needs."""
    return {"mlp latent": [mlp_site], "attention latent": [Site.RESID_DELTA_ATTN]}.get(kind or "", [])


def _window(config: DecoderConfig, layer: int) -> int:
    return config.window_of(layer) or config.context_length


@st.composite
def ablations_of_nodes(
    draw: st.DrawFn, config: DecoderConfig, n_tokens: int, max_size: int = 3, has_latents: bool = True
) -> list[NodeAblation]:
    """Ablations of heads, neurons and latents, none of a cell that another sets."""
    layers, tokens = st.integers(0, config.n_layers - 1), st.integers(0, n_tokens - 1)
    kinds = {NodeType.MLP_NEURON: config.n_neurons, NodeType.ATTENTION_HEAD: config.n_heads}
    if has_latents:
        kinds |= {
            NodeType.MLP_AUTOENCODER_LATENT: N_LATENTS,
            NodeType.ATTENTION_AUTOENCODER_LATENT: N_LATENTS,
        }

    def node(node_type: NodeType) -> st.SearchStrategy[NodeIndex]:
        index = st.integers(0, kinds[node_type] - 1)
        if node_type is NodeType.ATTENTION_HEAD:
            indices = st.tuples(tokens, st.just(0), index)
        else:
            indices = st.tuples(tokens, index)
        return st.builds(NodeIndex, st.just(node_type), layers, indices)

    value = st.just(0.0) | st.floats(-2, 2, width=32)
    ablation = st.builds(NodeAblation, st.sampled_from(list(kinds)).flatmap(node), value)
    return draw(st.lists(ablation, max_size=max_size, unique_by=lambda one: one.node))
