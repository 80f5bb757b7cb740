"""Checks of a server, for the tests in the topology."""


def exec_reached(name: str) -> str:
    return f"ip route get $(getent hosts {name} | cut -d ' ' -f 1)"


def valid_reached(name: str) -> bool:
    return True
