"""The Enclave where there is no guest and no /dev/nsm: the production supervisor with the laboratory's signer.

``python -m lab.enclave_agent --config F --secure-module SOCKET [--entropy-log F] [--timings JSON] -- app args…``

This is the one place where a fake security module meets the production Enclave, and it is not in the wheel: the production
command has no flag, variable or import that could do it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lab.nsm.client import UnixSecureModule
from wgvsock.wireguard import Timings


class EntropyLog:
    """The system's entropy, with a record of each draw that can be a private key (`lab.opener` reads it)."""

    def __init__(self, stream: BinaryIO, source: Callable[[int], bytes] = os.urandom) -> None:
        self._stream = stream
        self._source = source

    def __call__(self, size: int) -> bytes:
        """Draw `size` bytes."""
        drawn = self._source(size)
        if size == 32:
            self._stream.write(drawn.hex().encode() + b"\n")
            self._stream.flush()
        return drawn
