"""``wgvsock config init relay --cid N --publish 443``: fills in what is known about an enclave."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wgvsock.errors import ConfigurationError

FIRST_CID: Final = 4
"""0 is the hypervisor, 1 this machine's own loopback, 2 the host, 3 the parent of every Nitro Enclave."""

MAX_CID: Final = 2**32 - 2
MAX_PORT: Final = 65535

_ADDRESS: Final = re.compile(r'"vsock:16:51820" +(?=#)')
_PUBLISH: Final = re.compile(r"#\[\[nat\.publish\]\]\n(?:#.*\n)+")
_FORM: Final = re.compile(r"(\d{1,5})(?::(\d{1,5}))?(?:/(tcp|udp))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Published:
    """A port of the parent that is forwarded to the enclave."""

    port: int
    enclave_port: int
    protocol: str

    def table(self) -> str:
        """The TOML table for the file."""
        lines = ["[[nat.publish]]", f'protocol = "{self.protocol}"', f"port = {self.port}"]
        if self.enclave_port != self.port:
            lines.append(f"enclave_port = {self.enclave_port}")
        return "\n".join(lines) + "\n"


def add_arguments(init: argparse.ArgumentParser) -> None:
    """Add the options for the values to fill in."""
    init.add_argument("--cid", type=_cid, metavar="N", help="relay: the EnclaveCID that nitro-cli run-enclave printed")
    init.add_argument(
        "--publish",
        type=_published,
        action="append",
        default=[],
        metavar="PORT[:ENCLAVE_PORT][/PROTOCOL]",
        help="relay: forward a port of the parent to the enclave, such as 443, 443:8443 or 53/udp; may be repeated",
    )


def filled(template: str, role: str, cid: int | None, published: Sequence[Published]) -> str:
    """The template with a CID and published ports instead of its examples.

    Args:
        template: The role's template.
        role: Has to be ``relay`` if there is something to fill in.
        cid: The enclave's CID. None keeps the template's example.
        published: The ports. If empty, the template's commented example stays.

    Raises:
        ConfigurationError: The role has no such settings.
    """
    if cid is None and not published:
        return template
    if not _ADDRESS.search(template):
        raise ConfigurationError(
            f"cannot use --cid or --publish for the {role}",
            why="only the relay dials enclaves and publishes ports",
            fix="write: wgvsock config init relay --cid N --publish PORT",
        )
    if cid is not None:
        address = f'"vsock:{cid}:51820" '
        template = _ADDRESS.sub(lambda example: address.ljust(len(example[0])), template, count=1)
    if published:
        tables = "\n".join(port.table() for port in published)
        template = _PUBLISH.sub(lambda _: tables, template, count=1)
    return template


def _cid(text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not FIRST_CID <= int(text) <= MAX_CID:
        raise argparse.ArgumentTypeError(f"an enclave's CID is a number from {FIRST_CID} to {MAX_CID}")
    return int(text)


def _published(text: str) -> Published:
    found = _FORM.fullmatch(text)
    ports = [int(part) for part in (found[1], found[2] or found[1])] if found else [0]
    if not found or not all(1 <= port <= MAX_PORT for port in ports):
        raise argparse.ArgumentTypeError("write a port, such as 443, 443:8443 or 53/udp")
    return Published(ports[0], ports[1], found[3] or "tcp")
