"""``make try``: a relay and an enclave in two network namespaces, in steps that a person could type.

Every step is a shell command. It is printed as it is run, with its output. Afterwards a shell is left in the same
place. Everything happens in a separate network namespace and directory, which is the world of the two: nothing of it
remains on this machine afterwards. docs/try.md is the transcript.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.errors import LabError

CHECKOUT: Final = Path(__file__).resolve().parents[2]

_PATIENCE: Final = 60.0  # seconds for one step, on a machine that is busy with something else
_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        about: What and why, in a sentence or two.
        script: For bash, as a person would type it.
    """

    about: str
    script: str

    def commands(self) -> list[str]:
        """Return the script's commands, each with its continuation lines."""
        found: list[list[str]] = []
        inside, goes_on = False, False
        for line in self.script.split("\n"):
            if inside or goes_on:
                found[-1].append(line)
            else:
                found.append([line])
            inside = line != "EOF" and (inside or "<<EOF" in line)
            goes_on = line.endswith(("\\", "|"))
        return ["\n".join(lines) for lines in found]


STEPS: Final = (
    Step(
        "Two network namespaces represent the enclave and the pod of the relay. The relay has an interface to the "
        "outside. The enclave has none: a pair of Unix sockets connects the two in place of AF_VSOCK.",
        """\
ip netns add enclave
ip netns add relay
ip link set lo up
ip -n relay link set lo up
ip link add world type veth peer name eth0 netns relay
ip addr add 192.0.2.1/24 dev world
ip link set world up
ip -n relay addr add 192.0.2.2/24 dev eth0
ip -n relay link set eth0 up
ip -n relay route add default via 192.0.2.1""",
    ),
    Step(
        "On a Nitro host `nitro-cli build-enclave` measures the image and prints this. Here the values are invented.",
        """\
cat > build.json <<EOF
{"Measurements": {"PCR0": "$(printf 'a0%.0s' {1..48})",
                  "PCR1": "$(printf 'b1%.0s' {1..48})",
                  "PCR2": "$(printf 'c2%.0s' {1..48})"}}
EOF""",
    ),
    Step(
        "A fake Nitro Security Module signs attestation documents as the real one does, with its own root "
        "certificate. It is part of the laboratory and is not in the wheel.",
        """\
python -m lab.nsm.server --state-dir nsm --measurements build.json > nsm.json &
until [ -s nsm.json ]; do sleep 0.1; done
sed 's/.*"root_sha256": "\\([0-9a-f]*\\)".*/\\1/' nsm.json | tee root.sha256""",
    ),
    Step(
        "The enclave's configuration is part of its image, so it is measured. It says where the agent listens.",
        """\
cat > enclave.toml <<EOF
listen = "unix:$PWD/wireguard.sock"
provisioning_listen = "unix:$PWD/provisioning.sock"
runtime_directory = "$PWD/run/enclave"
resolv_conf = ""      # there is no name server here
EOF""",
    ),
    Step(
        "The relay's configuration says where the enclave is, which image is accepted, what the enclave may reach, and "
        "which port of the relay leads to it. `config init` writes the measurements.",
        """\
cat > relay.toml <<EOF
runtime_directory = "$PWD/run/relay"

[enclave]
address = "unix:$PWD/wireguard.sock"
provisioning_address = "unix:$PWD/provisioning.sock"

[dns]
servers = ["192.0.2.1"]

[egress]
default = "deny"
allow = [{ network = "192.0.2.0/24", protocol = "any" }]

[nat]
publish = [{ protocol = "tcp", port = 8080 }]

[attestation]
root_sha256 = ["$(cat root.sha256)"]   # of the fake; default: AWS's
EOF
wgvsock config init relay --pcrs build.json |
    sed -n '/^\\[\\[attestation/,/^pcr2/p' >> relay.toml
wgvsock config check relay relay.toml""",
    ),
    Step(
        "The agent starts in the enclave and waits for its relay. The application is Python's own web server: it "
        "starts once the link is up. In production this command is `wgvsock enclave run -c enclave.toml -- …`. The "
        "laboratory's agent is the same, but uses the fake security module.",
        """\
mkdir www && echo "Hello from the enclave" > www/index.html
ip netns exec enclave \\
    python -m lab.programs.enclave --config enclave.toml --secure-module nsm/nsm.sock \\
    -- python -m http.server --directory www 8080 > enclave.log 2>&1 &""",
    ),
    Step(
        "The relay asks the enclave for its attestation document, verifies it, and only then sets the tunnel up.",
        """\
ip netns exec relay wgvsock relay run -c relay.toml > relay.log 2>&1 &
wgvsock status --wait --timeout 20 -c relay.toml > /dev/null && echo ready""",
    ),
    Step(
        "The enclave has an interface, an address and a default route. It reaches the outside.",
        """\
ip netns exec enclave ip -4 -brief address show wg0
ip netns exec enclave ip -4 route show default
ip netns exec enclave ping -c 1 192.0.2.1 | grep received""",
    ),
    Step(
        "Clients outside reach the enclave's application on the port that the relay publishes.",
        "curl -sS --retry 5 --retry-connrefused http://192.0.2.2:8080/",
    ),
    Step("Each layer of the tunnel answers separately.", "wgvsock ping -c 1 --config relay.toml"),
    Step("Every error code can be explained offline.", "wgvsock explain WGV-E071"),
)


