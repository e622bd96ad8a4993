from __future__ import annotations

from ipaddress import ip_network

import pytest
from tdb_server.service.access.client_address import client_address, host_of

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:[2001:db8::7]:4711", "2001:db8::7"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:/run/socket", "unix:/run/socket"),
    ],
)
def test_the_address_in_what_grpc_says(peer, host):
    assert host_of(peer) == host


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/run/socket", "unix:/run/socket"),
        ("", ""),
    ],
)
def test_who_is_told_apart(host, address):
    assert client_address(host, (), ()) == address


@pytest.mark.parametrize(
    ("host", "forwarded_for", "address"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9, 192.0.2.7"], "192.0.2.7"),  # the first is the client's own word
        ("10.0.0.1", ["203.0.113.9", "192.0.2.7, 10.9.9.9"], "192.0.2.7"),
        ("fd00::1", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["192.0.2.7, unknown"], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),  # no proxy of ours
    ],
)
def test_proxies_are_believed_and_nobody_else(host, forwarded_for, address):
    assert client_address(host, forwarded_for, PROXIES) == address
