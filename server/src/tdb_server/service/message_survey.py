"""What a long message holds, counted on the wire: unpacked, two bytes can take a hundred times their size.

Every object that a message contains is unpacked by protobuf at once. So the lists of a long one are counted
before that, which stops at the first that is too long.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tdb_server.domain.limits import Limits
from tdb_server.domain.reason import Reason
from tdb_server.errors import FieldsOverLimit, FieldViolation, InvalidRequest, OverLimit

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_MAX_DEPTH = 100
"""Protobuf goes no deeper."""
_FEW = 64
"""The most objects in a list that has no limit of its own. No sensible request has a longer one."""
_FEW_NUMBERS = 1024
"""The most numbers in such a list."""
_MOST_CELLS = 1024 * 1024
"""The most numbers of a direction: more than any model has neurons or tokens, or any dictionary latents."""
MAX_TOKEN_IDS = 64 * 1024
"""The most tokens of `Detokenize`, which itself refuses more and says how many there are."""
_MOST_CHANNELS = 64 * 1024
"""The most numbers of a vector in the residual stream: more channels than any model has."""
_FIXED_BYTES = {FieldDescriptor.TYPE_FLOAT: 4, FieldDescriptor.TYPE_DOUBLE: 8}
_LEAST_FIELD_BYTES = 4
"""A field of a sensible long request has at least so many bytes, on average."""
_NOT_THE_LAST = bytes(range(0x80, 0x100))
"""Bytes of a number after which it goes on."""


class _Malformed(Exception):  # noqa: N818 - never seen outside
    """Protobuf will say so too."""


def check_lists(raw: bytes, message: Descriptor, limits: Limits) -> None:
    """Counts the entries of a message's lists, and its fields in all. What is malformed is left for protobuf.

    Raises:
        OverLimit, InvalidRequest: a list has too many entries, or there are too many fields.
    """
    try:
        _Survey(raw, limits).message(message, 0, len(raw), "", {}, 0)
    except (_Malformed, IndexError):
        return


def _limits_of_lists(limits: Limits) -> dict[str, tuple[int, Reason]]:
    return {
        "sub_requests": (limits.max_sub_requests, Reason.TOO_MANY_SUB_REQUESTS),
        "node_ablations": (limits.max_node_ablations, Reason.TOO_MANY_ABLATIONS),
        "ablation_specs": (limits.max_node_ablations, Reason.TOO_MANY_ABLATIONS),
        "baseline_prompts": (limits.max_sub_requests, Reason.TOO_MANY_BASELINES),
        "nodes": (limits.max_circuit_nodes, Reason.TOO_MANY_NODES),
        "direction": (_MOST_CELLS, Reason.OUT_OF_RANGE),
        "token_ids": (2 * MAX_TOKEN_IDS, Reason.OUT_OF_RANGE),
        "target_token_ids": (limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "distractor_token_ids": (limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "target_tokens": (limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "distractor_tokens": (limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "vocab_tokens": (limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "vocab_token_ids": (limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "token_indices": (2 * MAX_TOKEN_IDS, Reason.OUT_OF_RANGE),
        "target_weights": (2 * limits.max_target_tokens, Reason.TOO_MANY_TARGET_TOKENS),
        "vector": (_MOST_CHANNELS, Reason.OUT_OF_RANGE),
        "processing_specs": (limits.max_processing_specs, Reason.TOO_MANY_PROCESSING_SPECS),
    }


def _most_fields(limits: Limits) -> int:
    """More than any request has that is within the limits."""
    ablations, specs = 16 * limits.max_node_ablations, 64 * limits.max_processing_specs
    nodes = 5 * limits.max_circuit_nodes
    per_sub_request = 64 + ablations + specs + nodes + 4 * limits.max_target_tokens
    return min(limits.max_sub_requests * per_sub_request, limits.max_request_bytes // _LEAST_FIELD_BYTES)


class _Survey:
    def __init__(self, raw: bytes, limits: Limits) -> None:
        self._raw = raw
        self._lists = _limits_of_lists(limits)
        self._most_fields = _most_fields(limits)
        self._n_fields = 0

    def message(
        self, message: Descriptor, start: int, end: int, path: str, counts: dict[str, int], depth: int
    ) -> None:
        """Goes through the fields of a message.

        Args:
            message: what it is.
            start: where it begins.
            end: where it ends.
            path: of the field that holds it, with a dot at the end.
            counts: of its lists so far. A message that is given in pieces is one.
            depth: of it in others.
        """
        if depth > _MAX_DEPTH:
            raise _Malformed
        raw, position, n_groups = self._raw, start, 0
        fields = message.fields_by_number
        while position < end:
            self._count_field()
            tag, position = self._varint(position)
            kind = tag & 7
            if kind == _BYTES:
                length, position = self._varint(position)
                if position + length > end:
                    raise _Malformed
                field = fields.get(tag >> 3)
                if field is not None and not n_groups:
                    self._bytes(field, position, position + length, path, counts, depth)
                position += length
            elif kind == _VARINT:
                while raw[position] & 0x80:
                    position += 1
                position += 1
            elif kind == _GROUP:  # of no field of ours: what is inside is skipped
                n_groups += 1
            elif kind == _END_GROUP:
                n_groups -= 1
            elif kind in (_FIXED32, _FIXED64):
                position += 4 if kind == _FIXED32 else 8
            else:
                raise _Malformed

    def _bytes(
        self, field: FieldDescriptor, start: int, end: int, path: str, counts: dict[str, int], depth: int
    ) -> None:
        """A field that is a message, a text or packed numbers."""
        inner_path, inner, message = f"{path}{field.name}", counts, field.message_type
        if field.is_repeated and (message is not None or field.type == field.TYPE_STRING):
            number = self._count_entries(inner_path, field.name, counts, 1, _FEW)
            inner_path, inner = f"{inner_path}[{number}]", {}
        elif field.is_repeated:
            size = _FIXED_BYTES.get(field.type)
            n_numbers = (
                len(self._raw[start:end].translate(None, _NOT_THE_LAST))
                if size is None
                else (end - start) // size
            )
            self._count_entries(inner_path, field.name, counts, n_numbers, _FEW_NUMBERS)
        if message is not None:
            self.message(message, start, end, f"{inner_path}.", inner, depth + 1)

    def _count_entries(self, path: str, name: str, counts: dict[str, int], n_more: int, few: int) -> int:
        """Counts entries of a list, and returns how many there were before them."""
        number = counts.get(path, 0)
        counts[path] = number + n_more
        limit, reason = self._lists.get(name, (few, Reason.OUT_OF_RANGE))
        if number + n_more <= limit:
            return number
        if reason is Reason.OUT_OF_RANGE:
            raise InvalidRequest([FieldViolation(path, f"more than {limit} entries make no sense", reason)])
        raise FieldsOverLimit([FieldViolation(path, f"more than the limit of {limit}", reason)])

    def _count_field(self) -> None:
        self._n_fields += 1
        if self._n_fields > self._most_fields:
            description = f"the request has more than {self._most_fields} fields"
            raise OverLimit(description, "REQUEST_TOO_LARGE")

    def _varint(self, position: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self._raw[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                raise _Malformed
