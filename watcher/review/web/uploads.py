"""Files from a browser into the inbox: whole, synced, and under a name that is free."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import IO

from watcher.core import no_overwrite
from watcher.core.errors import Reject, Retry
from watcher.inbox.scan import Inbox


def put(stream: IO[bytes], name: str, inbox: Inbox, max_bytes: int) -> Path:
    """Put one file there. Until it is whole it has a name that no daemon takes.

    Raises:
        Reject: the name would not be looked at, or it is too large, or empty.
        Retry: the inbox can not be written.
    """
    plain = os.path.basename(name.replace("\\", "/")).strip()
    if not (plain and plain.isprintable()) or len(plain.encode("utf-8", "replace")) > 200 or not inbox.wants(plain):
        raise Reject("name", "the daemon would not look at a file of that name")
    partial = inbox.path / f".{uuid.uuid4().hex}{no_overwrite.PARTIAL}"
    try:
        with partial.open("xb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if not 0 < size <= max_bytes:
            raise Reject("size", f"{size} bytes; 1 to {max_bytes} are taken")
        return _appear(partial, inbox.path, plain)
    except OSError as error:
        raise Retry(f"the inbox can not be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _appear(partial: Path, inbox: Path, name: str) -> Path:
    for candidate in no_overwrite.candidates(name, None):
        with contextlib.suppress(FileExistsError):
            no_overwrite.rename_noreplace(partial, inbox / candidate)
            no_overwrite.sync_directory(inbox)
            return inbox / candidate
    raise AssertionError("candidates() does not end")
