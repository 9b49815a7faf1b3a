"""A million log lines while the real logrotate turns the file over: ``make rotate``. Every line is looked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.repository import TOP

_WRITER = """
import sys
from pathlib import Path
from watcher.monitoring import log, log_output
journal = log.DaemonLog(log_output.LineOutput(open("/dev/null", "w")))
journal.use("json", "info", log_output.LogFile(Path(sys.argv[1])))
for number in range(int(sys.argv[2])):
    journal.logger.info("inbox.given_back", files=number)
Path(sys.argv[1]).with_name("done").touch()
sys.stdin.read()  # until the last rotation is over: what it cut comes back with the next line
journal.logger.info("inbox.given_back", files=number + 1)
"""


@dataclass
class Found:
    """The outcome of the lines."""

    written: int
    rotations: int
    lost: int
    torn: int
    doubled: int
    seconds: float


def prove(root: Path, count: int, how: str) -> Found:
    """Write ``count`` lines from another process, rotate all the while, then count what is in all files."""
    path, config = root / "x.log", root / "logrotate.conf"
    config.write_text(f"{path} {{\n  rotate 100000\n  missingok\n  {how}\n}}\n")
    started, rotations = time.monotonic(), 0
    environ = {"PYTHONPATH": str(TOP)}
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), str(count)], env=environ, stdin=subprocess.PIPE
    )
    while not (root / "done").exists():
        assert writer.poll() is None
        time.sleep(0.05)
        if path.exists() and path.stat().st_size:
            subprocess.run(
                ["logrotate", "--force", "--state", str(root / "state"), str(config)], check=True, timeout=60
            )
            rotations += 1
    writer.communicate(timeout=60)
    assert writer.returncode == 0
    seen: Counter[int] = Counter()
    torn = 0
    for file in root.glob("x.log*"):
        for line in file.read_bytes().split(b"\n"):
            if line:
                try:
                    seen[json.loads(line)["files"]] += 1
                except (ValueError, KeyError, TypeError):
                    torn += 1
    return Found(
        written=count + 1,
        rotations=rotations,
        lost=count + 1 - len(seen),
        torn=torn,
        doubled=sum(number > 1 for number in seen.values()),
        seconds=time.monotonic() - started,
    )


def main() -> None:
    """A million lines each way."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    failed = False
    for how in ("create", "copytruncate"):
        root = Path(tempfile.mkdtemp(prefix="mednet-rotate-"))
        found = prove(root, count, how)
        sys.stdout.write(
            f"{how:12}  {found.written} lines, {found.rotations} rotations, {found.lost} lost, {found.torn} torn, "
            f"{found.doubled} doubled, {found.seconds:.0f} s\n"
        )
        failed |= found.lost + found.torn + found.doubled > 0
        shutil.rmtree(root)
    sys.exit(failed)


if __name__ == "__main__":
    main()
