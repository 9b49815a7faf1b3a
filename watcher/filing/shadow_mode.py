"""Run in shadow mode: decide on files and record the decisions, but move nothing.

The files stay in the inbox, from which people take them. Each file is decided on
once: :class:`ShadowInbox` passes over the files that were decided on, and the
ledger recognises a changed or renamed file by its bytes.
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
"""The name or path, inode, size and mtime_ns of a file."""


class ShadowInbox(Inbox):
    """An inbox whose files stay. A file that was decided on is passed over until it changes."""

    def __init__(
        self, path: Path, ignore: Sequence[str] = (), sentinel: str | None = None, *, recursive: bool = False
    ) -> None:
        super().__init__(path, ignore, sentinel, recursive=recursive)
        self._decided: set[_Stamp] = set()

    def mark_decided(self, name: str, identity: Identity | None) -> None:
        """Note that a file was decided on in its present state."""
        if identity is not None:
            self._decided.add(_stamp(name, identity))

    def copy_decided_from(self, other: Inbox) -> None:
        """Pass over the files that another inbox of the same directory passes over."""
        if isinstance(other, ShadowInbox):
            self._decided = other._decided

    def load_decided(self, ledger: Ledger) -> None:
        """Note the files on which earlier processes decided.

        Raises:
            Retry: the inbox can not be listed.
        """
        decided = {(path, *stamp) for path, stamp in ledger.all_shadowed_files()}
        for name in filter(None, super().scan_in_steps()) if decided else ():
            identity = self.identify(name)
            if identity is not None and _stamp(str(self.path / name), identity) in decided:
                self.mark_decided(name, identity)

    def scan_in_steps(self) -> Iterator[str]:
        """Yield the name of every file that was not decided on, and an empty name for every other one.

        Files that have gone since the last scan are forgotten.
        """
        found: set[_Stamp] = set()
        decided_before = frozenset(self._decided)
        for name in super().scan_in_steps():
            identity = self.identify(name) if name and self._decided else None
            if identity is not None and (stamp := _stamp(name, identity)) in self._decided:
                found.add(stamp)
                yield ""
            else:
                yield name
        self._decided = (self._decided - decided_before) | found


def _stamp(name: str, identity: Identity) -> _Stamp:
    """Return the stamp of a file. It has no device, because the device's number may change at a reboot."""
    return name, identity.inode, identity.size, identity.mtime_ns


class ShadowExecutor(DecisionExecutor):
    """Records decisions like a :class:`DecisionExecutor`, and carries out none."""

    def handle(self, orders: Sequence[MoveOrder]) -> list[tuple[int, Result]]:
        """Record the decisions in one transaction. Return each result with its decision's id.

        The id is 0 if the file was decided on before.
        """
        try:
            with self.ledger.transaction():
                orders = self._apply_duplicate_rules(orders) if self.rules.need_lookup else orders
                new = [order for order in orders if not self._was_decided(order)]
                directories = [str(Path(self._would_go(order)).parent) for order in new]
                ids = self.ledger.record_decisions(new, directories, self.model, self.mover.inbox)
                self.ledger.record_shadowed(ids)
        except Retry as error:
            return [(0, Returned(order, str(error), later=True)) for order in orders]
        finally:
            self.carried += 1
        numbers = dict(zip(map(id, new), ids, strict=True))
        return [(numbers.get(id(order), 0), Shadowed(order, self._would_go(order))) for order in orders]

    def _was_decided(self, order: MoveOrder) -> bool:
        """Return True if the file was decided on with the same bytes. It may have been touched or renamed since."""
        if order.identity is None:
            return False
        path = str(self.mover.inbox / order.name)
        stamp = _stamp(path, order.identity)
        for earlier_path, earlier_stamp in self.ledger.shadowed_files(order.digest, order.target_name):
            same_bytes = order.digest is not None
            if (earlier_path, *earlier_stamp) == stamp or (
                same_bytes and (earlier_path == path or earlier_stamp[0] == order.identity.inode)
            ):
                return True
        return False

    def _would_go(self, order: MoveOrder) -> str:
        """Return the path that the file would get."""
        root, below = self._target(order)
        return str(root / below / order.target_name)
