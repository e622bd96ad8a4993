"""float32, in which models are served, gives the numbers of float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import LossConfig

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.plain_edits import loss_value
from tests.property.requests import (
    answer,
    answers_of_calls,
    examples,
    inference,
    losses,
    of_every_node,
    prompts,
)
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import MODELS, small_autoencoder, small_model

SITES = (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)


@pytest.mark.parametrize("name", MODELS)
@examples(6)
@given(data=st.data())
def test_float32_and_float64(name: str, data: st.DataObject) -> None:
    sub_request = data.draw(debug_sub_requests(small_model(name).config, n_tokens=5))
    wanted = of_every_node(inference_sub_request(sub_request))
    exact, rounded = (
        answers_of_calls(
            small_model(name, dtype).engine(*(small_autoencoder(name, site, dtype=dtype) for site in SITES)),
            [[wanted]],
        )[0][0]
        for dtype in (torch.float64, torch.float32)
    )
    assert_same_answers(exact, rounded, 1e-3, Nodes.NOT_ZERO)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-deep-untied"])
@examples(10)
@given(token_ids=prompts(), loss=losses())
def test_no_step_on_the_way_to_a_loss_is_narrower(
    name: str, token_ids: tuple[int, ...], loss: LossConfig
) -> None:
    """Only rotary positions are float32 in every model, and this family has none."""
    model = small_model(name)
    logits = model.plain.run(token_ids)[HookPoint.LOGITS, None]
    expected = loss_value(loss, logits, model.plain.logit_cap).item()
    assert answer(model.engine(), inference(token_ids, loss)).loss == pytest.approx(expected, rel=1e-11)
