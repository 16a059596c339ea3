"""Which addresses are public: those to which what comes from the database may be sent.

The lists are those of IANA's registries of special-purpose addresses (RFC 6890, as they stood in November 2026), of
which Python's ``ipaddress`` knows another state in each version. Of IPv6 only what is allocated to the world at all
(2000::/3) is public, which leaves out every form that stands for an IPv4 address, but NAT64's (RFC 6052): a network
without IPv4 reaches the public addresses of IPv4 by that.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from .errors import TidebaseError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SPECIAL_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared, behind a provider's NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: where clouds keep their metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments: another cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
]
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]


def is_public(address: Address) -> bool:
    """Whether it is an address that anybody in the world may have."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)


def public_address(url: str) -> str:
    """The public address of a URL's host.

    Raises:
        TidebaseError: one of its addresses is not public.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(ipaddress.ip_address(address.split("%")[0])):
            raise TidebaseError(f"{parts.hostname} is at {address}, which is not a public address")
    return addresses[0]
