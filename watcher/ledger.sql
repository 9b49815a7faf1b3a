-- The ledger of mednet-watcher. Rows are added, never changed: what was decided,
-- by which model, and how it ended. Times are UTC, ISO 8601. Names are bytes, as
-- the file system has them.

create table if not exists decision (
    id         integer primary key,
    name       blob    not null,
    digest     text,             -- SHA-256 of the file's bytes, hex
    device     integer,          -- what the name stood for when it was read
    inode      integer,
    size       integer,
    mtime_ns   integer,
    outcome    text    not null check (outcome in ('sorted', 'review', 'quarantine')),
    class      text,
    confidence real    not null,
    reason     text,
    detail     text,
    top        text    not null, -- JSON: [[class, probability], ...]
    model      text    not null, -- digest of the weights
    directory  blob    not null, -- where it was to go
    decided_at text    not null
);

create index if not exists decision_by_time on decision (decided_at);
create index if not exists decision_by_name on decision (name);

create table if not exists ending (
    decision    integer primary key references decision (id),
    state       text not null check (state in ('filed', 'returned', 'missing')),
    destination blob,
    note        text,
    ended_at    text not null
);

-- Decisions without an ending: empty whenever the daemon is at rest.
create table if not exists unended (
    decision integer primary key references decision (id)
);
