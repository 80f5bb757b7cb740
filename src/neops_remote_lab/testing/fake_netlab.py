"""A stand-in for the ``netlab`` program, as networklab 26.10 behaves: same files, registry, words, status; no devices.

It is started as a process of its own, so that the code that starts, feeds, times out and kills netlab is tested as it
is. Two environment variables steer it: ``HOME`` (where netlab keeps its registry) and ``FAKE_NETLAB_STATE`` (a
directory, by default ``$HOME/.fake-netlab``), which holds

- ``containers/`` and ``networks/``: a JSON file for each thing that "runs"; the fake ``docker`` uses them too;
- ``log``: JSON lines of everything that was started, each phase it reached and how it ended;
- ``system/``: what a start makes besides containers, as files below ``etc``, ``run`` and ``sys``: bridges for links of
  more than two nodes, a network namespace for each container, a block in the hosts file, an SSH configuration file;
- ``violations``: a line for each lab that was started while another one was alive that it is not separate from
  (absent when all is well): with the plugin multilab, labs of different ids are separate unless they share something;
- ``control.json``: the knobs, see `KNOBS`. A topology may carry knobs of its own under ``x_fake``; those win.

It is one file, which imports only the standard library, and PyYAML where YAML is read or written: it runs as a script
anywhere, and start-up time is what a run costs. Two things differ from netlab on purpose: the registry is replaced as
a whole (netlab truncates and rewrites it), and nothing is written to ``~/.netlab`` besides the registry. Of the user's
defaults in ``~/.netlab.yml``, ``lab_status_file`` alone is obeyed.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn

    Data = dict[str, Any]

VERSION = "26.10"
SNAPSHOT = "netlab.snapshot.pickle"
LOCK = "netlab.lock"
MGMT_NETWORK = "netlab_mgmt"
MGMT_SUBNETS = ("192.168.121.0/24", "fd00:df:1ab::/64")
MGMT_START = 100
LOCK_COMMAND = "flock -E 42"
MOST_WITHOUT_BRIDGE = 2
DEPLOY = "containerlab deploy --reconfigure -t clab.yml"
DESTROY = "containerlab destroy --cleanup -t clab.yml"
PROBES = ("containerlab version", "docker version")

KNOBS = {
    "create_seconds": "how long reading the topology takes",
    "create_node_seconds": "how much longer it takes for each node",
    "probe_seconds": "how long the check of the provider takes",
    "start_seconds": "how long the provider takes before its first node",
    "node_seconds": "how long each node takes",
    "config_seconds": "how long the configuration of the devices takes",
    "down_seconds": "how long the provider takes before it removes the first node",
    "inspect_seconds": "how long each inspect takes",
    "status_seconds": "how long each status takes",
    "collect_seconds": "how long the collection of configurations takes",
    "graph_seconds": "how long a graph takes",
    "fail": "what fails, one or a list: create, probe, start (half-way), config, down (with --force it goes on, and "
    "leaves the nodes), down_probe (exit status 0, nothing done), inspect, expression, status, validate, "
    "collect (half-way), graph, version",
    "fail_times": "only the next N that would fail do so",
    "hang": "the phase that never ends: create, probe, start (half-way), config, down, inspect, status, "
    "collect, graph, defaults, version",
    "stubborn": "a hanging process ignores SIGTERM, SIGINT and SIGHUP",
    "hang_child": "a hanging process has a child that hangs as well and holds its output open",
    "spam_bytes": "how much is printed in the first phase of each process",
    "status_race": "a list of instances with other labs is seen empty, as while it is being written: its reader dies",
    "deploy_race": "containerlab commands at the same time fail and empty the hosts file, as before version 0.76",
    "leak_containers": "how many containers a down leaves behind",
    "leak_system": "a down leaves bridges, network namespaces, the block in the hosts file and the SSH configuration",
    "podman": "the docker command is podman's: another version line, and containers as JSON of another shape",
    "traceback": "die with a Python traceback: true for the first phase, or the name of one",
    "docker_unreachable": "the Docker daemon does not answer: docker fails, and so do netlab's probes",
    "docker_rm_fails": "docker rm fails",
    "no_shell": "the nodes have no shell",
    "docker_exec_fails": "a command in a container fails",
    "log_bytes": "how much each container has printed",
    "container_memory": "how much memory each container uses, as docker stats prints it",
}

PROVIDER_FILE = {"clab": "clab.yml", "external": "external.txt", "libvirt": "Vagrantfile"}


def words(text: str) -> set[str]:
    return set(text.split())


MODULES = words("""
    bfd bgp dhcp eigrp evpn gateway isis lag mpls ospf ripv2 routing services sr srv6 stp vlan vlans vrf vrfs
    vxlan
""")
TOPOLOGY_ATTRIBUTES = MODULES | words("""
    addressing clab defaults external groups libvirt links message module name nodes plugin prefix provider tools
    validate version x_fake
""")
NODE_ATTRIBUTES = MODULES | words("""
    box clab config cpu device external group id image interfaces libvirt loopback memory mgmt module mtu name
    provider role router_id skip_config unmanaged
""")
MULTILAB_CHANGE = {
    "name": "ml-{id}",
    "defaults": {"name": "ml-{id}", "providers": {"clab": {"mgmt_default_ipv6": "fd00:df:1ab:{id}::/64"}}},
    "addressing": {"mgmt": {"ipv4": "192.168.{id}.0/24", "_network": "nl_mgmt_{id}", "_bridge": "nl_mgmt_{id}"}},
}
MULTILAB_IDS = range(1, 201)
LINK_ATTRIBUTES = MODULES | words("""
    bandwidth bridge clab disable group interfaces libvirt linkid members mtu name pool prefix ra role shutdown tc
    type unnumbered vlan_name
""")
DEVICES = words("""
    arcos arubacx asav cat8000v cisco8000v crpd csr csrx cumulus cumulus_nvue dellos10 eos exos fortios frr iol
    ioll2 ios iosv iosvl2 iosxr junos linux netscaler none nxos openbsd routeros routeros7 sonic srlinux sros
    srsim unknown vjunos-router vjunos-switch vmx vpp vptx vsrx vyos xr
""")
FRR_DAEMONS = {
    "bfd": ["bfdd"], "bgp": ["bgpd"], "gateway": ["vrrpd"], "isis": ["isisd"], "mpls": ["ldpd"],
    "ospf": ["ospfd", "ospf6d"], "ripv2": ["ripd", "ripngd"], "vrf": ["bgpd"],
}  # fmt: skip


# Words


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fatal(text: str, module: str = "netlab") -> NoReturn:
    complain(f"Fatal error in {module}: {text}")
    sys.exit(1)


def refuse(text: str, module: str, *hints: str) -> NoReturn:
    complain(f"FatalError in {module}: {text}")
    for hint in hints:
        complain(f"... {hint}")
    sys.exit(1)


def parse(
    args: list[str], command: str, flags: str = "", valued: str = "", optional: str = ""
) -> tuple[Data, list[str]]:
    """Split `args` into options (counted flags, or values) and the rest; an unknown option ends it all."""
    options: Data = {}
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not word.startswith("-") or word == "-":
            rest.append(word)
        elif name in flags.split():
            options[name] = options.get(name, 0) + 1
        elif name in valued.split() and (equals or waiting):
            options[name] = value if equals else waiting.pop(0)
        elif name in {"-s", "--set", "--plugin"} and command in {"create", "up"} and (equals or waiting):
            options.setdefault("-s" if name == "--set" else name, []).append(value if equals else waiting.pop(0))
        elif name in optional.split():
            follows = bool(waiting) and not waiting[0].startswith("-")
            options[name] = value if equals else waiting.pop(0) if follows else SNAPSHOT
        else:
            complain(f"usage: netlab {command} [-h]\nnetlab {command}: error: unrecognized arguments: {word}")
            sys.exit(2)
    return options, rest


# Knobs, phases and the log


def state_folder() -> Path:
    return Path(os.environ.get("FAKE_NETLAB_STATE") or Path.home() / ".fake-netlab")


class Run:
    """One invocation: what it was told to do wrong, and what it logs."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.state = state_folder()
        for part in ("containers", "networks"):
            (self.state / part).mkdir(parents=True, exist_ok=True)
        self.control, self.control_stamp = self._read_control()
        self.knobs = dict(self.control)
        self.lab = ""
        self.own: Data = {}
        self.first = True

    def _read_control(self) -> tuple[Data, str]:
        try:
            with (self.state / "control.json").open(encoding="utf-8") as file:
                return json.load(file), f"control {os.fstat(file.fileno()).st_mtime_ns}"
        except FileNotFoundError:
            return {}, "control"

    def adopt(self, topology: Data) -> None:
        """Let the knobs that the topology carries win."""
        self.own = topology.get("x_fake") or {}
        self.lab = topology["name"]
        self.knobs = {**self.control, **self.own}
        unknown = sorted(set(self.knobs) - set(KNOBS))
        if unknown:
            fatal(f"the fake has no knob {', '.join(unknown)}", "fake")

    def log(self, event: str, **fields: object) -> None:
        line = {"event": event, "pid": os.getpid(), "argv": self.argv, "cwd": _cwd(), "time": time.time()}
        line.update({"monotonic": time.monotonic(), "status": None, **fields})
        append_line(self.state / "log", json.dumps(line))

    def enter(self, phase: str) -> None:
        """Begin a phase: note it, print and take as much as was asked for, or die in it."""
        self.log("phase", phase=phase)
        first, self.first = self.first, False
        if first and self.knobs.get("spam_bytes"):
            spam(int(self.knobs["spam_bytes"]))
        if self.knobs.get("traceback") == phase or (first and self.knobs.get("traceback") is True):
            raise RuntimeError(f"the fake was told to die in phase {phase}")
        time.sleep(float(self.knobs.get(f"{phase}_seconds", 0)))

    def hang(self, phase: str) -> None:
        if self.knobs.get("hang") != phase:
            return
        if self.knobs.get("stubborn"):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        child = self.knobs.get("hang_child") and os.fork() == 0
        self.log("hang", phase=phase, child=bool(child))
        while True:
            time.sleep(3600)

    def failing(self, what: str) -> bool:
        wanted = self.knobs.get("fail") or []
        if what not in ([wanted] if isinstance(wanted, str) else wanted):
            return False
        times = self.knobs.get("fail_times")
        return times is None or self._count_failure() <= int(times)

    def _count_failure(self) -> int:
        key = f"topology {json.dumps(self.own)}" if "fail_times" in self.own else self.control_stamp
        counts: dict[str, int] = {}

        def count(text: str) -> str:
            counts.update(json.loads(text or "{}"))
            counts[key] = counts.get(key, 0) + 1
            return json.dumps(counts)

        change_locked(self.state / "failures.json", count)
        return counts[key]


