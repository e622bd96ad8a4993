"""Chats: messages that become a prompt, on the library's side and on the command line."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tdb_client import AsyncClient, ChatTemplate, ChatTemplateError, Client, InvalidValueError
from tdb_client.chat import chat_prompt, messages
from tdb_client.cli import main

from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
FROM = "<s>[user]Hello[answer]"


def render(source: str, chat: Any = "Hello", **special: str) -> str:
    return chat_prompt(ChatTemplate(source, special), messages(chat))


@pytest.mark.parametrize(
    ("chat", "system", "prompt"),
    [
        ("Hello", None, FROM),
        ("Hello", "Be brief.", "<s>[system]Be brief.[user]Hello[answer]"),
        (TALK, None, "<s>[user]Hello[assistant]Hi[user]Bye[answer]"),
    ],
)
def test_the_template_makes_the_prompt(fake: Fake, chat: Any, system: str | None, prompt: str) -> None:
    with Client(fake[0]) as client:
        assert client.chat_prompt(chat, system=system) == prompt


@pytest.mark.parametrize(
    ("prompt", "chat"), [("Hello", True), ([{"role": "user", "content": "Hello"}], False)]
)
async def test_debug_sends_the_text_without_another_beginning(fake: Fake, prompt: Any, chat: bool) -> None:
    fake[1].adds_bos = True
    with Client(fake[0]) as client:
        result = client.debug(prompt, " Mary", chat=chat)
    async with AsyncClient(fake[0]) as other:
        await other.debug(prompt, " Mary", chat=chat)
    sent = [one.sub_requests[0] for one in fake[1].requests if hasattr(one, "sub_requests")]
    assert len(sent) == 2
    for one in sent:
        assert one.prompt == FROM
        assert one.HasField("add_bos")
        assert not one.add_bos
    assert result.request.prompt == FROM  # so that the report asks for the same


def test_what_is_asked_for_outright_is_sent(fake: Fake) -> None:
    with Client(fake[0]) as client:
        client.debug("Hello", " Mary", chat=True, add_bos=True)
        client.debug("Hello", " Mary")
    chat, plain = (one.sub_requests[0] for one in fake[1].requests if hasattr(one, "sub_requests"))
    assert chat.add_bos
    assert plain.prompt == "Hello"
    assert not plain.HasField("add_bos")


@pytest.mark.parametrize(
    ("chat", "system", "path"),
    [
        ([], None, "chat"),
        (["Hello"], None, "chat[0]"),
        ([TALK[0], {"content": "Hello"}], None, "chat[1].role"),
        ([{"role": "user"}], None, "chat[0].content"),
        ([{"role": "user", "content": None}], None, "chat[0].content"),
        ([{"role": "user", "content": "Hello", "when": datetime.now().astimezone()}], None, "chat"),
        ([{"role": "system", "content": "One."}, TALK[0]], "Two.", "system"),
    ],
)
def test_what_is_no_chat_is_refused_by_name(chat: Any, system: str | None, path: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        messages(chat, system)
    assert caught.value.path == path


def test_calls_of_tools_need_no_content() -> None:
    called = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "<é>"}}}],
    }
    source = "{% for call in messages[1].tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    assert render(source, [TALK[0], called]) == '{"x": "<é>"}'


def test_templates_find_what_transformers_gives_them() -> None:
    assert render("{{ strftime_now('%Y') }}") == datetime.now().astimezone().strftime("%Y")
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hello!"
    assert render("  {% if tools is none and documents is none %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render("{{ messages[0].content }}{{ eos_token }}", "<b>&", eos_token="</s>") == "<b>&</s>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refuses this chat: Roles must alternate"),
        ("{{ nothing", "refuses this chat: unexpected end of template"),
        ("{{ 1 / 0 }}", "fails on this chat: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "refuses this chat: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "refuses this chat: access to attribute 'append'"),
        ("{{ range(999999) }}", "fails on this chat: OverflowError"),
    ],
)
def test_templates_that_fail_say_so(source: str, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=re.escape(words)):
        render(source)


def test_templates_get_a_copy(fake: Fake) -> None:
    talk = [dict(one) for one in TALK]
    copied = messages(talk)
    assert copied == talk
    assert copied[0] is not talk[0]


def test_models_without_a_template_are_called_by_name(fake: Fake, capsys: Output) -> None:
    fake[1].chat_template = None
    with Client(fake[0]) as client:
        assert client.model_info().chat_template is None
        with pytest.raises(ChatTemplateError, match="tiny has no chat template"):
            client.debug("Hello", " Mary", chat=True)
    assert main(["--server", fake[0], "debug", "--chat", "--prompt", "Hello", "--target", " Mary"]) == 1
    assert capsys.readouterr().err.startswith("tdb: tiny has no chat template")


def test_without_jinja2_the_extra_is_named(fake: Fake) -> None:
    """In a process of its own, in which nothing has imported jinja2 before."""
    program = f"""
