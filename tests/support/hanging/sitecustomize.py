"""Makes decoder processes loop for ever on files that begin with "hang". On the path of ``hostile.py``'s daemon only.

No file is known that hangs a decoder: this stands for the one that is found next.
"""

from __future__ import annotations

import sys
from typing import Any

if "watcher.images.decoder_process" in sys.orig_argv:
    from watcher.images import decode

    _read = decode.read

    def _hang(data: bytes, *more: Any) -> decode.Picture:
        while data.startswith(b"hang"):
            pass
        return _read(data, *more)

    decode.read = _hang
