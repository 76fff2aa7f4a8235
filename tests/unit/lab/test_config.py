from __future__ import annotations

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import enclave_config, fleet_config, relay_config, to_toml
from lab.topology import TOPOLOGY, TWO_ENCLAVES, Node

KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(min_value=-(2**53), max_value=2**53),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
)
VALUES = st.one_of(SCALARS, st.lists(st.integers()))
TABLES = st.recursive(
    st.dictionaries(KEYS, VALUES),
    lambda tables: st.dictionaries(KEYS, st.one_of(VALUES, tables, st.lists(tables, min_size=1))),
    max_leaves=6,
)


@settings(max_examples=40)
@given(TABLES)
def test_toml_reads_back_as_what_was_written(table: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def test_the_relay_is_told_the_laboratory_root_explicitly() -> None:
    config = relay_config(
        TOPOLOGY,
        enclave_address="unix:/a",
        provisioning_address="unix:/b",
        root_sha256="ab" * 32,
        pcrs={"PCR0": "00", "PCR1": "11", "PCR2": "22", "PCR4": "44"},
        runtime_directory="/run/wgvsock",
    )
    assert config["attestation"]["root_sha256"] == ["ab" * 32]
    assert config["attestation"]["pcr_sets"] == [{"pcr0": "00", "pcr1": "11", "pcr2": "22"}]
    assert tomllib.loads(to_toml(config)) == config


def test_a_relay_of_two_enclaves_is_told_each_one_s_own() -> None:
    measured = {f"PCR{number}": "00" for number in range(3)}
    config = fleet_config(
        TWO_ENCLAVES,
        addresses={Node.ENCLAVE: ("unix:/a", "unix:/b"), Node.SECOND: ("unix:/c", "unix:/d")},
        root_sha256="ab" * 32,
        pcrs={Node.ENCLAVE: measured, Node.SECOND: {**measured, "PCR0": "11"}},
        runtime_directory="/run/wgvsock",
    )
    assert tomllib.loads(to_toml(config)) == config
    assert not {"enclave", "interface", "nat", "attestation"} & config.keys()  # of the short form, or of all
    first, second = config["enclaves"]
    assert (first["name"], first["address"], first["interface"]) == ("first", "unix:/a", "wg0")
    assert second["provisioning_address"] == "unix:/d"
    assert second["addresses"] == ["10.74.0.2/24", "fd74::2/64"]
    assert second["attestation"]["pcr_sets"] == [{"pcr0": "11", "pcr1": "00", "pcr2": "00"}]
    assert {entry["port"] for entry in second["publish"]} == {7008, 8081}


def test_the_enclave_listens_where_it_is_told() -> None:
    config = enclave_config(listen="unix:/a", provisioning_listen="unix:/b", parent_cid=2, runtime_directory="/r")
    assert (config["listen"], config["provisioning_listen"], config["parent_cid"]) == ("unix:/a", "unix:/b", 2)
