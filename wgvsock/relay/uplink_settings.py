"""``[uplink]`` of ``relay.toml``: how packets leave the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from wgvsock.relay.sections import FIXED
from wgvsock.settings import Between


@dataclass(frozen=True, slots=True)
class UplinkSettings:
    """``[uplink]``: how packets leave the machine.

    Attributes:
        mode: ``kernel`` uses the kernel, which needs NET_ADMIN. ``userspace`` uses a stack in user space, which needs
            no privilege. ``auto`` uses the kernel if this process may create the tunnel's interface, and otherwise user
            space.
        max_connections: In user space, the maximum number of sockets for the flows of one enclave, of all protocols.
            Each takes 20 to 263 KiB.
    """

    mode: Literal["kernel", "userspace", "auto"] = field(default="kernel", metadata=FIXED)
    max_connections: Annotated[int, Between(16, 60_000)] = field(default=4096, metadata=FIXED)
