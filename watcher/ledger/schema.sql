-- The ledger of mednet-watcher. Decisions and endings are added, never changed:
-- what was decided, by which model, and how it ended. Times are UTC, ISO 8601.
-- Names and paths are bytes, as the file system has them.

create table if not exists decision (
    id         integer primary key,
    batch      integer not null, -- the first decision of its transaction
    name       blob    not null, -- what the file is to be called
    source     blob    not null, -- the path it was taken from
    digest     text,             -- SHA-256 of the file's bytes, hex
    device     integer,          -- what the source stood for when it was read
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
    directory  blob    not null, -- where it was to go
    restores   integer references decision (id),
    verdict    integer references verdict (id), -- the person's word that it carries out
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

-- What people said of images, and when. Who they are is as the operating system has it. Added, never changed.
create table if not exists verdict (
    id       integer primary key,
    decision integer references decision (id), -- which put the file where it lay; null: nobody's we know of
    path     blob    not null, -- where it lay
    name     blob    not null, -- what it is to be called
    digest   text    not null, -- SHA-256 of the bytes that were judged, hex
    class    text,             -- null: rejected, it is of none of the classes
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

-- Verdicts that no decision carries out. Confirmed: the file lies where they would have it. Left: it does not any more.
create table if not exists verdict_ending (
    verdict  integer primary key references verdict (id),
    state    text not null check (state in ('confirmed', 'left')),
    note     text,
    ended_at text not null
);

create trigger if not exists verdict_filed after insert on ending when new.state = 'filed' begin
    delete from open_verdict where verdict = (select verdict from decision where id = new.decision);
end;

-- Decisions without an ending: empty whenever nobody moves files. The owner is who must end them; it is
-- alive as long as it holds the lock of that name.
create table if not exists unended (
    decision integer primary key references decision (id),
    owner    text not null
);

-- How many files each owner has filed, by outcome: what would take long to count. Not those that people judged:
-- they were filed before.
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

-- Which directories files were moved from and to, lately: after a crash it must be seen that they are the same ones,
-- and not what lies beneath a mount that is gone.
create table if not exists place (
    path   blob    primary key,
    device integer not null,
    inode  integer not null
) without rowid;

pragma user_version = 3;
