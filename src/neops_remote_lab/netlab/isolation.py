"""Keeps the labs of one host apart: forces the keys that separate them, and checks what netlab made of a topology.

netlab's multilab plugin gives labs separate names and management networks. It neither prevents a topology from changing
these, nor from naming objects of the host, which other labs may use too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import yaml

from neops_remote_lab.netlab.failures import SharesHost

STATUS_FILE: Final = "status.yaml"
"""netlab's list of instances of one lab. netlab reads a shared list without its lock, so that it may seem empty."""
_STATUS_FILE_FROM_LAB: Final = f"../{STATUS_FILE}"
"""Its path for netlab, which runs in the lab's directory: netlab cannot be given every absolute path."""
PREFIX: Final = "clab"
PROVIDER: Final = "clab"
LOCK_COMMAND: Final = "flock -E 42"
"""How the multilab plugin locks the provider's commands."""
FACTS: Final = (
    "type(nodes)([('id', defaults.get('multilab.id')), ('status_file', defaults.lab_status_file), "
    "('provider', provider), ('providers', [n.get('provider') for n in nodes.values()]), "
    "('tools', list(globals().get('tools') or [])), "
    "('start', defaults.providers.clab.start), ('stop', defaults.providers.clab.stop)])"
)
"""An expression for `netlab inspect`, whose value is checked. It must not contain ":" or "="."""
SEPARATE_TOOLS: Final = frozenset({"nuts", "suzieq"})
"""netlab's tools that publish no ports, and whose containers are named after the lab."""
FOREIGN_KINDS: Final = frozenset({"ext-container", "host", "k8s-kind"})
"""containerlab's kinds of nodes that exist independently of the lab."""
LINK_TYPES: Final = frozenset({"dummy", "veth"})
"""containerlab's types of links that stay within the lab."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What separates a lab from the others of its host."""

    name: str
    """The lab's name, and that of its management network."""
    number: int
    network: IPv4Network
    """The management network."""
    lock: Path | None
    """The file that is locked while containerlab deploys or destroys a lab; None if it needs no lock."""

    @property
    def network_v6(self) -> str:
        """The management network for IPv6, as unique as that for IPv4.

        netlab's default depends on the number alone. Labs that are started by hand, or by a server with another
        `--lab-network`, may have the same number, and Docker refuses networks that overlap.
        """
        labs = int(self.network.network_address) >> 16  # the /16 of all labs of the server
        return f"fd00:df:{labs:x}:{self.number}::/64"

    def arguments(self) -> list[str]:
        """Arguments for `netlab create`, which override the topology and the host's defaults.

        The bridge of the management network gets no name: Docker then creates a new one, to which it attaches only the
        lab's containers.
        """
        change = "defaults.multilab.change"
        settings: dict[str, object] = {
            "defaults.multilab.id": self.number,
            f"{change}.name": self.name,
            f"{change}.defaults.name": self.name,
            f"{change}.defaults.providers.clab.mgmt_default_ipv6": self.network_v6,
            f"{change}.addressing.mgmt.ipv4": self.network,
            f"{change}.addressing.mgmt._network": self.name,
            f"{change}.addressing.mgmt._bridge": "",
            "defaults.providers.clab.lab_prefix": PREFIX,
            "defaults.lab_status_file": _STATUS_FILE_FROM_LAB,
        }
        if self.lock:
            settings["defaults.multilab.lock"] = self.lock
        return ["--plugin", "multilab", *(word for key, value in settings.items() for word in ("-s", f"{key}={value}"))]

    def require(self, directory: Path, facts: Mapping[str, Any]) -> None:
        """Check what `netlab create` has written.

        Args:
            directory: where netlab ran.
            facts: the value of the expression `FACTS`.

        Raises:
            SharesHost: the lab would share something with others; the message names the keys of the topology.
        """
        try:
            provided = yaml.safe_load((directory / "clab.yml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            provided = None
        if found := list(self.problems(provided, facts)):
            raise SharesHost("; ".join(found))

    def problems(self, provided: Any, facts: Mapping[str, Any]) -> Iterator[str]:
        """What the lab would share with others, one sentence each, which begins with a key of the topology.

        Args:
            provided: the parsed containerlab topology; None if there is none.
            facts: the value of the expression `FACTS`.
        """
        providers = {facts.get("provider"), *(name or PROVIDER for name in facts.get("providers") or [])}
        if foreign := sorted(map(str, providers - {PROVIDER})):
            yield f"provider: {', '.join(foreign)} cannot run several labs at once, only {PROVIDER} can"
            return
        yield from self._problems_of_netlab(facts)
        try:
            yield from self._problems_of_containerlab(provided)
        except (LookupError, TypeError, AttributeError, ValueError):
            yield "defaults.providers.clab: clab.yml is not what netlab's own template makes, so it cannot be checked"

    def _problems_of_netlab(self, facts: Mapping[str, Any]) -> Iterator[str]:
        if facts.get("id") != self.number:
            yield f"defaults.multilab.id: the server sets it to {self.number}; the result is {facts.get('id')}"
        if facts.get("status_file") != _STATUS_FILE_FROM_LAB:
            yield "defaults.lab_status_file: the server gives each lab its own; the result is another one"
        for key in ("start", "stop") if self.lock else ():
            if not str(facts.get(key)).startswith(f"{LOCK_COMMAND} {self.lock} "):
                yield f"defaults.providers.clab.{key}: the command does not take the lock that containerlab needs"
        for tool in facts.get("tools") or []:
            if tool not in SEPARATE_TOOLS:
                yield f"tools.{tool}: it may publish ports, or use containers of other labs; leave it out"

    def _problems_of_containerlab(self, provided: Any) -> Iterator[str]:
        expected = {
            "name": ("name", self.name),
            "prefix": ("defaults.providers.clab.lab_prefix", PREFIX),
        }
        for field, (key, value) in expected.items():
            if provided[field] != value:
                yield f"{key}: the server sets it to {value}; the result is {provided[field]}"
        yield from self._problems_of_network(provided["mgmt"])
        nodes = provided["topology"]["nodes"]
        for name, node in nodes.items():
            yield from self._problems_of_node(name, node, nodes)
        for link in provided["topology"].get("links") or []:
            yield from self._problems_of_link(link, nodes)

    def _problems_of_network(self, network: Mapping[str, str]) -> Iterator[str]:
        expected = {
            "network": ("addressing.mgmt._network", self.name),
            "ipv4-subnet": ("addressing.mgmt.ipv4", str(self.network)),
            "ipv6-subnet": ("defaults.addressing.mgmt.ipv6", self.network_v6),
        }
        for field, (key, value) in expected.items():
            if network.get(field) != value:
                yield (
                    f"{key}: each lab has a management network of its own, here {value} instead of "
                    f"{network.get(field)}; leave it out"
                )
        if "bridge" in network:
            yield f"addressing.mgmt._bridge: anything may be attached to {network['bridge']}; leave it out"
        for field in network.keys() - expected.keys() - {"bridge"}:
            yield f"defaults.providers.clab: the management network has {field}, which may be shared; leave it out"

    def _problems_of_node(self, name: str, node: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[str]:
        key, kind = f"nodes.{name}", str(node.get("kind"))
        if kind.endswith("bridge"):
            if not re.fullmatch(rf"{self.name}_\d+", name):
                yield (
                    f"links.bridge: the bridge {name} would connect all labs that name it, and the end of one would "
                    "disconnect the others; leave the name out, and each lab gets a bridge of its own"
                )
            return
        if kind in FOREIGN_KINDS:
            yield f"{key}.clab.kind: {kind} is not a node of this lab alone; use another kind"
        if node.get("ports"):
            yield (
                f"{key}.clab.ports, or defaults.providers.clab.forwarded: {_listed(node['ports'])} would be published "
                "on the host, where only one lab can have them; leave them out, and forward ports with the client"
            )
        mode = str(node.get("network-mode") or "none")
        if mode != "none" and mode.removeprefix("container:") not in nodes:
            yield f"{key}.clab.network-mode: {mode} is a network that other labs use too; leave it out"
        addresses = {"mgmt-ipv4": self.network, "mgmt-ipv6": ip_network(self.network_v6)}
        for field, network in addresses.items():
            if field in node and ip_address(node[field]) not in network:
                family = field.removeprefix("mgmt-")
                yield (
                    f"addressing.mgmt.{family}, or {key}.mgmt.{family}: {node[field]} is not in the management network "
                    f"of this lab, {network}; leave it out"
                )

    def _problems_of_link(self, link: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[str]:
        if (kind := link.get("type", "veth")) not in LINK_TYPES:
            yield f"links.clab: a link of type {kind} leaves the lab; leave it out"
            return
        for end in link.get("endpoints", []):
            node, _, interface = end.partition(":")
            if node not in nodes:
                yield (
                    f"links.clab.uplink: {interface} of {node} is an interface of the host, which labs would share; "
                    "leave it out"
                )
            elif str(nodes[node].get("kind")).endswith("bridge") and not interface.startswith(f"bni{self.number}n"):
                yield f"links.clab: the interface {interface} of the bridge {node} may be another lab's"


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)
