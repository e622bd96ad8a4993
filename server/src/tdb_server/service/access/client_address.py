"""Where a call comes from: the address that callers without tokens are told apart by."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import unquote

IPV6_PREFIX = 64
"""A host of IPv6 has a whole network of this length to itself, and may take any address in it."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def host_of(peer: str) -> str:
    """The address in what gRPC says of a peer.

    Args:
        peer: such as `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711` or `unix:/run/socket`.

    Returns:
        The address without its port; what is no IP address, unchanged.
    """
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def client_address(host: str, forwarded_for: Sequence[str], trusted_proxies: Sequence[Network]) -> str:
    """Who is at the other end, as far as can be believed.

    Args:
        host: the address that the connection comes from.
        forwarded_for: every value of the header `x-forwarded-for`. Each proxy adds whom it has heard from, so
            entries are believed from the last one back, as long as it was a trusted proxy that added them.
        trusted_proxies: who is believed.

    Returns:
        The address, or the network of an IPv6 address; what is no IP address, unchanged.
    """
    entries = [entry.strip() for value in forwarded_for for entry in value.split(",")]
    while entries and _is_in(host, trusted_proxies):
        entry = entries.pop()
        if _ip(entry) is None:
            break  # a proxy that hides its clients; they share the proxy's turn
        host = entry
    address = _ip(host)
    if address is None:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address.packed, IPV6_PREFIX), strict=False))
    return str(address)


def _is_in(host: str, networks: Sequence[Network]) -> bool:
    address = _ip(host)
    return address is not None and any(address in network for network in networks)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, an IPv4 address also where it is written as IPv6; None for anything else."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
