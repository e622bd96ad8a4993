from __future__ import annotations

import gzip

import pytest
from tdb_server.errors import InvalidRequest
from tdb_server.service.compressed_requests import is_compressed, message_bytes, unpacked

MESSAGE = b"\x0a\x03the" * 1000
PACKED = gzip.compress(MESSAGE)


def test_what_is_not_compressed_is_left_as_it_is():
    for raw in (b"", b"\x1f", MESSAGE):
        assert not is_compressed(raw)
        assert message_bytes(raw) == len(raw)
        assert unpacked(raw) is raw


def test_what_gzip_makes_is_unpacked():
    for message in (MESSAGE, b""):
        packed = gzip.compress(message)
        assert message_bytes(packed) == len(message)
        assert unpacked(packed) == message


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(PACKED[:-4] + (10).to_bytes(4, "little"), id="more than it says"),
        pytest.param(PACKED[:-4] + (10**9).to_bytes(4, "little"), id="less than it says"),
        pytest.param(PACKED[:-8] + b"\x00" * 4 + PACKED[-4:], id="another checksum"),
        pytest.param(PACKED + PACKED, id="two in one"),
        pytest.param(PACKED[: len(PACKED) // 2], id="the first half"),
        pytest.param(PACKED[:2], id="the first two bytes"),
        pytest.param(b"\x1f\x8b" + b"\xff" * 100, id="something else"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(raw):
    with pytest.raises(InvalidRequest) as refused:
        unpacked(raw)
    assert refused.value.reason == "MALFORMED_REQUEST"


def test_a_message_that_is_larger_than_it_says_is_not_unpacked_to_its_end():
    bomb = gzip.compress(bytes(10**8), 9)
    with pytest.raises(InvalidRequest):
        unpacked(bomb[:-4] + (1000).to_bytes(4, "little"))
