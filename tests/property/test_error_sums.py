"""Sums of what an autoencoder fails to reconstruct, by its channels: of an MLP's neurons there are more."""

from __future__ import annotations

import numpy as np
import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, PassType
from tdb_server.domain.requests import InferenceSubRequest, LossConfig, LossName, MultipleTopKSpec

from tests.property.requests import answers_of_calls, inference
from tests.property.small_models import small_autoencoder, small_model

TOKENS, CHANNELS = Dimension.SEQUENCE_TOKENS, Dimension.RESIDUAL_STREAM_CHANNELS


@pytest.mark.parametrize("pass_type", list(PassType))
@pytest.mark.parametrize("site", [Site.MLP_POST_ACT, Site.RESID_DELTA_MLP])
def test_kept_channels_add_up_to_kept_tokens(site: Site, pass_type: PassType) -> None:
    error = DerivedScalar.ONLINE_MLP_AUTOENCODER_ERROR
    groups = ((GroupId.SINGLETON, (error,)),)
    specs = {
        str(len(keep)): MultipleTopKSpec(groups, 3, pass_type=pass_type, dimensions_to_keep=keep)
        for keep in ((TOKENS,), (TOKENS, CHANNELS))
    }
    call = [InferenceSubRequest(inference((3, 4, 5), LossConfig(LossName.LOGIT_DIFF, (1,), (2,))), specs)]
    ((answer,),) = answers_of_calls(small_model("gpt2").engine(small_autoencoder("gpt2", site)), [call])
    of_tokens, of_both = (answer.results[name].groups[GroupId.SINGLETON].sums[error] for name in ("1", "2"))
    assert of_both.dimensions == (TOKENS, CHANNELS)
    assert of_both.array.ndim == 2
    np.testing.assert_allclose(of_both.array.sum(axis=1), of_tokens.array, rtol=1e-9)
