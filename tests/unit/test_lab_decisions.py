"""What an acquire means for the lab there is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from neops_remote_lab.netlab.lab_manager import HeldLab, Verdict, decide
from neops_remote_lab.netlab.workspace import Identity, Workspace, identity

MINE = Identity("a" * 64)
OTHER = Identity("b" * 64)
MINE_WITH_FILES = identity(MINE.topology, {"vars.yml": "c" * 64})


def held(state: Literal["starting", "running", "stopping"], references: int) -> HeldLab:
    return HeldLab(Workspace("id", Path("/labs/id"), "topology.yml", MINE), state, references)


NOBODY_HOLDS, SOMEBODY_HOLDS = held("running", 0), held("running", 2)
STARTING, STOPPING = held("starting", 0), held("stopping", 1)


@pytest.mark.parametrize(
    ("lab", "wanted", "reuse", "verdict"),
    [
        pytest.param(None, MINE, True, "start", id="no lab"),
        pytest.param(None, MINE, False, "start", id="no lab, a fresh one is wanted"),
        pytest.param(SOMEBODY_HOLDS, MINE, True, "reuse", id="the same topology is shared"),
        pytest.param(SOMEBODY_HOLDS, MINE, False, "busy", id="a fresh lab while the same is in use"),
        pytest.param(SOMEBODY_HOLDS, OTHER, True, "busy", id="another topology is in use"),
        pytest.param(SOMEBODY_HOLDS, OTHER, False, "busy", id="another topology is in use, a fresh one is wanted"),
        pytest.param(SOMEBODY_HOLDS, MINE_WITH_FILES, True, "busy", id="the same topology with other extra files"),
        pytest.param(NOBODY_HOLDS, MINE, True, "reuse", id="a lab that nobody took"),
        pytest.param(NOBODY_HOLDS, MINE, False, "reuse", id="a lab that nobody took is fresh"),
        pytest.param(NOBODY_HOLDS, OTHER, True, "replace", id="a lab that nobody took makes room"),
        pytest.param(NOBODY_HOLDS, MINE_WITH_FILES, False, "replace", id="extra files make it another one"),
        pytest.param(STARTING, MINE, True, "wait", id="the same topology is on its way"),
        pytest.param(STARTING, MINE, False, "busy", id="a fresh lab while the same is on its way"),
        pytest.param(STARTING, OTHER, True, "busy", id="another topology is on its way"),
        pytest.param(STOPPING, MINE, True, "wait", id="the end of the same is near"),
        pytest.param(STOPPING, OTHER, False, "wait", id="the end of another is near"),
    ],
)
def test_an_acquire_is_decided_by_identity_state_and_references(
    lab: HeldLab | None, wanted: Identity, reuse: bool, verdict: Verdict
) -> None:
    assert decide(lab, wanted, reuse=reuse) == verdict


def test_extra_files_are_part_of_a_labs_identity_by_name_and_content() -> None:
    topology, one, two = MINE.topology, "1" * 64, "2" * 64
    alike = identity(topology, {"a.yml": one, "b/c.yml": two})
    assert identity(topology, {"b/c.yml": two, "a.yml": one}) == alike
    different = [
        identity(topology, {}),
        identity(topology, {"a.yml": one}),
        identity(topology, {"a.yml": two, "b/c.yml": one}),
        identity(topology, {"b.yml": one, "b/c.yml": two}),
        identity(OTHER.topology, {"a.yml": one, "b/c.yml": two}),
    ]
    assert alike not in different
    assert len(set(different)) == len(different)
