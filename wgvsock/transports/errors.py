"""What can go wrong with sockets, by what the operator has to do about it."""

from __future__ import annotations

from wgvsock.errors import TransportError


class VsockUnavailableError(TransportError):
    """This machine or this container cannot make an AF_VSOCK socket."""

    code = "WGV-E012"
    exit_code = 7


class ListenError(TransportError):
    """A listening address cannot be bound."""

    code = "WGV-E013"
    exit_code = 7


class ConnectError(TransportError):
    """The remote did not accept a connection in time."""

    code = "WGV-E014"