import sys
sys.modules["jinja2"] = None
from tdb_client import Client, ChatTemplateError
with Client({fake[0]!r}) as client:
    client.debug("Hello", " Mary")
    try:
        client.chat_prompt("Hello")
    except ChatTemplateError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "chat templates need jinja2: pip install 'transformer-debugger-client[chat]'" in run.stdout


def test_the_command_makes_the_prompt_of_a_chat(fake: Fake, capsys: Output) -> None:
    words = [
        "--prompt",
        "Hello",
        "--chat",
        "--system",
        "Be brief.",
        "--reply",
        "Well,",
        "--ablate",
        "L0 neuron 5 @ -1",
    ]
    assert main(["--server", fake[0], "debug", *words, "--target", " Mary", "--json"]) == 0
    sent = fake[1].requests[-1].sub_requests
    assert {one.prompt for one in sent} == {"<s>[system]Be brief.[user]Hello[answer]Well,"}
    assert {one.HasField("add_bos") and not one.add_bos for one in sent} == {True}
    asked = json.loads(capsys.readouterr().out)["sub_requests"][0]["request"]
    assert asked["prompt"] == sent[0].prompt
    assert asked["add_bos"] is False


def test_messages_come_from_a_file_or_a_pipe(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(TALK), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(TALK)))
    for name in (str(file), "-"):
        assert main(["--server", fake[0], "trace", "L0 neuron 5 @ 3", "--chat-file", name]) == 0
        assert fake[1].requests[-1].sub_requests[0].prompt == "<s>[user]Hello[assistant]Hi[user]Bye[answer]"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "tdb: cannot read"),
        ("{", "tdb: --chat-file: "),
        ("{}", "tdb: --chat-file: "),
        ('[{"role": "user"}]', "tdb: chat[0].content: must be a text"),
    ],
)
def test_files_that_hold_no_chat(
    fake: Fake, tmp_path: Path, capsys: Output, content: str | None, words: str
) -> None:
    file = tmp_path / "chat.json"
    if content is not None:
        file.write_text(content)
    assert main(["--server", fake[0], "debug", "--chat-file", str(file), "--target", " Mary"]) == 1
    assert capsys.readouterr().err.startswith(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--prompt", "Hello", "--system", "Be brief."],
        ["--prompt", "Hello", "--reply", "Well,"],
        ["--prompt", "Hello", "--chat-file", "chat.json"],
        ["--chat"],
    ],
)
def test_options_that_make_no_sense_together(fake: Fake, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--server", fake[0], "debug", *words, "--target", " Mary"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--chat"], [("<s>[user]Hello[answer]", False)]),
        (["--no-add-bos"], [("Hello", False)]),
        ([], [("Hello", None), ("Hello", True)]),
    ],
)
def test_tokens_are_shown_before_the_call(
    fake: Fake, capsys: Output, words: list[str], asked: list[tuple[str, bool | None]]
) -> None:
    fake[1].adds_bos = True
    line = ["debug", "--prompt", "Hello", *words, "--target", " Mary", "--show-tokens"]
    assert main(["--server", fake[0], *line, "--csv"]) == 0
    *tokenized, debug = fake[1].requests
    sent = [(one.text, one.add_bos if one.HasField("add_bos") else None) for one in tokenized]
    assert sent == asked
    assert debug.sub_requests[0].prompt == asked[0][0]
    out, err = capsys.readouterr()
    assert out.startswith("node,")
    lines = [one.split() for one in err.splitlines() if "'" in one]
    assert lines[0] == ["0", "'When'", "0", *(["special"] if "--chat" in words else [])]
    assert lines[1:] == [["1", "'", "Mary'", "1"], ["2", "'", "gave'", "2"], ["3", "'", "to'", "3"]]


def test_nothing_is_asked_for_that_nobody_wants_to_see(fake: Fake) -> None:
    assert main(["--server", fake[0], "debug", "--prompt", "Hello", "--target", " Mary"]) == 0
    assert not any(hasattr(one, "text") for one in fake[1].requests)


def test_tokenize_marks_special_tokens(fake: Fake, capsys: Output) -> None:
    assert main(["--server", fake[0], "tokenize", "<s>Hello"]) == 0
    assert "special" in capsys.readouterr().out
    assert main(["--server", fake[0], "tokenize", "<s>Hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["special"] == [0]
