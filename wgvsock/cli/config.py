"""``wgvsock config init|check|show|from-wg-quick``: make a first configuration, check one, show it in full."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any, Final

from wgvsock import settings
from wgvsock.cli import config_import
from wgvsock.cli.output import print_json, put

ROLES: Final = ("relay", "enclave")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config`` to the commands of ``wgvsock``."""
    config = commands.add_parser("config", help="write, check and show configurations")
    verbs = config.add_subparsers(dest="verb", required=True, metavar="init|check|show|from-wg-quick")
    init = verbs.add_parser("init", help="print a commented configuration to begin with")
    check = verbs.add_parser("check", help="check a file; exit 0 or 2")
    show = verbs.add_parser("show", help="print a file's settings with all defaults")
    for parser, run in ((init, _init), (check, _check), (show, _show)):
        parser.add_argument("role", choices=ROLES)
        parser.set_defaults(run=run)
    for parser in (check, show):
        parser.add_argument("file", nargs="?", metavar="FILE", help="default: /etc/wgvsock/ROLE.toml")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    config_import.add_parser(verbs)


def _init(args: argparse.Namespace) -> int:
    template: str = importlib.import_module(f"wgvsock.{args.role}.template").TEMPLATE
    put(template, end="")
    return 0


def _check(args: argparse.Namespace) -> int:
    path, _ = _load(args)
    if args.json:
        print_json({"ok": True, "role": args.role, "file": path})
    else:
        put(f"{path}: ok")
    return 0


def _show(args: argparse.Namespace) -> int:
    path, config = _load(args)
    if args.json:
        print_json({"role": args.role, "file": path, "settings": settings.to_plain(config)})
    else:
        put(settings.format_toml(config), end="")
    return 0


def _load(args: argparse.Namespace) -> tuple[str, object]:
    module: Any = importlib.import_module(f"wgvsock.{args.role}.config")
    load: Callable[[str], object] = module.load
    path: str = args.file or module.DEFAULT_PATH
    return path, load(path)
