"""``wgvsock config from-vsock-proxy``: turns the allowlist of AWS's vsock-proxy into an egress policy.

The allowlist is YAML. The wheel has no YAML library, and one command does not justify one: each dependency ends up in
the image of every enclave, and a YAML loader (tags, anchors, merges) is a lot to trust for two keys. So this module
reads the usual forms of such lists, including AWS's own, and refuses any other line by its number. The tests compare it
with PyYAML.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.cli.config_import import quoted, read_foreign
from wgvsock.cli.output import put_text
from wgvsock.errors import ConfigurationError

_DEFAULT_PATH: Final = Path("/etc/nitro_enclaves/vsock-proxy.yaml")
"""Where vsock-proxy itself looks (`vsock_proxy/README.md` of aws-nitro-enclaves-cli)."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Includes the line breaks of other YAML versions: text in a comment to us must not be a line to other parsers."""
_COMMENT: Final = re.compile(r"(?:^| )#.*")
_HEAD: Final = re.compile(r"allowlist:( *\[ *\])?")
_PAIR: Final = r"""(?:"(\w+)"|'(\w+)'|(\w+)) *: +(?:"([^"'\\]*)"|'([^"'\\]*)'|([A-Za-z0-9:][A-Za-z0-9:._-]*))"""
_FLOW: Final = re.compile(rf"( *)(- *)\{{ *{_PAIR} *, *{_PAIR} *,? *\}}")
_FIRST: Final = re.compile(rf"( *)(- +){_PAIR}")
_NEXT: Final = re.compile(rf"( *){_PAIR}")

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?=[A-Za-z]){_LABEL}")
"""A host name. Its last label begins with a letter (RFC 3696, section 2), unlike YAML's numbers and dates."""
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
"""Words that YAML does not take as strings unless they are quoted."""
_LOCAL: Final = "localhost"
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Target:
    """An entry of the allowlist: an address or a lower-case host name without final dot, and a TCP port."""

    host: str | IpAddress
    port: int


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``from-vsock-proxy`` to the verbs of ``wgvsock config``."""
    parser = verbs.add_parser("from-vsock-proxy", help="print an egress policy made from a vsock-proxy allowlist")
    parser.add_argument(
        "file", nargs="?", type=Path, default=_DEFAULT_PATH, metavar="FILE", help="default: %(default)s"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    put_text(from_vsock_proxy(read_foreign(args.file, "vsock-proxy")))
    return 0


def from_vsock_proxy(text: str) -> str:
    """Translate an allowlist.

    Args:
        text: The YAML file.

    Returns:
        The table ``[egress]`` that allows only what vsock-proxy forwards.

    Raises:
        ConfigurationError: The file is not an allowlist, or uses a form of YAML that is not supported.
    """
    targets = parse_allowlist(text)
    ports: dict[str | IpAddress, dict[int, None]] = {}
    for target in targets:
        # vsock-proxy runs on the parent, so what it reached on loopback runs there as well, whatever its name.
        here = not isinstance(target.host, str) and target.host.is_loopback
        ports.setdefault(_LOCAL if here else target.host, {})[target.port] = None
    head = [
        "# From an allowlist of vsock-proxy: replace [egress] in relay.toml with this, and check that file.",
        *_obsolete(ports),
        "",
        "[egress]",
        'default = "deny"',
    ]
    return "\n".join([*head, *(line for host, each in ports.items() for line in _entry(host, each)), ""])


def _obsolete(ports: Mapping[str | IpAddress, Iterable[int]]) -> list[str]:
    """Comments that list what directed the application to vsock-proxy."""
    if not ports:
        return []
    numbers = ", ".join(map(str, sorted({port for each in ports.values() for port in each})))
    names = [host for host in ports if isinstance(host, str)]
    lines = ["# The application now connects to these hosts directly. What sent it to vsock-proxy can be removed:"]
    if names:
        lines.append(f"#   in the image: the lines of /etc/hosts with a loopback address for {_some(names)}")
    return [
        *lines,
        f"#   in the image: the forwarders that listen on loopback, port {numbers} (socat, traffic_forwarder.py, …)",
        "#   on the parent: vsock-proxy, one process for each host (nitro-enclaves-vsock-proxy.service)",
        "# Programs that dial vsock themselves, such as kmstool_enclave_cli --proxy-port, still need vsock-proxy.",
    ]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"the {len(names)} names below"


def _entry(host: str | IpAddress, ports: Iterable[int]) -> list[str]:
    notes, target = [], f"name = {quoted(host)}"
    if host == _LOCAL:
        target = "relay = true"
        notes = ["# A service on the relay's own machine: make it listen on the relay's tunnel address."]
    elif not isinstance(host, str):
        target = f"network = {quoted(ipaddress.ip_network(host))}"
        if host.is_link_local:
            notes = ["# Link-local, such as instance metadata: denied unless a rule names it, as this one does."]
    return ["", *notes, "[[egress.allow]]", target, f"ports = [{', '.join(map(str, ports))}]"]


def parse_allowlist(text: str) -> list[Target]:
    """The entries of an allowlist, in order.

    Raises:
        ConfigurationError: A line has an unsupported form. The error names it.
    """
    entries: list[_Entry] = []
    begun, empty, dash, keys = False, False, -1, -1  # columns of the list's dashes, and of an open entry's keys
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.removesuffix("\r")
        if _CONTROL.search(line):
            raise _bad_line(number, "it contains a tab or another control character")
        line = _COMMENT.sub("", line).rstrip(" ")
        if not line or (line == "---" and not begun):
            continue
        if not begun:
            head = _HEAD.fullmatch(line)
            if head is None:
                raise _bad_line(number, 'the file does not begin with "allowlist:"')
            begun, empty = True, head[1] is not None
        elif (found := _NEXT.fullmatch(line)) and len(found[1]) == keys:
            entries[-1].add(*found.groups()[1:])
        elif (found := _FLOW.fullmatch(line) or _FIRST.fullmatch(line)) and not empty and dash in {-1, len(found[1])}:
            dash = len(found[1])
            keys = dash + len(found[2]) if found.re is _FIRST else -1
            entry = _Entry(number)
            for position in range(2, len(found.groups()), 6):
                entry.add(*found.groups()[position : position + 6])
            entries.append(entry)
        else:
            raise _bad_line(number, "it is not an entry with an address and a port")
    if not begun:
        raise _bad_line(1, "the file is empty")
    return [entry.target() for entry in entries]


class _Entry:
    """One entry while it is being read.

    Args:
        number: The line on which it begins.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._address: str | None = None
        self._port: int | None = None

    def add(self, *groups: str | None) -> None:
        """Take one key and its value.

        Args:
            groups: The groups of `_PAIR`: the key and the value, each in double quotes, single quotes or none.

        Raises:
            ConfigurationError: The key is unknown or repeated, or the value is invalid.
        """
        key = next(filter(None, groups[:3]))
        quoted_value, plain = next((text for text in groups[3:5] if text is not None), None), groups[5]
        if key == "address" and self._address is None:
            if plain is not None and plain.lower() in _WORDS:
                raise self._bad("the address is not a string: put it in quotes")
            self._address = plain or quoted_value or ""
        elif key == "port" and self._port is None:
            if plain is None or not _PORT.fullmatch(plain) or int(plain) > 0xFFFF:
                raise self._bad("the port is not a number from 1 to 65535")
            self._port = int(plain)
        else:
            raise self._bad("it has a key other than address and port, or one of the two twice")

    def target(self) -> Target:
        """The complete entry.

        Raises:
            ConfigurationError: A key is missing, or the address is neither a host name nor an IP address.
        """
        if self._address is None or self._port is None:
            raise self._bad("it lacks its address or its port")
        try:
            return Target(ipaddress.ip_address(self._address), self._port)
        except ValueError:
            name = self._address.removesuffix(".").lower()
        if not _NAME.fullmatch(name):
            raise self._bad("its address is neither a host name nor an IP address")
        return Target(name, self._port)

    def _bad(self, why: str) -> ConfigurationError:
        return _bad_line(self._number, why)


def _bad_line(number: int, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot read line {number} of the vsock-proxy allowlist",
        why=why,
        fix="write each entry as AWS does: - {address: kms.us-east-1.amazonaws.com, port: 443}",
    )
