"""Settle: no file is handed out before it is complete, and every file is handed out in the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from watcher.core.records import Identity
from watcher.inbox.completeness import CompleteFile, PendingFiles

SETTLE_S = 2.0
PATIENCE_S = 30.0
NAMES = ("a", "b", "c")


class Disk:
    """Files whose size is another after each change, also across removal. ``look`` is what Settle calls."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.looks = self.changes = 0

    def grow(self, name: str) -> None:
        self.changes += 1
        self.files[name] = self.changes

    def look(self, name: str) -> Identity | None:
        self.looks += 1
        return Identity(1, hash(name), self.files[name], 0) if name in self.files else None


def handed(pending: PendingFiles, now: float, disk: Disk, limit: int = 100) -> list[CompleteFile]:
    return list(pending.ready(now, disk.look, limit))


def names(pending: PendingFiles, now: float, disk: Disk, limit: int = 100) -> list[str]:
    return [ready.name for ready in handed(pending, now, disk, limit)]


class Model(RuleBasedStateMachine):
    """Producers, the kernel, the clock and the stations after Settle, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = PendingFiles(SETTLE_S, PATIENCE_S, capacity=2)
        self.disk = Disk()
        self.now = 1000.0
        self.changed: dict[str, float] = {}
        self.told: set[str] = set()  # names closed or moved in since they were last handed out
        self.held: set[str] = set()
        self.paused: dict[str, float] = {}
        self.filed = 0

    @rule(name=st.sampled_from(NAMES))
    def grows(self, name: str) -> None:
        self.disk.grow(name)
        self.changed[name] = self.now

    @rule(name=st.sampled_from(NAMES))
    def leaves(self, name: str) -> None:
        if name not in self.held:
            self.disk.files.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def closed(self, name: str) -> None:
        if name in self.disk.files:
            known = name in self.pending
            room = self.pending.room
            assert self.pending.arrived(name, self.now) == (known or room > 0)
            if name in self.pending:
                self.told.add(name)

    @rule()
    def scan(self) -> None:
        for name in self.disk.files:
            self.pending.found_by_scan(name, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, SETTLE_S, 5.0, PATIENCE_S, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(limit=st.integers(0, 3))
    def hands_out(self, limit: int) -> None:
        found = handed(self.pending, self.now, self.disk, limit)
        assert len(found) <= limit
        for ready in found:
            self._check(ready)

    def _check(self, ready: CompleteFile) -> None:
        name = ready.name
        assert name not in self.held, "handed out twice before it was answered for"
        if name not in self.told:
            assert self.now - self.changed[name] >= SETTLE_S, "handed out before it was quiet"
            assert self.now >= self.paused.get(name, 0.0), "handed out before its pause was over"
        if ready.last_try:
            assert self.now - self.changed[name] >= PATIENCE_S, "called its last try before its patience was over"
        assert ready.seen_s <= self.now
        self.held.add(name)
        self.told.discard(name)
        self.paused.pop(name, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), answer=st.sampled_from(["filed", "forget", "doubt", "pause", "at once"]))
    def answered(self, data: st.DataObject, answer: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.held.discard(name)
        if answer in ("filed", "forget"):
            self.disk.files.pop(name, None)
            self.filed += answer == "filed"
            (self.pending.filed if answer == "filed" else self.pending.forget)(name)
        elif answer == "doubt":
            stamp = self.disk.look(name)
            self.pending.doubt(name, stamp, self.now)
        else:
            pause_s = 7.0 if answer == "pause" else 0.0
            self.pending.pause(name, self.now, pause_s)
            self.paused[name] = self.now + pause_s

    @invariant()
    def bounded(self) -> None:
        assert len(self.pending) <= 2

    @invariant()
    def adds_up(self) -> None:
        assert self.pending.admitted == self.filed + self.pending.withdrawn + len(self.pending)

    def teardown(self) -> None:
        """Each file that stays and is not held comes out, at the times that due_s tells."""
        waiting = {name for name in self.disk.files if name in self.pending and name not in self.held}
        deadline = self.now + 2 * PATIENCE_S + 20
        while waiting:
            due = self.pending.due_s()
            assert due is not None and due <= deadline, f"never handed out: {waiting}"
            self.now = max(self.now, due)
            waiting -= {ready.name for ready in handed(self.pending, self.now, self.disk)}


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestModel = Model.TestCase


def test_closed_file_needs_no_waiting() -> None:
    """A file that the kernel reports closed or moved in is handed out at once, without a look."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 5.0)
    assert handed(pending, 5.0, disk) == [CompleteFile("a", 5.0, last_try=False)]
    assert disk.looks == 0


def test_scanned_file_waits_until_quiet() -> None:
    """A file found by a scan is held until it has been seen unchanged for settle_s, not a moment less."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.found_by_scan("a", 0.0)
    assert names(pending, 0.0, disk) == []
    assert names(pending, 1.99, disk) == []
    assert names(pending, 2.0, disk) == ["a"]


def test_growing_file_starts_its_wait_again() -> None:
    """Each change that is noticed starts settle_s anew, however long the file grows."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.found_by_scan("a", 0.0)
    for second in range(0, 60):
        disk.grow("a")
        assert names(pending, float(second), disk) == []
    assert names(pending, 61.0, disk) == []  # sees the last change only now
    assert names(pending, 63.0, disk) == ["a"]


