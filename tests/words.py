"""Takes a text for operators apart: the commands, options, keys, targets and files that it names have to exist."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.__main__ import parser as lab_parser
from wgvsock.cli.entry import COMMANDS, make_parser
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.relay.config import RelayConfig

ROOT = Path(__file__).resolve().parents[1]

OUTSIDERS = {
    "nitro-cli": {"build-enclave", "describe-eif", "describe-enclaves", "run-enclave", "terminate-enclave", "console"},
    "modprobe": None,
    "sysctl": None,
    "mount": None,
    "chmod": None,
    "chown": None,
    "pip": {"install"},
    "ip": {"route", "rule", "link", "address"},
    "ss": None,
    "nft": {"list"},
    "iptables": {"-S"},
    "unshare": None,
    "apt-get": {"install"},
}
"""Programs of others that a text may name as a command, and the words that may follow, or None if any may."""

OPTIONS_OF_OUTSIDERS = {"--debug-mode", "--user", "--map-root-user", "--net", "--mount", "--bind", "--privileged"}
"""Of nitro-cli, unshare, mount and docker."""

HYPHENATED = {
    "apt-get", "aws-nitro-enclaves-cli", "back-off", "build-enclave", "describe-eif", "describe-enclaves",
    "instance-id", "link-local", "nitro-cli", "run-enclave", "wg-quick", "terminate-enclave", "user-space",
}  # fmt: skip
"""Names of others, and words of English. Anything else with a hyphen would be taken for a name of ours."""

SNAKE_OF_OUTSIDERS = {
    "apparmor_restrict_unprivileged_userns", "disable_ipv6", "icmp_echo_ignore_all", "ip_unprivileged_port_start",
    "max_user_namespaces", "nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nitro_enclaves", "packet_headroom",
    "unprivileged_userns_clone", "accept_ra", "rp_filter", "vhost_vsock",
}  # fmt: skip
"""Kernel names, and one parameter of `wgvsock.wireguard.Device`, whose caller is a programmer."""

DOTTED_OF_OUTSIDERS = re.compile(
    r"^(net|kernel|user|securityContext|kms)\.|\.(md|conf|log|example|com|key|json|yml|toml|pcap|py|sock)$|^lab\."
)


def problems(text: str) -> list[str]:
    """What a text names that is not there."""
    text = re.sub(r"\[([^]]+)\]\(\S+?\)", r"\1", text)  # of a link, the words
    return [
        *_commands(text),
        *_options(text),
        *_keys(text),
        *_names(text),
        *_targets(text),
        *_files(text),
    ]


def problems_of_a_command(text: str) -> list[str]:
    """What a command names that does not exist. Its arguments may be anybody's."""
    return [
        *_commands(text),
        *_targets(text),
        *_files(re.sub(r"(-o|>) \S+", "", text)),
    ]  # what is written is not there yet


def _commands(text: str) -> Iterator[str]:
    for found in re.finditer(r"\bwgvsock ((?:[a-z][a-z-]*|--?[a-z][a-z0-9-]*|[A-Z]+|[ |=])+)", text):
        words = found[1].partition(" | wgvsock")[0].replace("|", " | ").split()
        if words and words[0] in COMMANDS:
            yield from _walk("wgvsock", make_parser(words), words)
        elif f"`wgvsock {words[0] if words else ''}" in text:
            yield f"wgvsock has no command {words[0]}"
    for found in re.finditer(r"python -m lab ([a-z][a-z-]*)((?: -{1,2}[a-z-]+)*)", text):
        yield from _walk("python -m lab", lab_parser(), found[0].split()[3:])
    for found in re.finditer(r"`([^`]+)`", text):
        first, *rest = found[1].split()
        if first in OUTSIDERS and rest and (known := OUTSIDERS[first]) is not None and rest[0] not in known:
            yield f"`{found[1]}`: nobody knows {first} {rest[0]}"
    if "signing" in text and re.search(r"keys (gen|pub)(?! --signing)", text):
        yield "a signing key is made, and its public half printed, with --signing"