def _cwd() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  the string that netlab itself writes into its registry
    except FileNotFoundError:
        return ""


def spam(size: int) -> None:
    line = b"x" * 99 + b"\n"
    for _ in range(size // len(line)):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.write(line[-(size % len(line)) :] if size % len(line) else b"")
    sys.stdout.flush()


def append_line(path: Path, line: str) -> None:
    """Append with a single write: lines of processes that run at the same time do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode())
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Replace at once, so that a reader never sees half of it and a kill never leaves half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def change_locked(path: Path, change: Callable[[str], str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_whole(path, change(path.read_text(encoding="utf-8") if path.exists() else ""))


# The registry of lab instances


def user_defaults() -> Data:
    path = Path.home() / ".netlab.yml"
    if not path.exists():
        return {}
    import yaml  # noqa: PLC0415

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        fatal(f"Cannot read YAML from {path}: {error}")
    return value if isinstance(value, dict) else {}


def shared_registry() -> Path:
    return Path(user_defaults().get("lab_status_file") or "~/.netlab/status.yaml").expanduser()


def read_yaml(text: str) -> Any:
    if text.strip() in {"", "{}"}:
        return {}
    import yaml  # noqa: PLC0415  20 ms, and an empty registry is the usual case

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  both are safe


def dump_yaml(value: object) -> str:
    if value == {}:
        return "{}\n"
    import yaml  # noqa: PLC0415

    return str(yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), width=90))


def registry_path(topology: Data) -> Path:
    """The list that has the lab: the host's, or one that the topology names."""
    named = topology["status_file"]
    return Path(named).expanduser() if named else shared_registry()


def read_status(run: Run, topology: Data) -> Data:
    """The list, read without its lock, as netlab reads it before it changes anything."""
    instances = read_registry(registry_path(topology))
    if run.knobs.get("status_race") and instances.keys() - {topology["lab_id"]}:
        fatal(f"Cannot read lab status file {registry_path(topology)}")
    return instances


def read_registry(path: Path) -> Data:
    return dict(read_yaml(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def change_registry(topology: Data, change: Callable[[Data], None]) -> None:
    def rewrite(text: str) -> str:
        instances = dict(read_yaml(text) or {})
        change(instances)
        return dump_yaml(instances)

    change_locked(registry_path(topology), rewrite)


def note(instances: Data, lab_id: str, line: str, **fields: object) -> None:
    """Add a line to an instance's log; the instance comes into being with its first line, as in netlab."""
    from datetime import UTC, datetime  # noqa: PLC0415  only up and down get here

    now = datetime.now(UTC)
    entry = instances.setdefault(lab_id, {"dir": _cwd()})
    entry.setdefault("providers", [])
    entry.update(fields)
    log = entry.setdefault("log", [])
    if not log or f": {line}" not in log[-1]:
        entry["timestamp"] = now
        log.append(f"{now.astimezone().isoformat()}: {line}")


def set_status(topology: Data, status: str) -> None:
    change_registry(topology, lambda instances: note(instances, topology["lab_id"], status, status=status))


def log_command(topology: Data, *lines: str) -> None:
    def change(instances: Data) -> None:
        for line in lines:
            note(instances, topology["lab_id"], line, log_line=line)

    change_registry(topology, change)


# Topologies


class Errors:
    """What is wrong with a topology, in netlab's words."""

    def __init__(self, topology: Path) -> None:
        self.name = topology.name
        self.lines: list[str] = []

    def add(self, category: str, module: str, text: str) -> None:
        self.lines.append(f"{category} in {module}: {text}")

    def abort(
        self, text: str = "Cannot proceed beyond this point due to errors, exiting", module: str = "netlab"
    ) -> None:
        complain("\n".join([f"Errors encountered while processing {self.name}", *self.lines]))
        fatal(text, module)


def read_topology(path: Path) -> Data:
    import yaml  # noqa: PLC0415

    full = Path(_cwd()) / path
    try:
        with full.open(encoding="utf-8") as file:
            value = yaml.safe_load(file)  # its errors read otherwise than those of the faster C parser
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fatal(f"Cannot read YAML from {full}: {error}")
    if value is not None and not isinstance(value, dict):
        fatal(
            f"Cannot read YAML from {full}: yaml data not returned as a dictionary but rather a {type(value).__name__}"
        )
    expanded = expand_dots(value or {})
    return expanded if isinstance(expanded, dict) else {}


def expand_dots(value: object) -> object:
    """``{"a.b": 1}`` means ``{"a": {"b": 1}}``."""
    if isinstance(value, list):
        return [expand_dots(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: Data = {}
    for key, item in value.items():
        *parents, last = str(key).split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        expanded = expand_dots(item)
        if isinstance(place.get(last), dict) and isinstance(expanded, dict):
            place[last].update(expanded)
        else:
            place[last] = expanded
    return result


def transform(raw: Data, path: Path, options: Data) -> Data:
    errors = Errors(path)
    if not raw.get("nodes"):
        errors.add("MissingValue", "topology", "Required topology element 'nodes' is missing or empty")
        errors.abort("Fatal topology errors, aborting")
    defaults = raw.get("defaults") or {}
    device = options.get("-d") or options.get("--device") or defaults.get("device")
    provider = (
        options.get("-p") or options.get("--provider") or raw.get("provider") or defaults.get("provider") or "libvirt"
    )
    if provider not in PROVIDER_FILE:
        known = ", ".join(sorted(PROVIDER_FILE))
        errors.abort(f"Unknown virtualization provider {provider}. Supported providers are: {known}", "topology")
    for attribute in raw:
        if attribute not in TOPOLOGY_ATTRIBUTES:
            errors.add("IncorrectAttr", "topology", f"Invalid topology attribute '{attribute}' found in topology")
    name = str(raw.get("name") or re.sub("[^A-Za-z0-9_]", "", Path(_cwd()).name)[:12])
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,15}|ml-[0-9]+", name):
        errors.add("IncorrectType", "topology", "attribute 'name' must be a 16-character identifier, found str")
    mgmt = (raw.get("addressing") or {}).get("mgmt") or {}
    multilab = defaults.get("multilab") or {}
    clab = (defaults.get("providers") or {}).get("clab") or {}
    topology: Data = {
        "_netlab_version": VERSION,
        "name": name,
        "provider": provider,
        "input": [str(Path(_cwd()) / path), "package:topology-defaults.yml"],
        "defaults": {"device": device, "provider": provider},
        "lab_id": multilab.get("id") or (f"external_{name}" if provider == "external" else "default"),
        "lock": multilab.get("lock", ""),
        "status_file": defaults.get("lab_status_file", ""),
        "lab_prefix": clab.get("lab_prefix", "clab"),
        "network": mgmt.get("_network") or MGMT_NETWORK,
        "mgmt": mgmt,
        "subnets": [
            mgmt.get("ipv4") or MGMT_SUBNETS[0],
            ((defaults.get("addressing") or {}).get("mgmt") or {}).get("ipv6")
            or clab.get("mgmt_default_ipv6", MGMT_SUBNETS[1]),
        ],
        "tools": list(raw.get("tools") or []),
        "validate": raw.get("validate") or {},
        "x_fake": raw.get("x_fake") or {},
        "nodes": node_dict(raw["nodes"]),
    }
    augment_nodes(topology, errors)
    links = read_links(raw.get("links") or [], topology["nodes"], errors)
    if errors.lines:
        errors.abort()
    topology["links"] = [connect(topology, index, members) for index, members in enumerate(links, 1)]
    for given, link in zip(raw.get("links") or [], topology["links"], strict=True):
        if isinstance(given, dict) and "uplink" in (given.get("clab") or {}):
            link["uplink"] = given["clab"]["uplink"]
        elif len(link["interfaces"]) > MOST_WITHOUT_BRIDGE:
            named = given.get("bridge") if isinstance(given, dict) else None
            link["bridge"] = named or f"{name}_{link['linkindex']}"
    return topology


def set_value(data: Data, dotted: str, value: str) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(data.get(parent), dict):
            data[parent] = {}
        data = data[parent]
    data[last] = int(value) if value.isdecimal() else value


def multilab(raw: Data, path: Path) -> Data:
    """What netlab's plugin makes of a topology: names and networks that contain the lab's id."""
    errors = Errors(path)
    found = (raw.get("defaults") or {}).get("multilab")
    settings: Data = found if isinstance(found, dict) else {}
    number = settings.get("id")
    if number is None:
        errors.add("MissingValue", "multilab", "multilab plugin requires defaults.multilab.id parameter")
        errors.abort()
    if number not in MULTILAB_IDS:
        text = "attribute 'defaults.multilab.id' must be an integer between 1 and 200"
        errors.add("IncorrectValue", "multilab", text)
        errors.abort()
    change = merged(MULTILAB_CHANGE, settings.get("change") or {})
    return merged(raw, formatted(change, {"{id}": str(number), "{name}": str(raw.get("name"))}))


def merged(data: Data, change: Data) -> Data:
    result = dict(data)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(data.get(key), dict)
        result[key] = merged(data[key], value) if both else value
    return result


def formatted(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: formatted(item, words) for key, item in value.items()}
    for word, text in words.items():
        value = value.replace(word, text) if isinstance(value, str) else value
    return value


def node_dict(nodes: Iterable[Any]) -> Data:
    """``nodes`` as a list or a mapping; a number ends in a traceback, as in netlab."""
    if isinstance(nodes, dict):
        return {str(name): data or {} for name, data in nodes.items()}
    result: Data = {}
    for node in nodes:
        result.update({str(node.get("name")): dict(node)} if isinstance(node, dict) else {str(node): {}})
    return result


def augment_nodes(topology: Data, errors: Errors) -> None:
    for number, (name, given) in enumerate(topology["nodes"].items(), 1):
        device = given.get("device") or topology["defaults"]["device"]
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,15}", name):
            errors.add("IncorrectType", "nodes", f"node name {name} must be a 16-character identifier, found str")
        if not device:
            errors.add(
                "MissingValue", "nodes", f"No device type specified for node {name} and there is no default device type"
            )
        elif device not in DEVICES:
            text = f"attribute 'nodes.{name}.device' must be known device type identifier (got {device})"
            errors.add("IncorrectValue", "nodes", text)
        for attribute in set(given) - NODE_ATTRIBUTES:
            errors.add("IncorrectAttr", "nodes", f"Invalid node attribute '{attribute}' found in nodes.{name}")
        topology["nodes"][name] = node_data(topology, name, number, str(device), given)


def node_data(topology: Data, name: str, number: int, device: str, given: Data) -> Data:
    container = topology["provider"] == "clab"
    role = "host" if device in {"linux", "none"} else "router"
    node: Data = {
        "af": {"ipv4": True},
        "box": ("quay.io/frrouting/frr:10.5.1" if device == "frr" else f"{device}:latest") if container else "none",
        "device": device,
        "id": number,
        "interfaces": [],
        "mgmt": {"ifname": "eth0", "ipv4": address(topology["subnets"][0].partition("/")[0], MGMT_START + number)},
        "name": name,
        "role": role,
    }
    if role == "router":
        loopback = {"ifindex": 0, "ifname": "lo", "ipv4": address("10.0.0.0", number) + "/32", "neighbors": []}
        node["loopback"] = {**loopback, "type": "loopback", "virtual_interface": True}
    else:
        node.update(module=["routing"], routing={"static": []})
    if container:
        node["mgmt"]["mac"] = f"ca:fe:00:{number % 256:02x}:00:00"
        node.update(container_data(topology, name, device))
        if "ipv6" in topology["mgmt"]:
            node["mgmt"]["ipv6"] = f"{topology['mgmt']['ipv6'].partition('/')[0]}{MGMT_START + number:x}"
    own = {"mgmt": {**node["mgmt"], **given.get("mgmt", {})}}
    own |= {"clab": {**node["clab"], **(given.get("clab") or {})}} if container else {}
    return {**node, **given, "device": device, **own}


def container_name(topology: Data, node: str) -> str:
    prefix = topology["lab_prefix"]
    return f"{prefix}-{topology['name']}-{node}" if prefix else node


def container_data(topology: Data, name: str, device: str) -> Data:
    if device == "linux":
        config = {"initial": ":ns", "routing": ":ns"}
        clab: Data = {"config_templates": [{"mode": "ns", "source": part, "target": ""} for part in config]}
    else:
        config = {"initial": "/etc/config/01-initial.sh:sh"}
        clab = {
            "config_templates": [{"mode": "sh", "source": "initial", "target": "/etc/config/01-initial.sh"}],
            "exec": ["sleep 1"],
        }
    hosts = {"mode": "ro", "source": "node_files/-shared-hosts", "target": "/etc/hosts"}
    return {
        "_node_config": config,
        "clab": {"binds": [hosts], "kind": "linux", **clab},
        "hostname": container_name(topology, name),
        "mtu": 1500,
        "netlab_ansible_skip_module": list(config),
    }


def address(base: str, offset: int) -> str:
    number = int.from_bytes(bytes(int(part) for part in base.split(".")), "big") + offset
    return ".".join(str(part) for part in number.to_bytes(4, "big"))


def read_links(links: list[Any], nodes: Data, errors: Errors) -> list[list[str]]:
    result = []
    for index, link in enumerate(links, 1):
        if isinstance(link, str):
            members = link.split("-")
            unknown = f"Link string {link} in links[{index}] refers to an unknown node"
        elif isinstance(link, dict):
            listed = [item["node"] if isinstance(item, dict) else item for item in link.get("interfaces", [])]
            members = listed + [key for key in link if key not in LINK_ATTRIBUTES]
            unknown = f"Invalid link attribute found in links[{index}], or an unknown node"
        else:
            errors.add("IncorrectType", "links", f"Invalid type {type(link).__name__} for links[{index}]")
            continue
        for member in members:
            if member not in nodes:
                errors.add("IncorrectValue", "links", f"{unknown} {member}")
        result.append(members)
    return result


def connect(topology: Data, index: int, members: list[str]) -> Data:
    """Give each member of a link its interface and return the link."""
    nodes = [topology["nodes"][member] for member in members]
    lan = len(nodes) != 2 or any(node["role"] == "host" for node in nodes)
    ends: list[Data] = []
    for position, node in enumerate(nodes, 1):
        ifindex = len(node["interfaces"]) + 1 + sum(end["node"] == node["name"] for end in ends)
        lan_address = address("172.16.0.0", 256 * (index - 1) + node["id"]) + "/24"
        ip = lan_address if lan else address("10.1.0.0", 4 * (index - 1) + position) + "/30"
        ends.append({"ifname": f"eth{ifindex}", "ifindex": ifindex, "ipv4": ip, "node": node["name"]})
    for node, own in zip(nodes, ends, strict=True):
        others = [end for end in ends if end is not own]
        names = ",".join(end["node"] for end in others)
        interface = {
            "ifindex": own["ifindex"],
            "ifname": own["ifname"],
            "ipv4": own["ipv4"],
            "linkindex": index,
            "name": f"{node['name']} -> {names if len(others) == 1 else f'[{names}]'}",
            "neighbors": [{key: end[key] for key in ("ifname", "ipv4", "node")} for end in others],
            "type": "lan" if lan else "p2p",
        }
        if topology["provider"] == "clab":
            interface["mtu"] = 1500
        if lan:
            interface["bridge"] = f"{topology['name']}_{index}"
        if lan and any(end["role"] == "host" for end in nodes):
            interface["role"] = "stub"
        node["interfaces"].append(interface)
    return {"interfaces": ends, "linkindex": index, "type": "lan" if lan else "p2p"}


def group_vars(device: str, provider: str) -> Data:
    container = provider == "clab"
    special: Data = {"ansible_ssh_pass": "admin"}
    connection = "ansible.netcommon.network_cli"
    if device == "linux":
        special = {"ansible_ssh_pass": "vagrant", "docker_shell": "sh -il", "netlab_net_tools": False}
        special |= {"netlab_lldp_enable": False, **({"netlab_linux_distro": "vanilla"} if container else {})}
    elif device == "frr":
        special = {"netlab_frr_daemons": FRR_DAEMONS, "netlab_initial": "always", "netlab_mgmt_vrf": False}
        special |= {"netlab_show_command": ["vtysh", "-c", "show $@"], "netlab_config_mode": "sh"}
        special |= {"netlab_config_exec": ["sleep 1"], "netlab_default_shebang": "#!/usr/bin/vtysh -f"}
    if device in {"linux", "frr"}:
        connection = "docker" if container else "paramiko"
    return {
        "ansible_connection": connection,
        "ansible_network_os": device,
        "ansible_python_interpreter": "auto_silent",
        "ansible_user": "admin" if connection.endswith("cli") else "root" if container else "vagrant",
        **special,
    }


def inventory_host(topology: Data, name: str) -> Data:
    """A node with its group variables: what ``inspect --node`` prints."""
    node = topology["nodes"][name]
    host = group_vars(node["device"], topology["provider"])
    docker = host["ansible_connection"] == "docker"
    host["ansible_host"] = node["hostname"] if docker else node["mgmt"]["ipv4"]
    host.update({key: value for key, value in node.items() if key not in {"name", "device"}})
    return host


# Files


def write_file(path: str, text: str) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def clab_yaml(topology: Data) -> str:
    prefix, (ipv4, ipv6) = topology["lab_prefix"], topology["subnets"]
    lines = [f"name: {topology['name']}", f'prefix: "{prefix}"', "", "mgmt:", f"  network: {topology['network']}"]
    lines += [f"  ipv4-subnet: {ipv4}", f"  ipv6-subnet: {ipv6}"]
    lines += [f"  bridge: {topology['mgmt']['_bridge']}"] if topology["mgmt"].get("_bridge") else []
    lines += ["topology:", "  nodes:"]
    for name, node in managed(topology).items():
        lines += [f"    {name}:", f"      mgmt-ipv4: {node['mgmt']['ipv4']}"]
        lines += [f"      mgmt-ipv6: {node['mgmt']['ipv6']}"] if "ipv6" in node["mgmt"] else []
        lines += [f"      kind: {node['clab']['kind']}", "      restart-policy: 'no'"]
        lines += [f"      {key}: {node['clab'][key]}" for key in ("network-mode", "ports") if key in node["clab"]]
        lines += [f"      image: {node['box']}"]
    for bridge in bridges(topology):
        lines += [f"    {bridge}:", "      kind: bridge"]
    lines += ["  links:"] if topology["links"] else []
    for link in topology["links"]:
        ends = [f"{end['node']}:{end['ifname']}" for end in link["interfaces"]]
        if "bridge" in link:
            for name, end in zip(ends, link["interfaces"], strict=True):
                lines += ["  - endpoints:", f'    - "{name}"', f'    - "{bridge_end(topology, link, end)}"']
        elif "uplink" in link:
            lines += ["  - endpoints:", f'    - "{ends[0]}"', f'    - "macvlan:{link["uplink"]}"']
        else:
            lines += ["  - endpoints:", *(f'    - "{name}"' for name in ends)]
    return "\n".join(lines) + "\n"


def bridge_end(topology: Data, link: Data, end: Data) -> str:
    """The interface of a bridge that is connected to a node. Its name is unique on the host if the lab has an id."""
    number = topology["lab_id"] if isinstance(topology["lab_id"], int) else 0
    return f"{link['bridge']}:bni{number}n{topology['nodes'][end['node']]['id']}i{end['ifindex']}"


def managed(topology: Data) -> Data:
    """The nodes that the provider runs."""
    return {name: node for name, node in topology["nodes"].items() if not node.get("unmanaged")}


def bridges(topology: Data) -> list[str]:
    return [link["bridge"] for link in topology["links"] if "bridge" in link]


def external_text(topology: Data) -> str:
    lines = ["LAB TOPOLOGY SUMMARY", "", f"LAB NAME: {topology['name']}", "", "POINT-TO-POINT LINKS:", ""]
    for link in topology["links"]:
        ends = " | ".join(f"{end['node']} | {end['ifname']}" for end in link["interfaces"])
        lines += [f"| {ends} |"]
    return "\n".join(lines) + "\n"


def hosts_yaml(topology: Data) -> str:
    lines = [f"# Ansible inventory created from {topology['input']}", "#", "", "all:", "  hosts: {}"]
    for device in sorted({node["device"] for node in topology["nodes"].values()}):
        lines += [f"{device}:", "  hosts:"]
        for name, node in topology["nodes"].items():
            if node["device"] == device:
                host = inventory_host(topology, name)["ansible_host"]
                lines += [f"    {name}:", f"      ansible_host: {host}", f"      id: {node['id']}"]
    return "\n".join(lines) + "\n"


def write_files(topology: Data) -> None:
    nodes: Data = topology["nodes"]
    provider = topology["provider"]
    for position, (name, node) in enumerate(nodes.items()):
        parts = ["initial", "daemons"] if node["device"] == "frr" else ["initial", *node.get("module", [])]
        parts += ["hosts"] if provider == "clab" else []
        shared = " (shared)" if position and provider == "clab" else ""
        say(f"[CONFIG]  {name}: {','.join(parts)}{shared}")
        for part in parts:
            write_file("node_files/-shared-hosts" if part == "hosts" else f"node_files/{name}/{part}", f"# {part}\n")
    texts = {"clab": clab_yaml, "external": external_text}
    write_file(PROVIDER_FILE[provider], texts[provider](topology) if provider in texts else "# Vagrantfile\n")
    say(f"Created provider configuration file: {PROVIDER_FILE[provider]}")
    Path(SNAPSHOT).write_bytes(pickle.dumps(topology))
    say(f"Created pickled transformed topology data into {SNAPSHOT}")
    groups = {"all": {"netlab_version": VERSION}}
    groups.update({node["device"]: group_vars(node["device"], provider) for node in nodes.values()})
    for group, variables in groups.items():
        write_file(f"group_vars/{group}/topology.json", json.dumps(variables))
        say(f"Created group_vars for {group}")
    for name in nodes:
        write_file(f"host_vars/{name}/topology.json", json.dumps(nodes[name]))
    say(f"Created host_vars for {', '.join(nodes)}")
    write_file("hosts.yml", hosts_yaml(topology))
    say("Created minimized Ansible inventory hosts.yml")
    write_file("ansible.cfg", "[defaults]\ninventory=hosts.yml\nhost_key_checking=False\n")
    say("Created Ansible configuration file: ansible.cfg")


def load_snapshot(command: str, name: str = SNAPSHOT) -> Data:
    if not Path(name).is_file():
        refuse(
            f"The topology snapshot file {name} does not exist",
            command,
            "Looks like no lab was started from this directory",
            "Use 'netlab status --all' to display labs running on this system",
        )
    try:
        topology = pickle.loads(Path(name).read_bytes())  # noqa: S301  the fake's own file
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError):
        topology = None
    if not isinstance(topology, dict) or "_netlab_version" not in topology:
        fatal(f"{name} is either not a netlab snapshot file or was created with an older netlab version")
    return topology


def remove_files(names: Iterable[str]) -> None:
    for name in names:
        path = Path(name)
        if path.is_dir() and not path.is_symlink():
            import shutil  # noqa: PLC0415  slow to import, and only a clean-up needs it

            say(f"... removing directory tree {name}")
            shutil.rmtree(path)
        elif path.exists():
            say(f"... removing {name}")
            path.unlink()


# Containers


def containers(state: Path) -> list[Data]:
    found = []
    for path in sorted((state / "containers").glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # removed since it was listed
            continue
    return sorted(found, key=lambda container: float(container["created"]))


def lab_containers(state: Path, lab: str) -> list[Data]:
    """By the lab's name alone, as containerlab finds them: a lab of that name in another directory is hit as well."""
    return [container for container in containers(state) if container["labels"]["containerlab"] == lab]


def create_container(run: Run, topology: Data, name: str) -> None:
    full_id = os.urandom(32).hex()
    lab, node, full_name = topology["name"], topology["nodes"][name], container_name(topology, name)
    container = {
        "id": full_id[:12],
        "full_id": full_id,
        "name": full_name,
        "image": node["box"],
        "created": time.time(),
        "state": "running",
        "network": "host" if node["clab"].get("network-mode") == "host" else topology["network"],
        "lab_id": topology["lab_id"],
        "subnet": topology["subnets"][0],
        "ipv4": node["mgmt"]["ipv4"],
        "labels": {
            "clab-node-kind": "linux",
            "clab-node-lab-dir": f"{_cwd()}/clab-{lab}/{name}",
            "clab-node-longname": full_name,
            "clab-node-name": name,
            "clab-topo-file": f"{_cwd()}/clab.yml",
            "containerlab": lab,
        },
    }
    write_whole(run.state / "containers" / f"{full_id[:12]}.json", json.dumps(container))
    run.log("node", node=name, container=full_id[:12])


def create_network(state: Path, topology: Data) -> None:
    name, subnet = topology["network"], topology["subnets"][0]
    path = state / "networks" / name
    if not path.exists():
        complain(f"INFO Creating docker network name={name}")
        for other in (state / "networks").glob("[!.]*"):
            if json.loads(other.read_text(encoding="utf-8")).get("subnet") == subnet:
                complain("Error response from daemon: Pool overlaps with other one on this address space")
                command_failed(topology, DEPLOY, "netlab up")
        network = {"name": name, "id": os.urandom(32).hex(), "created": time.time(), "driver": "bridge"}
        network["subnet"] = subnet
        if bridge := topology["mgmt"].get("_bridge"):
            network["options"] = {"com.docker.network.bridge.name": bridge}
        write_whole(path, json.dumps(network))


def remove_containers(state: Path, lab: str, network: str, keep: int = 0) -> None:
    for container in lab_containers(state, lab)[keep:]:
        (state / "containers" / f"{container['id']}.json").unlink(missing_ok=True)
    if network and not any(container["network"] == network for container in containers(state)):
        (state / "networks" / network).unlink(missing_ok=True)


# What a start makes besides containers


def make_system(state: Path, topology: Data) -> None:
    lab, names = topology["name"], [container_name(topology, name) for name in managed(topology)]
    system = state / "system"
    for folder in ("sys/class/net", "run/netns", "etc/ssh/ssh_config.d"):
        (system / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (system / "run/netns" / name).touch()
    (system / f"etc/ssh/ssh_config.d/clab-{lab}.conf").write_text("# Containerlab SSH Config\n", encoding="utf-8")
    lines = [
        f"###### CLAB-{lab}-START ######",
        *(f"192.0.2.1\t{name}" for name in names),
        f"###### CLAB-{lab}-END ######",
    ]
    with (system / "etc/hosts").open("a", encoding="utf-8") as hosts:
        hosts.write("".join(f"{line}\n" for line in lines))


def remove_system(state: Path, topology: Data) -> None:
    lab, system = topology["name"], state / "system"
    for name in managed(topology):
        (system / "run/netns" / container_name(topology, name)).unlink(missing_ok=True)
    (system / f"etc/ssh/ssh_config.d/clab-{lab}.conf").unlink(missing_ok=True)
    hosts = system / "etc/hosts"
    if hosts.exists():
        block = rf"###### CLAB-{lab}-START ######\n.*?###### CLAB-{lab}-END ######\n"
        write_whole(hosts, re.sub(block, "", hosts.read_text(encoding="utf-8"), flags=re.DOTALL))


def bridge_paths(state: Path, topology: Data) -> list[Path]:
    return [state / "system/sys/class/net" / name for name in bridges(topology)]


def note_violation(run: Run, topology: Data) -> None:
    """Two labs that live at the same time and are not separate are what a lab host must never see."""
    here = _cwd()
    others = {
        container["labels"]["clab-topo-file"]
        for container in containers(run.state)
        if container["labels"]["clab-topo-file"] != f"{here}/clab.yml" and not is_separate(topology, container)
    }
    for lab_id, entry in read_registry(shared_registry()).items():
        separate = has_number(topology) and lab_id != topology["lab_id"]
        if entry["dir"] != here and (Path(entry["dir"]) / LOCK).exists() and not separate:
            others.add(entry["dir"])
    if has_number(topology):
        others |= {str(path) for path in bridge_paths(run.state, topology) if path.exists()}
    if others:
        line = {"time": time.time(), "lab": topology["name"], "dir": here, "others": sorted(others)}
        append_line(run.state / "violations", json.dumps(line))


def has_number(topology: Data) -> bool:
    """Whether the lab has an id of the plugin multilab."""
    return topology["lab_id"] in MULTILAB_IDS


def is_separate(topology: Data, container: Data) -> bool:
    """Whether a lab and a container of another lab have nothing in common."""
    names = (
        container.get("lab_id"),
        container["network"],
        container.get("subnet"),
        container["labels"]["containerlab"],
    )
    own = (topology["lab_id"], topology["network"], topology["subnets"][0], topology["name"])
    return has_number(topology) and all(one != other for one, other in zip(own, names, strict=True))


# netlab create and up


def create(run: Run, args: list[str], command: str = "create") -> Data:
    flags = "-v --verbose -q --quiet --log --unlock"
    flags += " --devices" if command == "create" else " --no-config --no-tools --fast-config --validate"
    valued = "-d --device -p --provider" + (" -o --output" if command == "create" else " -r --reload-config")
    options, rest = parse(args, command, flags, valued)
    path = Path(rest[0] if rest else "topology.yml")
    if not path.exists():
        fatal(f"Topology file {path} does not exist", "create")
    if not path.is_file():
        fatal(f"The specified lab topology ({path}) is not a file", "create")
    raw = read_topology(path)
    defaults = Path.home() / ".netlab.yml"
    if defaults.exists():
        raw["defaults"] = {**read_topology(defaults), **(raw.get("defaults") or {})}
    for setting in options.get("-s", []):
        key, _, value = setting.partition("=")
        set_value(raw, key, value)
    if "multilab" in [*(raw.get("plugin") or []), *options.get("--plugin", [])]:
        raw = multilab(raw, path)
    run.adopt({"name": str(raw.get("name")), "x_fake": raw.get("x_fake")})
    run.enter("create")
    run.hang("create")
    if run.failing("create"):
        errors = Errors(path)
        errors.add("IncorrectValue", "topology", "the fake was told to reject this topology")
        errors.abort()
    topology = transform(raw, path, options)
    time.sleep(float(run.knobs.get("create_node_seconds", 0)) * len(topology["nodes"]))
    if (options.get("-o") or options.get("--output")) != "none":
        write_files(topology)
    return topology


def run_create(run: Run, args: list[str]) -> None:
    create(run, args)


def run_up(run: Run, args: list[str]) -> None:
    snapshot = next((arg for arg in args if arg.split("=")[0] == "--snapshot"), None)
    if snapshot is None:
        check_existing_lab()
        say("Creating configuration files")
        topology = create(run, args, "up")
    else:
        flags = "-v --verbose -q --quiet --no-config --no-tools --fast-config --validate"
        options, rest = parse(args, "up", flags, "-r --reload-config", "--snapshot")
        if rest:
            parse([f"-{rest[0]}"], "up")
        topology = load_snapshot("up", options["--snapshot"])
        run.adopt(topology)
        say(f"Using transformed lab topology from snapshot file {options['--snapshot']}")
    check_lab_instance(run, topology)
    probe(run, topology)
    claim(topology)
    say(f"Starting {topology['provider']} nodes")
    start(run, topology, quiet="-q" in args or "--quiet" in args)
    configure(run, topology, skip="--no-config" in args)
    set_status(topology, "started")
    Path(LOCK).touch()
    if "--validate" in args:
        run_validate(run, [])


def check_existing_lab() -> None:
    if Path(LOCK).exists():
        say(
            "\nIt looks like you have another lab running in this directory. If you want to\n"
            "continue the lab startup process due to a previous failure, please use the\n"
            "'netlab up --snapshot' command.\n\n"
            "Otherwise use 'netlab status' to check the status of labs running on this\n"
            "machine, or 'netlab down' to shut down the other lab running in this directory.\n\n"
            "If you are sure that no other lab is running in this directory, remove the\n"
            "netlab.lock file manually and retry.\n"
        )
        fatal("Cannot start another lab in the same directory")


def check_lab_instance(run: Run, topology: Data) -> None:
    lab_id = topology["lab_id"]
    entry = read_status(run, topology).get(lab_id)
    if entry and entry["dir"] != _cwd():
        say(
            f"\nIt looks like the lab instance '{lab_id}' is already running in directory\n{entry['dir']}.\n\n"
            "Please use 'netlab status --all' to check the status of labs running on this\n"
            "machine. You can stop the other lab instance with:\n\n"
            f"netlab status -i {lab_id} --cleanup\n\n"
            "If you think your netlab status file is corrupt, use 'netlab status --reset' to\ndelete it.\n"
        )
        fatal('aborting "netlab up" request')


def probe(run: Run, topology: Data, what: str = "probe") -> None:
    """Check the provider. With its first command the instance is in the registry, long before anything runs."""
    provider = topology["provider"]
    say("Checking virtualization provider installation")
    if what == "probe":
        run.enter("probe")
        run.hang("probe")
    if provider == "libvirt":
        log_command(topology, 'ERROR: sh -c "which kvm-ok || stat /usr/sbin/kvm-ok"')
        fatal("KVM is not installed or does not include kvm-ok utility")
    if run.failing(what) or (provider == "clab" and run.control.get("docker_unreachable")):
        if provider == "clab":
            log_command(topology, f"OK: {PROBES[0]}", f"ERROR: {PROBES[1]}")
        fatal(
            "Cannot run 'docker version'. Install Docker or podman-docker and ensure you can access the "
            "Docker/Podman socket."
        )
    if provider == "clab":
        log_command(topology, *(f"OK: {command}" for command in PROBES))
    say(f"OK: {provider} installed and working correctly")


def claim(topology: Data) -> None:
    """Take the instance in the registry and lock the directory."""
    lab_id = topology["lab_id"]
    conflicts: list[str] = []

    def change(instances: Data) -> None:
        entry = instances.get(lab_id)
        if entry and entry["dir"] != _cwd():
            status = f"conflict -- trying to start lab in {_cwd()}"
            note(instances, lab_id, status, status=status)
            conflicts.append(entry["dir"])
        else:
            status = "restarting lab" if entry else "starting lab"
            note(instances, lab_id, status, status=status, name=topology["name"], providers=[])

    change_registry(topology, change)
    if conflicts:
        fatal(f"race condition, lab instance already running in {conflicts[0]}")
    Path(LOCK).write_text("netlab lock file, do not remove", encoding="utf-8")


def start(run: Run, topology: Data, *, quiet: bool) -> None:
    provider = topology["provider"]
    note_violation(run, topology)
    line = f"starting provider {provider}"
    lab_id = topology["lab_id"]
    change_registry(topology, lambda instances: note(instances, lab_id, line, status=line, providers=[provider]))
    if provider == "clab":
        deploy(run, topology)
    else:
        ask_about_cables(run, topology, quiet=quiet)
    set_status(topology, f"{provider} workload started")


def provider_command(topology: Data, command: str) -> str:
    return f"{LOCK_COMMAND} {topology['lock']} {command}" if topology["lock"] else command


@contextmanager
def containerlab(run: Run, topology: Data, command: str) -> Iterator[None]:
    """While a containerlab command runs: under the lock of the plugin multilab, if the topology names one."""
    say(" [INFO] Setting containerlab runtime to docker")
    say(f"provider clab: executing {provider_command(topology, command)}")
    with ExitStack() as files:
        if topology["lock"]:
            fcntl.flock(files.enter_context(Path(topology["lock"]).open("a", encoding="utf-8")), fcntl.LOCK_EX)
        if run.knobs.get("deploy_race"):
            try:
                busy = files.enter_context((run.state / "deploying").open("w", encoding="utf-8"))
                fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (run.state / "system/etc").mkdir(parents=True, exist_ok=True)
                (run.state / "system/etc/hosts").write_text("", encoding="utf-8")
                complain("ERROR container cannot be found")
                command_failed(topology, command, "netlab")
        yield


def deploy(run: Run, topology: Data) -> None:
    with containerlab(run, topology, DEPLOY):
        deploy_nodes(run, topology)


def deploy_nodes(run: Run, topology: Data) -> None:
    run.enter("start")
    if not Path("clab.yml").exists():
        complain(f"ERROR [Errno 2] No such file or directory: '{_cwd()}/clab.yml'")
        command_failed(topology, DEPLOY, "netlab up")
    for path in bridge_paths(run.state, topology):
        (path / "bridge").mkdir(parents=True, exist_ok=True)
    remove_containers(run.state, topology["name"], deployed_network())
    remove_system(run.state, topology)
    create_network(run.state, topology)
    write_file(f"clab-{topology['name']}/topology-data.json", "{}\n")
    nodes = list(managed(topology))
    for count, name in enumerate(nodes, 1):
        time.sleep(float(run.knobs.get("node_seconds", 0)))
        complain(f"INFO Creating container name={name}")
        create_container(run, topology, name)
        if count == (len(nodes) + 1) // 2:
            run.hang("start")
            if run.failing("start"):
                complain("ERROR failed deploy stage for a node: the fake was told to fail")
                command_failed(topology, DEPLOY, "netlab up")
    make_system(run.state, topology)
    say(json.dumps({topology["name"]: deployed(run, topology)}, indent=2))
    log_command(topology, f"OK: {DEPLOY}")


def deployed_network() -> str:
    """The management network that the containerlab topology names."""
    found = re.search(r"^  network: (\S+)$", Path("clab.yml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def deployed(run: Run, topology: Data) -> list[Data]:
    lab = topology["name"]
    return [
        {
            "lab_name": lab,
            "name": container["name"],
            "container_id": container["id"],
            "image": container["image"],
            "kind": "linux",
            "state": "running",
            "ipv4_address": container["ipv4"] + "/24",
        }
        for container in lab_containers(run.state, lab)
    ]


def command_failed(topology: Data, command: str, caller: str) -> NoReturn:
    log_command(topology, f"ERROR: {command}")
    say(f"Error executing {command}:\n  Command '{command.split()}' returned non-zero exit status 1.")
    fatal(f"{command} failed, aborting...", caller)


def ask_about_cables(run: Run, topology: Data, *, quiet: bool) -> None:
    run.enter("start")
    run.hang("start")
    if run.failing("start"):
        fatal("the fake was told to fail", "netlab up")
    if quiet:
        return
    say("*** Please make sure your physical topology reflects the following cabling:\n")
    say(Path("external.txt").read_text(encoding="utf-8"))
    say("\n*** Please make sure your physical topology reflects the above cabling.")
    if input("Do you want to continue [y/n]: ").lower() != "y":  # a closed input is a traceback, as in netlab
        Path(LOCK).unlink(missing_ok=True)
        unregister(topology)
        fatal("Aborting...")


def unregister(topology: Data) -> None:
    def change(instances: Data) -> None:
        instances.pop(topology["lab_id"], None)

    change_registry(topology, change)


def configure(run: Run, topology: Data, *, skip: bool) -> None:
    if skip:
        say("\n[SKIPPED] Initial configuration skipped, run 'netlab initial' to configure the devices")
        return
    set_status(topology, "deploying initial configuration")
    say("Deploying initial device configurations")
    run.enter("config")
    run.hang("config")
    if run.failing("config"):
        log_command(topology, "ERROR: netlab initial --no-message --deploy")
        fatal("netlab initial failed, aborting...", "netlab up")
    log_command(topology, "OK: netlab initial --no-message --deploy")
    set_status(topology, "initial configuration complete")
    say("OK: Lab devices configured")


# netlab down


def run_down(run: Run, args: list[str]) -> None:
    flags = "-v --verbose --cleanup --force"
    options, rest = parse(args, "down", flags, "-i --instance", "--snapshot")
    if rest:
        parse([f"-{rest[0]}"], "down")
    enter_instance(options)
    topology = load_snapshot("down", options.get("--snapshot", SNAPSHOT))
    run.adopt(topology)
    force = options.get("--force", 0)
    elsewhere = runs_elsewhere(run, topology, force)
    set_status(topology, "lab shutdown requested" + (" in conflicting directory" if elsewhere else ""))
    try:
        probe(run, topology, "down_probe")
        stops = True
    except SystemExit:
        if not force:
            return  # netlab ends with status 0 here, although the lab still runs
        stops = False
    if stops:
        stop(run, topology, force)
    if "--cleanup" in options:
        say("Cleanup configuration files")
        provider_files = (
            ["clab.yml", "clab_files"] if topology["provider"] == "clab" else [PROVIDER_FILE[topology["provider"]]]
        )
        common = ["ansible.cfg", "hosts.yml", "group_vars", "host_vars", "node_files", "netlab.snapshot.yml", SNAPSHOT]
        remove_files([*provider_files, *common])
    if not elsewhere:
        unregister(topology)
    Path(LOCK).unlink(missing_ok=True)


def enter_instance(options: Data) -> None:
    instance = options.get("-i") or options.get("--instance")
    if instance:
        entry = read_registry(shared_registry()).get(instance)
        if not entry:
            refuse(f"Unknown instance {instance}", "down", "Use 'netlab status --all' to display running instances")
        os.chdir(entry["dir"])


def runs_elsewhere(run: Run, topology: Data, force: int) -> bool:
    entry = read_status(run, topology).get(topology["lab_id"])
    if not entry or entry["dir"] == _cwd():
        return False
    if force >= 2:
        return True
    say(
        f"\nAccording to the netlab status file, the lab instance '{topology['lab_id']}' is running\n"
        f"in directory {entry['dir']}.\n\n"
        "You could proceed if you want to clean up the netlab artifacts from this\n"
        "directory, but you might impact the running lab instance.\n"
    )
    while (answer := input("Do you want to proceed? [y/n]: ").lower()) not in {"y", "yes"}:
        if answer in {"n", "no"}:
            fatal("aborting lab shutdown request")
    return True


def stop(run: Run, topology: Data, force: int) -> None:
    provider = topology["provider"]
    set_status(topology, f"stopping {provider} provider")
    say(f"Stopping {provider} nodes")
    try:
        destroy(run, topology)
    except SystemExit:
        if not force:
            raise


def destroy(run: Run, topology: Data) -> None:
    with containerlab(run, topology, DESTROY) if topology["provider"] == "clab" else nullcontext():
        run.enter("down")
        run.hang("down")
        destroy_nodes(run, topology)


def destroy_nodes(run: Run, topology: Data) -> None:
    if run.failing("down"):
        complain("ERROR the fake was told to fail")
        command_failed(topology, DESTROY, "netlab down")
    if topology["provider"] != "clab":
        return
    if not Path("clab.yml").exists():
        complain(f"ERROR [Errno 2] No such file or directory: '{_cwd()}/clab.yml'")
        command_failed(topology, DESTROY, "netlab down")
    remove_containers(run.state, topology["name"], deployed_network(), int(run.knobs.get("leak_containers", 0)))
    if not run.knobs.get("leak_system"):
        remove_system(run.state, topology)
        for path in bridge_paths(run.state, topology):
            remove_files([str(path)])
    folder = Path(f"clab-{topology['name']}")
    if folder.is_dir():
        (folder / "topology-data.json").unlink(missing_ok=True)
        folder.rmdir()
    log_command(topology, f"OK: {DESTROY}")


# netlab inspect, status, validate and version


def run_inspect(run: Run, args: list[str]) -> None:
    options, rest = parse(
        args, "inspect", "-q --quiet --all", "--node --format -i --instance -t --topology", "--snapshot"
    )
    expression = rest[0] if rest else ""
    snapshot = options.get("--snapshot", SNAPSHOT)
    if not Path(snapshot).is_file():
        text = f"Could not get the data from {snapshot} or lab topology topology.yml"
        refuse(text, "inspect", "Start the lab or specify an alternate topology file with the --topology flag")
    topology = load_snapshot("inspect", snapshot)
    run.adopt(topology)
    run.enter("inspect")
    run.hang("inspect")
    if run.failing("inspect"):
        fatal(f"Error trying to evaluate {expression}: the fake was told to fail")
    if "--node" in options:
        inspect_nodes(topology, options["--node"], expression, options.get("--format", "yaml"))
    elif "adjust_inventory_host" in expression:
        if run.failing("expression"):
            fatal(
                f"Error trying to evaluate {expression}: "
                "module 'netsim.outputs.common' has no attribute 'adjust_inventory_host'"
            )
        # netlab puts its version into what it prints, not into each node of it: an expression must ask for that
        extra = {"_netlab_version": VERSION} if "_netlab_version" in expression else {}
        devices: Any = {name: {**inventory_host(topology, name), **extra} for name in topology["nodes"]}
        if "'devices'" in expression:  # asked for as a list, which keeps the order
            devices = {"devices": [list(pair) for pair in devices.items()], "links": len(topology["links"])}
            if "'facts'" in expression:
                devices["facts"] = facts(topology)
        print_value(devices, options.get("--format", "yaml"))
    else:
        print_value(select(topology, expression), options.get("--format", "yaml"))


def facts(topology: Data) -> Data:
    """What the server asks about a topology besides its nodes."""
    start, stop = (provider_command(topology, command) for command in (DEPLOY, DESTROY))
    return {
        "id": topology["lab_id"],
        "status_file": topology["status_file"],
        "provider": topology["provider"],
        "providers": [node.get("provider") for node in topology["nodes"].values()],
        "tools": topology["tools"],
        "start": start,
        "stop": stop,
    }


def inspect_nodes(topology: Data, wanted: str, expression: str, form: str) -> None:
    names = node_names(topology, wanted)
    hosts = [{**inventory_host(topology, name), "_netlab_version": VERSION} for name in names]
    if len(hosts) == 1:
        print_value(select(hosts[0], expression), form)
    else:  # several nodes are a table, which nobody can parse
        say("┃ " + " ┃ ".join(names) + " ┃")
        say("│ " + " │ ".join(json.dumps(select(host, expression))[:20] for host in hosts) + " │")


def node_names(topology: Data, wanted: str) -> list[str]:
    names: list[str] = []
    for part in wanted.split(","):
        pattern = re.escape(part).replace(r"\*", ".*")
        found = [name for name in topology["nodes"] if re.fullmatch(pattern, name)]
        if not found:
            complain(f"UserWarning: {part} is not a glob or a valid node, group, or device name")
            fatal("Cannot proceed beyond this point due to errors, exiting")
        names += found
    return names


def select(data: Data, expression: str) -> Any:
    if expression == "len(globals().get('links') or [])":
        return len(data["links"])
    if expression == "links" and not data["links"]:  # netlab leaves out what a topology has none of
        fatal(f"Error trying to evaluate {expression}: name 'links' is not defined")
    if expression == "list(nodes.keys())":  # netlab evaluates Python; this is what older servers ask for
        return list(data["nodes"])
    value: Any = data
    for part in expression.split(".") if expression not in {"", "."} else []:
        if not isinstance(value, dict) or part not in value:
            fatal(f"Error trying to evaluate {expression}: name '{part}' is not defined")
        value = value[part]
    return value


def print_value(value: object, form: str) -> None:
    if isinstance(value, dict | list) and form == "json":
        say(json.dumps(value, indent=2, sort_keys=True))
    elif isinstance(value, dict | list):
        # netlab cuts every line at the width of the terminal, which is 80 where there is none
        say("\n".join(f"{line:80.80}" for line in dump_yaml(value).splitlines()))
    else:
        say(f"{value}\n")


def run_status(run: Run, args: list[str]) -> None:
    options, _ = parse(args, "status", "--all --log -l --memory -v --verbose -q", "--format -i --instance")
    run.enter("status")
    run.hang("status")
    if run.failing("status"):
        fatal("Cannot read lab status file: the fake was told to fail")
    machine = options.get("--format", "text") != "text"
    instances = read_registry(shared_registry())  # even where the topology names another list
    if not instances:
        text = "No netlab-managed labs"
        say(json.dumps({"warning": text}, indent=2) if machine else text)
        sys.exit(1)
    for entry in instances.values():
        entry["timestamp"] = str(entry.get("timestamp"))
    if "--all" in options:
        say(json.dumps(instances, indent=2) if machine else list_instances(instances))
        return
    show_lab(run, options.get("-i") or options.get("--instance"), instances, machine=machine)


def list_instances(instances: Data) -> str:
    rows = [f"{lab_id} {entry['dir']} {entry.get('status')}" for lab_id, entry in instances.items()]
    return "\n".join(["Active lab instance(s)", "", *rows])


def show_lab(run: Run, wanted: str | None, instances: Data, *, machine: bool) -> None:
    here = [lab_id for lab_id, entry in instances.items() if (lab_id == wanted if wanted else entry["dir"] == _cwd())]
    if not here:
        text = f"Unknown lab instance {wanted}" if wanted else "There's no running lab in the current directory."
        if not machine:
            refuse(text, "topology", "Use 'netlab status --all' to display the list of lab instances")
        say(json.dumps({"error": text}, indent=2))
        return
    entry = instances[here[0]]
    if not (Path(entry["dir"]) / SNAPSHOT).is_file():
        fatal(f"Cannot read topology snapshot file {entry['dir']}/{SNAPSHOT}")
    os.chdir(entry["dir"])
    topology = load_snapshot("status")
    started = next((line for line in entry.get("log", []) if "started" in line), None)
    if entry.get("status") != "started" and started is None:
        text = "Lab is not started, cannot display node/tool status"
        say(json.dumps({"error": text}, indent=2) if machine else f"Lab {here[0]} in {entry['dir']}")
        return
    entry["status"] = entry["status"] if entry.get("status") == "started" else started
    entry["topology"] = Path(topology["input"][0]).name
    entry["nodes"] = node_status(run.state, topology)
    say(
        json.dumps(entry, indent=2) if machine else f"Lab {here[0]} in {entry['dir']}\n  status:      {entry['status']}"
    )


def node_status(state: Path, topology: Data) -> Data:
    running = {container["name"] for container in containers(state)}
    clab = topology["provider"] == "clab"
    nodes: Data = {}
    for name, node in topology["nodes"].items():
        host = inventory_host(topology, name)
        workload = container_name(topology, name) if clab else name
        nodes[name] = {
            "device": node["device"],
            "mgmt": node["mgmt"]["ipv4"],
            "connection": host["ansible_connection"],
            "image": node["box"],
            "provider": topology["provider"],
            "provider_name": workload,
        }
        if node.get("unmanaged"):
            nodes[name].update(image="unmanaged", provider="unmanaged", status="Unknown")
            del nodes[name]["provider_name"]
        elif workload in running:
            nodes[name]["status"] = "Up 2 seconds"
    return nodes


def run_validate(run: Run, args: list[str]) -> None:
    parse(
        args,
        "validate",
        "-v --verbose -q --quiet --list --skip-wait --error-only",
        "--node -i --instance",
        "--snapshot",
    )
    topology = load_snapshot("validate")
    run.adopt(topology)
    run.enter("validate")
    if not topology["validate"]:
        fatal("No validation tests defined for the current lab, exiting")
    failed = run.failing("validate")
    for name, test in topology["validate"].items():
        description = test.get("description", "") if isinstance(test, dict) else ""
        say(f"[{name}] {description}\n[{'FAIL' if failed else 'PASS'}]    Test {'failed' if failed else 'succeeded'}\n")
    if failed:
        sys.exit(1)
    say("[SUCCESS] Tests passed: " + str(len(topology["validate"])))


def run_defaults(run: Run, args: list[str]) -> None:
    options, rest = parse(args, "defaults", "", "--format")
    run.enter("defaults")
    run.hang("defaults")
    value = user_defaults().get(rest[0])
    if value is None:
        refuse(f"{rest[0]} not found in netlab,user defaults", "-")
    say(f"{rest[0]}: {value}" if options.get("--format") == "yaml" else f"{rest[0]} = {value}")


def run_version(run: Run, args: list[str]) -> None:
    parse(args, "version")
    run.enter("version")
    run.hang("version")
    if run.failing("version"):
        fatal("the fake was told to fail", "version")
    say(f"netlab version {VERSION}\n  executable location: {run.argv[0]}\n  no user defaults")


# netlab collect and graph

PLAYBOOK = "collect-configs.ansible"
WITHOUT_CONFIGURATION = ("linux", "none")


def run_collect(run: Run, args: list[str]) -> None:
    """What netlab and its Ansible playbook do together: one is of no use without the other."""
    flags, valued = "-v --verbose -q --quiet --cleanup", "-o --output --suffix --tar -i --instance -l --limit"
    options, _ = parse(args, "collect", flags, valued)
    enter_instance(options)
    output = options.get("-o") or options.get("--output") or "config"
    if Path(output).is_dir():
        import shutil  # noqa: PLC0415  slow to import

        shutil.rmtree(output)
    try:
        Path(output).mkdir()
    except OSError as error:
        fatal(f"Cannot create output directory {output}: {error}")
    say(f"cwd: {_cwd()} output: {output}")
    say(f"\nPLAY [Collect device configurations] {'*' * 43}")
    if not Path(SNAPSHOT).is_file():
        say("skipping: no hosts matched")
        return
    topology = load_snapshot("collect")
    run.adopt(topology)
    run.enter("collect")
    run.hang("collect")
    collect(run, topology, options.get("-l") or options.get("--limit"), output)


def collect(run: Run, topology: Data, limit: str | None, output: str) -> None:
    names = [name for name in managed(topology) if limit is None or name in limit.split(",")]
    # The playbook goes by the shell's idea of the current directory, not by the process's.
    directory = Path(os.environ["PWD"]) / output
    directory.mkdir(parents=True, exist_ok=True)
    failing = not names or run.failing("collect")
    for name in names[: len(names) // 2] if failing else names:
        node = topology["nodes"][name]
        if node["device"] not in WITHOUT_CONFIGURATION:
            (directory / f"{name}.cfg").write_text(running_config(node), encoding="utf-8")
        if node["device"] == "frr":
            (directory / f"{name}-daemons").write_text("zebra=yes\n", encoding="utf-8")
        say(f"ok: [{name}]")
    if failing:
        for name in names[len(names) // 2 :]:
            say(f'fatal: [{name}]: UNREACHABLE! => {{"changed": false, "msg": "the fake was told to fail"}}')
        say(f"Error executing ansible-playbook {PLAYBOOK} -e target={output} -e suffix=cfg:")
        fatal(f"Executing Ansible playbook {PLAYBOOK} failed")


def running_config(node: Data) -> str:
    lines = [f"hostname {node['name']}", "!"]
    for interface in node["interfaces"]:
        lines += [f"interface {interface['ifname']}", f" ip address {interface['ipv4']}", "!"]
    return "\n".join(lines)


def run_graph(run: Run, args: list[str]) -> None:
    valued = "-t --type -i --include -x --exclude --title -f --format -e --engine --instance --topology"
    options, rest = parse(args, "graph", "-v --verbose -q --quiet", valued, "--snapshot")
    snapshot = options.get("--snapshot", SNAPSHOT)
    if not Path(snapshot).is_file():
        text = f"Could not get the data from {snapshot} or lab topology topology.yml"
        refuse(text, "graph", "Start the lab or specify an alternate topology file with the --topology flag")
    topology = load_snapshot("graph", snapshot)
    run.adopt(topology)
    run.enter("graph")
    run.hang("graph")
    if run.failing("graph"):
        fatal("Cannot load the graphing output module, aborting")
    output = Path(rest[0] if rest else "graph.dot")
    kind = output.suffix[1:]
    is_picture = kind in words("gif png pdf svg jpg jpeg")
    source = output.with_suffix(".dot") if is_picture else output
    try:
        source.write_text(graph(topology), encoding="utf-8")
    except OSError as error:
        fatal(f"Cannot open file {source} for writing: {error}")
    say(f"Created graph file {source} in topology format")
    if is_picture:
        draw(source, kind)


def graph(topology: Data) -> str:
    lines = ["graph {", '  bgcolor="transparent"']
    for name, node in topology["nodes"].items():
        shown = node.get("loopback", {}).get("ipv4") or (node["interfaces"] or [{}])[0].get("ipv4", "")
        lines += [f'  "{name}" [', f'    label="{name} [{node["device"]}]\\n{shown}"', "  ]"]
    edges = []
    for link in topology["links"]:
        ends = [end["node"] for end in link["interfaces"]]
        if len(ends) == MOST_WITHOUT_BRIDGE:
            edges.append(f' "{ends[0]}" -- "{ends[1]}"')
        else:
            lines.append(f'  {link["bridge"]} [label="{link["bridge"]}"]')
            edges += [f' "{end}" -- "{link["bridge"]}"' for end in ends]
    return "\n".join([*lines, *edges, "}"]) + "\n"


def draw(source: Path, kind: str) -> None:
    import shutil  # noqa: PLC0415  slow to import

    if shutil.which("dot") is None:
        complain("Warning in graph: Cannot find the dot command. You will have to install additional software")
        complain("... You could use 'netlab install graph' on Ubuntu to install graphviz and D2")
        return
    picture = source.with_suffix(f".{kind}")
    command = ["dot", str(source), "-T", kind, "-o", str(picture)]
    if os.spawnvp(os.P_WAIT, command[0], command):  # noqa: S606
        refuse("Failed to create graph file", "graph", f"command: {' '.join(command)}")


COMMANDS: dict[str, Callable[[Run, list[str]], None]] = {
    "collect": run_collect,
    "create": run_create,
    "defaults": run_defaults,
    "up": run_up,
    "down": run_down,
    "graph": run_graph,
    "inspect": run_inspect,
    "status": run_status,
    "validate": run_validate,
    "version": run_version,
}


def dispatch(run: Run, arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        say("Usage:\n\n    netlab <command> <parameters>\n")
        return
    if arguments[0] not in COMMANDS:
        hint = "Use 'netlab help' to get the list of valid commands"
        refuse(f"Unknown command {arguments[0]}", "netlab", hint)
    COMMANDS[arguments[0]](run, arguments[1:])


def main() -> NoReturn:
    run = Run(list(sys.argv))
    run.log("start")
    status: object = 1  # what Python exits with after a traceback
    try:
        dispatch(run, sys.argv[1:])
        status = 0
    except SystemExit as end:
        status = end.code
        raise
    except KeyboardInterrupt:
        complain("Aborted by user")
        sys.exit(1)
    finally:
        run.log("end", status=status)
    sys.exit(0)


if __name__ == "__main__":
    main()
