"""The prompt with what each token adds to the objective as colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

from tdb_client.cli.numbers import LOWERS, RAISES, difference
from tdb_client.results import FloatArray
from tdb_client.token_text import printable, quoted

N_NAMED = 4


def coloured_prompt(tokens: Sequence[str], attribution: FloatArray) -> Text:
    """The prompt; the deeper a token's colour, the more it adds or takes away.

    Args:
        tokens: the prompt's tokens [T].
        attribution: what each adds [T].
    """
    largest = float(np.nanmax(np.abs(attribution), initial=0.0)) or 1.0
    line = Text()
    for token, value in zip(tokens, attribution, strict=True):
        line.append(printable(token), _background(float(value) / largest))
    return line


def strongest_tokens(tokens: Sequence[str], attribution: FloatArray) -> Text:
    """The tokens that add or take away most, in words and numbers, for those who see no colours."""
    line = Text()
    for token in np.argsort(-np.abs(attribution), kind="stable")[:N_NAMED]:
        line.append(f"{', ' if line else ''}{quoted(tokens[token])} @ {token}: ")
        line.append_text(difference(float(attribution[token])))
    return line


def _background(share: float) -> Style:
    """White blended into the colour of the sign, with black letters; nothing for the faintest."""
    if not abs(share) >= 0.04:  # nan too
        return Style()
    hue = Color.parse(RAISES if share > 0 else LOWERS).get_truecolor()
    weight = 0.15 + 0.85 * abs(share)
    red, green, blue = (round(255 + (channel - 255) * weight) for channel in hue)
    return Style(color="black", bgcolor=Color.from_rgb(red, green, blue))
