"""Prompts of one and two tokens are answered like any other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import AttentionComponent, DebugSubRequest, MlpComponent
from tdb_server.domain.results import MultipleTopKResult

from tests.property.requests import answers_of_calls, examples, prompts
from tests.property.small_models import MODELS, TOP_K, VOCABULARY_SIZE, small_autoencoder, small_model


@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(
    token_ids=prompts(1, 2),
    mlp=st.sampled_from([MlpComponent.NEURON, MlpComponent.AUTOENCODER_LATENT]),
    attention=st.sampled_from(AttentionComponent),
    top_k=st.sampled_from([None, TOP_K]),
)
def test_every_named_result(
    name: str,
    token_ids: tuple[int, ...],
    mlp: MlpComponent,
    attention: AttentionComponent,
    top_k: int | None,
) -> None:
    sites = (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)
    engine = small_model(name).engine(*(small_autoencoder(name, site, top_k) for site in sites))
    wanted = inference_sub_request(DebugSubRequest(token_ids, (1,), (2,), mlp, attention, 10))
    ((found,),) = answers_of_calls(engine, [[wanted]])
    assert found.results.keys() == wanted.processing.keys()
    nodes = found.top_k("topKComponents").nodes
    assert len({node.node_type for node in nodes}) == 3
    assert all(max(node.tensor_indices[:-1]) < len(token_ids) for node in nodes)
    assert len(found.top_k("topOutputTokenLogits").nodes) == VOCABULARY_SIZE
    for result in found.results.values():
        if isinstance(result, MultipleTopKResult):
            for group in result.groups.values():
                assert np.isfinite(group.activations).all()
                assert all(np.isfinite(total.array).all() for total in group.sums.values())
