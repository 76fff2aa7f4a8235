"""``wgvsock nat show|render``: the rules in force, and those that a configuration comes to."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
from typing import TYPE_CHECKING

from wgvsock.cli.output import print_json, put
from wgvsock.cli.status import EXIT_NOT_RUNNING, ask, socket_path

if TYPE_CHECKING:
    from wgvsock.system.netfilter import Ruleset

_COMMANDS = {
    "nft": (["nft", "list", "table", "inet", "wgvsock"],),
    "iptables": (["iptables-save"], ["ip6tables-save"]),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``nat`` to the commands of ``wgvsock``."""
    from wgvsock.relay.config import DEFAULT_PATH

    nat = commands.add_parser("nat", help="show the packet filter's rules")
    verbs = nat.add_subparsers(dest="verb", required=True, metavar="show|render")
    show = verbs.add_parser("show", help="print the rules of the running relay; exit 3 when there are none")
    show.set_defaults(run=_show)
    render = verbs.add_parser("render", help="print the rules that a configuration comes to; nothing is changed")
    render.add_argument("--backend", choices=("nft", "iptables"), default="nft", help="default: %(default)s")
    render.add_argument("--uplink", metavar="IFACE", help="default: the configuration's, or the default route's")
    render.set_defaults(run=_render)
    for parser in (show, render):
        parser.add_argument("-c", "--config", metavar="FILE", help=f"default: {DEFAULT_PATH}")
        parser.add_argument("--json", action="store_true", help="print one JSON object")


def _show(args: argparse.Namespace) -> int:
    nat = ask(socket_path("relay", args.config), "GET", "/status")["nat"]
    rules = "".join(_list_rules(command) for command in _COMMANDS[nat["backend"]])
    if args.json:
        print_json({**nat, "rules": rules})
    else:
        put(rules, end="")
    return 0 if rules else EXIT_NOT_RUNNING


def _list_rules(command: list[str]) -> str:
    """What the tool prints; of iptables' tables only the lines that are about our chains.

    Raises:
        NetfilterError: The tool is not there.
    """
    from wgvsock.system.errors import NetfilterError

    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise NetfilterError(
            f"cannot run {command[0]}",
            why=error.strerror or str(error),
            fix="ask where the relay runs",
        ) from error
    if command[0] == "nft":
        return printed
    return "".join(line + "\n" for line in printed.splitlines() if "WGVSOCK-" in line)


def _render(args: argparse.Namespace) -> int:
    from wgvsock.system.netfilter import render_iptables, render_nft

    rules = asyncio.run(_ruleset(args))
    if args.backend == "nft":
        rendered = {"nft": render_nft(rules)}
    else:
        rendered = {"iptables": render_iptables(rules, 4), "ip6tables": render_iptables(rules, 6)}
    if args.json:
        print_json({"uplink": rules.uplink, "rules": rendered})
    else:
        put("".join(rendered.values()), end="")
    return 0


async def _ruleset(args: argparse.Namespace) -> Ruleset:
    from wgvsock.relay import config as relay
    from wgvsock.relay.nat import make_ruleset
    from wgvsock.relay.network import find_uplink, make_tunnel_config
    from wgvsock.system import resolver
    from wgvsock.system.netlink import open_netlink

    config = relay.load(args.config or relay.DEFAULT_PATH)
    async with open_netlink(lambda undo: undo) as netlink:
        uplink = await find_uplink(netlink, args.uplink or config.nat.uplink)
    tunnel = make_tunnel_config(config, uplink, resolver.read())
    return make_ruleset(config, tunnel, uplink=uplink.name, forwards_others=False)
