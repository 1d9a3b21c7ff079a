"""At which addresses a browser reaches a service: on this computer, and on other devices in its network."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address

# Addresses reserved for documentation (RFC 5737, RFC 3849). Nothing is ever sent to them. They stand for
# "somewhere else" when the system is asked which of its own addresses it would send from.
SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def address_here(listener: socket.socket) -> str:
    """The address at which this computer reaches the service on a socket, such as ``http://127.0.0.1:8000``.

    For a socket that listens on all addresses (``0.0.0.0``, ``::``) this is loopback, because not every
    browser opens those.
    """
    host, port = listener.getsockname()[:2]
    return _address(LOOPBACK[listener.family] if ip_address(host).is_unspecified else host, port)


def address_elsewhere(listener: socket.socket) -> str | None:
    """The address at which other devices reach the service, if it is not that of :func:`address_here`.

    None for a socket that listens on one address only, and for a computer without a network. A computer in
    several networks has more such addresses; this one is in the network that leads to the Internet.
    """
    host, port = listener.getsockname()[:2]
    if not ip_address(host).is_unspecified:
        return None
    own = own_address(listener.family)
    return None if own is None else _address(own, port)


def own_address(family: socket.AddressFamily) -> str | None:
    """The address that this computer has in its network; None if it has none that others can reach."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((SOMEWHERE[family], 9))  # this sends nothing; it only chooses a route
            own = probe.getsockname()[0]
    except OSError:
        return None
    found = ip_address(own)
    return None if found.is_loopback or found.is_link_local or found.is_unspecified else str(own)


def _address(host: str, port: int) -> str:
    is_ipv6 = isinstance(ip_address(host), IPv6Address)
    return f"http://{f'[{host}]' if is_ipv6 else host}:{port}"
