"""The lab hosts of a queue, as the database knew them at the latest look."""

from collections import Counter
from collections.abc import Iterable, Iterator

from neops_remote_lab.store.rows import Host, Session


class KnownHosts:
    """The hosts that serve a queue. One of them is this server's own."""

    def __init__(self, own: str) -> None:
        """`own` is the name of this server's host."""
        self._own = own
        self._hosts: dict[str, Host] = {}

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def update(self, hosts: Iterable[Host]) -> None:
        """Replace what is known."""
        self._hosts = {host.name: host for host in hosts}

    def is_own(self, session: Session) -> bool:
        """Whether a session is active on this server's host."""
        return session.host == self._own

    @property
    def capacity(self) -> int:
        """The number of sessions that can be active at once."""
        return sum(host.slots for host in self if host.admits)

    def have_room(self, active: Iterable[Session], *, here: bool) -> bool:
        """Whether a host may have a free slot; the database knows it exactly.

        Args:
            active: the active sessions.
            here: this server's host counts too.
        """
        busy = Counter(session.host for session in active)
        return any(busy[host.name] < host.slots for host in self if host.admits and (here or host.name != self._own))

    def address_of(self, session: Session) -> str | None:
        """The URL of the server of another host that a session is active on; None if there is none."""
        if session.host is None or self.is_own(session):
            return None
        host = self._hosts.get(session.host)
        return host.address if host else None
