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
    def own(self) -> Host | None:
        """This server's host; None before it is registered."""
        return self._hosts.get(self._own)

    @property
    def capacity(self) -> int:
        """The number of sessions that can be active at once."""
        return sum(host.slots for host in self if host.serves)

    @property
    def wait_for_memory(self) -> bool:
        """Whether no session can become active until a host has memory for a lab that waits."""
        return bool(self.capacity) and not any(host.admits for host in self)

    def have_room(self, active: Iterable[Session]) -> bool:
        """Whether a host may have a free slot beside these active sessions; the database knows it exactly."""
        busy = Counter(session.host for session in active)
        return any(busy[host.name] < host.slots for host in self if host.admits)

    def address_of(self, session: Session) -> str | None:
        """The URL of the server of another host that a session is active on; None if there is none."""
        if session.host is None or self.is_own(session):
            return None
        host = self._hosts.get(session.host)
        return host.address if host else None
