"""Which hosts are answered to, and whose pages may call."""

from __future__ import annotations

import pytest
from tdb_server.service.http.host_check import AllowedHosts


def is_answered(hosts: AllowedHosts, host: str) -> bool:
    return hosts.refusal([(b"host", host.encode())]) is None


def may_call(hosts: AllowedHosts, origin: str) -> bool:
    return hosts.refusal([(b"host", b"localhost"), (b"origin", origin.encode())]) is None


LOOPBACK = ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"]
STRANGERS = [
    "evil.example",
    "localhost.evil.example",
    "xlocalhost",
    "localhost:80@evil",
    "",
    "127.0.0.1.evil",
    "a b",
]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "10.1.2.3", "gpu.example"])
def test_loopback_is_answered_to_and_strangers_are_not(address: str) -> None:
    hosts = AllowedHosts(address)
    assert [host for host in LOOPBACK if not is_answered(hosts, host)] == []
    assert [host for host in STRANGERS if is_answered(hosts, host)] == []


def test_the_address_listened_on() -> None:
    assert is_answered(AllowedHosts("10.1.2.3"), "10.1.2.3:8000")
    assert not is_answered(AllowedHosts("10.1.2.3"), "10.1.2.4:8000")
    assert is_answered(AllowedHosts("fd00::7"), "[fd00::7]:8000")


def test_a_server_that_listens_everywhere_has_any_address_but_no_name() -> None:
    hosts = AllowedHosts("0.0.0.0")
    assert is_answered(hosts, "192.168.1.5:8000")
    assert is_answered(hosts, "[fd00::7]")
    assert not may_call(hosts, "http://192.168.1.5")  # which may be anybody's
    assert not is_answered(hosts, "192.168.1.5.example")


def test_names_that_were_told() -> None:
    hosts = AllowedHosts("127.0.0.1", ["tdb.example", "*.inner.example"])
    assert is_answered(hosts, "tdb.example")
    assert is_answered(hosts, "a.b.inner.example:8000")
    assert may_call(hosts, "https://tdb.example:8443")
    for stranger in ("x.tdb.example", "inner.example", "tdbxexample", "evilinner.example"):
        assert not is_answered(hosts, stranger)
        assert not may_call(hosts, f"http://{stranger}")


def test_any_host_is_not_any_page() -> None:
    hosts = AllowedHosts("127.0.0.1", ["*"])
    assert is_answered(hosts, "evil.example")
    assert not may_call(hosts, "http://evil.example")


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://localhost.evil.example", "http://localhost:80@evil", "file://"],
)
def test_pages_of_other_sites(origin: str) -> None:
    assert not may_call(AllowedHosts("127.0.0.1"), origin)


def test_pages_of_this_machine() -> None:
    for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]:8000"):
        assert may_call(AllowedHosts("127.0.0.1"), origin)
