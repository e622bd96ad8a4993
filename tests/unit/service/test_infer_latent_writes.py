"""Attention's writes to a latent: what they stand for, and when they are refused."""

from __future__ import annotations

import pytest
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.requests import ActivationIndex
from transformer_debugger.v1.activation_pb2 import ActivationIndex as ActivationIndexMessage

from tests.unit.service.infer_changes import (
    ALL,
    ATTENTION_AUTOENCODER,
    BACKWARD,
    MLP_AUTOENCODER,
    at,
    latent,
    pairs,
)
from tests.unit.service.tiny_requests import infer, model, parse, violations

SPEC = "processing_specs[0]"
PAIRS = f"{SPEC}.derived_attention_scalars"
TO_LATENT = pairs(DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, 2)
LATENT_INDEX = "inference_spec.activation_index_for_within_layer_grad"
GENERIC, MLP_LATENT = HookPoint.ONLINE_AUTOENCODER_LATENT, HookPoint.ONLINE_MLP_AUTOENCODER_LATENT


def test_attention_writes_to_a_latent() -> None:
    (found,) = parse(infer(latent(at(GENERIC, 2, ALL, 69)), TO_LATENT), ATTENTION_AUTOENCODER)
    assert found.inference.within_layer_gradient == ActivationIndex(GENERIC, 2, (None, 69))


def test_with_both_autoencoders_the_plain_place_is_attentions() -> None:
    both = model(Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)
    (found,) = parse(infer(latent(at(GENERIC, 2, ALL, 69)), TO_LATENT), both)
    specific = HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT
    assert found.inference.within_layer_gradient == ActivationIndex(specific, 2, (None, 69))


def test_the_components_index_is_not_looked_at() -> None:
    """The latent is that of the within-layer gradient; clients send it as the index again, or anything."""
    wanted = pairs(DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, 2, activation_index=5000)
    (found,) = parse(infer(latent(at(GENERIC, 2, ALL, 69)), wanted), ATTENTION_AUTOENCODER)
    assert found.inference.within_layer_gradient == ActivationIndex(GENERIC, 2, (None, 69))


@pytest.mark.parametrize(
    ("index", "info", "expected"),
    [
        (
            at(HookPoint.MLP_POST_ACT, 2, ALL, 6),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.activation_location_type", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(MLP_LATENT, 2, ALL, 6),
            MLP_AUTOENCODER,
            [(f"{LATENT_INDEX}.activation_location_type", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(GENERIC, 2, ALL, 6),
            model(),
            [(f"{LATENT_INDEX}.activation_location_type", "AUTOENCODER_NOT_LOADED")],
        ),
        (
            at(GENERIC, 2, 1, 6),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.tensor_indices[0]", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(GENERIC, 2, ALL, ALL),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.tensor_indices[1]", "FIELD_REQUIRED")],
        ),
        (
            at(GENERIC, 2, ALL, 96),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.tensor_indices[1]", "TENSOR_INDEX_OUT_OF_RANGE")],
        ),
        (
            at(GENERIC, 2, ALL, 6, pass_type=BACKWARD),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.pass_type", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(GENERIC, 1, ALL, 6),
            ATTENTION_AUTOENCODER,
            [(f"{PAIRS}.layer_index", "DERIVED_SCALAR_DOES_NOT_FIT")],
        ),
    ],
)
def test_what_is_no_latent_to_write_to(
    index: ActivationIndexMessage, info: ModelInfo, expected: list[tuple[str, str]]
) -> None:
    found = violations(infer(latent(index), TO_LATENT), info)
    assert found == [(f"sub_requests[0].{field}", reason) for field, reason in expected]
