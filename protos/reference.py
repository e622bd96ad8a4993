"""Writes docs/api.md from the protos and their comments, or checks that it is what would be written.

Usage: python protos/reference.py [--check]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

PROTOS = Path(__file__).resolve().parent
PACKAGE = "transformer_debugger.v1"
FIRST = "transformer_debugger_service.proto"
REFERENCE = PROTOS.parent / "docs" / "api.md"

INTRODUCTION = f"""\
# API reference

Every call, message, field and value of package `{PACKAGE}`, from the comments of the
[protos](../protos/{PACKAGE.replace(".", "/")}). Made by `make generate`: change the protos, not this page.

`optional` marks a field whose absence differs from zero or the empty text. Of the fields that are *one of* a
group, one is set. Where a comment names a default, it is what absence means.
[Concepts](concepts.md#when-a-call-fails) says how calls fail, [ErrorReason](#errorreason) why.
"""

_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


class Comments:
    """The comments of one file, by the path of what they stand above (as in SourceCodeInfo.Location.path)."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._by_path = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}

    def at(self, *path: int) -> str:
        """A comment as one paragraph."""
        return " ".join(self._by_path.get(path, "").split())


def described(file: FileDescriptorProto) -> Iterator[str]:
    """The lines about a file: services, then messages, then enums."""
    comments = Comments(file)
    for index, service in enumerate(file.service):
        yield from _service(service, comments, (FileDescriptorProto.SERVICE_FIELD_NUMBER, index))
    for index, message in enumerate(file.message_type):
        yield from _message(message, comments, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index))
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index))


def _service(service: ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (
        "",
        f"### {service.name}",
        "",
        comments.at(*path),
        "",
        "| call | takes | gives | |",
        "| --- | --- | --- | --- |",
    )
    for index, method in enumerate(service.method):
        text = comments.at(*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, index)
        yield _row(f"`{method.name}`", _linked(method.input_type), _answer(method), text)


def _answer(method: MethodDescriptorProto) -> str:
    return f"{'stream of ' if method.server_streaming else ''}{_linked(method.output_type)}"


def _message(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from ("", f"### {message.name}", "", comments.at(*path))
    if message.field:
        yield from ("", "| field | type | no. | |", "| --- | --- | --- | --- |")
    for index, field in enumerate(message.field):
        text = comments.at(*path, DescriptorProto.FIELD_FIELD_NUMBER, index)
        if field.HasField("oneof_index") and not field.proto3_optional:
            text = f"*One of {message.oneof_decl[field.oneof_index].name}.* {text}"
        if field.options.deprecated:
            text = f"**Deprecated.** {text}"
        yield _row(f"`{field.name}`", _type(field, message), str(field.number), text)


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    name = _linked(field.type_name) if field.type_name else _SCALARS[field.type]
    entry = next(
        (one for one in message.nested_type if field.type_name.endswith(f".{message.name}.{one.name}")), None
    )
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map of {_type(key, entry)} to {_type(value, entry)}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _enum(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (
        "",
        f"### {enum.name}",
        "",
        comments.at(*path),
        "",
        "| value | no. | |",
        "| --- | --- | --- |",
    )
    for index, value in enumerate(enum.value):
        text = comments.at(*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, index)
        yield _row(
            f"`{value.name}`",
            str(value.number),
            f"**Deprecated.** {text}" if value.options.deprecated else text,
        )


def _linked(type_name: str) -> str:
    """A link to a type of ours, the bare name of any other."""
    name = type_name.removeprefix(".")
    short = name.removeprefix(f"{PACKAGE}.")
    return f"[{short}](#{short.lower()})" if short != name else f"`{name}`"


def _row(*cells: str) -> str:
    escaped = (one.replace("|", "\\|") for one in cells)
    return f"| {' | '.join(escaped)} |"


def files() -> Sequence[FileDescriptorProto]:
    """The descriptors of every proto with their comments: services first, then the rest by name."""
    names = sorted(
        str(one.relative_to(PROTOS)) for one in (PROTOS / PACKAGE.replace(".", "/")).glob("*.proto")
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTOS}",
            "--include_source_info",
        ]
        subprocess.run([*command, f"--descriptor_set_out={out}", *names], check=True)
        found = FileDescriptorSet.FromString(out.read_bytes()).file
    return sorted(found, key=lambda one: (Path(one.name).name != FIRST, not one.service, one.name))


def reference() -> str:
    """The whole page."""
    lines = [INTRODUCTION.rstrip()]
    described_files = files()
    lines += ["", "| file | |", "| --- | --- |"]
    for file in described_files:
        name = Path(file.name).name
        names = (one.name for kind in (file.service, file.message_type, file.enum_type) for one in kind)
        types = ", ".join(_linked(f"{PACKAGE}.{one}") for one in names)
        lines.append(_row(f"[{name}](#{name.replace('.', '')})", types))
    for file in described_files:
        lines += ["", f"## {Path(file.name).name}", *described(file)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the command; returns the exit status, 1 when `--check` finds the page out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    check = parser.parse_args().check
    wanted = reference()
    if REFERENCE.exists() and REFERENCE.read_text(encoding="utf-8") == wanted:
        return 0
    if check:
        print(f"{REFERENCE} is out of date: run `make generate`", file=sys.stderr)
        return 1
    REFERENCE.write_text(wanted, encoding="utf-8")
    print(f"wrote {REFERENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
