"""Socket errors, classified by what the operator has to do about them."""

from __future__ import annotations

import errno
from typing import Final

from wgvsock.errors import TransportError

OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""No descriptor or no memory is left: a temporary condition, which says nothing about the request itself."""


class VsockUnavailableError(TransportError):
    """This machine or container cannot create an AF_VSOCK socket.

    Retrying does not help: the relay ends, as it does without /dev/net/tun.
    """

    code = "WGV-E012"
    exit_code = 7


class ListenError(TransportError):
    """A listening address cannot be bound."""

    code = "WGV-E013"
    exit_code = 7


class ConnectError(TransportError):
    """The remote did not accept a connection in time."""

    code = "WGV-E014"
