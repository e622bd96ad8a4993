"""Chats with models that have a template, beside what transformers makes of the same messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tdb_client import Client
from tdb_client.chat import ChatTemplate, chat_prompt, messages
from tdb_client.cli import main

from tests.random_models import auto, begin_texts, reference_model, write_random_model
from tests.running_server import RunningServer, start, stop

BOS = "<|endoftext|>"
TALK = [
    {"role": "user", "content": " When Mary and John went "},
    {"role": "assistant", "content": "to the store"},
    {"role": "user", "content": "John gave a drink to"},
]
WITH_BOS = (
    "{{ bos_token }}{% for one in messages %}[{{ one['role'] }}]\n{{ one['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
WITHOUT_BOS = WITH_BOS.removeprefix("{{ bos_token }}")
TEMPLATES = (
    WITH_BOS,
    WITHOUT_BOS,
    # As Llama 3's: a namespace, white space taken away, a default system message.
    """{%- set ns = namespace(system='Be brief.') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token + '<|system|>' + ns.system + strftime_now(' %Y') + eos_token }}
{%- for one in messages %}
    {%- if not loop.last and one.role == 'nobody' %}{% continue %}{% endif %}
    {{- '<|' ~ one.role ~ '|>' }}{% generation %}{{ one.content }}{% endgeneration %}
{%- endfor %}
{{- '<|assistant|>' if add_generation_prompt else '' }}{{ tools | tojson }}
    """,
    # As Mistral's: blocks at the beginnings of lines, and turns that must alternate.
    """
    {% for one in messages %}
    {% if (one.role == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Turns must alternate') }}
    {% endif %}
  [{{ one.role | upper }}] {{ one.content }}{{ unk_token }}
    {% endfor %}
""",
)


def model_with_template(folder: Path, template: str) -> Path:
    begin_texts(write_random_model(folder, "llama"))
    named = {"bos_token": BOS, "eos_token": BOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [model_with_template(root / f"{i}", one) for i, one in enumerate((WITH_BOS, WITHOUT_BOS))]


@pytest.fixture(scope="module")
def servers(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningServer]]:
    """Two models whose tokenizers begin texts: one's template does so as well, the other's does not."""
    started: list[RunningServer] = []
    try:
        started.extend(start(tmp_path_factory.mktemp("server"), model=folder) for folder in folders)
        yield started
    finally:
        for one in started:
            stop(one)


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_are_those_of_transformers(template: str, tmp_path: Path) -> None:
    tokenizer = auto.AutoTokenizer.from_pretrained(model_with_template(tmp_path / "model", template))
    want = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert chat_prompt(ChatTemplate(template, tokenizer.special_tokens_map), messages(TALK)) == want


@pytest.mark.parametrize("which", [0, 1])
def test_answers_are_about_what_transformers_would_read(
    which: int, servers: list[RunningServer], folders: list[Path]
) -> None:
    tokenizer = auto.AutoTokenizer.from_pretrained(folders[which])
    ids = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = reference_model(folders[which])(ids).logits[0, -1]
    target, distractor = (tokenizer(one, add_special_tokens=False).input_ids[0] for one in (" to", " and"))
    with Client(f"127.0.0.1:{servers[which].port}") as client:
        result = client.debug(TALK, " to", " and", k=2)
        assert result.prompt.token_ids == tuple(ids[0].tolist())
        assert result.prompt.tokens.count(BOS) == 1 - which
        assert not result.prompt.bos_added
        assert result.loss == pytest.approx(float(logits[target] - logits[distractor]), abs=1e-4)
        shown = client.tokenize(result.request.prompt)
        assert shown.special == ((0,) if which == 0 else ())
        assert shown.token_ids == result.prompt.token_ids


def test_the_command(
    servers: list[RunningServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "Mary and"}]), encoding="utf-8")
    server = ["--server", f"127.0.0.1:{servers[0].port}"]
    words = [
        "--chat-file",
        str(file),
        "--system",
        "Be brief.",
        "--reply",
        "Mary",
        "--target",
        " to",
        "-k",
        "2",
    ]
    assert main([*server, "debug", *words, "--show-tokens", "--json"]) == 0
    out, err = capsys.readouterr()
    answer: dict[str, Any] = json.loads(out)["sub_requests"][0]
    assert answer["request"]["prompt"].startswith(f"{BOS}[system]\nBe brief.\n[user]\nMary")
    assert answer["request"]["prompt"].endswith("[assistant]\nMary")
    rows = [line.split() for line in err.splitlines() if "'" in line]
    assert [row[0] for row in rows] == [str(i) for i in range(len(answer["result"]["tokens"]))]
    assert [row[-1] for row in rows].count("special") == 1
    assert main([*server, "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chat_template"]["special_tokens"]["eos_token"] == BOS
