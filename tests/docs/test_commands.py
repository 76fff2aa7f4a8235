"""Every command in the documentation exists, and is either run by a test that is named here or cannot run here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.words import problems_of_a_command
from wgvsock.cli.entry import COMMANDS, make_parser

ROOT = Path(__file__).resolve().parents[2]

PROGRAMS = (
    "wgvsock|make|python|nitro-cli|kubectl|docker|podman|sudo|source|ansible|ansible-playbook|wg|wg-quick|ip|export|cp|"
    "git|pip|pipx|curl|tshark"
)

RUN_BY = {
    r"wgvsock config init": "tests/unit/cli/test_config_filled.py",
    r"wgvsock config (check|show|schema)": "tests/unit/cli/test_config.py",
    r"wgvsock config from-vsock-proxy": "tests/unit/cli/test_config_vsock_proxy.py",
    r"wgvsock config from-wg-quick": "tests/unit/cli/test_config_import.py",
    r"wgvsock relay run": "tests/e2e/test_try.py",
    r"wgvsock relay replace": "tests/unit/cli/test_relay.py",
    r"wgvsock relay (reattest|reload)": "tests/unit/cli/test_relay.py",
    r"wgvsock egress test": "tests/unit/cli/test_egress_test.py",
    r"wgvsock egress": "tests/unit/cli/test_egress.py",
    r"wgvsock attest (fetch|own)": "tests/unit/cli/test_attest_fetch.py",
    r"wgvsock attest (show|verify)": "tests/unit/cli/test_attest.py",
    r"wgvsock device": "tests/e2e/test_wg_device.py",
    r"wg set|wg-quick up|ip address add .* dev wg0|ip link set wg0 up": "tests/e2e/test_wg_quick.py",
    r"export WG_QUICK_USERSPACE_IMPLEMENTATION": "tests/e2e/test_wg_quick.py",
    r"make try": "tests/e2e/test_try.py",
    r"make demo": "tests/e2e/test_demo.py",
    r"(sudo )?make (lab-up|lab-down|prepare)": "tests/e2e/test_lab_up.py",
    r"python -m lab (status|sh|logs|capture|keylog|fault)": "tests/e2e/test_lab_up.py",
    r"python -m lab schedule": "tests/e2e/test_schedule.py",
    r"make build": "tests/packaging/test_wheel.py",
    r"make image|podman push": "tests/deploy/test_image.py",
    r"make manifests": "tests/deploy/test_manifests.py",
    r"make (e2e|check|test|unit[a-z-]*|docs|manuals)\b": ".ci/run",
    r"make example": ".ci/run",
    r"make bench": "benchmarks/__main__.py",
    r"python -m benchmarks.services": "benchmarks/services.py",
    r"nitro-cli build-enclave": "tests/e2e/test_launch.py",
    r"tshark -r outer.pcap": "tests/e2e/test_netcheck.py",
    r"ansible-playbook lab/ansible/site.yml": "tests/e2e/test_lab_up.py",
    r"source .*completions/wgvsock": "tests/docs/test_manuals.py",
}
"""A pattern for each command, and the file that runs it or the same verb. Other commands have a file of their name."""

NOT_HERE = {
    r"kubectl (exec|apply|-n)": "needs a cluster; the manifests that it takes are tested",
    r"curl http://SERVICE/": "needs a cluster's service; `make example` asks the same of a published port",
    r"docker build": "needs a Docker engine; the images are tested with podman",
    r"nitro-cli .*--private-key": "needs a signer's certificate",
    r"sudo modprobe|sudo make e2e LAB=vhost": "changes the kernel of the machine, or needs its vhost device",
    r"ansible pod|ansible-playbook -i inventory|cp inventory.example": "needs hosts of one's own",
    r"cd deploy/ansible|export ANSIBLE_CONFIG": "goes before these",
    r"git tag": "makes a release",
    r"make soak": "takes as many minutes as one asks for; it is run by hand before a release",
}
"""What cannot run in a test, and why."""

PLACEHOLDER = re.compile(r"…|\bNAME\b")


def commands() -> Iterator[tuple[str, str]]:
    """Yield page and command, from console blocks and indented ones. Decision records are skipped as history."""
    elsewhere = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/README.md")]
    for path in sorted((*(ROOT / "docs").rglob("*.md"), *elsewhere)):
        page = str(path.relative_to(ROOT))
        if "/adr/" in page:
            continue
        fence = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("```"):
                fence = "" if fence else line[3:] or "none"
                continue
            found = re.match(rf"(?:\$ |> )?\s*((?:{PROGRAMS}) .*)", line) if fence in {"console", "sh"} else None
            if not fence:
                found = re.match(rf" {{4,}}((?:{PROGRAMS}) .*)", line)
            if found and page != "docs/try.md":  # which is a transcript: tests/e2e/test_try.py
                command = re.sub(r"\s{2,}#.*$", "", found[1]).strip()
                yield from ((page, part.strip()) for part in command.split(" && "))


COMMANDS_OF_THE_PAGES = sorted(set(commands()))


def test_the_pages_are_read() -> None:
    assert len(COMMANDS_OF_THE_PAGES) > 60


@pytest.mark.parametrize(("page", "command"), COMMANDS_OF_THE_PAGES)
def test_a_command_names_what_exists(page: str, command: str) -> None:
    assert problems_of_a_command(command) == []
    if target := re.match(r"(?:sudo )?make ([a-z][a-z0-9-]*)", command):
        assert re.search(
            rf"^[^#\n\t]*\b{target[1]}\b[^\n=]*:(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
        )
    if not command.startswith("wgvsock ") or PLACEHOLDER.search(command):
        return
    words = shlex.split(command, comments=True)[1:]
    words = words[: next((place for place, word in enumerate(words) if word in {">", "<", "|"}), len(words))]
    assert words[0] in COMMANDS
    make_parser(words).parse_args(words)  # ends the test where it is not taken


@pytest.mark.parametrize(("page", "command"), COMMANDS_OF_THE_PAGES)
def test_a_command_is_run_by_a_test_or_is_known_not_to_run_here(page: str, command: str) -> None:
    if any(re.match(pattern, command) for pattern in NOT_HERE):
        return
    own = f"tests/unit/cli/test_{command.split()[1]}.py" if command.startswith("wgvsock ") else None
    by = next((file for pattern, file in RUN_BY.items() if re.match(pattern, command)), own)
    assert by is not None, f"{page}: {command}: add it to RUN_BY with its test, or to NOT_HERE with the reason"
    if by.startswith("tests/unit/cli/"):  # which call `main` with the words of the command
        assert f'"{command.split()[1]}"' in (ROOT / by).read_text(encoding="utf-8")
    assert (ROOT / by).exists()
