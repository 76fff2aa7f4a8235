"""An allowlist of vsock-proxy as an egress policy, with PyYAML as the judge of a file's contents."""

from __future__ import annotations

import importlib
import ipaddress
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock import settings
from wgvsock.cli import config_vsock_proxy
from wgvsock.cli.config_vsock_proxy import from_vsock_proxy, parse_allowlist
from wgvsock.egress.names import Pins
from wgvsock.egress.policy import Packet, Site
from wgvsock.egress.review import review
from wgvsock.egress.settings import EgressSettings
from wgvsock.egress.verdict import judge
from wgvsock.errors import ConfigurationError
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.template import TEMPLATE


@dataclass(frozen=True)
class EgressOnly:
    """A file with only this table."""

    egress: EgressSettings


AWS = """\
allowlist:
- {address: kms.us-east-1.amazonaws.com, port: 443}
- {address: kms-fips.us-east-1.amazonaws.com, port: 443}
"""

MANY_FORMS = """\
---
# what our enclave needs
allowlist:   # two keys an entry
  - {address: KMS.eu-west-1.amazonaws.com., port: 443}
  - { port: 8443 , "address": 'kms.eu-west-1.amazonaws.com' , }   # a second port

  - address: 10.20.0.7
    port: 5432
  - port: 443
    address: "fd20::7"
  - {address: 169.254.169.254, port: 80}
  - {address: localhost, port: 8080}
  - {address: 127.0.0.1, port: 8081}
"""


LOCAL = "allowlist:\n- {address: localhost, port: 80}\n- {address: '::1', port: 80}\n"


def of_yaml(text: str) -> list[tuple[Any, Any]] | None:
    """Return address and port of each entry, as PyYAML reads them. None: the file is no such list."""
    yaml: Any = importlib.import_module("yaml")
    try:
        document = yaml.safe_load(text)
        return [(canonical(entry["address"]), entry["port"]) for entry in document["allowlist"]]
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        return None


def canonical(host: Any) -> Any:
    """An address has many spellings, and so has a name. Anything but a string stays unchanged."""
    if not isinstance(host, str):
        return host
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return str(host).lower().removesuffix(".")


def of_ours(text: str) -> list[tuple[str, int]]:
    return [(str(target.host), target.port) for target in parse_allowlist(text)]


def policy(text: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(from_vsock_proxy(text))["egress"]
    return table


def comments(text: str) -> str:
    return "\n".join(line for line in from_vsock_proxy(text).splitlines() if line.startswith("#"))


def test_aws_s_own_form() -> None:
    assert policy(AWS) == {
        "default": "deny",
        "allow": [
            {"name": "kms.us-east-1.amazonaws.com", "ports": [443]},
            {"name": "kms-fips.us-east-1.amazonaws.com", "ports": [443]},
        ],
    }


def test_every_form_and_every_kind_of_host() -> None:
    assert policy(MANY_FORMS)["allow"] == [
        {"name": "kms.eu-west-1.amazonaws.com", "ports": [443, 8443]},
        {"network": "10.20.0.7/32", "ports": [5432]},
        {"network": "fd20::7/128", "ports": [443]},
        {"network": "169.254.169.254/32", "ports": [80]},
        {"relay": True, "ports": [8080, 8081]},
    ]


@pytest.mark.parametrize("text", [AWS, MANY_FORMS, LOCAL, "allowlist: []\n"])
def test_it_is_what_a_relay_s_configuration_takes(text: str) -> None:
    written = settings.parse(EgressOnly, from_vsock_proxy(text)).egress.policy()
    assert not written.allows_by_default
    assert list(review(written)) == []
    assert {rule.protocols for rule in written.allow} <= {frozenset({"tcp"})}
    if text == MANY_FORMS:
        allowed = judge(written, Pins(), Packet(ip_address("169.254.169.254"), 6, 80), Site(), 0)
        assert str(allowed) == 'allowed by rule "allow tcp 80 to 169.254.169.254/32"'


def test_it_takes_the_place_of_the_table_in_a_first_configuration() -> None:
    text = TEMPLATE.replace("[egress]\n", from_vsock_proxy(MANY_FORMS), 1)
    assert len(settings.parse(RelayConfig, text).egress.allow) == 5


def test_what_opens_more_than_it_seems_to_is_said_beside_it() -> None:
    lines = from_vsock_proxy(MANY_FORMS).splitlines()
    before = {lines[at + 1]: lines[at - 1] for at, line in enumerate(lines) if line == "[[egress.allow]]"}
    assert "instance metadata" in before['network = "169.254.169.254/32"']
    assert "the relay's own machine" in before["relay = true"]
    assert before['network = "10.20.0.7/32"'] == ""


def test_what_can_go_is_named() -> None:
    said = comments(AWS)
    assert "/etc/hosts" in said
    assert "the 2 names below" in said
    assert "port 443 " in said
    assert "nitro-enclaves-vsock-proxy.service" in said
    assert "kmstool_enclave_cli" in said
    assert "kms.us-east-1.amazonaws.com" in comments(AWS.replace("-fips", ""))
    assert "/etc/hosts" not in comments("allowlist:\n- {address: 192.0.2.1, port: 1}\n")


def test_an_empty_list_allows_nothing() -> None:
    for text in ("allowlist:\n", "allowlist: []\n"):
        assert policy(text) == {"default": "deny"}
        assert "can be removed" not in comments(text)


def test_line_ends_and_a_mark_of_another_system() -> None:
    assert of_ours("\ufeff" + AWS.replace("\n", "\r\n")) == of_ours(AWS)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("whitelist:\n- {address: a.test, port: 1}\n", 1),
        ("- {address: a.test, port: 1}\n", 1),
        ("allowlist: []\n- {address: a.test, port: 1}\n", 2),
        ("allowlist:\n---\n- {address: a.test, port: 1}\n", 2),
        ("allowlist:\n- {address: a.test}\n", 2),
        ("allowlist:\n- {address: a.test, port: 1, protocol: udp}\n", 2),
        ("allowlist:\n- {address: a.test, address: b.test}\n", 2),
        ("allowlist:\n- {host: a.test, port: 1}\n", 2),
        ("allowlist:\n- {address: a.test, port: 0}\n", 2),
        ("allowlist:\n- {address: a.test, port: 65536}\n", 2),
        ("allowlist:\n- {address: a.test, port: 0443}\n", 2),
        ('allowlist:\n- {address: a.test, port: "443"}\n', 2),
        ("allowlist:\n- {address: a test, port: 1}\n", 2),
        ("allowlist:\n- {address: &a a.test, port: 1}\n", 2),
        ("allowlist:\n- {address: no, port: 1}\n", 2),
        ("allowlist:\n- {address: '', port: 1}\n", 2),
        ("allowlist:\n- {address: 1.5, port: 1}\n", 2),
        ("allowlist:\n- {address: '*.example.com', port: 1}\n", 2),
        ("allowlist:\n- {address: 10.0.0.0/8, port: 1}\n", 2),
        ("allowlist:\n- address: a.test\n- {address: b.test, port: 1}\n", 2),
        ("allowlist:\n- address: a.test\n\n  port: x\n", 2),
        ("allowlist:\n- address: a.test\n   port: 1\n", 3),
        ("allowlist:\n\t- {address: a.test, port: 1}\n", 2),
        ("allowlist:\n- {address: a.test, port: 1}\n - {address: b.test, port: 1}\n", 3),
        ("allowlist:\n- {address: a.test, port: 1}\nother: 1\n", 3),
    ],
)
def test_every_other_line_is_refused_by_its_number(text: str, line: int) -> None:
    with pytest.raises(ConfigurationError, match=f"line {line} of") as refused:
        parse_allowlist(text)
    assert refused.value.why
    assert "address: kms." in refused.value.fix


