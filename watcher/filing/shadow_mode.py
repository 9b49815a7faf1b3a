"""Shadow mode: decides and records, and moves nothing.

The files stay in the inbox, where people take them from. So each is decided
upon once: :class:`ShadowInbox` overlooks what was, and the ledger knows it again
by its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from watcher.core.errors import Retry
from watcher.core.records import Identity, MoveOrder, Returned, Shadowed
from watcher.filing.decision_executor import DecisionExecutor, Result
from watcher.inbox.scan import Inbox
from watcher.ledger.writer import Ledger

_Stamp = tuple[str, int, int, int]


class ShadowInbox(Inbox):
    """An inbox whose files stay. What was decided upon is not seen again until it changes."""

    def __init__(
        self, path: Path, ignore: Sequence[str] = (), sentinel: str | None = None, *, recursive: bool = False
    ) -> None:
        super().__init__(path, ignore, sentinel, recursive=recursive)
        self._known: set[_Stamp] = set()

    def know(self, name: str, identity: Identity | None) -> None:
        """This file was decided upon as it is."""
        if identity is not None:
            self._known.add(_stamp(name, identity))

    def inherit(self, other: Inbox) -> None:
        """Know what another one of the same directory does."""
        if isinstance(other, ShadowInbox):
            self._known = other._known

    def remember(self, ledger: Ledger) -> None:
        """Know what was decided upon in earlier lives.

        Raises:
            Retry: the inbox can not be listed.
        """
        before = {(path, *stamp) for path, stamp in ledger.all_shadows()}
        for name in filter(None, super().scan_in_steps()) if before else ():
            identity = self.identify(name)
            if identity is not None and _stamp(str(self.path / name), identity) in before:
                self.know(name, identity)

    def scan_in_steps(self) -> Iterator[str]:
        """Every file that was not decided upon as it is; an empty name for those that were.

        What has gone since is forgotten.
        """
        met: set[_Stamp] = set()
        before = frozenset(self._known)
        for name in super().scan_in_steps():
            identity = self.identify(name) if name and self._known else None
            if identity is not None and (stamp := _stamp(name, identity)) in self._known:
                met.add(stamp)
                yield ""
            else:
                yield name
        self._known = (self._known - before) | met


def _stamp(name: str, identity: Identity) -> _Stamp:
    """Without the device: its number may be another after a reboot."""
    return name, identity.inode, identity.size, identity.mtime_ns


class ShadowExecutor(DecisionExecutor):
    """Records decisions as a clerk does, and carries out none."""

    def handle(self, orders: Sequence[MoveOrder]) -> list[tuple[int, Result]]:
        """Record, in one transaction. Gives each order's decision id, 0 if it was decided upon before."""
        try:
            with self.ledger.deciding():
                orders = self._without_collisions(orders) if self.rules.ask else orders
                fresh = [order for order in orders if not self._was_decided(order)]
                directories = [str(Path(self._would_go(order)).parent) for order in fresh]
                ids = self.ledger.decided(fresh, directories, self.model, self.mover.inbox)
                self.ledger.shadowed(ids)
        except Retry as error:
            return [(0, Returned(order, str(error), later=True)) for order in orders]
        finally:
            self.carried += 1
        numbers = dict(zip(map(id, fresh), ids, strict=True))
        return [(numbers.get(id(order), 0), Shadowed(order, self._would_go(order))) for order in orders]

    def _was_decided(self, order: MoveOrder) -> bool:
        """Whether it was, with these bytes: touched or renamed since, it is the same file."""
        if order.identity is None:
            return False
        path = str(self.mover.inbox / order.name)
        now = _stamp(path, order.identity)
        for where, stamp in self.ledger.shadows(order.digest, order.target_name):
            if (where, *stamp) == now or (order.digest is not None and (where == path or stamp[0] == now[1])):
                return True
        return False

    def _would_go(self, order: MoveOrder) -> str:
        root, below = self._way(order)
        return str(root / below / order.target_name)
