"""The beginning-of-text token: whether a text gets one in front, and when that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tdb_server.domain.reason import Reason
from tdb_server.errors import FieldViolation
from tdb_server.model.tokenizer import Tokenizer


def with_bos(token_ids: Sequence[int], add_bos: bool | None, tokenizer: Tokenizer) -> Sequence[int]:
    """The tokens with the beginning-of-text token in front, where there shall be one; never twice.

    Args:
        token_ids: what the text alone is.
        add_bos: what the request says; None for what the model's own tokenizer does.
        tokenizer: the model's.
    """
    bos = tokenizer.bos_token_id
    wanted = tokenizer.adds_bos if add_bos is None else add_bos
    if not wanted or bos is None or (token_ids and token_ids[0] == bos):
        return token_ids
    return [bos, *token_ids]


def bos_violations(add_bos: bool | None, tokenizer: Tokenizer, path: str) -> Iterator[FieldViolation]:
    """What is wrong with asking for it.

    Args:
        add_bos: as above.
        tokenizer: the model's.
        path: the field.
    """
    if add_bos and tokenizer.bos_token_id is None:
        yield FieldViolation(path, "the model has no beginning-of-text token", Reason.NO_BOS_TOKEN)
