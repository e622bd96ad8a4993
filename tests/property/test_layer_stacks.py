"""Layers may be ranked one by one or several at once, as many as fit: the answers are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import Site
from tdb_server.scalars import layer_stacks

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import answers_of_calls, examples
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import small_autoencoder, small_model

SITES = (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)


@pytest.mark.parametrize("name", ["gpt2-deep-untied", "llama-deep-wide-heads"])
@pytest.mark.parametrize("max_entries", [1, 150])
@examples(5)
@given(data=st.data())
def test_stacks_of_any_size(name: str, max_entries: int, data: st.DataObject) -> None:
    model = small_model(name)
    engine = model.engine(*(small_autoencoder(name, site) for site in SITES))
    wanted = inference_sub_request(data.draw(debug_sub_requests(model.config, n_tokens=4)))
    ((all_at_once,),) = answers_of_calls(engine, [[wanted]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layer_stacks.MAX_ENTRIES, "cpu", max_entries)
        ((in_parts,),) = answers_of_calls(engine, [[wanted]])
    assert_same_answers(all_at_once, in_parts, 1e-12, Nodes.EQUAL)