@pytest.mark.parametrize("text", [AWS, MANY_FORMS])
def test_pyyaml_reads_the_same(text: str) -> None:
    assert of_ours(text) == of_yaml(text)


_HOSTS = ("a.test", "A-1.test.", "localhost", "10.0.0.1", "fd00::1", "'a.test'", '"b.test"')
_PIECES = (
    *(
        "on",
        "~",
        "443",
        "0x1f",
        "1e3",
        "1.5",
        "::1",
        "fd00::",
        "''",
        '"',
        "'",
        "'it''s'",
        '"\\x61"',
        "*a",
        "&a ",
        "!!str ",
    ),
    *(
        "a: b",
        " #b",
        "#b",
        "{}",
        "[",
        "]",
        ",",
        ":",
        ": ",
        "- ",
        "---",
        "...",
        "2001-01-01",
        " ",
        "\t",
        "\n",
        "\r",
        "\0",
    ),
    *("<<: ", "\n  port: 9", "\n- {address: b.test, port: 2}", "\u2028", "\x85"),
)


@st.composite
def documents(draw: Callable[..., Any]) -> str:
    """A list as people write it, with at most two pieces inserted anywhere."""
    text: str = "allowlist:" + draw(st.sampled_from(["", "  # what we need", "\r"]))
    indent = draw(st.sampled_from(["", "  "]))
    for _ in range(draw(st.integers(1, 3))):
        pair = [f"address: {draw(st.sampled_from(_HOSTS))}", f"port: {draw(st.integers(1, 65535))}"]
        pair = draw(st.permutations(pair))
        flow = draw(st.booleans())
        text += f"\n{indent}- " + (f"{{{', '.join(pair)}}}" if flow else f"\n{indent}  ".join(pair))
    text += "\n"
    for piece in draw(st.lists(st.sampled_from(_PIECES), max_size=2)):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + piece + text[at:]
    return text


@given(documents())
def test_what_is_read_is_what_pyyaml_reads(text: str) -> None:
    """It may refuse more than YAML does, and does not misread a file."""
    try:
        ours = of_ours(text)
    except ConfigurationError:
        return
    assert not ours or ours == of_yaml(text)


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_an_error(text: str) -> None:
    for whole in (text, "allowlist:\n" + text):
        try:
            from_vsock_proxy(whole)
        except ConfigurationError:
            continue


def test_the_command_prints_the_policy(
    tmp_path: Path, prints: Callable[..., str], fails: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vsock-proxy.yaml"
    file.write_text(AWS)
    assert prints("config", "from-vsock-proxy", str(file)) == from_vsock_proxy(AWS)
    failure = fails("config", "from-vsock-proxy", str(tmp_path / "absent.yaml"), status=2)
    assert (failure.code, failure.why) == ("WGV-E001", "No such file or directory")
    assert failure.fix == "name a configuration of vsock-proxy"
    assert str(config_vsock_proxy._DEFAULT_PATH) == "/etc/nitro_enclaves/vsock-proxy.yaml"