def test_file_that_leaves_is_forgotten() -> None:
    """A name that stands for nothing any more takes up no room."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 1), Disk()
    disk.grow("a")
    pending.found_by_scan("a", 0.0)
    disk.files.clear()
    assert names(pending, 10.0, disk) == []
    assert pending.room == 1


def test_no_more_than_capacity() -> None:
    """A name beyond the capacity is refused, by scan and by event alike; a known one is always welcome."""
    pending = PendingFiles(SETTLE_S, PATIENCE_S, 1)
    assert pending.found_by_scan("a", 0.0)
    assert not pending.found_by_scan("b", 0.0)
    assert not pending.arrived("b", 0.0)
    assert pending.arrived("a", 1.0)
    assert len(pending) == 1 and "b" not in pending


def test_limit_is_kept_and_the_rest_comes_later() -> None:
    """No more than limit files are handed out at once; the others are not lost."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    for name in "abc":
        disk.grow(name)
        pending.arrived(name, 0.0)
    assert names(pending, 0.0, disk, limit=0) == []
    assert len(names(pending, 0.0, disk, limit=2)) == 2
    assert len(names(pending, 0.0, disk, limit=2)) == 1


def test_doubted_file_gets_its_patience_then_one_last_try() -> None:
    """A settled file that did not decode waits until patience_s after its last change; the try then is final."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.found_by_scan("a", 0.0)
    names(pending, 0.0, disk)
    assert handed(pending, 2.0, disk) == [CompleteFile("a", 0.0, last_try=False)]
    pending.doubt("a", disk.look("a"), 2.0)
    for tenth in range(20, 300):
        assert names(pending, tenth / 10, disk) == []
    assert handed(pending, PATIENCE_S, disk) == [CompleteFile("a", 0.0, last_try=True)]


def test_doubted_file_that_grows_is_no_longer_doubted() -> None:
    """A change shows that the producer is still at work: the next try is not the last."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    names(pending, 0.0, disk)
    pending.doubt("a", disk.look("a"), 0.0)
    names(pending, 2.0, disk)
    disk.grow("a")
    assert names(pending, 20.0, disk) == []
    assert handed(pending, 22.0, disk) == [CompleteFile("a", 0.0, last_try=False)]


def test_doubted_file_closed_again_is_tried_at_once() -> None:
    """A doubted file that is closed again after writing does not wait for its patience."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    names(pending, 0.0, disk)
    pending.doubt("a", disk.look("a"), 0.0)
    disk.grow("a")
    pending.arrived("a", 3.0)
    assert handed(pending, 3.0, disk) == [CompleteFile("a", 0.0, last_try=False)]


def test_patience_counts_from_the_last_change_not_from_the_first_event() -> None:
    """A file that waited long for its turn and was written anew meanwhile still gets all of its patience."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    disk.grow("a")
    pending.arrived("a", 100.0)
    assert names(pending, 100.0, disk) == ["a"]
    pending.doubt("a", disk.look("a"), 100.0)
    assert names(pending, 110.0, disk) == []
    assert names(pending, 129.0, disk) == []


def test_paused_file_waits_out_its_pause() -> None:
    """After a pause, the file comes back when the pause is over and not before."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    names(pending, 0.0, disk)
    pending.pause("a", 0.0, 5.0)
    assert names(pending, 4.9, disk) == []
    out = names(pending, 5.0, disk) + names(pending, 5.0 + SETTLE_S, disk)
    assert out == ["a"]


def test_file_closed_while_held_comes_again() -> None:
    """Another file that took the name while the first was on its way is not lost when the first is filed."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    names(pending, 0.0, disk)
    pending.arrived("a", 50.0)
    assert names(pending, 50.0, disk) == []
    pending.forget("a")
    assert names(pending, 51.0, disk) == ["a"]


def test_second_file_of_a_name_has_its_own_first_sight() -> None:
    """The waiting time of a file that took another's name counts from its own arrival."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    names(pending, 0.0, disk)
    pending.arrived("a", 50.0)
    pending.forget("a")
    assert [ready.seen_s for ready in handed(pending, 51.0, disk)] == [50.0]


def test_oldest_tells_the_longest_wait() -> None:
    """The oldest first sight among all files is told, and None when there are none."""
    pending = PendingFiles(SETTLE_S, PATIENCE_S, 10)
    assert pending.oldest_s is None
    pending.found_by_scan("a", 3.0)
    pending.arrived("b", 1.0)
    assert pending.oldest_s == 1.0
    pending.forget("b")
    assert pending.oldest_s == 3.0


def test_pauses_double_up_to_a_limit_however_often() -> None:
    """A file whose surroundings fail it for days is tried again later each time, every 300 s in the end."""
    pending, disk = PendingFiles(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    pending.arrived("a", 0.0)
    now, waits = 0.0, []
    for _ in range(1200):
        while not names(pending, now, disk):
            due = pending.due_s()
            assert due is not None
            now = max(due, now)
        pending.pause("a", now, 5.0)
        due = pending.due_s()
        assert due is not None
        waits.append(round(due - now))
    assert waits[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(waits[7:]) == {300}
