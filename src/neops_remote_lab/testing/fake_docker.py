"""A stand-in for the ``docker`` program over the containers and networks of the fake netlab, in Docker's words.

It knows ``ps``, ``rm``, ``inspect``, ``logs``, ``exec``, ``network ls|inspect|rm``, ``stats`` and the versions. See
`fake_netlab` for the files that it works on and for its knobs.

``exec`` runs real programs of this machine, and before them those in the directory ``programs`` beside the containers.
As with the real one, a program goes on when the ``docker exec`` that has started it is killed, and ends with its
container. It knows a router's ``vtysh`` by itself.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Data = dict[str, Any]

VERSION = "20.10.24"
VERSION_LINE = f"Docker version {VERSION}, build 297e128"
BUILTIN_NETWORKS = {"bridge": "bridge", "host": "host", "none": "null"}
COMMAND = '"/usr/bin/tini -- /usr/local/sbin/frr-start"'


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def refuse(text: str, status: int = 1) -> NoReturn:
    complain(text)
    sys.exit(status)


def parse(
    args: list[str], flags: str, valued: str = "", *, interspersed: bool = True
) -> tuple[list[tuple[str, str]], list[str]]:
    """Split `args` into options, in their order, and the rest; ``-aq`` is ``-a -q``."""
    options: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            rest.append(word)
            if not interspersed:
                return options, rest + waiting
        elif name in valued.split():
            options.append(
                (
                    name,
                    value if equals else waiting.pop(0) if waiting else refuse(f"flag needs an argument: {name}", 125),
                )
            )
        elif word in flags.split():
            options.append((word, ""))
        elif len(word) > 2 and word[1] != "-":
            waiting[:0] = [f"-{letter}" for letter in word[1:]]
        else:
            refuse(f"unknown flag: {word}\nSee 'docker --help'.", 125)
    return options, rest


def given(options: list[tuple[str, str]], *names: str) -> list[str]:
    return [value for name, value in options if name in names]


# What there is


def state_folder() -> Path:
    return Path(os.environ.get("FAKE_NETLAB_STATE") or Path.home() / ".fake-netlab")


def knob(name: str) -> Any:
    try:
        return json.loads((state_folder() / "control.json").read_text(encoding="utf-8")).get(name)
    except FileNotFoundError:
        return None


def load(folder: str, pattern: str) -> list[Data]:
    found: list[Data] = []
    for path in sorted((state_folder() / folder).glob(pattern)):
        try:
            found.append({**json.loads(path.read_text(encoding="utf-8")), "path": path})
        except FileNotFoundError:  # removed since it was listed
            continue
    return found


def containers() -> list[Data]:
    """Newest first, as ``docker ps`` lists them."""
    return sorted(load("containers", "[!.]*.json"), key=lambda container: float(container["created"]), reverse=True)


def networks() -> list[Data]:
    builtin = [
        {"name": name, "id": name.encode().hex().ljust(64, "0"), "created": 0.0, "driver": driver}
        for name, driver in BUILTIN_NETWORKS.items()
    ]
    return sorted(builtin + load("networks", "[!.]*"), key=lambda network: str(network["name"]))


def find(things: list[Data], wanted: str) -> Data | None:
    for thing in things:
        full = str(thing.get("full_id", thing["id"]))
        if wanted.removeprefix("/") == thing["name"] or (wanted and full.startswith(wanted)):
            return thing
    return None


# What is printed


def timestamp(seconds: float, form: str) -> str:
    return time.strftime(form, time.gmtime(seconds))


def age(seconds: float) -> str:
    passed = int(time.time() - seconds)
    return "Less than a second" if passed < 1 else "1 second" if passed == 1 else f"{passed} seconds"


def ps_row(container: Data, *, whole: bool) -> dict[str, str]:
    running = container.get("state", "running") == "running"
    return {
        "Command": COMMAND if whole else f"{COMMAND[:20]}…{COMMAND[-1]}",
        "CreatedAt": timestamp(container["created"], "%Y-%m-%d %H:%M:%S +0000 UTC"),
        "ID": container["full_id"] if whole else container["id"],
        "Image": container["image"],
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(container["labels"].items())),
        "LocalVolumes": "0",
        "Mounts": "",
        "Names": container["name"],
        "Networks": container["network"],
        "Ports": "",
        "RunningFor": f"{age(container['created'])} ago",
        "Size": "0B",
        "State": container.get("state", "running"),
        "Status": f"Up {age(container['created'])}" if running else f"Exited (137) {age(container['created'])} ago",
    }


def render(row: Data, form: str) -> str:
    """What scripts use of Go's templates: ``{{json .}}``, ``{{.A.B}}``, ``{{json .A}}``, ``{{.Label "x"}}``."""
    if form == "json":
        form = "{{json .}}"

    def replace(match: re.Match[str]) -> str:
        as_json, path, label = match.groups()
        if label is not None:
            return str(dict(pair.split("=", 1) for pair in row["Labels"].split(",") if "=" in pair).get(label, ""))
        value: Any = row
        for part in path.split(".") if path else []:
            if not isinstance(value, dict) or part not in value:
                refuse(f'template: :1:2: executing "" at <.{path}>: can\'t evaluate field {part}')
            value = value[part]
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False) if as_json else str(value)

    form = form.removeprefix("table ").replace(r"\t", "\t").replace(r"\n", "\n")
    return re.sub(r"\{\{\s*(json )?\s*\.([\w.]*)\s*(?:\"([^\"]*)\")?\s*\}\}", replace, form)


