"""``wgvsock config``: write a first configuration, translate another tool's, check one, or show it in full."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
from collections.abc import Callable
from typing import Any, Final

from wgvsock import settings
from wgvsock.cli import config_filled, config_import, config_vsock_proxy
from wgvsock.cli.output import print_json, put, put_lines, put_text

EXIT_WARNED: Final = 2
VERBS: Final = ("init", "check", "show", "schema", "from-wg-quick", "from-vsock-proxy")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config`` to the commands of ``wgvsock``."""
    config = commands.add_parser("config", help="write, check and show configurations")
    verbs = config.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    init = verbs.add_parser("init", help="print a commented configuration to start from")
    check = verbs.add_parser(
        "check",
        help="check a file; exit 0 or 2",
        description="A problem keeps the service from starting or working: exit 2. A warning may be a mistake.",
    )
    show = verbs.add_parser(
        "show",
        help="print a file's settings with all defaults",
        description="Keys that need a restart are marked. Comments show what a relay would decide if it started on "
        "this machine now.",
    )
    for parser, run in ((init, _init), (check, _check), (show, _show)):
        parser.add_argument("role", choices=config_import.ROLES)
        parser.set_defaults(run=run)
    for parser in (check, show):
        parser.add_argument("file", nargs="?", metavar="FILE", help="default: /etc/wgvsock/ROLE.toml")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--strict", action="store_true", help="exit 2 if there are warnings, too")
    init.add_argument(
        "--pcrs",
        action="append",
        default=[],
        metavar="FILE",
        help="relay: accept the image whose output of nitro-cli build-enclave this is; may be repeated",
    )
    config_filled.add_arguments(init)
    schema = verbs.add_parser("schema", help="print the JSON schema of a file, for editors")
    schema.add_argument("role", choices=config_import.ROLES)
    schema.set_defaults(run=_schema)
    config_import.add_parser(verbs)
    config_vsock_proxy.add_parser(verbs)


def _init(args: argparse.Namespace) -> int:
    template: str = importlib.import_module(f"wgvsock.{args.role}.template").TEMPLATE
    if args.pcrs:
        from wgvsock.cli.config_pcrs import with_pcrs

        template = with_pcrs(template, args.role, args.pcrs)
    put_text(config_filled.filled(template, args.role, args.cid, args.publish))
    return 0


def _schema(args: argparse.Namespace) -> int:
    import json

    module: Any = importlib.import_module(f"wgvsock.{args.role}.config")
    kind = getattr(module, f"{args.role.capitalize()}Config")
    schema = settings.json_schema(kind, f"{args.role}.toml of wgvsock")
    put_text(json.dumps(schema, indent=2) + "\n")
    return 0


def _check(args: argparse.Namespace) -> int:
    path, config = _load(args)
    review: Any = importlib.import_module(f"wgvsock.{args.role}.review")
    advice: tuple[settings.Advice, ...] = review.advise(config)
    problems: tuple[settings.Advice, ...] = ()
    if args.role == "relay":
        import asyncio

        problems = importlib.import_module("wgvsock.relay.rehearsal").rehearse(config)
        if shutil.which("iptables") and not shutil.which("nft"):
            advice += review.advise_without_nft(config)
        advice += asyncio.run(_compare_with_this_machine(config))
    told = {"problem": _located(path, problems), "warning": _located(path, advice)}
    if args.json:
        found = {f"{kind}s": each for kind, each in told.items()}
        print_json({"ok": not problems, "role": args.role, "file": path, **found})
    else:
        put(f"{path}: {'not ok' if problems else 'ok'}")
        for kind, each in told.items():
            for one in each:
                put_lines([f"{kind}: {one['where']}: {one['what']}", f"why: {one['why']}", f"fix: {one['fix']}"])
    return EXIT_WARNED if problems or (advice and args.strict) else 0


async def _compare_with_this_machine(config: Any) -> tuple[settings.Advice, ...]:
    """Warnings: the file may be another machine's."""
    from wgvsock.errors import WgvsockError
    from wgvsock.relay.rehearsal import rehearse_here
    from wgvsock.system.netlink import open_netlink

    with contextlib.suppress(WgvsockError):  # its addresses cannot be read: then nothing is known against the file
        async with open_netlink(lambda undo: undo) as netlink:
            return await rehearse_here(config, netlink)
    return ()


def _located(path: str, advice: tuple[settings.Advice, ...]) -> list[dict[str, str]]:
    places = settings.locate(path, [each.key for each in advice])
    return [
        {"where": where, "what": each.what, "why": each.why, "fix": each.fix}
        for where, each in zip(places, advice, strict=True)
    ]


def _show(args: argparse.Namespace) -> int:
    path, config = _load(args)
    from wgvsock.cli.config_decided import decide

    decided = decide(config)
    reloads = settings.reloadable(config) if args.role == "relay" else {}
    if args.json:
        shown = {"settings": settings.to_plain(config), "decided": decided, "reloadable": reloads}
        print_json({"role": args.role, "file": path, **shown})
    else:
        put_text(settings.format_toml(config, {key: "restart to change" for key, ok in reloads.items() if not ok}))
        for name, facts in decided.items():
            put_lines([f"# {name}: {key} = {value}" for key, value in facts.items()])
    return 0


def _load(args: argparse.Namespace) -> tuple[str, object]:
    module: Any = importlib.import_module(f"wgvsock.{args.role}.config")
    load: Callable[[str], object] = module.load
    path: str = args.file or module.DEFAULT_PATH
    return path, load(path)
