"""The API reference says all that the protos say."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")


def descriptors() -> list[FileDescriptor]:
    names = [one.stem for one in (ROOT / "protos/transformer_debugger/v1").glob("*.proto")]
    return [import_module(f"transformer_debugger.v1.{name}_pb2").DESCRIPTOR for name in names]


def section(name: str) -> str:
    found = re.search(rf"^### {name}\n\n(.+?)(?=\n##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_everything_has_a_section_and_every_row_its_meaning() -> None:
    for file in descriptors():
        for message in file.message_types_by_name.values():
            rows = section(message.name)
            for field in message.fields:
                assert re.search(
                    rf"^\| `{field.name}` \| .+ \| {field.number} \| \S.+ \|$", rows, re.MULTILINE
                )
        for enum in file.enum_types_by_name.values():
            rows = section(enum.name)
            for value in enum.values:
                assert re.search(rf"^\| `{value.name}` \| {value.number} \| \S.+ \|$", rows, re.MULTILINE)
        for service in file.services_by_name.values():
            rows = section(service.name)
            for method in service.methods:
                stream = "stream of " if method.server_streaming else ""
                assert f"| `{method.name}` | [{method.input_type.name}]" in rows
                assert f"| {stream}[{method.output_type.name}]" in rows


def test_what_a_field_may_be_is_told() -> None:
    assert "| `k` | optional int32 |" in section("AutoencoderInfo")
    assert "| `layer_indices` | repeated int32 |" in section("AutoencoderInfo")
    assert "| `started` | [Started](#started) | 1 | *One of event.* " in section("StreamDebugResponse")


def test_links_lead_to_sections() -> None:
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", one.lower()) for one in titles}
    assert set(re.findall(r"\]\(#(.+?)\)", PAGE)) <= anchors
