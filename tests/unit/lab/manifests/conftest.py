"""The base as kustomize renders it, built by hand: these tests need no kubectl."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml

from lab.manifests.render import KUSTOMIZE

FILES = ("namespace", "deployment", "service", "networkpolicy", "poddisruptionbudget")


@pytest.fixture
def objects() -> list[dict[str, Any]]:
    base = KUSTOMIZE / "base"
    found = [yaml.safe_load((base / f"{name}.yaml").read_text()) for name in FILES]
    settings, seed = (base / "relay.toml").read_text(), base64.b64encode(base64.b64encode(bytes(32)))
    found.append({"kind": "ConfigMap", "metadata": {"name": "wgvsock-relay"}, "data": {"relay.toml": settings}})
    found.append({"kind": "Secret", "metadata": {"name": "wgvsock-signing"}, "data": {"signing.key": seed.decode()}})
    return found
