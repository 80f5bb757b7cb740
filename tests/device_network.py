"""Nodes with services, for labs on the fake Docker: network namespaces on a bridge with the name that Docker uses."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest
import yaml

from tests.fakes import FakeNetlab, wait_until

ECHO, SOURCE, SINK, GREETING, RESET, LATE, COUNT = 7, 19, 9, 13, 14, 15, 16
"""TCP ports of the services: send everything back; send for ever; never read; send a greeting and close; send a
greeting and reset; at the end of the input send it back (LATE), or send its length (COUNT)."""
NOTHING: Final = 4
"""A TCP port on which no node listens."""
SERVICES: Final = f"""
import socket, struct, threading, time

def echo(peer):
    while data := peer.recv(1 << 18):
        peer.sendall(data)

def source(peer):
    piece = bytes(range(256)) * 1024
    while True:
        peer.sendall(piece)

def sink(peer):
    time.sleep(3600)

def greeting(peer):
    peer.sendall(b"hello")

def reset(peer):
    peer.sendall(b"hello")
    time.sleep(0.2)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

def late(peer):
    heard = b""
    while data := peer.recv(1 << 16):
        heard += data
    peer.sendall(b"heard " + heard)

def count(peer):
    total, into = 0, bytearray(1 << 18)
    while size := peer.recv_into(into):
        total += size
    peer.sendall(b"%d" % total)

def serve(listener, service):
    def work(peer):
        try:
            service(peer)
        except OSError:
            pass
        peer.close()

    while True:
        peer, _ = listener.accept()
        threading.Thread(target=work, args=(peer,), daemon=True).start()

services = {{{ECHO}: echo, {SOURCE}: source, {SINK}: sink, {GREETING}: greeting, {RESET}: reset, {LATE}: late}}
services[{COUNT}] = count
for port, service in services.items():
    listener = socket.create_server(("", port), backlog=500)
    threading.Thread(target=serve, args=(listener, service), daemon=True).start()
print("ready", flush=True)
time.sleep(3600)
"""

NO_NETWORK: Final = "" if os.geteuid() == 0 and shutil.which("ip") else "making networks needs root and ip"
needs_network = pytest.mark.skipif(bool(NO_NETWORK), reason=NO_NETWORK)


def topology(nodes: int = 2, **x_fake: object) -> str:
    """A topology with management addresses that are unique to this test process."""
    names = [f"r{number}" for number in range(1, nodes + 1)]
    value: dict[str, Any] = {"provider": "clab", "defaults": {"device": "frr"}}
    value["nodes"] = {name: {"mgmt": {"ipv4": address(number)}} for number, name in enumerate(names, 1)}
    value |= {"x_fake": x_fake} if x_fake else {}
    return yaml.safe_dump(value, sort_keys=False)


def address(number: int) -> str:
    """The management address of a node, or with 0 that of this host."""
    return f"198.18.{os.getpid() % 250}.{10 + number}"


def namespace(number: int) -> str:
    """The network namespace of a node."""
    return f"t{os.getpid()}n{number}"


def inside(number: int) -> list[str]:
    """The command prefix that starts a program in the network namespace of a node."""
    return ["ip", "netns", "exec", namespace(number)]


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def nodes_that_answer(fake: FakeNetlab, count: int = 1) -> Iterator[None]:
    """Create network namespaces with services for the first nodes of a running lab."""
    (network,) = fake.networks()
    bridge = f"br-{network['id'][:12]}"
    with ExitStack() as ends:
        ip("link", "add", bridge, "type", "bridge")
        ends.callback(ip, "link", "del", bridge, check=False)
        ip("addr", "add", f"{address(0)}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number in range(1, count + 1):
            ends.enter_context(_node(bridge, number))
        yield


@contextmanager
def _node(bridge: str, number: int) -> Iterator[None]:
    name = namespace(number)
    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "master", bridge, "up")
        for words in (["link", "set", "lo", "up"], ["addr", "add", f"{address(number)}/24", "dev", "eth0"]):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "eth0", "up")
        command = [*inside(number), sys.executable, "-I", "-c", SERVICES]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
                wait_until(lambda: _answers(bridge, address(number)), 60, "the node cannot be reached")
                yield
            finally:
                process.kill()
    finally:
        ip("link", "del", name, check=False)
        ip("netns", "del", name)


def _answers(bridge: str, node: str) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        probe.settimeout(1)
        return probe.connect_ex((node, GREETING)) == 0
