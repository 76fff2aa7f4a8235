"""A service and its clients look in the same place."""

from __future__ import annotations

from wgvsock import settings
from wgvsock.cli.status import socket_path
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.relay.config import RelayConfig
from wgvsock.runtime.directory import RUNTIME_DIRECTORY, control_socket_path

PCRS = "\n".join(f'pcr{index} = "{str(index + 1) * 96}"' for index in (0, 1, 2))
RELAY = f'[enclave]\naddress = "vsock:16:51820"\n[[attestation.pcr_sets]]\n{PCRS}\n'


def test_where_a_service_is_asked() -> None:
    assert control_socket_path(RUNTIME_DIRECTORY, "relay") == "/run/wgvsock/relay.sock"
    assert control_socket_path("/srv/x/", "app") == "/srv/x/app.sock"


def test_the_command_asks_where_the_services_listen() -> None:
    assert EnclaveConfig().control_socket().path == socket_path("enclave", None)
    relay = settings.parse(RelayConfig, RELAY)
    assert relay.control_socket().path == socket_path("relay", None)
