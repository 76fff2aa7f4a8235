from __future__ import annotations

from lab.netns import build
from lab.topology import Node


def test_names_carry_the_laboratory_and_the_node() -> None:
    assert build.namespace("wgv-7f", Node.POD) == "wgv-7f-pod"


def test_a_command_is_entered_with_the_nodes_own_etc_and_run() -> None:
    argv = build.enter("wgv-7f", Node.ENCLAVE, "/lab/enclave")
    assert argv[:4] == ["ip", "netns", "exec", "wgv-7f-enclave"]
    assert argv[-1] == "/lab/enclave"
    assert '"$0/etc" /etc' in argv[-2]
    assert '"$0/run" /run' in argv[-2]
