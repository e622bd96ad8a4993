"""What is kept of a chat template can be sent to clients."""

from __future__ import annotations

import pytest
from tdb_server.model.chat_template import ChatTemplate, chat_template_entry, read_chat_template

HALF = "\ud800"


@pytest.mark.parametrize("stored", [HALF, {"default": f"a{HALF}"}, 5])
def test_what_is_no_text_is_left_out(stored: object) -> None:
    assert chat_template_entry(stored, {}) == ({}, ["the chat template is no text"])


def test_special_tokens_that_are_no_text_are_left_out() -> None:
    entry, warnings = chat_template_entry(
        "{{ bos_token }}", {"bos_token": "<s>", "eos_token": HALF, "pad": 0}
    )
    assert warnings == []
    assert read_chat_template(entry) == ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"})
