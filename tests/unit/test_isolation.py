"""Isolation of the labs of a host: topologies that are refused, and settings that the server forces on netlab."""

from __future__ import annotations

import copy
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from neops_remote_lab.netlab.failures import SharesHost
from neops_remote_lab.netlab.isolation import Isolation

LAB = Isolation("rl1a2b3c4d", 42, IPv4Network("10.199.42.0/24"), None)
LOCKED = Isolation("rl1a2b3c4d", 42, IPv4Network("10.199.42.0/24"), Path("/run/lock/provider.lock"))
CLAB = """\
name: rl1a2b3c4d
prefix: "clab"
mgmt:
  network: rl1a2b3c4d
  ipv4-subnet: 10.199.42.0/24
  ipv6-subnet: fd00:df:ac7:42::/64
topology:
  nodes:
    r1: {mgmt-ipv4: 10.199.42.101, kind: linux, image: frr}
    r2: {mgmt-ipv4: 10.199.42.102, kind: linux, image: frr}
    r3: {mgmt-ipv4: 10.199.42.103, kind: linux, image: frr}
    rl1a2b3c4d_2: {kind: bridge}
  links:
  - endpoints: ["r1:eth1", "r2:eth1"]
  - endpoints: ["r1:eth2", "rl1a2b3c4d_2:bni42n1i2"]
  - endpoints: ["r2:eth2", "rl1a2b3c4d_2:bni42n2i2"]
  - endpoints: ["r3:eth1", "rl1a2b3c4d_2:bni42n3i1"]
  - {type: dummy, endpoint: {node: r1, interface: eth4}}
"""
FACTS: dict[str, Any] = {
    "id": 42,
    "status_file": "../status.yaml",
    "provider": "clab",
    "providers": [None, None, "clab"],
    "tools": ["suzieq"],
    "start": "containerlab deploy --reconfigure -t clab.yml",
    "stop": "containerlab destroy --cleanup -t clab.yml",
}
Change = Callable[[dict[str, Any]], object]


def problems(change: Change = lambda _: None, isolation: Isolation = LAB, **facts: Any) -> list[str]:
    provided = yaml.safe_load(CLAB)
    change(provided)
    return list(isolation.problems(provided, FACTS | facts))


def node(**attributes: object) -> Change:
    return lambda provided: provided["topology"]["nodes"]["r1"].update(
        {key.replace("_", "-"): value for key, value in attributes.items()}
    )


def mgmt(**attributes: object) -> Change:
    return lambda provided: provided["mgmt"].update({key.replace("_", "-"): value for key, value in attributes.items()})


def link(*endpoints: str, **attributes: object) -> Change:
    return lambda provided: provided["topology"]["links"].append({"endpoints": [*endpoints], **attributes})


def bridge(name: str) -> Change:
    return lambda provided: provided["topology"]["nodes"].update({name: {"kind": "bridge"}})


