"""The chat template of a model: how a chat is written as one text.

Nothing here runs it. It is kept as it stands, for clients, with the texts of the tokens that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tdb_server.errors import ModelBroken
from tdb_server.model.json_file import is_text

MAX_TEMPLATE_BYTES = 256 * 1024
"""Of those that are kept. The longest of real models have 20,000."""
MAX_SPECIAL_TOKENS_BYTES = 64 * 1024
"""Of all that have a name, with their names: they travel with every description of the model."""
_DEFAULT = "default"
_ENTRY = "chat_template"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template.

    Attributes:
        source: in Jinja's language.
        special_tokens: texts of tokens, by the names under which templates know them, such as `bos_token`.
    """

    source: str
    special_tokens: Mapping[str, str]


def chat_template_entry(
    stored: object, special_tokens: Mapping[str, object]
) -> tuple[dict[str, object], list[str]]:
    """What is kept in a tokenizer's configuration, and warnings about what is not.

    Args:
        stored: what the model has: a template, several by name, of which the one named default counts, or
            None.
        special_tokens: texts of tokens by name; what is no text is left out.
    """
    template = stored.get(_DEFAULT) if isinstance(stored, Mapping) else stored
    if template is None:
        others = ", ".join(sorted(map(str, stored))) if isinstance(stored, Mapping) else ""
        return {}, [f"of the chat templates {others} none is named {_DEFAULT}"] if others else []
    if not is_text(template):
        return {}, ["the chat template is no text"]
    if len(template.encode()) > MAX_TEMPLATE_BYTES:
        return {}, [f"the chat template has more than {MAX_TEMPLATE_BYTES} bytes"]
    texts = {name: text for name, text in special_tokens.items() if is_text(text)}
    return {_ENTRY: {"source": template, "special_tokens": texts}}, []


def refuse_long_special_tokens(path: Path, special_tokens: Mapping[str, object]) -> None:
    """Counts the bytes of special tokens.

    Args:
        path: the file or folder they are from.
        special_tokens: texts of tokens by name; what is no text is not sent.

    Raises:
        ModelBroken: they are too many to travel.
    """
    n_bytes = {
        name: len(name.encode()) + len(text.encode())
        for name, text in special_tokens.items()
        if is_text(name) and is_text(text)
    }
    if sum(n_bytes.values()) > MAX_SPECIAL_TOKENS_BYTES:
        longest = max(n_bytes, key=lambda name: n_bytes[name])
        raise ModelBroken(
            f"{path}: special tokens of more than {MAX_SPECIAL_TOKENS_BYTES} bytes in all; the longest, "
            f"{longest}, has {n_bytes[longest]}"
        )


def read_chat_template(configuration: Mapping[str, object]) -> ChatTemplate | None:
    """What `chat_template_entry` made and was put into a configuration; None where there is none."""
    match configuration.get(_ENTRY):
        case {"source": str(source), "special_tokens": dict(special_tokens)}:
            return ChatTemplate(source, special_tokens)
    return None
