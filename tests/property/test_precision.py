"""float32, in which models are served, gives the numbers of float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import Site

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import EVERY_NODE, answers_of_calls, examples
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import MODELS, small_autoencoder, small_model

SITES = (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)


@pytest.mark.parametrize("name", MODELS)
@examples(6)
@given(data=st.data())
def test_float32_and_float64(name: str, data: st.DataObject) -> None:
    sub_request = data.draw(debug_sub_requests(small_model(name).config, n_tokens=5))
    wanted = inference_sub_request(replace(sub_request, top_and_bottom_k=EVERY_NODE))
    exact, rounded = (
        answers_of_calls(
            small_model(name, dtype).engine(*(small_autoencoder(name, site, dtype=dtype) for site in SITES)),
            [[wanted]],
        )[0][0]
        for dtype in (torch.float64, torch.float32)
    )
    assert_same_answers(exact, rounded, 1e-3, Nodes.NOT_ZERO)
