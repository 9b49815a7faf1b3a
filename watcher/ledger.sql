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
    outcome    text    not null check (outcome in ('sorted', 'review', 'quarantine', 'restored')),
    class      text,
    confidence real    not null,
    reason     text,             -- when restored: retry or undo
    detail     text,
    top        text    not null, -- JSON: [[class, probability], ...]
    model      text,             -- digest of the weights; null when a person decided
    directory  blob    not null, -- where it was to go
    restores   integer references decision (id),
    decided_at text    not null
);

create index if not exists decision_by_time on decision (decided_at);
create index if not exists decision_by_name on decision (name);
create index if not exists decision_by_digest on decision (digest);
create index if not exists decision_by_restored on decision (restores) where restores is not null;

create table if not exists ending (
    decision    integer primary key references decision (id),
    state       text not null check (state in ('filed', 'returned', 'missing')),
    destination blob,
    note        text,
    ended_at    text not null
);

-- Decisions without an ending: empty whenever nobody moves files. The owner is who must end them; it is
-- alive as long as it holds the lock of that name.
create table if not exists unended (
    decision integer primary key references decision (id),
    owner    text not null
);

-- How many files each owner has filed, by outcome: what would take long to count.
create table if not exists tally (
    owner   text    not null,
    outcome text    not null,
    files   integer not null,
    primary key (owner, outcome)
) without rowid;

create trigger if not exists tally_filed after insert on ending when new.state = 'filed' begin
    insert into tally
        select owner, outcome, 1 from decision join unended on unended.decision = decision.id
        where decision.id = new.decision
    on conflict do update set files = files + 1;
end;

-- Which directories files were moved from and to, lately: after a crash it must be seen that they are the same ones,
-- and not what lies beneath a mount that is gone.
create table if not exists place (
    path   blob    primary key,
    device integer not null,
    inode  integer not null
) without rowid;

pragma user_version = 2;