def print_rows(rows: list[dict[str, str]], form: str, columns: dict[str, str]) -> None:
    if form:
        for row in rows:
            say(render(row, form))
        return
    table = [list(columns), *([row[field] for field in columns.values()] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        say("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


# docker ps, rm and inspect


def matches(container: Data, text: str) -> bool:
    key, _, value = text.partition("=")
    if key == "label":
        name, equals, wanted = value.partition("=")
        labels = container["labels"]
        return name in labels and (not equals or labels[name] == wanted)
    if key == "name":
        return re.search(value, container["name"]) is not None
    if key == "id":
        return str(container["full_id"]).startswith(value)
    if key == "status":
        return bool(container.get("state", "running") == value)
    if key == "network":
        return bool(container["network"] == value)
    refuse(f"Error response from daemon: Invalid filter '{key}'")


def any_of_each_key(container: Data, filters: list[str]) -> bool:
    """Docker's rule: labels must match all, values of another key any."""
    keys = {text.partition("=")[0] for text in filters}
    for key in keys:
        verdicts = [matches(container, text) for text in filters if text.partition("=")[0] == key]
        if not (all(verdicts) if key == "label" else any(verdicts)):
            return False
    return True


def run_ps(args: list[str]) -> None:
    options, rest = parse(args, "-a --all -q --quiet --no-trunc", "-f --filter --format -n --last")
    if rest:
        refuse("\"docker ps\" accepts no arguments.\nSee 'docker ps --help'.")
    filters = given(options, "-f", "--filter")
    everything = bool(given(options, "-a", "--all"))
    found = [container for container in containers() if any_of_each_key(container, filters)]
    if not everything and not any(text.startswith("status=") for text in filters):
        found = [container for container in found if container.get("state", "running") == "running"]
    if knob("podman"):
        for container in found:
            say(json.dumps({"Id": container["full_id"], "Names": [container["name"]], "Labels": container["labels"]}))
        return
    rows = [ps_row(container, whole=bool(given(options, "--no-trunc"))) for container in found]
    form = "{{.ID}}" if given(options, "-q", "--quiet") else "".join(given(options, "--format")[-1:])
    columns = {
        "CONTAINER ID": "ID",
        "IMAGE": "Image",
        "COMMAND": "Command",
        "CREATED": "RunningFor",
        "STATUS": "Status",
    }
    print_rows(rows, form, {**columns, "PORTS": "Ports", "NAMES": "Names"})


def run_rm(args: list[str]) -> None:
    options, names = parse(args, "-f --force -v --volumes -l --link")
    if not names:
        refuse("\"docker rm\" requires at least 1 argument.\nSee 'docker rm --help'.")
    force = bool(given(options, "-f", "--force"))
    results = [remove_container(name, force=force) for name in names]
    sys.exit(0 if all(results) else 1)


def remove_container(wanted: str, *, force: bool) -> bool:
    container = find(containers(), wanted)
    if container is None:
        complain(f"Error response from daemon: No such container: {wanted}")
        return force  # newer clients count that as success when forced
    full_id = container["full_id"]
    if knob("docker_rm_fails"):
        complain(
            f"Error response from daemon: container {full_id}: driver failed to remove root filesystem: "
            "device or resource busy"
        )
        return False
    if container.get("state", "running") == "running" and not force:
        complain(
            f"Error response from daemon: You cannot remove a running container {full_id}. "
            "Stop the container before attempting removal or force remove"
        )
        return False
    container["path"].unlink(missing_ok=True)
    say(wanted)
    return True


def container_details(container: Data) -> Data:
    running = container.get("state", "running") == "running"
    created = timestamp(container["created"], "%Y-%m-%dT%H:%M:%S.000000000Z")
    return {
        "Id": container["full_id"],
        "Created": created,
        "Path": "/usr/bin/tini",
        "Args": ["--", "/usr/local/sbin/frr-start"],
        "State": {
            "Status": container.get("state", "running"),
            "Running": running,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": 4711 if running else 0,
            "ExitCode": 0 if running else 137,
            "Error": "",
            "StartedAt": created,
            "FinishedAt": "0001-01-01T00:00:00Z",
        },
        "Name": f"/{container['name']}",
        "RestartCount": 0,
        "Config": {
            "Hostname": container["labels"]["clab-node-name"],
            "Image": container["image"],
            "Labels": container["labels"],
        },
        "NetworkSettings": {"Networks": {container["network"]: attachment(container)}},
    }


def attachment(container: Data) -> Data:
    """A container's place in its network; the host's network has no addresses."""
    network = find(networks(), container["network"])
    host = container["network"] == "host"
    return {
        "NetworkID": network["id"] if network else "",
        "Gateway": "" if host else f"{container['ipv4'].rpartition('.')[0]}.1",
        "IPAddress": "" if host else container["ipv4"],
        "IPPrefixLen": 0 if host else 24,
        "GlobalIPv6Address": "",
    }


def network_details(network: Data) -> Data:
    attached = [container for container in containers() if container["network"] == network["name"]]
    return {
        "Name": network["name"],
        "Id": network["id"],
        "Created": timestamp(network["created"], "%Y-%m-%dT%H:%M:%S.000000000Z"),
        "Scope": "local",
        "Driver": network["driver"],
        "EnableIPv6": network["name"] not in BUILTIN_NETWORKS,
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "Containers": {
            item["full_id"]: {"Name": item["name"], "IPv4Address": item["ipv4"] + "/24"} for item in attached
        },
        "Options": network.get("options", {}),
        "Labels": {},
    }


def print_details(names: list[str], form: str, look: Callable[[str], Data | None], missing: str) -> None:
    """Print what was found, then complain about the rest: the output is a list even when nothing was found."""
    found = {name: look(name) for name in names}
    details = [detail for detail in found.values() if detail is not None]
    if form:
        for detail in details:
            say(render(detail, form))
    else:
        say(json.dumps(details, indent=4))
    absent = [name for name, detail in found.items() if detail is None]
    for name in absent:
        complain(missing.format(name))
    sys.exit(1 if absent else 0)


def run_inspect(args: list[str]) -> None:
    options, names = parse(args, "-s --size", "-f --format --type")

    def look(name: str) -> Data | None:
        container = find(containers(), name)
        if container is not None:
            return container_details(container)
        network = find(networks(), name)
        return network and network_details(network)

    if not names:
        refuse("\"docker inspect\" requires at least 1 argument.\nSee 'docker inspect --help'.")
    print_details(names, "".join(given(options, "-f", "--format")[-1:]), look, "Error: No such object: {}")


# docker logs and exec


def run_logs(args: list[str]) -> None:
    """What a router prints: its start on standard output, its messages on standard error."""
    options, names = parse(args, "-t --timestamps --details", "-n --tail --since --until")
    if len(names) != 1:
        refuse("\"docker logs\" requires exactly 1 argument.\nSee 'docker logs --help'.")
    container = find(containers(), names[0])
    if container is None:
        refuse(f"Error response from daemon: No such container: {names[0]}")
    stamp = (
        timestamp(container["created"], "%Y-%m-%dT%H:%M:%S.000000000Z ") if given(options, "-t", "--timestamps") else ""
    )
    tail = "".join(given(options, "-n", "--tail")[-1:])
    messages = [f"{stamp}watchfrr[16]: zebra state -> up : connect succeeded"]
    messages += [f"{stamp}{'x' * 99}"] * (int(knob("log_bytes") or 0) // 100)
    say(f"{stamp}Starting watchfrr")
    for line in messages[-int(tail) :] if tail.isdecimal() else messages:
        complain(line)


def run_exec(args: list[str]) -> None:
    flags = "-i --interactive -t --tty"
    options, words = parse(args, flags, "-e --env -u --user --detach-keys", interspersed=False)
    if len(words) < 2:
        refuse("\"docker exec\" requires at least 2 arguments.\nSee 'docker exec --help'.")
    name, *command = words
    container = find(containers(), name)
    if container is None:
        refuse(f"Error response from daemon: No such container: {name}")
    if container.get("state", "running") != "running":
        refuse(f"Error response from daemon: Container {container['full_id']} is not running")
    if command[0] == "vtysh" and knob("docker_exec_fails"):
        refuse("vtysh: failed to connect to any daemons.")
    terminal = bool(given(options, "-t", "--tty"))
    if terminal and not sys.stdin.isatty():
        refuse("the input device is not a TTY")
    node = container["labels"]["clab-node-name"]
    programs = state_folder() / "programs"
    if not programs.is_dir():
        programs.mkdir(exist_ok=True)
        write_vtysh(programs / "vtysh")
    environment = {"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "HOSTNAME": node}
    environment |= dict(pair.split("=", 1) for pair in given(options, "-e", "--env"))
    if terminal:
        sys.exit(run_on_terminal(container, command, {**environment, "TERM": "xterm"}))
    sys.exit(run_in(container, command, environment, interactive=bool(given(options, "-i", "--interactive"))))


def write_vtysh(path: Path) -> None:
    script = """\
        #!/bin/sh
        [ "$*" = "-c show running-config" ] || { echo "% Unknown command: $2" >&2; exit 1; }
        printf '%s\\n' 'Building configuration...' '' 'Current configuration:' '!' 'frr version 10.3' \
          "hostname $HOSTNAME" '!' end
    """
    draft = path.with_name(f".vtysh.{os.getpid()}")
    draft.write_text("".join(f"{line.strip()}\n" for line in script.splitlines()), encoding="utf-8")
    draft.chmod(0o755)
    draft.rename(path)


def program_of(command: list[str], environment: dict[str, str]) -> str:
    import shutil  # noqa: PLC0415  only exec needs it

    program = shutil.which(command[0], path=environment["PATH"])
    if program is None or (command[0] == "sh" and knob("no_shell")):
        refuse(f'OCI runtime exec failed: exec failed: exec: "{command[0]}": executable file not found in $PATH', 126)
    return program


def run_in(container: Data, command: list[str], environment: dict[str, str], *, interactive: bool) -> int:
    """Run a program as one of a container; its exit status."""
    import subprocess  # noqa: PLC0415

    words = [program_of(command, environment), *command[1:]]
    stdin = None if interactive else subprocess.DEVNULL
    child = subprocess.Popen(words, cwd="/", env=environment, stdin=stdin, start_new_session=True)
    while True:
        try:
            status = child.wait(0.05)
        except subprocess.TimeoutExpired:
            if not container["path"].exists():
                os.killpg(child.pid, 9)
        else:
            return status if status >= 0 else 128 - status


def run_on_terminal(container: Data, command: list[str], environment: dict[str, str]) -> int:
    """As `run_in`, on a terminal of the container's, whose size is that of ours."""
    import fcntl  # noqa: PLC0415
    import pty  # noqa: PLC0415
    import select  # noqa: PLC0415
    import signal  # noqa: PLC0415
    import termios  # noqa: PLC0415
    import tty  # noqa: PLC0415

    program = program_of(command, environment)
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir("/")
        os.execve(program, command, environment)  # noqa: S606

    def take_size(*_: object) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    tty.setraw(0, termios.TCSANOW)  # what was typed already is kept
    take_size()
    signal.signal(signal.SIGWINCH, take_size)
    sources = [0, descriptor]
    while descriptor in sources:
        if not container["path"].exists():
            os.killpg(child, 9)
        for source in select.select(sources, [], [], 0.05)[0]:
            try:
                data = os.read(source, 1 << 16)
            except OSError:
                data = b""
            if not data:
                sources.remove(source)
            while data:
                data = data[os.write(descriptor if source == 0 else 1, data) :]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


# docker network and version


def run_network(args: list[str]) -> None:
    actions = {"ls": network_ls, "list": network_ls, "inspect": network_inspect, "rm": network_rm, "remove": network_rm}
    if not args or args[0] not in actions:
        refuse("Usage:  docker network COMMAND")
    actions[args[0]](args[1:])


def network_ls(args: list[str]) -> None:
    options, _ = parse(args, "-q --quiet --no-trunc", "-f --filter --format")
    names = [text.partition("=")[2] for text in given(options, "-f", "--filter") if text.startswith("name=")]
    found = [network for network in networks() if not names or any(name in network["name"] for name in names)]
    whole = bool(given(options, "--no-trunc"))
    rows = [
        {
            "CreatedAt": timestamp(network["created"], "%Y-%m-%d %H:%M:%S.000000000 +0000 UTC"),
            "Driver": network["driver"],
            "ID": network["id"] if whole else network["id"][:12],
            "IPv6": str(network["name"] not in BUILTIN_NETWORKS).lower(),
            "Internal": "false",
            "Labels": "",
            "Name": network["name"],
            "Scope": "local",
        }
        for network in found
    ]
    form = "{{.ID}}" if given(options, "-q", "--quiet") else "".join(given(options, "--format")[-1:])
    print_rows(rows, form, {"NETWORK ID": "ID", "NAME": "Name", "DRIVER": "Driver", "SCOPE": "Scope"})


def network_inspect(args: list[str]) -> None:
    options, names = parse(args, "-v --verbose", "-f --format")

    def look(name: str) -> Data | None:
        network = find(networks(), name)
        return network and network_details(network)

    missing = "Error response from daemon: network {} not found"
    print_details(names, "".join(given(options, "-f", "--format")[-1:]), look, missing)


def network_rm(args: list[str]) -> None:
    _, names = parse(args, "-f --force")
    results = [remove_network(name) for name in names]
    sys.exit(0 if all(results) else 1)


def remove_network(wanted: str) -> bool:
    network = find(networks(), wanted)
    if network is None:
        complain(f"Error response from daemon: network {wanted} not found\nexit status 1")
        return False
    if "path" not in network:
        complain(f"Error response from daemon: {wanted} is a pre-defined network and cannot be removed\nexit status 1")
        return False
    if any(container["network"] == network["name"] for container in containers()):
        complain(
            f"Error response from daemon: error while removing network: network {network['name']} id {network['id']} "
            "has active endpoints\nexit status 1"
        )
        return False
    network["path"].unlink(missing_ok=True)
    say(wanted)
    return True


def run_stats(args: list[str]) -> None:
    options, wanted = parse(args, "-a --all --no-stream --no-trunc", "--format")
    form = "".join(given(options, "--format")[-1:]) or refuse("only --format is supported")
    for name in wanted:
        if (container := find(containers(), name)) is None:
            refuse(f"Error response from daemon: No such container: {name}")
        running = container.get("state", "running") == "running"
        used = knob("container_memory") or "28.5MiB" if running else "0B"
        row = {
            "ID": container["full_id"],
            "Name": container["name"],
            "MemUsage": f"{used} / {'7.6GiB' if running else '0B'}",
        }
        say(render(row, form))


def run_version(args: list[str]) -> None:
    options, _ = parse(args, "", "-f --format")
    side = {"Version": VERSION, "ApiVersion": "1.41", "Os": "linux", "Arch": "amd64"}
    form = "".join(given(options, "-f", "--format")[-1:])
    if form:
        say(render({"Client": side, "Server": side}, form))
        return
    for name in ("Client:", "Server: Docker Engine - Community"):
        say(f"{name}\n Version:           {VERSION}\n API version:       1.41\n")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "ps": run_ps,
    "rm": run_rm,
    "inspect": run_inspect,
    "logs": run_logs,
    "exec": run_exec,
    "network": run_network,
    "stats": run_stats,
    "version": run_version,
}


def main() -> NoReturn:
    arguments = sys.argv[1:]
    if arguments[:1] == ["container"]:
        arguments = ["ps" if word == "ls" else word for word in arguments[1:2]] + arguments[2:]
    if arguments[:1] in (["--version"], ["-v"]):
        say("podman version 5.4.0" if knob("podman") else VERSION_LINE)
    elif not arguments or arguments[0] not in COMMANDS:
        refuse(f"docker: '{' '.join(arguments[:1])}' is not a docker command.\nSee 'docker --help'")
    elif knob("docker_unreachable"):
        refuse("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?")
    else:
        COMMANDS[arguments[0]](arguments[1:])
    sys.exit(0)


if __name__ == "__main__":
    main()
