"""What a run's loss measures, in words, once its tokens are known."""

from __future__ import annotations

from collections.abc import Sequence

from tdb_client.inference import Loss, Token
from tdb_client.results import LossTokens
from tdb_client.token_text import loss_words, quoted


def objective_words(loss: Loss, found: LossTokens | None) -> str:
    """The loss with its tokens and where it is taken: `logit ' Mary' - ' John'`, `probability ' on' @ 2`.

    Args:
        loss: as it was asked for.
        found: its tokens as the server has answered them; None where it has not.
    """
    words = loss_words(loss.name, target_words(loss, found), distractor_words(loss, found))
    if loss.direction is not None:
        layer = "" if loss.direction.layer is None else f"L{loss.direction.layer} "
        words = f"{layer}{loss.direction.place} along a direction"
    weighted = "weighted " if loss.target_weights else ""
    at = "" if loss.token in (None, -1) else f" @ {loss.token}"
    return f"{weighted}{words}{at}"


def target_words(loss: Loss, found: LossTokens | None) -> list[str]:
    """Each target in quotes; those asked for by number with that: `' Mary' (token 5335)`."""
    return _words(loss.target, *((found.target_ids, found.targets) if found else ((), ())))


def distractor_words(loss: Loss, found: LossTokens | None) -> list[str]:
    """The same of the distractors."""
    return _words(loss.distractor, *((found.distractor_ids, found.distractors) if found else ((), ())))


def _words(tokens: Sequence[Token], answered_ids: Sequence[int], answered: Sequence[str]) -> list[str]:
    texts = dict(zip(answered_ids, answered, strict=True))
    return [
        quoted(one)
        if isinstance(one, str)
        else f"{quoted(texts[one])} (token {one})"
        if one in texts
        else f"token {one}"
        for one in tokens
    ]
