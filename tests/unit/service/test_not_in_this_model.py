"""What other models have and the loaded one has not: places, and cells that a layer's window hides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.errors import FailedPrecondition
from tdb_server.service.model_messages import (
    ablatable_hook_points,
    model_info_message,
    offered_derived_scalars,
)

from tests.unit.service.infer_changes import HEAD, NEURON, ablated, at, traced, wanted, without_loss
from tests.unit.service.tiny_requests import LIMITS, debug, infer, model, node, parse, refused, violations

PARALLEL = replace(model(), family="gpt_neox", absent_hook_points=frozenset({HookPoint.RESID_POST_ATTN}))
SLIDING = replace(model(), family="gemma2", windows=(3, None, 3), attention_cap=50.0, logit_cap=30.0)
INDEX = "sub_requests[0].inference_spec.ablation_specs[0].index"
TRACE = "sub_requests[0].inference_spec.trace_config"
DOWNSTREAM = f"{TRACE}.downstream_trace_config.node_index.layer_index"


def test_a_place_that_is_not_there_is_refused_by_its_name() -> None:
    request = infer(ablated(at(HookPoint.RESID_POST_ATTN, 1, 2, 5)))
    parse(request)
    (found,) = refused(request, PARALLEL)
    assert (found.field, found.reason) == (f"{INDEX}.activation_location_type", "NOT_IN_THIS_MODEL")
    assert found.description == "there is no resid.post_attn in a gpt_neox model such as this one"
    with pytest.raises(FailedPrecondition):
        parse(request, PARALLEL)


@pytest.mark.parametrize("scalar", [DerivedScalar.RESID_POST_ATTN, DerivedScalar.RESID_POST_ATTN_NORM])
def test_so_are_numbers_about_it(scalar: DerivedScalar) -> None:
    request = infer(wanted("one", "derived_scalars", derived_scalar_type=scalar, layer_index=1))
    parse(request)
    (found,) = violations(request, PARALLEL)
    assert found[1] == "NOT_IN_THIS_MODEL"
    assert found[0].endswith("derived_scalars.derived_scalar_type")


def test_what_the_viewer_asks_for_needs_no_such_place() -> None:
    parse(debug(), PARALLEL)


def test_neurons_do_not_come_after_heads_of_their_own_layer_where_both_read_the_same() -> None:
    head = node(HEAD, 1, 4, 2, 0)
    request = infer(without_loss, traced(head, trace_type=4, downstream=node(NEURON, 1, 4, 3)))
    parse(request)
    assert violations(request, PARALLEL) == [(DOWNSTREAM, "DOWNSTREAM_NOT_AFTER_UPSTREAM")]
    parse(infer(without_loss, traced(head, trace_type=4, downstream=node(NEURON, 2, 4, 3))), PARALLEL)


@pytest.mark.parametrize(("layer", "key", "is_hidden"), [(0, 1, True), (0, 2, False), (1, 1, False)])
def test_what_a_window_hides_is_no_node(layer: int, key: int, is_hidden: bool) -> None:
    request = infer(without_loss, traced(node(HEAD, layer, 4, key, 0), trace_type=1))
    if is_hidden:
        path = f"{TRACE}.node_index.tensor_indices"
        assert violations(request, SLIDING) == [(path, "MASKED_ATTENTION_CELL")]
    else:
        parse(request, SLIDING)


def test_the_model_says_what_it_has() -> None:
    assert HookPoint.RESID_POST_ATTN not in ablatable_hook_points(PARALLEL)
    assert HookPoint.RESID_POST_ATTN in ablatable_hook_points(SLIDING)
    assert DerivedScalar.RESID_POST_ATTN not in offered_derived_scalars(PARALLEL)
    message = model_info_message(SLIDING, LIMITS, "1")
    assert (message.attention_logit_cap, message.final_logit_cap) == (50.0, 30.0)
    assert list(message.attention_windows) == [3, 0, 3]
    plain = model_info_message(model(), LIMITS, "1")
    assert not plain.HasField("attention_logit_cap")
    assert not plain.HasField("final_logit_cap")
    assert not plain.attention_windows
