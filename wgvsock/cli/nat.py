"""``wgvsock nat show|render``: print the rules in force, or those that follow from a configuration."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

from wgvsock.cli.output import print_json, put_text
from wgvsock.cli.status import EXIT_NOT_RUNNING, ask, socket_path
from wgvsock.errors import TransportError
from wgvsock.settings import check_service_name

if TYPE_CHECKING:
    from wgvsock.system.filter.rules import Ruleset


def _commands(backend: str, owner: str) -> tuple[list[str], ...]:
    from wgvsock.system.filter.nft import table_name

    if backend == "nft":
        return (["nft", "list", "table", "inet", table_name(owner)],)
    return (["iptables-save"], ["ip6tables-save"])


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``nat`` to the commands of ``wgvsock``."""
    from wgvsock.relay.config import DEFAULT_PATH

    nat = commands.add_parser("nat", help="show the packet filter's rules")
    verbs = nat.add_subparsers(dest="verb", required=True, metavar="show|render")
    show = verbs.add_parser("show", help="print the rules of the running relay; exit 3 if there are none")
    show.set_defaults(run=_show)
    render = verbs.add_parser("render", help="print the rules that follow from a configuration, and change nothing")
    render.add_argument("--backend", choices=("nft", "iptables"), default="nft", help="default: %(default)s")
    render.add_argument("--uplink", metavar="IFACE", help="default: the configuration's, or the default route's")
    render.set_defaults(run=_render)
    for parser in (show, render):
        parser.add_argument("-c", "--config", metavar="FILE", help=f"default: {DEFAULT_PATH}")
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def _show(args: argparse.Namespace) -> int:
    found = _nat_status(socket_path("relay", args.config))
    for nat in found:
        owner = nat["owner"]
        nat["rules"] = "".join(_list_rules(command, owner) for command in _commands(nat["backend"], owner))
    if args.json:
        print_json({"enclaves": found})
    else:
        put_text("".join(nat["rules"] for nat in found).expandtabs(4))  # nft indents with tabs
    return 0 if all(nat["rules"] for nat in found) else EXIT_NOT_RUNNING


def _nat_status(path: str) -> list[dict[str, Any]]:
    """The relay's status of the packet filter, one entry for each enclave."""
    enclaves = ask(path, "GET", "/status").get("enclaves")
    found = [_nat_of(enclave) for enclave in enclaves] if isinstance(enclaves, list) else []
    if not found or None in found:
        raise TransportError(
            f"the service at {path} reports no packet filter",
            why="it is not a relay, has another version, or has not set up an enclave's tunnel yet",
            fix="name the relay's configuration with -c, or try again",
        )
    return [nat for nat in found if nat is not None]


def _nat_of(enclave: Any) -> dict[str, Any] | None:
    nat = enclave.get("nat") if isinstance(enclave, dict) else None
    if not isinstance(nat, dict) or nat.get("backend") not in ["nft", "iptables"]:
        return None
    if not isinstance(nat.get("owner"), str):
        return None
    for part in nat["owner"].split("/"):
        check_service_name(part)
    return {"enclave": enclave.get("name"), **nat}


def _list_rules(command: list[str], owner: str) -> str:
    """The output of the tool. For iptables, only the lines about our chains.

    Raises:
        NetfilterError: The tool cannot be run.
    """
    from wgvsock.system.errors import NetfilterError
    from wgvsock.system.filter.iptables import own_chains

    try:
        printed = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", check=False).stdout
    except OSError as error:
        raise NetfilterError(
            f"cannot run {command[0]}",
            why=error.strerror or str(error),
            fix="run this command where the relay runs",
        ) from error
    if command[0] == "nft":
        return printed
    chains = set(own_chains(owner))
    return "".join(line + "\n" for line in printed.splitlines() if chains & set(line.lstrip(":").split()))


def _render(args: argparse.Namespace) -> int:
    from wgvsock.system.filter.iptables import render_iptables
    from wgvsock.system.filter.nft import render_nft

    rulesets = asyncio.run(_rulesets(args))
    if args.backend == "nft":
        rendered = {"nft": "".join(map(render_nft, rulesets))}
    else:
        rendered = {
            f"ip{'6' if version == 6 else ''}tables": "".join(render_iptables(rules, version) for rules in rulesets)
            for version in (4, 6)
        }
    if args.json:
        print_json({"uplink": ", ".join(rulesets[0].uplink_names), "rules": rendered})
    else:
        put_text("".join(rendered.values()).expandtabs(4))  # nft accepts spaces, and output would escape tabs
    return 0


async def _rulesets(args: argparse.Namespace) -> list[Ruleset]:
    from wgvsock.relay import config as relay
    from wgvsock.relay.enclaves.interface import find_uplink, make_tunnel_config
    from wgvsock.relay.uplink.nat import make_ruleset
    from wgvsock.system import resolver
    from wgvsock.system.netlink import open_netlink

    config = relay.load(args.config or relay.DEFAULT_PATH)
    async with open_netlink(lambda undo: undo) as netlink:
        uplink = await find_uplink(netlink, args.uplink or config.nat.uplink)
    return [
        make_ruleset(
            spec,
            make_tunnel_config(spec, uplink, resolver.read()),
            uplink=uplink,
            confined=frozenset({4, 6}),
        )
        for spec in config.specs()
    ]
