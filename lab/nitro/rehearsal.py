"""A parent instance on this machine for the examples: their images are built, measured, launched and used.

``nitro-cli`` is the laboratory's stand-in: it puts the image's files into a guest, measures it, and boots it under
QEMU. The Relay is the production one in the pod's namespace, and its policy is what the build printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.backend import Completed
from lab.errors import LabError
from lab.image.build import PYTHON
from lab.image.cpio import File
from lab.image.enclave import boot_services
from lab.laboratory import LAB
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.nitro.enclaves import Limits, Parent
from lab.topology import Node
from wgvsock.errors import AttestationError

EXAMPLES: Final = LAB.parent / "examples"
NITRO_CLI: Final = LAB / "bin/nitro-cli"
_WGVSOCK: Final = Path(sys.executable).with_name("wgvsock")

_EMULATION: Final = 12.0
"""How much longer things take in an emulated guest. Only deadlines depend on it."""

_PARENT_CID: Final = "parent_cid = 2   # QEMU's; 3, the default, on Nitro\n"

_BASE_PYTHON: Final = "/opt/wgvsock/bin/python"
"""The base image's own path. A guest has its libraries where its only Python looks for them."""

_GET: Final = (
    "import ssl, sys, urllib.request as r; c = ssl._create_unverified_context();"
    " sys.stdout.write(r.urlopen(sys.argv[1], timeout=20, context=c).read().decode())"
)
"""Replaces ``curl --insecure``. A client that has to verify the server runs ``wgvsock attest fetch``."""


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The parts of a Dockerfile that the examples use: files copied into the base, and the application's command."""

    files: Mapping[str, str]
    command: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Dockerfile:
        """Read FROM, COPY and CMD.

        Raises:
            LabError: It has another instruction, which this rehearsal would not carry out.
        """
        files: dict[str, str] = {}
        command: tuple[str, ...] = ()
        for line in text.splitlines():
            word, _, rest = line.strip().partition(" ")
            match word:
                case "" | "FROM":
                    pass
                case _ if word.startswith("#"):
                    pass
                case "COPY":
                    source, target = rest.split()
                    files[target.lstrip("/")] = source
                case "CMD":
                    command = tuple(json.loads(rest))
                case _:
                    raise LabError(f"the Dockerfile has {word}", why="the rehearsal knows FROM, COPY and CMD")
        if not command:
            raise LabError("the Dockerfile has no CMD", why="it names the application")
        return cls(files, command)


@dataclass(frozen=True, slots=True)
class StandIn:
    """A local server that replaces an external one.

    Attributes:
        names: The external names and their local replacements. They are changed in the application and in the policy.
        files: Contents of the image by their name in the example: the application's trust anchors.
    """

    names: Mapping[str, str]
    files: Mapping[str, str]

    def named(self, text: str) -> str:
        """Return a text with the local names."""
        for theirs, ours in self.names.items():
            text = text.replace(theirs, ours)
        return text


NOBODY: Final = StandIn({}, {})


