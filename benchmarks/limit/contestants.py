"""The limits as contestants: the C loops and the minimal Python loops."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.network import Lane
from benchmarks.systems import System, expect_line

SOURCE: Final = Path(__file__).with_name("pump.c")


def limits() -> list[System]:
    """Return the loops that only move packets, from the fastest to the one that is most similar to wgvsock."""
    return [
        System("C, copy", lambda lane: _ends(lane, (str(build(lane.scratch)), "copy")), encrypts=False),
        System("C, AEAD", lambda lane: _ends(lane, (str(build(lane.scratch)), "aead"))),
        System("Python, poll", lambda lane: _ends(lane, _loop("poll"))),
        System("Python, asyncio", lambda lane: _ends(lane, _loop("asyncio"))),
    ]


def build(folder: Path) -> Path:
    """Build the C loop with the machine's compiler, and return its path.

    Raises:
        RuntimeError: There is no compiler, or it finds no OpenSSL.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("there is no C compiler")
    program = folder / "pump"
    command = (compiler, "-O2", "-o", str(program), str(SOURCE), "-lcrypto")
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise RuntimeError(f"it cannot be built: {next(iter(built.stderr.splitlines()), 'no message')}")
    return program


def _loop(kind: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.limit.loop", kind)


def _ends(lane: Lane, command: tuple[str, ...]) -> list[subprocess.Popen[str]]:
    """Start both ends of a loop, and configure their tunnel's addresses."""
    stream = str(lane.scratch / "stream")
    listening = lane.enclave.start((*command, "wg0", "listen", stream))
    expect_line(listening, "ready")
    dialling = lane.relay.start((*command, "wg0", "dial", stream))
    expect_line(dialling, "ready")
    lane.configure_tunnel("wg0", mtu=lane.mtu)
    return [listening, dialling]
