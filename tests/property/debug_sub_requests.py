"""A strategy for TDB sub-requests of every kind."""

from __future__ import annotations

from hypothesis import strategies as st
from tdb_server.domain.requests import AttentionComponent, BackwardRule, DebugSubRequest, MlpComponent
from tdb_server.model.config import DecoderConfig

from tests.property.small_models import VOCABULARY_SIZE
from tests.property.traces import ablations_of_nodes, traces_of, value_traces

KINDS = ("neuron", "mlp latent", "attention latent", "Q", "K", "QK")


@st.composite
def debug_sub_requests(draw: st.DrawFn, config: DecoderConfig, n_tokens: int) -> DebugSubRequest:
    """Any components, ablations of nodes of every type, a loss or a trace of any kind, any backward rule.

    An autoencoder of the MLP and one of attention must be loaded. No token stands in a prompt twice, since
    without positions in the embedding its nodes would tie.
    """
    tokens = st.integers(0, VOCABULARY_SIZE - 1)
    target, *distractors = draw(st.lists(tokens, min_size=1, max_size=2, unique=True))
    kinds = st.sampled_from(KINDS)
    trace = (
        st.none()
        | kinds.flatmap(lambda kind: traces_of(kind, config, n_tokens))
        | (st.none() | kinds).flatmap(lambda kind: value_traces(kind, config, n_tokens))
    )
    return DebugSubRequest(
        token_ids=tuple(draw(st.lists(tokens, min_size=n_tokens, max_size=n_tokens, unique=True))),
        target_tokens=(target,),
        distractor_tokens=tuple(distractors),
        mlp_component=draw(st.sampled_from([MlpComponent.NEURON, MlpComponent.AUTOENCODER_LATENT])),
        attention_component=draw(st.sampled_from(AttentionComponent)),
        top_and_bottom_k=draw(st.integers(1, 8)),
        hide_early_layers_when_ablating=draw(st.booleans()),
        node_ablations=tuple(draw(ablations_of_nodes(config, n_tokens))),
        upstream_trace=draw(trace),
        backward_rule=draw(st.sampled_from(BackwardRule)),
        pattern_gradients=draw(st.booleans()),
    )