class Tryout:
    """Runs steps in a directory, one shell for each, and remembers what to end.

    Args:
        folder: For all files. Steps have it as their current directory.
        say: Takes text for the reader.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._groups: list[int] = []

    def run(self, command: str) -> None:
        """Print a command, run it, and print its output.

        Raises:
            LabError: It failed, or did not end.
        """
        self._say(_typed(command))
        output = self._folder / ".output"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=self._folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            try:
                status = process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                status = None
        printed = "\n".join(line.rstrip() for line in output.read_text("utf-8", "replace").split("\n"))
        self._say(printed)
        if status != 0:
            raise LabError(
                f"a step ended with {status}" if status is not None else "a step did not end",
                why=self._last_words() or printed[-1000:],
                fix="run `wgvsock doctor --role lab`",
            )

    def _last_words(self) -> str:
        logs = [self._folder / name for name in ("relay.log", "enclave.log")]
        return "\n".join(line for log in logs if log.exists() for line in log.read_text().splitlines()[-3:])

    def end(self) -> None:
        """End what the steps left running, the youngest first."""
        for group in reversed(self._groups):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        until = time.monotonic() + _GRACE
        while self._alive() and time.monotonic() < until:
            time.sleep(0.05)
        for group in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def _alive(self) -> list[int]:
        alive = []
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, 0)
                alive.append(group)
        return alive


def environment() -> dict[str, str]:
    """The environment in which the steps find ``wgvsock``, ``python`` and the laboratory."""
    programs = Path(sys.executable).parent
    path = os.pathsep.join((str(programs), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "80", "NO_COLOR": "1"}


def _typed(command: str) -> str:
    """Return a command with prompts, as a terminal shows it."""
    return f"$ {command}\n".replace("\n", "\n> ").removesuffix("> ")


def run(steps: Sequence[Step] = STEPS, *, page: Path | None = None) -> int:
    """Run all steps, then a shell if this is a terminal.

    Args:
        steps: The steps.
        page: The file for the transcript, as Markdown.

    Raises:
        LabError: A step failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="wgvsock-try-"))
    transcript: list[str] = []

    def say(text: str) -> None:
        transcript.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    tryout = Tryout(folder, say)
    parts = []
    try:
        print(f"$ export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={CHECKOUT}\n$ cd {folder}")
        for step in steps:
            print("\n" + textwrap.fill(step.about, 80, initial_indent="# ", subsequent_indent="# "))
            transcript.clear()
            for command in step.commands():
                tryout.run(command)
            parts.append(f"{textwrap.fill(step.about, 120)}\n\n```console\n{''.join(transcript)}```\n")
        if page is not None:
            page.write_text(page_of(parts, folder), encoding="utf-8")
        if sys.stdin.isatty():
            _shell(folder)
    finally:
        tryout.end()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _shell(folder: Path) -> None:
    """Run a shell in the world of the two, until it is left."""
    print(
        "\nThis shell is in the network namespace of the two. Try:\n"
        "  ip netns exec enclave bash        # inside the enclave\n"
        "  wgvsock status -c relay.toml\n"
        "  tail relay.log enclave.log\n"
        "exit removes everything."
    )
    subprocess.run(["bash", "--norc"], cwd=folder, env={**environment(), "PS1": "try$ "}, check=False)


INTRODUCTION: Final = """\
# Try it without Nitro

`make try` starts a relay and an enclave on your machine in seconds, in steps that you could type yourself, and leaves
you in a shell beside them. It needs x86-64 Linux, `/dev/net/tun`, and root or user namespaces. The security module is
the laboratory's fake one, and Unix sockets replace AF_VSOCK. Everything else is what runs in production: relay, agent,
verifier, WireGuard, packet filter.

This page is the transcript of such a run. A test compares the two.

```console
$ make try
```
"""

_ENDING: Final = """\
## Next steps

* `exit` leaves the shell and removes everything.
* `make demo` shows the same with every packet on its path, and `make lab-up` starts a permanent [laboratory](lab.md).
* [Operations](operations.md) describes a real enclave.
"""


def page_of(parts: Sequence[str], folder: Path) -> str:
    """Return docs/try.md, with the values that differ between runs replaced."""
    text = "\n".join((INTRODUCTION, *parts, _ENDING))
    return steady(text.replace(str(folder), "/tmp/try"))  # noqa: S108 (a name on a page)


def steady(text: str) -> str:
    """Return a transcript in which times and random values are always the same."""
    text = re.sub(r"\b(?!(?:a0|b1|c2)+\b)[0-9a-f]{64}\b", "5e" * 32, text)
    text = re.sub(r"[\d./]+ ms\b", lambda found: re.sub(r"[\d.]+", "0.4", found[0]), text)
    text = re.sub(r"\b\d+ s ago", "1 s ago", text)
    return re.sub(r"time \d+ms", "time 0ms", text)
