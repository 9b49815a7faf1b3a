"""Put files from a browser into the inbox: complete, synced to disk, and under a free name."""

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
    """Put one file into the inbox, and return its path. Until it is complete it has a name that no daemon takes.

    Raises:
        Reject: the daemon would ignore a file with this name, or the file is empty or too large.
        Retry: the inbox can not be written.
    """
    base_name = os.path.basename(name.replace("\\", "/")).strip()
    if (
        not (base_name and base_name.isprintable())
        or len(base_name.encode("utf-8", "replace")) > 200
        or not inbox.wants(base_name)
    ):
        raise Reject("name", "the daemon would ignore a file with this name")
    partial = inbox.path / f".{uuid.uuid4().hex}{no_overwrite.PARTIAL}"
    try:
        with partial.open("xb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if not 0 < size <= max_bytes:
            raise Reject("size", f"the file has {size} bytes; 1 to {max_bytes} are allowed")
        return _publish(partial, inbox.path, base_name)
    except OSError as error:
        raise Retry(f"the inbox can not be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _publish(partial: Path, inbox: Path, name: str) -> Path:
    for candidate in no_overwrite.candidates(name, None):
        with contextlib.suppress(FileExistsError):
            no_overwrite.rename_noreplace(partial, inbox / candidate)
            no_overwrite.sync_directory(inbox)
            return inbox / candidate
    raise AssertionError("candidates() does not end")
