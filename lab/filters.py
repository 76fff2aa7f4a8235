"""The tools with which a laboratory's Relay can change the packet filter: ``FILTER=nft|iptables|…``.

The Relay has no option for it: it uses the first that works. So on its machine nft fails, as on a kernel without
nf_tables, and ``iptables`` is the requested one. The laboratory's own commands keep all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from lab.errors import LabError

VARIABLE: Final = "FILTER"

_TOOLS: Final = ("iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save")

_WITHOUT_NF_TABLES: Final = """#!/bin/sh
echo 'netlink: Error: cache initialization failed: Operation not supported' >&2
exit 1
"""
"""What nft prints and returns on such a kernel."""

_FURNISH: Final = f"""
mkdir -p "$0"
program=$(command -v "$1")
for tool in {" ".join(_TOOLS)}; do ln -sfn "$program" "$0/$tool"; done
printf '%s' "$2" > "$0/nft.new"
chmod 755 "$0/nft.new"
mv "$0/nft.new" "$0/nft"
shift 2
PATH="$0:$PATH" exec "$@"
"""


class PacketFilter(StrEnum):
    """The packet filter of the Relay."""

    NFT = "nft"
    IPTABLES = "iptables"
    """With nf_tables behind it, as on Debian, Ubuntu and Amazon Linux 2023."""
    LEGACY = "iptables-legacy"
    """With ip_tables behind it, as on Amazon Linux 2."""

    def wrap(self, argv: Sequence[str], folder: str) -> list[str]:
        """Wrap a command so that no other packet filter works.

        Args:
            argv: The command.
            folder: On its machine. Holds the programs at the front of its PATH, which are written at each start.
        """
        if self is PacketFilter.NFT:
            return list(argv)
        program = "xtables-legacy-multi" if self is PacketFilter.LEGACY else "xtables-nft-multi"
        return ["sh", "-ec", _FURNISH, folder, program, _WITHOUT_NF_TABLES, *argv]

    @property
    def listing(self) -> str:
        """A shell command that prints the rules in force. With iptables it omits the permanent built-in chains."""
        if self is PacketFilter.NFT:
            return "nft list ruleset"
        legacy = "-legacy" if self is PacketFilter.LEGACY else "-nft"
        return f"for v in ip ip6; do ${{v}}tables{legacy}-save 2>&1 | sed -n '/^-A/p; /^:WGVSOCK/p'; done"

    @property
    def trial(self) -> list[str]:
        """A command that fails, with the reason, on a kernel that cannot do it."""
        if self is PacketFilter.NFT:
            return ["nft", "list", "tables"]
        return [
            "sh",
            "-ec",
            "for tool in iptables ip6tables; do for t in filter mangle nat; do $tool -t $t -S; done; done",
        ]


def asked_for() -> PacketFilter:
    """Return the filter that the environment names, by default nft.

    Raises:
        LabError: No filter has that name.
    """
    name = os.environ.get(VARIABLE) or PacketFilter.NFT
    try:
        return PacketFilter(name)
    except ValueError:
        raise LabError(f"there is no packet filter {name!r}", fix=f"choose one of {', '.join(PacketFilter)}") from None
