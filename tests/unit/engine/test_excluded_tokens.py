"""Token ids that are excluded stand in no token list; every other list and number stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    DerivedScalarsSpec,
    InferenceSpec,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenScoringType,
)
from tdb_server.domain.results import DerivedScalarsResult, ScoredTokensResult, TopTokens

from tests.property.requests import answer
from tests.property.small_models import VOCABULARY_SIZE, small_model

READ_NEURON = AblationSpec(ActivationIndex(HookPoint.MLP_POST_ACT, 1, (0, 4), PassType.BACKWARD), 1.0)
RUN = InferenceSpec((3, 9, 27), LossConfig(LossName.LOGIT_DIFF, (1,), (2,)), None, (READ_NEURON,))
NODES = MultipleTopKSpec(((GroupId.SINGLETON, (DerivedScalar.MLP_ACT_TIMES_GRAD,)),), 1)
SPECS: dict[str, ProcessingSpec] = {
    "written": ScoredTokensSpec("nodes", TokenScoringType.UPVOTED_OUTPUT_TOKENS, VOCABULARY_SIZE),
    "read": ScoredTokensSpec("nodes", TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP, VOCABULARY_SIZE),
    "of one neuron": DerivedScalarsSpec(DerivedScalar.MLP_POST_ACT, 1, 4, n_top_tokens=VOCABULARY_SIZE),
    "read by one neuron": DerivedScalarsSpec(
        DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, None, 0, n_top_tokens=VOCABULARY_SIZE
    ),
}


def token_lists(name: str, excluded: tuple[int, ...]) -> TopTokens:
    engine = small_model("gpt2").engine(excluded_tokens=excluded)
    result = answer(engine, RUN, nodes=NODES, **{name: SPECS[name]}).results[name]
    if isinstance(result, ScoredTokensResult):
        return result.tokens
    assert isinstance(result, DerivedScalarsResult)
    assert result.top_tokens is not None
    return result.top_tokens


@pytest.mark.parametrize("name", SPECS)
def test_all_other_tokens_are_listed_with_the_same_numbers(name: str) -> None:
    """Scores stay those over the whole vocabulary: its mean counts every token."""
    everything = token_lists(name, ())
    best, worst = int(everything.top_ids[0, 0]), int(everything.bottom_ids[0, 0])
    found = token_lists(name, (best, worst))
    for ids, scores, all_ids, all_scores in (
        (found.top_ids, found.top_scalars, everything.top_ids, everything.top_scalars),
        (found.bottom_ids, found.bottom_scalars, everything.bottom_ids, everything.bottom_scalars),
    ):
        is_kept = ~np.isin(all_ids[0], (best, worst))
        assert is_kept.sum() == VOCABULARY_SIZE - 2
        np.testing.assert_array_equal(ids[0], all_ids[0][is_kept])
        np.testing.assert_allclose(scores[0], all_scores[0][is_kept], rtol=1e-6)


def test_logits_are_ranked_with_excluded_tokens() -> None:
    logits = MultipleTopKSpec(((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), 3, token_index=2)
    excluded, everything = (
        answer(small_model("gpt2").engine(excluded_tokens=ids), RUN, logits=logits).top_k("logits").nodes
        for ids in (tuple(range(VOCABULARY_SIZE - 1)), ())
    )
    assert excluded == everything
