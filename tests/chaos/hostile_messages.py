"""Messages that mean no good: filled at random, spoiled in a few fields, or broken as bytes.

Everything follows from the protos' descriptors, so that a new field, scalar or place needs no word here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

MAX_DEPTH = 8
INT32_ENDS = (-(2**31), 2**31 - 1)
INTEGERS = (*range(-2, 8), 11, 12, 47, 48, 59, 60, 63, 64, 191, 192, 999, 1000, *INT32_ENDS)
UNSIGNED = (0, 1, 2, 64, 2**31, 2**32 - 1)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e30, -1e30, 1e300, math.inf, -math.inf, math.nan)
PROMPTS = ("the cat sat on the", " the mat", " the" * 60, " the" * 64, " the", " of", "the cat", "", " ")
ODDITIES = (
    "x" * 5_000,
    "\0",
    "\n",
    "\x7f",
    "é",
    "🧨🧨",
    "\u202e",
    "﷽",
    "<|endoftext|>",
    "%n%s%x",
    "ranking 0",
)
TEXTS = (*PROMPTS, *ODDITIES)
HUGE_TEXT_BYTES = 400_000
LENGTHS = (0, 1, 1, 1, 2, 2, 3, 4, 9)
HUGE_LENGTH = 3_000


def sound_copy(chance: random.Random, sound: Sequence[Message]) -> Message:
    """One of the sound messages, to be spoiled."""
    original = chance.choice(sound)
    copy = type(original)()
    copy.CopyFrom(original)
    return copy


def random_message(chance: random.Random, message: Message, depth: int = 0) -> Message:
    """Fills each field, or not, with anything."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.6:
            put_anything(chance, message, field, depth)
    return message


def spoiled(chance: random.Random, message: Message) -> Message:
    """Sets a few fields, anywhere in a message, to anything."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        holder = chance.choice(_messages_in(message))
        if not holder.DESCRIPTOR.fields:
            continue
        field = chance.choice(holder.DESCRIPTOR.fields)
        if chance.random() < 0.1:
            holder.ClearField(field.name)
        else:
            put_anything(chance, holder, field, depth=MAX_DEPTH - 2)
    return message


def with_bad_enum(chance: random.Random, message: Message) -> Message:
    """Sets one enum, anywhere in a message, to a value that it does not have."""
    places = [
        (holder, field)
        for holder in _messages_in(message)
        for field in holder.DESCRIPTOR.fields
        if field.type == FieldDescriptor.TYPE_ENUM
    ]
    if places:
        holder, field = chance.choice(places)
        bad = chance.choice((-1, 1 + max(field.enum_type.values_by_number), *INT32_ENDS))
        if field.is_repeated:
            getattr(holder, field.name).append(bad)
        else:
            setattr(holder, field.name, bad)
    return message


def broken_bytes(chance: random.Random, raw: bytes) -> bytes:
    """Flips, cuts out, doubles, inserts or appends a few bytes."""
    data = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 8)))
        match chance.randrange(5):
            case 0 if start < len(data):
                data[start] ^= 1 << chance.randrange(8)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end] * chance.choice((1, 2, 50))
            case 3:
                data[start:start] = chance.randbytes(chance.choice((1, 4, 100)))
            case _:
                data += b"\xff" * chance.choice((1, 11))
    return bytes(data)


def nested(depth: int, tag: int) -> bytes:
    """A message field inside itself, as bytes: libraries refuse to write what is deeper than 100."""
    inner = b""
    for _ in range(depth):
        inner = field(tag, inner)
    return inner


def field(tag: int, contents: bytes) -> bytes:
    """A field with contents of some length, as bytes."""
    return _varint(tag << 3 | 2) + _varint(len(contents)) + contents


def put_anything(chance: random.Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    """Sets a field to anything that its type can hold."""
    if not field.is_repeated:
        if field.message_type is None:
            setattr(message, field.name, _anything(chance, field))
        elif depth < MAX_DEPTH:
            getattr(message, field.name).CopyFrom(_random_part(chance, field.message_type, depth))
        return
    n_items = HUGE_LENGTH if chance.random() < 0.01 else chance.choice(LENGTHS)
    items = getattr(message, field.name)
    if field.message_type is None:
        items.extend(_anything(chance, field) for _ in range(n_items))
    elif depth < MAX_DEPTH:
        kinds = [_random_part(chance, field.message_type, depth) for _ in range(min(n_items, 9))]
        items.extend(kinds * (1 + (n_items > 9) * HUGE_LENGTH // 9))


def _random_part(chance: random.Random, kind: Descriptor, depth: int) -> Message:
    return random_message(chance, GetMessageClass(kind)(), depth + 1)


def _anything(chance: random.Random, field: FieldDescriptor) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_ENUM:
            known = sorted(field.enum_type.values_by_number)
            return (
                chance.choice((-1, 1 + known[-1], *INT32_ENDS))
                if chance.random() < 0.1
                else chance.choice(known)
            )
        case FieldDescriptor.TYPE_STRING:
            huge = chance.choice(("x", " the", "🧨")) * (HUGE_TEXT_BYTES // 4)
            return huge if chance.random() < 0.005 else chance.choice(TEXTS)
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return chance.choice(NUMBERS)
        case FieldDescriptor.TYPE_BOOL:
            return chance.random() < 0.3
        case FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 100)))
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_INT64:
            return chance.choice(INTEGERS)
        case _:
            return chance.choice(UNSIGNED)


def _messages_in(message: Message) -> list[Message]:
    """A message and all that are in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                found += _messages_in(one)
    return found


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
