"""Converts between the workspace of a lab on disk and its row in the database."""

from pathlib import Path

from neops_remote_lab.core.codes import LiveLabState
from neops_remote_lab.core.identity import Identity
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.store.rows import Lab


def starting_lab(session_id: str, workspace: Workspace) -> Lab:
    """The row of a lab that is about to start."""
    return Lab(
        lab_id=workspace.lab_id,
        session_id=session_id,
        state=LiveLabState.STARTING,
        topology=workspace.topology,
        topology_sha256=workspace.identity.topology,
        extra_sha256=workspace.identity.extra,
        work_dir=str(workspace.base),
        devices=None,
    )


def workspace_of(lab: Lab) -> Workspace:
    """The workspace of a lab's row."""
    return Workspace(lab.lab_id, Path(lab.work_dir), lab.topology, identity_of_lab(lab))


def identity_of_lab(lab: Lab) -> Identity:
    """The identity of a lab's topology and extra files."""
    return Identity(lab.topology_sha256, lab.extra_sha256)
