"""Settle: no file is handed out before it is complete, and every file is handed out in the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from watcher.core.records import Identity
from watcher.inbox.completeness import Ready, Settle

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


def handed(settle: Settle, now: float, disk: Disk, limit: int = 100) -> list[Ready]:
    return list(settle.ready(now, disk.look, limit))


def names(settle: Settle, now: float, disk: Disk, limit: int = 100) -> list[str]:
    return [ready.name for ready in handed(settle, now, disk, limit)]


class Model(RuleBasedStateMachine):
    """Producers, the kernel, the clock and the stations after Settle, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.settle = Settle(SETTLE_S, PATIENCE_S, capacity=2)
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
            known = name in self.settle
            room = self.settle.room
            assert self.settle.arrived(name, self.now) == (known or room > 0)
            if name in self.settle:
                self.told.add(name)

    @rule()
    def scan(self) -> None:
        for name in self.disk.files:
            self.settle.seen(name, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, SETTLE_S, 5.0, PATIENCE_S, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(limit=st.integers(0, 3))
    def hands_out(self, limit: int) -> None:
        found = handed(self.settle, self.now, self.disk, limit)
        assert len(found) <= limit
        for ready in found:
            self._check(ready)

    def _check(self, ready: Ready) -> None:
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
            (self.settle.filed if answer == "filed" else self.settle.forget)(name)
        elif answer == "doubt":
            stamp = self.disk.look(name)
            self.settle.doubt(name, stamp, self.now)
        else:
            pause_s = 7.0 if answer == "pause" else 0.0
            self.settle.pause(name, self.now, pause_s)
            self.paused[name] = self.now + pause_s

    @invariant()
    def bounded(self) -> None:
        assert len(self.settle) <= 2

    @invariant()
    def adds_up(self) -> None:
        assert self.settle.admitted == self.filed + self.settle.withdrawn + len(self.settle)

    def teardown(self) -> None:
        """Whatever happened, each file that stays and is not held comes out, at the times that due_s tells."""
        waiting = {name for name in self.disk.files if name in self.settle and name not in self.held}
        deadline = self.now + 2 * PATIENCE_S + 20
        while waiting:
            due = self.settle.due_s()
            assert due is not None and due <= deadline, f"never handed out: {waiting}"
            self.now = max(self.now, due)
            waiting -= {ready.name for ready in handed(self.settle, self.now, self.disk)}


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase


def test_closed_file_needs_no_waiting() -> None:
    """A file that the kernel reports closed or moved in is handed out at once, without a look."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 5.0)
    assert handed(settle, 5.0, disk) == [Ready("a", 5.0, last_try=False)]
    assert disk.looks == 0


def test_scanned_file_waits_until_quiet() -> None:
    """A file found by a scan is held until it has been seen unchanged for settle_s, not a moment less."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.seen("a", 0.0)
    assert names(settle, 0.0, disk) == []
    assert names(settle, 1.99, disk) == []
    assert names(settle, 2.0, disk) == ["a"]


def test_growing_file_starts_its_wait_again() -> None:
    """Each change that is noticed starts settle_s anew, however long the file grows."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.seen("a", 0.0)
    for second in range(0, 60):
        disk.grow("a")
        assert names(settle, float(second), disk) == []
    assert names(settle, 61.0, disk) == []  # sees the last change only now
    assert names(settle, 63.0, disk) == ["a"]


def test_file_that_leaves_is_forgotten() -> None:
    """A name that stands for nothing any more takes up no room."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 1), Disk()
    disk.grow("a")
    settle.seen("a", 0.0)
    disk.files.clear()
    assert names(settle, 10.0, disk) == []
    assert settle.room == 1


def test_no_more_than_capacity() -> None:
    """A name beyond the capacity is refused, by scan and by event alike; a known one is always welcome."""
    settle = Settle(SETTLE_S, PATIENCE_S, 1)
    assert settle.seen("a", 0.0)
    assert not settle.seen("b", 0.0)
    assert not settle.arrived("b", 0.0)
    assert settle.arrived("a", 1.0)
    assert len(settle) == 1 and "b" not in settle


def test_limit_is_kept_and_the_rest_comes_later() -> None:
    """No more than limit files are handed out at once; the others are not lost."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    for name in "abc":
        disk.grow(name)
        settle.arrived(name, 0.0)
    assert names(settle, 0.0, disk, limit=0) == []
    assert len(names(settle, 0.0, disk, limit=2)) == 2
    assert len(names(settle, 0.0, disk, limit=2)) == 1


def test_doubted_file_gets_its_patience_then_one_last_try() -> None:
    """What settled but did not decode waits until patience_s after its last change, and the try then is final."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.seen("a", 0.0)
    names(settle, 0.0, disk)
    assert handed(settle, 2.0, disk) == [Ready("a", 0.0, last_try=False)]
    settle.doubt("a", disk.look("a"), 2.0)
    for tenth in range(20, 300):
        assert names(settle, tenth / 10, disk) == []
    assert handed(settle, PATIENCE_S, disk) == [Ready("a", 0.0, last_try=True)]


def test_doubted_file_that_grows_is_no_longer_doubted() -> None:
    """A change shows that the producer is still at work: the next try is not the last."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    names(settle, 0.0, disk)
    settle.doubt("a", disk.look("a"), 0.0)
    names(settle, 2.0, disk)
    disk.grow("a")
    assert names(settle, 20.0, disk) == []
    assert handed(settle, 22.0, disk) == [Ready("a", 0.0, last_try=False)]


def test_doubted_file_closed_again_is_tried_at_once() -> None:
    """A doubted file that is closed again after writing does not wait for its patience."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    names(settle, 0.0, disk)
    settle.doubt("a", disk.look("a"), 0.0)
    disk.grow("a")
    settle.arrived("a", 3.0)
    assert handed(settle, 3.0, disk) == [Ready("a", 0.0, last_try=False)]


def test_patience_counts_from_the_last_change_not_from_the_first_event() -> None:
    """A file that waited long for its turn and was written anew meanwhile still gets all of its patience."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    disk.grow("a")
    settle.arrived("a", 100.0)
    assert names(settle, 100.0, disk) == ["a"]
    settle.doubt("a", disk.look("a"), 100.0)
    assert names(settle, 110.0, disk) == []
    assert names(settle, 129.0, disk) == []


def test_paused_file_waits_out_its_pause() -> None:
    """After a pause, the file comes back when the pause is over and not before."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    names(settle, 0.0, disk)
    settle.pause("a", 0.0, 5.0)
    assert names(settle, 4.9, disk) == []
    out = names(settle, 5.0, disk) + names(settle, 5.0 + SETTLE_S, disk)
    assert out == ["a"]


def test_file_closed_while_held_comes_again() -> None:
    """Another file that took the name while the first was on its way is not lost when the first is filed."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    names(settle, 0.0, disk)
    settle.arrived("a", 50.0)
    assert names(settle, 50.0, disk) == []
    settle.forget("a")
    assert names(settle, 51.0, disk) == ["a"]


def test_second_file_of_a_name_has_its_own_first_sight() -> None:
    """The waiting time of a file that took another's name counts from its own arrival."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    names(settle, 0.0, disk)
    settle.arrived("a", 50.0)
    settle.forget("a")
    assert [ready.seen_s for ready in handed(settle, 51.0, disk)] == [50.0]


def test_oldest_tells_the_longest_wait() -> None:
    """The oldest first sight among all files is told, and None when there are none."""
    settle = Settle(SETTLE_S, PATIENCE_S, 10)
    assert settle.oldest_s is None
    settle.seen("a", 3.0)
    settle.arrived("b", 1.0)
    assert settle.oldest_s == 1.0
    settle.forget("b")
    assert settle.oldest_s == 3.0


def test_pauses_double_up_to_a_limit_however_often() -> None:
    """A file whose surroundings fail it for days is tried again later each time, every 300 s in the end."""
    settle, disk = Settle(SETTLE_S, PATIENCE_S, 10), Disk()
    disk.grow("a")
    settle.arrived("a", 0.0)
    now, waits = 0.0, []
    for _ in range(1200):
        while not names(settle, now, disk):
            due = settle.due_s()
            assert due is not None
            now = max(due, now)
        settle.pause("a", now, 5.0)
        due = settle.due_s()
        assert due is not None
        waits.append(round(due - now))
    assert waits[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(waits[7:]) == {300}
