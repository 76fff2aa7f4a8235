"""``wgvsock config from-wg-quick``: turns the wg-quick file of a manual tunnel into a first draft of our configuration.

Users of the paper's program have one such file at each end of the vsock link. Values that our services negotiate or
attest no longer belong in a configuration. The draft lists each of them in a comment.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wgvsock import settings
from wgvsock.addresses import (
    VMADDR_CID_ANY,
    WIREGUARD_PORT,
    IpInterface,
    IpNetwork,
    Port,
    StreamAddress,
    VsockAddress,
    parse_stream_address,
    vsock_from_ipv4,
)
from wgvsock.cli.output import put_text
from wgvsock.errors import ConfigurationError

MAX_FILE: Final = 1 << 20
"""Bytes. Anything longer is the wrong file."""

ROLES: Final = ("relay", "enclave")

_INTERFACE_KEYS: Final = {
    "privatekey": "a new key is made at each start, and the enclave's is attested",
    "saveconfig": "",
    "fwmark": "a vsock stream is not routed",
    "table": "routes follow from enclave.routes",
    "preup": "the service adds and removes NAT, forwarding and routes; see [nat]",
    "postup": "the service adds and removes NAT, forwarding and routes; see [nat]",
    "predown": "the service adds and removes NAT, forwarding and routes; see [nat]",
    "postdown": "the service adds and removes NAT, forwarding and routes; see [nat]",
}
_PEER_KEYS: Final = {
    "publickey": "the enclave's key comes with its attestation document",
    "presharedkey": "each provisioning agrees on a new one",
}
_INTERFACE_VALUES: Final = frozenset({"address", "dns", "mtu", "listenport"})
_PEER_VALUES: Final = frozenset({"endpoint", "allowedips", "persistentkeepalive"})
_KNOWN: Final = {"interface": _INTERFACE_VALUES | _INTERFACE_KEYS.keys(), "peer": _PEER_VALUES | _PEER_KEYS.keys()}


@dataclass(slots=True)
class Section:
    """``[Interface]`` or ``[Peer]``: values by lower-case key, and the keys as written."""

    name: str
    values: dict[str, list[str]] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    def items(self, key: str) -> list[str]:
        """The elements of all its comma-separated lines."""
        return [item.strip() for line in self.values.get(key, ()) for item in line.split(",") if item.strip()]

    def last(self, key: str) -> str | None:
        """The last value of a key, which is the one that counts."""
        return self.values[key][-1] if key in self.values else None


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``from-wg-quick`` to the verbs of ``wgvsock config``."""
    parser = verbs.add_parser("from-wg-quick", help="print a configuration made from a wg-quick file")
    parser.add_argument("role", choices=ROLES, help="the end of the tunnel that the file belongs to")
    parser.add_argument("file", type=Path, metavar="FILE", help="such as /etc/wireguard/wg0.conf")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    path: Path = args.file
    put_text(from_wg_quick(read_foreign(path, "wg-quick"), role=args.role, interface=path.stem))
    return 0


def read_foreign(path: Path, program: str) -> str:
    """The text of another program's file.

    Args:
        path: The file.
        program: The program that the file belongs to.

    Raises:
        ConfigurationError: The file cannot be read, or is too long.
    """
    fix = f"name a configuration of {program}"
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}", why=error.strerror or str(error), fix=fix) from None
    if len(content) > MAX_FILE:
        raise ConfigurationError(f"cannot read {path}", why="it is larger than 1 MiB", fix=fix)
    return content.decode(errors="replace")


def from_wg_quick(text: str, *, role: str, interface: str) -> str:
    """Translate a wg-quick file.

    Args:
        text: The wg-quick file.
        role: ``relay`` or ``enclave``, the end of the tunnel that the file belongs to.
        interface: Name of the interface, which wg-quick takes from the file's name.

    Returns:
        A configuration that ``wgvsock config check`` accepts. A relay's still lacks the measurements.

    Raises:
        ConfigurationError: The text is not a wg-quick file, or contains something that cannot be translated.
    """
    settings.check_interface_name(interface)
    own, peer = _parse(text)
    body = _relay(own, peer, interface) if role == "relay" else _enclave(own, peer, interface)
    notes = [*_notes(own, _INTERFACE_KEYS), *_notes(peer, _PEER_KEYS)]
    head = ["# From a wg-quick file; check it with: wgvsock config check " + role + " FILE"]
    if notes:
        head += ["# Not translated:", *(f"#   {note}" for note in notes)]
    return "\n".join([*head, "", *body, ""])


def _parse(text: str) -> tuple[Section, Section]:
    """The interface and its one peer."""
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if line.startswith("["):
            name = line.strip("[]").strip().lower()
            if name not in {"interface", "peer"}:
                raise _bad_line(number, "a section must be [Interface] or [Peer]")
            sections.append(Section(name))
        elif line:
            _add_value(sections, line, number)
    own = [section for section in sections if section.name == "interface"]
    peers = [section for section in sections if section.name == "peer"]
    if len(own) != 1 or len(peers) != 1:
        raise ConfigurationError(
            "cannot translate the wg-quick file",
            why=f"it has {len(own)} [Interface] and {len(peers)} [Peer] sections",
            fix="name a file with one of each: a relay and its enclave are the two ends of one tunnel",
        )
    return own[0], peers[0]


