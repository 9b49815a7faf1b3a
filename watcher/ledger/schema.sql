-- The ledger of mednet-watcher: what was decided, by which model, and how it ended.
-- Decisions and endings are added and never changed. Times are UTC, ISO 8601.
-- Names and paths are bytes, as in the file system.

create table if not exists decision (
    id         integer primary key,
    batch      integer not null, -- id of the first decision of its transaction
    name       blob    not null, -- name that the file is to get
    source     blob    not null, -- path that the file is taken from
    digest     text,             -- SHA-256 of the file's bytes, hex
    device     integer,          -- identity of the source when it was read: this and the next three
    inode      integer,
    size       integer,
    mtime_ns   integer,
    outcome    text    not null check (outcome in ('sorted', 'review', 'quarantine', 'restored', 'rejected')),
    class      text,
    confidence real    not null,
    reason     text,             -- when restored: retry or undo; when a person judged: accepted or rejected
    detail     text,
    top        text    not null, -- JSON: [[class, probability], ...]
    model      text,             -- digest of the weights; null when a person decided
    directory  blob    not null, -- directory that it is to go to
    restores   integer references decision (id),
    verdict    integer references verdict (id), -- the verdict that it carries out
    decided_at text    not null
);

create index if not exists decision_by_time on decision (decided_at);
create index if not exists decision_by_name on decision (name);
create index if not exists decision_by_digest on decision (digest);
create index if not exists decision_by_restored on decision (restores) where restores is not null;
create index if not exists decision_by_verdict on decision (verdict) where verdict is not null;

create table if not exists ending (
    decision    integer primary key references decision (id),
    state       text not null check (state in ('filed', 'returned', 'missing', 'shadowed')),
    destination blob,
    note        text,
    ended_at    text not null
);

-- What people said of images, and when. Users are those of the operating system. Added, never changed.
create table if not exists verdict (
    id       integer primary key,
    decision integer references decision (id), -- it put the file where it lay; null: none is known
    path     blob    not null, -- where the file lay
    name     blob    not null, -- name that the file is to get
    digest   text    not null, -- SHA-256 of the bytes that were judged, hex
    class    text,             -- null: rejected, because it is of none of the classes
    uid      integer not null,
    user     text    not null,
    note     text,
    given_at text    not null
);

create index if not exists verdict_by_decision on verdict (decision);

-- Verdicts that nobody has carried out yet.
create table if not exists open_verdict (
    verdict integer primary key references verdict (id)
);

-- Verdicts that no decision carries out. Confirmed: the file lies already where the verdict wants it. Left: the file
-- was left alone, for the reason in the note.
create table if not exists verdict_ending (
    verdict  integer primary key references verdict (id),
    state    text not null check (state in ('confirmed', 'left')),
    note     text,
    ended_at text not null
);

create trigger if not exists verdict_filed after insert on ending when new.state = 'filed' begin
    delete from open_verdict where verdict = (select verdict from decision where id = new.decision);
end;

-- Decisions without an ending. Empty while nobody moves files. The owner must end them; it is alive as long as it
-- holds the lock of that name.
create table if not exists unended (
    decision integer primary key references decision (id),
    owner    text not null
);

-- How many files each owner has filed, by outcome, because counting them would take long. Files that people judged
-- are not counted again.
create table if not exists tally (
    owner   text    not null,
    outcome text    not null,
    files   integer not null,
    primary key (owner, outcome)
) without rowid;

create trigger if not exists tally_filed after insert on ending when new.state = 'filed' begin
    insert into tally
        select owner, outcome, 1 from decision join unended on unended.decision = decision.id
        where decision.id = new.decision and verdict is null
    on conflict do update set files = files + 1;
end;

-- Directories that files were moved from and to. After a crash it must be certain that they are still the same
-- directories, and not those beneath a mount that is gone.
create table if not exists place (
    path   blob    primary key,
    device integer not null,
    inode  integer not null
) without rowid;

pragma user_version = 3;
