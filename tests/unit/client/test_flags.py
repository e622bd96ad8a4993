"""Errors of calls in the words of the command line."""

from __future__ import annotations

import pytest
from tdb_client.cli.arguments import parse
from tdb_client.cli.flags import error_text
from tdb_client.errors import FieldViolation, InvalidRequestError, InvalidValueError, NodeError

DEBUG = ["debug", "--prompt", "p", "--target", " Mary", "x y", "--distractor", " John"]
ABLATE = ["--ablate", "l1 HEAD 2@3 → 1 = 2", "L1 head 2 @ 3"]
STREAM = ["--residual-stream", "post_attn_latent", "post_mlp_latent"]
ABLATED = "sub_requests[1].node_ablations"
TRACE = ["trace", "L1 head 2 @ 3->1", "--type", "V", "--downstream", "L7 neuron 3 @ 3", "--prompt", "p"]

LENS = ["lens", "--prompt", "p", "--tokens", " Mary", "x y", "--layers", "0", "99", "--at", "-7"]
PLACE = ["activations", "--prompt", "p", "--place", "mlp_post_act", "--out", "y.npz", "--target", " Mary"]


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        (DEBUG, "sub_requests[0].prompt", "--prompt"),
        (DEBUG, "sub_requests[1].target_tokens[1]", "--target 'x y'"),
        (DEBUG, "sub_requests[0].distractor_tokens[0]", "--distractor ' John'"),
        (DEBUG, "sub_requests[0].top_and_bottom_k", "-k"),
        (DEBUG, "sub_requests[0].component_type_for_mlp", "--mlp"),
        (DEBUG + STREAM, "sub_requests[0].component_types_for_residual_stream", "--residual-stream"),
        (
            DEBUG + STREAM,
            "sub_requests[0].component_types_for_residual_stream[1]",
            "--residual-stream 'post_mlp_latent'",
        ),
        (
            DEBUG + ABLATE,
            "sub_requests[1].node_ablations[0].node_index.layer_index",
            "--ablate 'l1 HEAD 2@3 → 1 = 2'",
        ),
        (
            DEBUG + ABLATE,
            "sub_requests[1].node_ablations[1].node_index.tensor_indices[2]",
            "--ablate 'L1 head 2 @ 3'",
        ),
        (DEBUG + ABLATE, "sub_requests[1].node_ablations[7]", "--ablate"),
        (TRACE, "sub_requests[0].upstream_node_to_trace.node_index.layer_index", "'L1 head 2 @ 3->1'"),
        (TRACE, "sub_requests[0].downstream_node_to_trace.node_index", "--downstream 'L7 neuron 3 @ 3'"),
        (LENS, "sub_requests[0].inference_spec.prompt", "--prompt"),
        (LENS, "sub_requests[0].processing_specs[0].lens.layer_indices[1]", "--layers 99"),
        (LENS, "sub_requests[0].processing_specs[0].lens.token_indices[0]", "--at -7"),
        (LENS, "sub_requests[0].processing_specs[0].lens.vocab_tokens[1]", "--tokens 'x y'"),
        (LENS, "sub_requests[0].processing_specs[0].lens.num_top_tokens", "--top"),
        (PLACE, "sub_requests[0].processing_specs[0].activations.activation_location_type", "--place"),
        (PLACE, "sub_requests[0].inference_spec.loss_fn_config.target_tokens[0]", "--target ' Mary'"),
        ([*DEBUG, "--at", "9"], "sub_requests[0].loss_fn_config.token_index", "--at"),
        (DEBUG, "request_id", "request_id"),
        (DEBUG, "sub_requests[0].what_is_new", "sub_requests[0].what_is_new"),
    ],
)
def test_fields_are_named_as_they_were_typed(arguments: list[str], field: str, words: str) -> None:
    error = InvalidRequestError(
        "INVALID_ARGUMENT", "no", field_violations=(FieldViolation(field, "is wrong"),)
    )
    assert error_text(error, parse(arguments)) == f"{words}: is wrong"


def test_fields_in_descriptions_are_named_as_well_and_nothing_is_said_twice() -> None:
    conflict = "sets what sub_requests[1].node_ablations[0] sets to 2 to 0"
    violations = [
        FieldViolation("sub_requests[0].prompt", "is too long"),
        FieldViolation("sub_requests[1].prompt", "is too long"),
        FieldViolation("sub_requests[1].node_ablations[1]", conflict),
    ]
    error = InvalidRequestError("INVALID_ARGUMENT", "no", field_violations=tuple(violations))
    assert error_text(error, parse(DEBUG + ABLATE)) == (
        "--prompt: is too long; "
        "--ablate 'L1 head 2 @ 3': sets what --ablate 'l1 HEAD 2@3 → 1 = 2' sets to 2 to 0"
    )


def test_errors_of_the_library_are_named_as_well() -> None:
    options = parse(TRACE)
    assert (
        error_text(NodeError("L1 head 2 @ -9: no such token", "trace"), options)
        == "'L1 head 2 @ 3->1': no such token"
    )
    assert error_text(NodeError("alone"), options) == "alone"
    assert error_text(InvalidValueError("token", "has a space"), options) == "--token-file: has a space"
    assert error_text(InvalidValueError("sub_requests[0].k", "is large"), options) == "-k: is large"