def lay_out(example: Path, target: Path, change: tuple[str, str] | None = None, stand_in: StandIn = NOBODY) -> None:
    """Write the files of an example's image, as the stand-in of nitro-cli takes them in place of a Docker image.

    Args:
        example: Its folder.
        target: Receives the files.
        change: A text of the application and its replacement.
        stand_in: Replaces the server that the application talks to.

    Raises:
        LabError: The text to be changed is in no file.
    """
    described = Dockerfile.read((example / "Dockerfile").read_text(encoding="utf-8"))
    changed = 0
    for name, source in described.files.items():
        text = stand_in.files.get(source) or stand_in.named((example / source).read_text(encoding="utf-8"))
        if name == "etc/wgvsock/enclave.toml":
            text = _PARENT_CID + text
        elif change is not None:
            changed += text.count(change[0])
            text = text.replace(*change)
        _write(target / name, text.encode())
    if change is not None and changed != 1:
        raise LabError(f"{change[0]!r} is {changed} times in the application", why="exactly one line was to be changed")
    command = [PYTHON if word == _BASE_PYTHON else word for word in described.command]
    agent = ["wgvsock", "enclave", "run", "--config", "/etc/wgvsock/enclave.toml", "--", *command]
    for name, entry in boot_services(agent).items():
        if isinstance(entry, File):
            _write(target / name, entry.data)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Rehearsal:
    """An example on a parent instance of the laboratory.

    Args:
        name: The example's.
        folder: For images and configurations.
        stand_in: Replaces the server that the application talks to.
    """

    def __init__(self, name: str, folder: Path, stand_in: StandIn = NOBODY) -> None:
        self.example = EXAMPLES / name
        if not (self.example / "Dockerfile").exists():
            there = sorted(path.name for path in EXAMPLES.iterdir() if (path / "Dockerfile").exists())
            raise LabError(f"there is no example {name!r}", fix=f"choose one of {', '.join(there)}")
        self.name = name
        self.folder = folder
        self.stand_in = stand_in
        self.backend = NetnsBackend(f"{os.getpid():x}x")
        self.ladder = Ladder(self.backend)
        self.parent = Parent(folder / "state", Limits(memory_mib=4096, cpu_count=4))

    def up(self) -> None:
        """Start the networks."""
        os.environ["NITRO_CLI_SOCKETS_PATH"] = str(self.folder / "state")
        self.backend.up()

    def down(self) -> None:
        """Remove everything."""
        self.ladder.clear()
        self.backend.down()
        self.parent.close()

    def build(self, version: str, change: tuple[str, str] | None = None) -> Path:
        """Run ``nitro-cli build-enclave``, and return the file with its output."""
        files = self.folder / f"files-{version}"
        lay_out(self.example, files, change, self.stand_in)
        image, output = self.folder / f"{self.name}-{version}.eif", self.folder / f"build-output-{version}.json"
        words = ["build-enclave", "--docker-uri", f"{self.name}:{version}", "--output-file", str(image)]
        say(f"$ nitro-cli {' '.join(words[:-1])} {image.name} > {output.name}")
        output.write_text(_run([str(NITRO_CLI), *words, "--docker-dir", str(files)]), encoding="utf-8")
        for register, value in json.loads(output.read_text(encoding="utf-8"))["Measurements"].items():
            if register.startswith("PCR"):
                say(f"  {register} {value[:32]}…")
        return output

    def policy(self, *outputs: Path) -> list[dict[str, Any]]:
        """Run ``wgvsock config init relay --pcrs``, and return the policy that it wrote."""
        words = [word for output in outputs for word in ("--pcrs", str(output))]
        say(f"$ wgvsock config init relay {' '.join(f'--pcrs {output.name}' for output in outputs)} > relay.toml")
        written = tomllib.loads(_run([str(_WGVSOCK), "config", "init", "relay", *words]))
        sets: list[dict[str, Any]] = written["attestation"]["pcr_sets"]
        return sets

    @property
    def overlay(self) -> dict[str, Any]:
        """Return the Relay's configuration in the cluster."""
        text = (self.example / "overlay/relay.toml").read_text(encoding="utf-8")
        return tomllib.loads(self.stand_in.named(text))

    def start(self, version: str, pcr_sets: list[dict[str, Any]]) -> None:
        """Start the Relay, which launches the image."""
        config, overlay = self.backend.relay_config(), self.overlay
        address = f"hybrid:{self.folder}/state/{self.name}/u:51820"
        config["enclave"] = {"address": address, "addresses": config["enclave"]["addresses"]}
        config["launch"] = {
            **overlay["launch"],
            "image": str(self.folder / f"{self.name}-{version}.eif"),
            "memory_mib": 640,
            "cpu_count": 1,
            "name": self.name,
            "nitro_cli": str(NITRO_CLI),
        }
        config["attestation"] = {"root_sha256": [self.parent.start_signer()], "pcr_sets": pcr_sets}
        config["provisioning"] = {"exchange_timeout": 10 * _EMULATION, "handshake_timeout": 10 * _EMULATION}
        config |= {name: overlay[name] for name in ("nat", "egress") if name in overlay}
        say("$ kubectl apply -k overlay   (here: wgvsock relay run -c relay.toml, in the pod's namespace)")
        self.ladder.start_relay(config)

    def url(self) -> str:
        """Return the published port's address for an external client."""
        port = self.overlay["nat"]["publish"][0]["port"]
        return f"{'https' if port == 443 else 'http'}://{self.backend.topology.pod4}:{port}"

    def answer(self, path: str = "/") -> str:
        """Return the answer to an external client through the published port."""
        self.ladder.wait_ready(self.backend.deadline(20 * _EMULATION))
        url = self.url() + path
        argv = [sys.executable, "-c", _GET, url]
        deadline = self.backend.deadline(10 * _EMULATION)

        def ask() -> str | None:
            done = self.backend.run(Node.EXTERNAL, argv, deadline=self.backend.deadline(30))
            return done.stdout.decode() if done.exit_code == 0 else None

        answer = deadline.poll(ask, f"{url} to answer")
        say(f"$ curl {'--insecure ' if url.startswith('https') else ''}{url}\n  {answer.rstrip()}")
        return answer

    def fetch(self, measured: Path, url: str = "") -> Completed:
        """Run ``wgvsock attest fetch`` as an external client."""
        url = url or self.url()
        say(f"$ wgvsock attest fetch {url} --pcrs {measured.name}")
        words = ["attest", "fetch", url, "--pcrs", str(measured), "--root-sha256", self.parent.start_signer(), "--json"]
        return self.backend.run(Node.EXTERNAL, [str(_WGVSOCK), *words], deadline=self.backend.deadline(5 * _EMULATION))

    def refusal(self) -> str:
        """Return the error with which the Relay ended after it launched an image that its policy does not name.

        Raises:
            LabError: It did not end like that.
        """
        relay, self.ladder.relay = self.ladder.relay, None
        if relay is None:
            raise LabError("no Relay is running")
        status = relay.wait(self.backend.deadline(20 * _EMULATION))
        error = relay.output()[-2000:].partition("\nerror[")[2]
        if status != AttestationError.exit_code or "pcr.set" not in error:
            raise LabError(f"the Relay ended with {status}", why=relay.output()[-1000:])
        if enclaves := self.parent.describe():
            raise LabError("the refused enclave was not terminated", why=str(enclaves))
        return f"error[{error.rstrip()}"


def say(text: str) -> None:
    """Print a line for the reader."""
    print(text, flush=True)


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{Path(argv[0]).name} {argv[1]} failed", why=done.stderr.strip()[-1000:])
    return done.stdout
