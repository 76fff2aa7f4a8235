from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from wgvsock.attestation.document import parse_document
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1, Expectations, PcrSet, Policy
from wgvsock.errors import ConfigurationError

PCRS = {index: bytes((index + 1,)) * 48 for index in (0, 1, 2)}


def test_an_empty_policy_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no PCR set"):
        Policy(pcr_sets=())


def test_the_default_policy_accepts_the_first_aws_root_alone() -> None:
    policy = Policy(pcr_sets=(PcrSet(PCRS),))
    assert policy.accepted_roots == (AWS_NITRO_ROOT_G1,)
    assert policy.max_age == timedelta(seconds=120)
    assert policy.max_future == timedelta(seconds=30)
    assert not policy.allow_debug


@pytest.mark.parametrize("roots", [(), (b"",), (bytes(31),), (bytes(32), bytes(48))])
def test_roots_are_sha256_digests(roots: tuple[bytes, ...]) -> None:
    with pytest.raises(ConfigurationError):
        Policy(pcr_sets=(PcrSet(PCRS),), accepted_roots=roots)


@pytest.mark.parametrize("limit", ["max_age", "max_future"])
def test_age_limits_are_not_negative(limit: str) -> None:
    limits: dict[str, Any] = {limit: timedelta(milliseconds=-1)}
    with pytest.raises(ConfigurationError, match="negative"):
        Policy(pcr_sets=(PcrSet(PCRS),), **limits)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_one_pcr_alone_is_no_set(missing: int) -> None:
    with pytest.raises(ConfigurationError, match=f"PCR{missing} is missing"):
        PcrSet({index: value for index, value in PCRS.items() if index != missing})


@pytest.mark.parametrize("wrong", [{-1: bytes(48)}, {32: bytes(48)}, {3: bytes(47)}, {3: b""}])
def test_indices_and_lengths(wrong: dict[int, bytes]) -> None:
    with pytest.raises(ConfigurationError):
        PcrSet(PCRS | wrong)
    with pytest.raises(ConfigurationError):
        Expectations(user_data=b"", pcrs=wrong)


def test_a_set_is_a_copy_that_nobody_can_change() -> None:
    values = dict(PCRS)
    allowed = PcrSet(values, name="v1")
    values[0] = bytes(48)
    assert allowed.values == PCRS
    with pytest.raises(TypeError):
        allowed.values[0] = bytes(48)  # type: ignore[index]


def test_expectations_hold_a_readable_enclave_id() -> None:
    Expectations(user_data=b"", enclave_id="i-0123456789abcdef0-enc1")
    with pytest.raises(ConfigurationError):
        Expectations(user_data=b"", enclave_id="my-enclave")


@pytest.mark.parametrize(
    "instance_id", ["", "i-0123", "i-0123456789abcdef0 ", "i-0123456789ABCDEF0", "m-0123456789abcdef0"]
)
def test_expectations_hold_an_instance_id(instance_id: str) -> None:
    Expectations(user_data=b"", instance_id="i-0123456789abcdef0")
    Expectations(user_data=b"", instance_id="i-0123abcd")
    with pytest.raises(ConfigurationError, match="i-0123456789abcdef0"):
        Expectations(user_data=b"", instance_id=instance_id)


@pytest.mark.parametrize(
    "role_arn",
    [
        "",
        "relay",
        "arn:aws:iam::123456789012:instance-profile/relay",
        "arn:aws:sts::123456789012:assumed-role/relay/i-0123456789abcdef0",
        "arn:aws:iam::12345678901:role/relay",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:iam::123456789012:role/relay\n",
    ],
)
def test_expectations_hold_a_roles_arn(role_arn: str) -> None:
    Expectations(user_data=b"", role_arn="arn:aws:iam::123456789012:role/relay")
    Expectations(user_data=b"", role_arn="arn:aws-us-gov:iam::123456789012:role/path/to/relay_1+=,.@-")
    with pytest.raises(ConfigurationError, match="role/NAME") as caught:
        Expectations(user_data=b"", role_arn=role_arn)
    assert "instance profile" in caught.value.fix


def test_the_pinned_root_is_that_of_real_documents(enclave_sample: Any) -> None:
    fingerprint = hashlib.sha256(parse_document(Path(enclave_sample.path).read_bytes()).cabundle[0]).digest()
    genuine = enclave_sample.expected["expect_at_own_time"] != "chain.root"
    assert (fingerprint == AWS_NITRO_ROOT_G1) == genuine
