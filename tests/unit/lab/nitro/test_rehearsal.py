"""How the rehearsal of an example changes its Dockerfile, and names of the outside world."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.guest.agent import SERVICES_FILE
from lab.nitro.rehearsal import EXAMPLES, Dockerfile, Rehearsal, StandIn, lay_out

NAMES = sorted(path.name for path in EXAMPLES.iterdir() if (path / "Dockerfile").exists())


def test_a_dockerfile() -> None:
    read = Dockerfile.read('# base\nFROM x\nCOPY a.py /app/a.py\n\nCMD ["/usr/bin/python3", "/app/a.py"]\n')
    assert read.files == {"app/a.py": "a.py"}
    assert read.command == ("/usr/bin/python3", "/app/a.py")


@pytest.mark.parametrize(
    ("text", "what"),
    [("FROM x\nRUN make\nCMD []", "the Dockerfile has RUN"), ("FROM x\n", "the Dockerfile has no CMD")],
)
def test_what_the_rehearsal_would_not_do(text: str, what: str) -> None:
    with pytest.raises(LabError, match=what):
        Dockerfile.read(text)


def test_an_image_s_files(tmp_path: Path) -> None:
    lay_out(EXAMPLES / "hello-enclave", tmp_path)
    assert tomllib.loads((tmp_path / "etc/wgvsock/enclave.toml").read_text())["parent_cid"] == 2
    assert (tmp_path / "app/server.py").read_text() == (EXAMPLES / "hello-enclave/server.py").read_text()
    *_, agent = json.loads((tmp_path / SERVICES_FILE.lstrip("/")).read_text())
    assert agent["argv"][-2:] == ["/usr/bin/python3", "/app/server.py"]


def test_one_line_is_changed_and_no_other(tmp_path: Path) -> None:
    lay_out(EXAMPLES / "hello-enclave", tmp_path, ("Hello from", "Greetings from"))
    before, after = (
        path.read_text().splitlines() for path in (EXAMPLES / "hello-enclave/server.py", tmp_path / "app/server.py")
    )
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
    with pytest.raises(LabError, match="is 0 times in the application"):
        lay_out(EXAMPLES / "hello-enclave", tmp_path / "other", ("Good-bye", "x"))


def test_whoever_stands_in_is_named_in_application_and_policy(tmp_path: Path) -> None:
    stand_in = StandIn({"kms.eu-central-1.amazonaws.com": "kms.lab.test"}, {"roots.pem": "theirs"})
    lay_out(EXAMPLES / "kms-client", tmp_path, stand_in=stand_in)
    assert (tmp_path / "app/roots.pem").read_text() == "theirs"
    client = (tmp_path / "app/client.py").read_text()
    assert 'ENDPOINT = "kms.lab.test"' in client
    assert "amazonaws" not in client
    rehearsal = Rehearsal("kms-client", tmp_path, stand_in)
    assert rehearsal.overlay["egress"] == {"default": "deny", "allow": [{"name": "kms.lab.test", "ports": [443]}]}
    assert rehearsal.url() == f"http://{rehearsal.backend.topology.pod4}:80"
    assert Rehearsal("published-https", tmp_path).url().startswith("https://")


def test_the_base_s_python_is_the_guest_s(tmp_path: Path) -> None:
    lay_out(EXAMPLES / "published-https", tmp_path)
    *_, agent = json.loads((tmp_path / SERVICES_FILE.lstrip("/")).read_text())
    assert agent["argv"][-2:] == ["/usr/bin/python3", "/app/server.py"]


def test_an_example_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabError) as caught:
        Rehearsal("hallo", tmp_path)
    assert "hello-enclave" in caught.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_complete(name: str) -> None:
    example = EXAMPLES / name
    described = Dockerfile.read((example / "Dockerfile").read_text())
    assert all((example / source).exists() for source in described.files.values())
    for part in ("README.md", "enclave.toml", "overlay/kustomization.yaml", "overlay/relay.toml"):
        assert (example / part).exists()