def _add_value(sections: list[Section], line: str, number: int) -> None:
    key, separator, value = (part.strip() for part in line.partition("="))
    if not (separator and sections):
        raise _bad_line(number, "a line must be KEY = VALUE in a section")
    section = sections[-1]
    lower = key.lower()
    if lower not in _KNOWN[section.name]:
        raise _bad_line(number, f"wg-quick has no such key in [{section.name.capitalize()}]")
    section.values.setdefault(lower, []).append(value)
    section.written[lower] = key


def _bad_line(number: int, why: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read line {number} of the wg-quick file", why=why, fix="see wg-quick(8)")


def _notes(section: Section, reasons: Mapping[str, str]) -> list[str]:
    """A line for each key without a counterpart. It never shows the value, which may be a secret key."""
    return [f"{section.written[key]}: {why}" for key, why in reasons.items() if why and key in section.values]


def _relay(own: Section, peer: Section, interface: str) -> list[str]:
    addresses = [_interface(text) for text in own.items("address")]
    servers, search = _dns(own)
    lines = [
        "[enclave]",
        f"address = {quoted(_endpoint(peer))}",
        f"addresses = {_array(_enclave_addresses(addresses, peer))}",
        "",
        "[interface]",
        f"name = {quoted(interface)}",
        f"addresses = {_array(addresses)}",
        f"persistent_keepalive = {_number(peer, 'persistentkeepalive', default=0)}",
    ]
    if "mtu" in own.values:
        lines.append(f"mtu = {_number(own, 'mtu')}")
    if servers or search:
        lines += ["", "[dns]", f"servers = {_array(servers)}", f"search = {_array(search)}"]
    zeros = "00" * 48
    return [
        *lines,
        "",
        "# Replace the zeros, which match no enclave, with the measurements that `nitro-cli build-enclave` printed.",
        "[[attestation.pcr_sets]]",
        *(f'pcr{index} = "{zeros}"' for index in range(3)),
    ]


def _enclave(own: Section, peer: Section, interface: str) -> list[str]:
    port = Port(_number(own, "listenport", default=WIREGUARD_PORT))
    lines = [f"listen = {quoted(VsockAddress(VMADDR_CID_ANY, port))}", f"interface = {quoted(interface)}"]
    if "endpoint" in peer.values:
        parent = _endpoint(peer)
        if isinstance(parent, VsockAddress):
            lines.append(f"parent_cid = {parent.cid}   # only this CID may connect")
    return [*lines, "", "# Addresses, routes, MTU and DNS come from the relay."]


def _endpoint(peer: Section) -> StreamAddress:
    text = peer.last("endpoint")
    if text is None:
        raise ConfigurationError(
            "cannot translate the wg-quick file",
            why="its peer has no Endpoint, and a relay dials its enclave",
            fix="add the enclave's address: Endpoint = 16:51820",
        )
    host = text.rpartition(":")[0]
    # 0.x.y.z is never a machine's address: wg writes CIDs in this form.
    if host.startswith("0.") or not ("." in host or host.startswith("[")):
        return vsock_from_ipv4(text)
    return parse_stream_address(f"tcp:{text}")


def _enclave_addresses(own: list[IpInterface], peer: Section) -> list[IpInterface]:
    """The single hosts among the allowed IPs, with the prefix length of our network that contains them."""
    hosts = [network for network in map(_network, peer.items("allowedips")) if network.num_addresses == 1]
    found = [
        ipaddress.ip_interface((host.network_address, ours.network.prefixlen))
        for host in hosts
        for ours in own
        if host.version == ours.version and host.network_address in ours.network
    ]
    if not found:
        raise ConfigurationError(
            "cannot translate the wg-quick file",
            why="it lacks the enclave's address: AllowedIPs has no single host inside the network of Address",
            fix="add it, such as: AllowedIPs = 10.73.0.2/32",
        )
    return found


def _dns(own: Section) -> tuple[list[str], list[str]]:
    """Name servers and search domains, which share one key."""
    servers, search = [], []
    for item in own.items("dns"):
        try:
            servers.append(str(ipaddress.ip_address(item)))
        except ValueError:
            search.append(item)
    return servers, search


def _interface(text: str) -> IpInterface:
    try:
        return ipaddress.ip_interface(text)
    except ValueError:
        raise _bad_value("Address", "it is not an IP address with a prefix length") from None


def _network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _bad_value("AllowedIPs", "an element is not an IP network") from None


def _number(section: Section, key: str, *, default: int | None = None) -> int:
    text = section.last(key)
    if text is None and default is not None:
        return default
    if text == "off":
        return 0
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 0xFFFF):
        raise _bad_value(section.written[key], "it is not a number from 0 to 65535")
    return int(text)


def _bad_value(key: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"cannot use {key} of the wg-quick file", why=why, fix="see wg(8) and wg-quick(8)")


def quoted(value: object) -> str:
    """A value as a TOML string. JSON's strings, and arrays of them, are valid TOML."""
    return json.dumps(str(value))


def _array(values: Sequence[object]) -> str:
    return json.dumps([str(value) for value in values])
