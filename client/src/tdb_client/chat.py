"""Chats as the text that the model reads: messages, put through the model's own chat template.

The template comes from the server, with the model's description, and is run here, as a template alone can be:
in Jinja's sandbox, on plain data. Templates are written for Hugging Face's transformers, so what they find
here is what they find there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from tdb_client.errors import ChatTemplateError, InvalidValueError

Message = Mapping[str, object]
"""A message of a chat, as transformers and most services have it: `{"role": "user", "content": "Hello"}`."""

Chat = str | Sequence[Message]
"""Messages; a text stands for one message of the user."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a model's chats are written as one text.

    Attributes:
        source: in Jinja's language.
        special_tokens: texts of tokens by the names under which templates know them, such as `bos_token`.
    """

    source: str
    special_tokens: Mapping[str, str]


def chats(words: str | Sequence[Chat]) -> list[Chat]:
    """Several chats; a text stands for one of them."""
    return [words] if isinstance(words, str) else list(words)


def messages(chat: Chat, system: str | None = None) -> list[dict[str, Any]]:
    """The messages of a chat, as data that a template can do no harm with.

    Args:
        chat: a text, or messages.
        system: what a system message in front of them says; None for none.

    Raises:
        InvalidValueError: something is no message, or there are two system messages.
    """
    given = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
    if not given:
        raise InvalidValueError("chat", "has no message")
    for i, message in enumerate(given):
        _check(message, f"chat[{i}]")
    if system is not None:
        if any(one["role"] == "system" for one in given):
            raise InvalidValueError("system", "the chat has a system message already")
        given = [{"role": "system", "content": system}, *given]
    try:
        copied: list[dict[str, Any]] = json.loads(json.dumps([dict(one) for one in given]))
    except (TypeError, ValueError) as error:
        raise InvalidValueError("chat", f"holds what JSON cannot: {error}") from None
    return copied


def _check(message: object, path: str) -> None:
    if not isinstance(message, Mapping):
        raise InvalidValueError(path, 'is no message such as {"role": "user", "content": "Hello"}')
    if not isinstance(message.get("role"), str):
        raise InvalidValueError(f"{path}.role", "must be a text, such as user")
    # A template writes nothing, and says nothing, where a message lacks what it looks for.
    if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
        raise InvalidValueError(f"{path}.content", "must be a text, or a list of parts")


def chat_prompt(template: ChatTemplate, chat: Sequence[Mapping[str, Any]]) -> str:
    """The text of a chat, up to where the model's answer begins.

    Args:
        template: the model's.
        chat: as `messages` makes it.

    Raises:
        ChatTemplateError: jinja2 is not installed, or the template is broken or refuses the messages.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ChatTemplateError(
            "chat templates need jinja2: pip install 'transformer-debugger-client[chat]'"
        ) from error

    class GenerationMarks(Extension):
        """`{% generation %}` marks what the model has written, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(reason: object) -> NoReturn:
        raise TemplateError(str(reason))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarks, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().astimezone().strftime(str(form)),
    }
    try:
        return environment.from_string(template.source).render(
            **template.special_tokens,
            messages=chat,
            tools=None,
            documents=None,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise ChatTemplateError(f"the model's chat template refuses this chat: {error}") from error
    except Exception as error:  # whatever a program raises that somebody else wrote
        raise ChatTemplateError(
            f"the model's chat template fails on this chat: {type(error).__name__}: {error}"
        ) from error
