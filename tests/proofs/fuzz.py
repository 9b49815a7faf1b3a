"""Damaged and hostile files, made from whole ones. ``make fuzz`` sends them by the hundred thousand to real decoders.

Prints how many of each damage were noticed. What decodes without complaint is classified: no decoder can tell.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.daemon import Sampler
from watcher.core.records import Rejected
from watcher.images.decoder_pool import DecoderPool

Random = np.random.Generator
LIMITS = {"max_bytes": 1 << 26, "max_pixels": 64_000_000, "memory_mb": 1024}
FORMS = {
    "grey JPEG": ("JPEG", "L", {"quality": 92}),
    "colour JPEG": ("JPEG", "RGB", {"quality": 85, "subsampling": 2}),
    "progressive JPEG": ("JPEG", "L", {"progressive": True}),
    "optimised JPEG": ("JPEG", "L", {"optimize": True, "quality": 60}),
    "JPEG with restart markers": ("JPEG", "RGB", {"restart_marker_blocks": 4}),
    "CMYK JPEG": ("JPEG", "CMYK", {}),
    "JPEG with a thumbnail": ("JPEG", "L", {}),  # a whole JPEG, with an end of its own, in the header
    "grey PNG": ("PNG", "L", {}),
    "16-bit PNG": ("PNG", "I;16", {}),
    "palette PNG": ("PNG", "P", {}),
    "PNG with alpha": ("PNG", "RGBA", {}),
    "plain TIFF": ("TIFF", "L", {}),
    "16-bit TIFF": ("TIFF", "I;16", {}),
    "LZW TIFF": ("TIFF", "L", {"compression": "tiff_lzw"}),
    "deflated TIFF": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "PackBits TIFF": ("TIFF", "L", {"compression": "packbits"}),
    "JPEG TIFF": ("TIFF", "L", {"compression": "jpeg"}),
    "fax TIFF": ("TIFF", "1", {"compression": "group4"}),
    "palette TIFF": ("TIFF", "P", {}),
    "grey BMP": ("BMP", "L", {}),
    "colour BMP": ("BMP", "RGB", {}),
    "WebP": ("WEBP", "RGB", {"quality": 90}),
    "lossless WebP": ("WEBP", "RGBA", {"lossless": True}),
}
UNTOLD = ("plain TIFF", "16-bit TIFF", "palette TIFF", "grey BMP", "colour BMP", "WebP")
"""Zeros in them are black pixels, or may be: no hole can be told."""


def encode(picture: Image.Image, form: str) -> bytes:
    """A picture as a file of one of :data:`FORMS`."""
    kind, mode, options = FORMS[form]
    buffer = io.BytesIO()
    if "thumbnail" in form:
        small = io.BytesIO()
        picture.convert("L").resize((16, 16)).save(small, "JPEG")
        options = {**options, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + small.getvalue()}
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    (deep if mode == "I;16" else picture.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def _cut(data: bytearray, rng: Random) -> bytes:
    return bytes(data[: rng.integers(0, len(data))])


def _zero_tail(data: bytearray, rng: Random) -> bytes:
    at = int(rng.integers(0, len(data)))
    return bytes(data[:at]) + bytes(len(data) - at)


def _hole(data: bytearray, rng: Random) -> bytes:
    at, size = int(rng.integers(0, len(data))), int(rng.integers(16, 600))
    end = min(at + size, len(data))
    return bytes(data[:at]) + bytes(end - at) + bytes(data[end:])


def _flip_a_bit(data: bytearray, rng: Random) -> bytes:
    data[rng.integers(0, len(data))] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)


def _overwrite(data: bytearray, rng: Random) -> bytes:
    for at in rng.integers(0, len(data), rng.integers(1, 20)):
        data[at] = rng.integers(0, 256)
    return bytes(data)


def _repeat(data: bytearray, rng: Random) -> bytes:
    start, end = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return bytes(data[:end]) + bytes(data[start:])


def _remove(data: bytearray, rng: Random) -> bytes:
    start, end = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return bytes(data[:start]) + bytes(data[end:])


def _splice(data: bytearray, rng: Random) -> bytes:
    """The head of the file and the tail of itself, cut at other places: lengths and tables no longer fit."""
    return bytes(data[: rng.integers(0, len(data))]) + bytes(data[rng.integers(0, len(data)) :])


def _markers(data: bytearray, rng: Random) -> bytes:
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(data)))
        data[at : at + 2] = bytes([0xFF, int(rng.integers(0xC0, 0xFF))])
    return bytes(data)


def _lengths(data: bytearray, rng: Random) -> bytes:
    """Sizes in headers: where a decoder decides how much to allocate."""
    for at in rng.integers(0, min(len(data), 200), 4):
        data[at : at + 2] = int(rng.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF])).to_bytes(2, "big")
    return bytes(data)


DAMAGES: dict[str, Callable[[bytearray, Random], bytes]] = {
    "cut short": _cut,
    "zero-filled tail": _zero_tail,
    "zero-filled hole": _hole,
    "one bit flipped": _flip_a_bit,
    "bytes overwritten": _overwrite,
    "part repeated": _repeat,
    "part removed": _remove,
    "spliced": _splice,
    "markers inserted": _markers,
    "sizes changed": _lengths,
}


def damaged(count: int, seed: int, pictures: list[Image.Image] | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Form, damage and bytes of ``count`` files, none equal to the whole one it was made from."""
    rng, sampler = np.random.default_rng(seed), Sampler(seed)
    if pictures is None:
        pictures = [Image.open(io.BytesIO(data)) for data in sampler.many(12)]
    whole = {form: [encode(picture, form) for picture in pictures] for form in FORMS}
    kinds = [(form, damage) for form in FORMS for damage in DAMAGES]
    made = 0
    while made < count:
        form, damage = kinds[made % len(kinds)]
        data = whole[form][rng.integers(0, len(pictures))]
        spoilt = DAMAGES[damage](bytearray(data), rng)
        if spoilt != data:
            made += 1
            yield form, damage, spoilt


