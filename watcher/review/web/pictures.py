"""Draw files as the model saw them, as PNG.

A file's own bytes never reach the browser. They are decoded in a child process, not in this one.
"""

from __future__ import annotations

import io
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

from PIL import Image

from watcher.core.records import Decoded
from watcher.images.decoder_answers import Result
from watcher.images.decoder_pool import DecoderPool

SIDE = 256
"""Width and height of a picture in pixels: each of the model's 64 x 64 pixels is drawn as 4 x 4."""


class Pictures:
    """Decodes one file at a time, in a confined child process like the daemon's. May be called by any thread."""

    def __init__(self, limits: dict[str, int], timeout_s: float) -> None:
        self._limits, self._timeout_s = limits, timeout_s
        self._pool: DecoderPool | None = None
        self._lock = threading.Lock()

    def png(self, path: Path, digest: str) -> bytes | None:
        """Return the picture of a file, or None if it can not be decoded or has other bytes than ``digest`` says."""
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
            due_s = self._pool.due_s()
            wait(self._pool.connections, None if due_s is None else max(0.0, due_s - time.monotonic()))

    def close(self) -> None:
        """End the child process."""
        if self._pool is not None:
            self._pool.close()
