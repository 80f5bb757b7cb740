"""Which containers are the nodes of a lab."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from neops_remote_lab.netlab.nodes import find_nodes


def test_docker_is_not_asked_about_the_containers_of_other_labs(tmp_path: Path) -> None:
    """They may be removed at any time, and Docker fails if it is asked about a container that does not exist."""
    paths = {"own": tmp_path / "own" / "clab.yml", "other": tmp_path / "other" / "clab.yml"}
    labels = {name: {"clab-topo-file": str(path), "clab-node-name": "r1"} for name, path in paths.items()}

    def docker(arguments: Sequence[str]) -> str:
        if arguments[0] == "ps":
            shown = {name: ",".join(f"{key}={value}" for key, value in each.items()) for name, each in labels.items()}
            rows = [{"ID": name, "Names": name, "Labels": text, "Status": "Up 3 s"} for name, text in shown.items()]
            return "\n".join(map(json.dumps, rows))
        assert list(arguments) == ["inspect", "own"]
        networks: dict[str, object] = {"Networks": {}}
        return json.dumps([{"Id": "own", "Config": {"Labels": labels["own"]}, "NetworkSettings": networks}])

    assert list(find_nodes(tmp_path / "own", docker)) == ["r1"]
