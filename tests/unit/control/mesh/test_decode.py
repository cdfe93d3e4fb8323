import pytest

from ztunnel.control.mesh import decode
from ztunnel.control.mesh.document import read
from ztunnel.core.model.address import NamespacedHostname, NetworkAddress
from ztunnel.core.model.service import CidrVip


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("net/10.0.0.1", NetworkAddress("net", "10.0.0.1")),
        ("/10.0.0.1", NetworkAddress("", "10.0.0.1")),
        ("/FD00::0:1", NetworkAddress("", "fd00::1")),
    ],
)
def test_network_addresses_are_canonical(text, address):
    assert decode.network_address(text) == address


def test_a_destination_is_an_address_or_else_a_host_name():
    assert decode.destination("net/10.0.0.1") == NetworkAddress("net", "10.0.0.1")
    assert decode.destination("ns/host.example") == NamespacedHostname("ns", "host.example")


def test_a_cidr_vip_loses_its_host_bits():
    assert decode.cidr_vip("net/10.1.2.3/16") == CidrVip("net", "10.1.0.0", 16)


@pytest.mark.parametrize("text", ["10.0.0.1", "net/host", "net/10.0.0.1/8/8"])
def test_what_is_no_network_address_says_so(text):
    with pytest.raises(ValueError, match=r"network/ip|IP address"):
        decode.network_address(text)


def test_keys_of_port_maps_may_be_text_as_in_json():
    document, root = read('{"80": 8080, 443: 8443}', "m")
    assert decode.port_map(root) == {80: 8080, 443: 8443}
    assert document.report() == ()


@pytest.mark.parametrize("name", ["workloadIps", "name", "hboneMtlsPort", "notDestinationPorts"])
def test_camel_case_is_the_inverse_of_the_field_name(name):
    assert decode.camel(decode._snake(name)) == name


def test_every_table_fills_only_fields_that_exist():
    tables = [(table, table.make) for table in vars(decode).values() if isinstance(table, decode.Table)]
    structs = [(table, make) for table, make in tables if hasattr(make, "__struct_fields__")]
    assert len(structs) >= 8
    for table, make in structs:
        assert {decode._snake(key) for key in table.keys} <= set(make.__struct_fields__)
