"""Tokens as text that is safe to show: in a terminal's line, in a page, in an error message."""

from __future__ import annotations

from collections.abc import Sequence


def quoted(token: str) -> str:
    """A token in quotes, with what cannot be seen or printed escaped."""
    return repr(token)


def printable(token: str) -> str:
    """A token as it stands in the prompt, with a sign in place of each character that cannot be printed."""
    if token.isprintable():
        return token
    return "".join("⏎" if one == "\n" else one if one.isprintable() else "·" for one in token)


def one_line(text: str) -> str:
    """A text that somebody wrote, in one line, with a sign in place of what cannot be printed."""
    return printable(" ".join(text.split()))


def loss_words(name: str, target: Sequence[str], distractor: Sequence[str]) -> str:
    """A loss in words, of its tokens in words: `logit ' Mary' - ' John'`."""
    targets = ", ".join(target)
    match name:
        case "logit_diff":
            return f"logit {targets} - {', '.join(distractor)}" if distractor else f"logit {targets}"
        case "logit_minus_mean":
            return f"logit {targets} - mean of all"
        case "probs":
            return f"probability {targets}"
        case "log_prob":
            return f"log-probability {targets}"
        case "kl_from_baseline":
            return "KL from the baseline"
        case _:
            return name