class Fuzz:
    """Sends files to real decoder processes, and counts what they say of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pool = DecoderPool(root, dict(LIMITS), timeout_s=10)
        self.said: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._damage: dict[str, str] = {}

    def run(self, count: int, seed: int) -> None:
        """Every file is answered for."""
        self.pool.start()
        try:
            for number, (form, damage, data) in enumerate(damaged(count, seed)):
                name = f"{number}"
                (self.root / name).write_bytes(data)
                self._damage[name] = f"{FORMS[form][0]}, {damage}"
                self.pool.submit(name)
                while len(self.pool) > 256:
                    self._collect()
            while len(self.pool):
                self._collect()
        finally:
            self.processes = [child.process.pid for child in self.pool._children]
            self.pool.close()

    def _collect(self) -> None:
        wait(self.pool.connections, 0.1)
        for result in self.pool.collect():
            told = result.reason if isinstance(result, Rejected) else "decoded"
            self.said[self._damage.pop(result.name)][told] += 1
            if told not in ("decoder_crashed", "decoder_hung"):
                os.unlink(self.root / result.name)

    @property
    def reasons(self) -> Counter[str]:
        """The number of times that each reason was given, over all damages."""
        return sum(self.said.values(), Counter())


def main() -> None:
    """Run and print the tally."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--files", type=int, default=100_000)
    words.add_argument("--seed", type=int, default=int(time.time()))
    args = words.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mednet-fuzz-") as root:
        sys.stderr.write(f"fuzz: seed {args.seed}, in {root}\n")
        fuzz = Fuzz(Path(root))
        fuzz.run(args.files, args.seed)
        for damage, told in sorted(fuzz.said.items()):
            noticed = told.total() - told["decoded"]
            sys.stdout.write(f"{damage:32} {noticed:6} of {told.total():6} noticed: {dict(told.most_common())}\n")
        broken = fuzz.reasons["decoder_crashed"] + fuzz.reasons["decoder_hung"]
        sys.stdout.write(
            f"{fuzz.reasons.total()} files in {time.monotonic() - started:.0f} s, "
            f"{fuzz.reasons['decoder_crashed']} crashes, {fuzz.reasons['decoder_hung']} hangs\n"
        )
        if broken:
            sys.stdout.write(f"they were: {sorted(os.listdir(root))}; run again with --seed {args.seed}\n")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
