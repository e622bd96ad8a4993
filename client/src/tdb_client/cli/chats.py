"""The prompt that the command line means: as it stands, or what the model's chat template makes of a chat."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tdb_client.chat import Chat
from tdb_client.cli.progress import shown_waiting
from tdb_client.client import Client
from tdb_client.errors import InvalidValueError


def prompts(one: Client, options: argparse.Namespace) -> tuple[str, tuple[str, ...], bool | None]:
    """The prompt, those to compare with, and whether the beginning-of-text token is put in front of them."""
    if not options.chat and options.chat_file is None:
        if options.system is not None or options.reply is not None:
            options.parser.error("--system and --reply are for chats: --chat or --chat-file")
        return options.prompt, tuple(options.baseline), options.add_bos
    if options.chat_file is not None and options.baseline:
        options.parser.error("--baseline is what the user says, for --chat; not with --chat-file")
    chat: Chat = options.prompt if options.chat_file is None else _read(options.chat_file)
    with shown_waiting("asking for the chat template"):
        texts = [
            one.chat_prompt(each, system=options.system) + (options.reply or "")
            for each in (chat, *options.baseline)
        ]
    return texts[0], tuple(texts[1:]), options.add_bos or False


def _read(file: Path) -> Any:
    """The messages in a file, or in what is piped into the command."""
    name = "stdin" if str(file) == "-" else str(file)
    try:
        chat = json.loads(sys.stdin.read() if name == "stdin" else file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot read {name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidValueError("chat", f"{name} cannot be read as JSON: {error}") from None
    if not isinstance(chat, list):
        raise InvalidValueError("chat", f"{name} holds no list of messages")
    return chat
