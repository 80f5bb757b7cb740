"""The server program that gives labs in advance to anybody, for the test of the ledger.

A lab that was started in advance goes to the next session that acquires its topology.
"""

from unittest.mock import patch

from neops_remote_lab.cli.main import main
from neops_remote_lab.core.identity import Identity
from neops_remote_lab.labs import slot
from neops_remote_lab.labs.coordinator import LabCoordinator
from neops_remote_lab.labs.slots import Slots
from neops_remote_lab.netlab.lab_life import Wanted

own = Slots.of


def any_of(slots: Slots, session_id: str) -> LabCoordinator:
    """The coordinator of a lab that nobody has acquired, otherwise that of the session."""
    unused = (each for each in slots if each.lab and not each.references)
    return next(unused, None) or own(slots, session_id)


def wanted(identity: Identity, reuse: bool, _same_session: bool) -> Wanted:
    """A request for a lab, as if the current lab belonged to the session."""
    return Wanted(identity, reuse, same_session=True)


if __name__ == "__main__":
    with patch.object(Slots, "of", any_of), patch.object(slot, "Wanted", wanted):
        main()