def _walk(program: str, parser: argparse.ArgumentParser, words: list[str]) -> Iterator[str]:
    """Follow subcommands as far as the words go, then look at the options that are left."""
    name = program
    while words and not words[0].startswith("-") and (children := subcommands(parser)):
        alternatives = [words[0]]
        while len(words) > 2 and words[1] == "|":
            words = words[2:]
            alternatives.append(words[0])
        if unknown := [word for word in alternatives if word not in children]:
            if parser.prog.split()[-1] == "logs":
                return
            yield f"{name} has no {unknown[0]}"
            return
        name += f" {words[0]}"
        parser = children[words[0]]
        words = words[1:]
    for word in words:
        if word.startswith("-") and word not in parser._option_string_actions:
            yield f"{name} has no option {word}"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below one, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@functools.cache
def all_options() -> frozenset[str]:
    """Every option of every command."""
    found: set[str] = set()
    waiting: list[argparse.ArgumentParser] = [make_parser([name]) for name in COMMANDS]
    while waiting:
        parser = waiting.pop()
        found |= set(parser._option_string_actions)
        waiting += subcommands(parser).values()
    return frozenset(found)


def _options(text: str) -> Iterator[str]:
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
        if option not in all_options() | OPTIONS_OF_OUTSIDERS and "python -m lab" not in text:
            yield f"no command has the option {option}"


@functools.cache
def key_paths() -> frozenset[str]:
    """Every key and table of both configurations, with dots."""
    return frozenset(_paths(RelayConfig)) | frozenset(_paths(EnclaveConfig))


@functools.cache
def keys() -> frozenset[str]:
    """Every key and table by its last name."""
    return frozenset(path.rpartition(".")[2] for path in key_paths())


def _paths(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(schema).items():
        if name.isupper():
            continue
        yield prefix + name
        for kind in _dataclasses(hint):
            yield from _paths(kind, f"{prefix}{name}.")


def _dataclasses(hint: Any) -> Iterator[Any]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not hint.__module__.endswith("addresses"):
        yield hint
    for part in typing.get_args(hint):
        yield from _dataclasses(part)


def _keys(text: str) -> Iterator[str]:
    for quoted in re.findall(r'(?<![=(\[,\w] )(?<![=\w(\[])"([a-z_][a-z0-9_.]*)"', text):
        if "_" in quoted and quoted.rpartition(".")[2] not in keys():
            yield f'there is no key "{quoted}"'
    for table in re.findall(r"\[\[?([a-z_]+(?:\.[a-z_]+)*)\]\]?", text):
        if table != "table" and table not in key_paths() and f"'.[{table}]'" not in text:
            yield f"there is no table [{table}]"
    for key in re.findall(r"\b([a-z_]+) = (?=[\"\[\d]|true|false)", text):
        if key not in keys():
            yield f"there is no key {key} to set"
    for dotted in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)+)\b(?!/)", text):
        if not DOTTED_OF_OUTSIDERS.search(dotted) and dotted not in key_paths():
            yield f"there is no key {dotted}"


def _names(text: str) -> Iterator[str]:
    known = {name for options in (all_options(),) for name in (option.lstrip("-") for option in options)}
    files = re.sub(r"\S*/\S*|--\S+|\bmake [a-z-]+", "", text)
    for name in re.findall(r"(?<![\w.-])[a-z0-9]+(?:-[a-z0-9]+)+(?![\w-])", files):
        if name not in HYPHENATED | known | set(COMMANDS) and name.replace("-", "_") not in keys():
            yield f"nothing is named {name}"
    for name in re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", files):
        if name not in keys() | SNAKE_OF_OUTSIDERS:
            yield f"there is no {name}"
    for name in re.findall(r"\b(?:WG|WGVSOCK|LAB)_[A-Z_]+\b", text):
        if not any(f'"{name}"' in path.read_text(encoding="utf-8") for path in (ROOT / "wgvsock").rglob("*.py")):
            yield f"nobody reads {name}"


def _targets(text: str) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`|: |, )make ([a-z]+-[a-z-]+|[a-z]+)(?=`|,|$)", text):
        if not re.search(rf"^[^#\n]*\b{target}\b[^\n=]*:(?!=)", makefile, re.MULTILINE):
            yield f"the Makefile has no target {target}"


def _files(text: str) -> Iterator[str]:
    for name in re.findall(r"(?<![\w/.])(?:docs|deploy|examples)/[\w./-]*\w", text):
        if not any(ROOT.glob(name.replace("NAME", "*"))):
            yield f"{name} is not there"