def test_a_lab_with_separate_names_and_networks_is_accepted() -> None:
    assert problems() == []
    assert problems(node(network_mode="none")) == []
    assert problems(node(network_mode="container:r2")) == []
    assert problems(node(mgmt_ipv6="fd00:df:ac7:42::65")) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda provided: provided.update(name="theirs"), "name"),
        (lambda provided: provided.update(prefix=""), "defaults.providers.clab.lab_prefix"),
        (mgmt(network="netlab_mgmt"), "addressing.mgmt._network"),
        (mgmt(bridge="br0"), "addressing.mgmt._bridge"),
        (mgmt(ipv4_subnet="192.168.121.0/24"), "addressing.mgmt.ipv4"),
        (mgmt(ipv6_subnet="fd00:77::/64"), "defaults.addressing.mgmt.ipv6"),
        (mgmt(external_access=True), "defaults.providers.clab"),
        (node(mgmt_ipv4="10.199.7.101"), "addressing.mgmt.ipv4"),
        (node(mgmt_ipv6="fd00:77::65"), "addressing.mgmt.ipv6"),
        (node(ports=["8080:80"]), "nodes.r1.clab.ports"),
        (node(network_mode="host"), "nodes.r1.clab.network-mode"),
        (node(network_mode="container:clab-theirs-r1"), "nodes.r1.clab.network-mode"),
        (node(kind="ext-container"), "nodes.r1.clab.kind"),
        (node(kind="bridge"), "links.bridge"),
        (bridge("shared0"), "links.bridge"),
        (bridge("rl1a2b3c4d"), "links.bridge"),
        (bridge("rl1a2b3c4e_2"), "links.bridge"),
        (link("r1:eth3", "macvlan:eth0"), "links.clab.uplink"),
        (link("r1:eth3", "host:veth7"), "links.clab.uplink"),
        (link("r1:eth3", "rl1a2b3c4d_2:bni7n1i3"), "links.clab"),
        (link(type="vxlan"), "links.clab"),
    ],
)
def test_a_shared_object_of_containerlab_is_reported_with_its_key(change: Change, key: str) -> None:
    found = problems(change)
    assert found
    assert found[0].split(":")[0].split(", or ")[0] == key


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({"id": 7}, "defaults.multilab.id"),
        ({"status_file": "~/.netlab/status.yaml"}, "defaults.lab_status_file"),
        ({"tools": ["edgeshark"]}, "tools.edgeshark"),
        ({"provider": "libvirt"}, "provider"),
        ({"providers": ["libvirt", None]}, "provider"),
    ],
)
def test_a_shared_object_of_netlab_is_reported_with_its_key(facts: dict[str, Any], key: str) -> None:
    [found] = problems(**facts)
    assert found.startswith(f"{key}: ")


def test_an_old_containerlab_needs_a_lock() -> None:
    commands: dict[str, Any] = {key: f"flock -E 42 /run/lock/provider.lock {FACTS[key]}" for key in ("start", "stop")}
    assert problems(isolation=LOCKED, **commands) == []
    found = problems(isolation=LOCKED, **commands | {"stop": "containerlab destroy"})
    assert [sentence.split(":")[0] for sentence in found] == ["defaults.providers.clab.stop"]


@pytest.mark.parametrize("broken", [None, [], {}, {"name": "rl1a2b3c4d"}, {**yaml.safe_load(CLAB), "topology": None}])
def test_a_configuration_that_cannot_be_checked_is_refused(broken: object) -> None:
    found = list(LAB.problems(copy.deepcopy(broken), FACTS))
    assert found[-1].startswith("defaults.providers.clab: ")


def test_all_problems_are_in_one_refusal(tmp_path: Path) -> None:
    (tmp_path / "clab.yml").write_text(CLAB.replace("kind: linux", "kind: linux, ports: ['80:80']"))
    with pytest.raises(SharesHost, match=r"^nodes\.r1\.clab\.ports.*; nodes\.r2\.clab\.ports"):
        LAB.require(tmp_path, FACTS)


def test_the_settings_that_separate_labs_override_the_topology() -> None:
    given = LOCKED.arguments()
    assert given[:2] == ["--plugin", "multilab"]
    assert dict(setting.split("=") for setting in given[3::2]) == {
        "defaults.multilab.id": "42",
        "defaults.multilab.lock": "/run/lock/provider.lock",
        "defaults.multilab.change.name": "rl1a2b3c4d",
        "defaults.multilab.change.defaults.name": "rl1a2b3c4d",
        "defaults.multilab.change.defaults.providers.clab.mgmt_default_ipv6": "fd00:df:ac7:42::/64",
        "defaults.multilab.change.addressing.mgmt.ipv4": "10.199.42.0/24",
        "defaults.multilab.change.addressing.mgmt._network": "rl1a2b3c4d",
        "defaults.multilab.change.addressing.mgmt._bridge": "",
        "defaults.providers.clab.lab_prefix": "clab",
        "defaults.lab_status_file": "../status.yaml",
    }


def test_servers_with_different_lab_networks_use_the_same_numbers_without_a_conflict() -> None:
    networks = [IPv4Network(network) for network in ("10.199.42.0/24", "10.198.42.0/24")]
    ours, theirs = (Isolation("rl1a2b3c4d", 42, network, None) for network in networks)
    assert not IPv6Network(ours.network_v6).overlaps(IPv6Network(theirs.network_v6))
    by_hand = IPv6Network("fd00:df:1ab:42::/64")
    assert not IPv6Network(ours.network_v6).overlaps(by_hand)
