"""Checks of a router, for the tests in the topology."""

from netsim.data import global_vars


def show_session(name: str) -> str:
    return "bgp summary json"


def valid_session(name: str) -> str:
    summary = global_vars.get_result_dict("_result")
    if not summary.ipv4Unicast.peerCount:
        raise ValueError(f"no session with {name}")
    return f"there is a session with {name}"
