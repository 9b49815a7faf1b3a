"""What the model saw of a file, as a PNG. The file's own bytes never reach the browser, nor this process's decoders."""

from __future__ import annotations

import io
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

from PIL import Image

from watcher.core.records import Decoded
from watcher.images.decoder_pool import DecoderPool, Result

SIDE = 256
"""Pixels of the picture: the 64 x 64 of the model, each four times as large."""


class Pictures:
    """Decodes in the confined child of the daemon's own kind, one file at a time. Called by any thread."""

    def __init__(self, limits: dict[str, int], timeout_s: float) -> None:
        self._limits, self._timeout_s = limits, timeout_s
        self._pool: DecoderPool | None = None
        self._lock = threading.Lock()

    def png(self, path: Path, digest: str) -> bytes | None:
        """The picture of a file with these bytes. None: there is no such file, or it shows nothing."""
        with self._lock:
            result = self._decoded(str(path))
        if not isinstance(result, Decoded) or result.digest != digest:
            return None
        buffer = io.BytesIO()
        Image.fromarray(result.image).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, "PNG")
        return buffer.getvalue()

    def _decoded(self, path: str) -> Result:
        if self._pool is None:
            self._pool = DecoderPool(None, self._limits, self._timeout_s)
        self._pool.submit(path)
        while True:
            for result in self._pool.collect():
                return result
            due = self._pool.due_s()
            wait(self._pool.connections, None if due is None else max(0.0, due - time.monotonic()))

    def close(self) -> None:
        """End the child."""
        if self._pool is not None:
            self._pool.close()
