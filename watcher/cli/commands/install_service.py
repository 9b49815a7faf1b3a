"""``install-service``: puts the files of the systemd service in place. Never touches a config that is there."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from watcher.core import shipped_files
from watcher.core.errors import Exit, Fatal

_UNIT = "etc/systemd/system/mednet-watcher.service"
_PATHS = {
    "inbox.path": "/srv/radiology/inbox",
    "output.sorted": "/srv/radiology/sorted",
    "output.review": "/srv/radiology/review",
    "output.quarantine": "/srv/radiology/quarantine",
    "output.rejected": "/srv/radiology/rejected",
    "state.path": "/var/lib/mednet-watcher",
}
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What the unit hides from the service (ProtectHome, PrivateTmp)."""


@dataclass(frozen=True)
class _File:
    """One file to install. ``yours``: it belongs to the operator once it is there."""

    target: Path
    text: str
    yours: bool = False


def run(args: argparse.Namespace) -> int:
    """Install below the prefix, or say what would be."""
    prefix: Path = args.prefix
    files = _files(gpu=args.gpu, metrics=args.metrics)
    for file in files:
        target = prefix / file.target
        print(f"{_put(target, file, dry=args.dry_run):9}  {target}")
    program = _program()
    if any(program.is_relative_to(hidden) for hidden in _HIDDEN):
        print(
            f"mednet-watcher: the service can not see {program}: install the product into /opt/mednet-watcher",
            file=sys.stderr,
        )
    if not args.dry_run and prefix == Path("/"):
        print("\nNow look at /etc/mednet-watcher/config.yaml, then, as root:\n" + _NEXT)
    return Exit.OK


_NEXT = """
    systemd-sysusers && systemd-tmpfiles --create
    systemctl daemon-reload
    systemctl enable --now mednet-watcher
    systemctl status mednet-watcher"""


def _files(*, gpu: bool, metrics: bool) -> list[_File]:
    made = [
        _File(Path(_UNIT), _shipped("mednet-watcher.service")),
        _File(Path("etc/sysusers.d/mednet-watcher.conf"), _shipped("mednet-watcher.sysusers")),
        _File(Path("etc/tmpfiles.d/mednet-watcher.conf"), _shipped("mednet-watcher.tmpfiles")),
        _File(Path("etc/mednet-watcher/config.yaml"), service_config(), yours=True),
        _File(Path("etc/mednet-watcher/environment"), _shipped("environment"), yours=True),
    ]
    drop_ins = ["gpu.conf"] * gpu + ["metrics.conf"] * metrics
    made += [_File(Path(f"{_UNIT}.d/{name}"), _shipped(name)) for name in drop_ins]
    program = _program()
    [searched] = re.findall("^Environment=PATH=(.*)$", made[0].text, re.MULTILINE)
    if str(program) not in searched.split(":"):
        text = f"# Where the program was found by install-service.\n[Service]\nEnvironment=PATH={program}:{searched}\n"
        made.append(_File(Path(f"{_UNIT}.d/program.conf"), text))
    return made


def _shipped(name: str) -> str:
    return shipped_files.systemd(name).read_text()


def service_config() -> str:
    """The shipped config.yaml, with the paths of the service."""
    section, lines = "", []
    for line in shipped_files.config().read_text().splitlines():
        key, _, value = line.partition(": ")
        section = line[:-1] if re.fullmatch(r"[a-z]+:", line) else section
        path = _PATHS.get(f"{section}.{key.strip()}") if value else None
        lines.append(line if path is None else f"{key}: {path}")
    return "\n".join(lines) + "\n"


def _program() -> Path:
    """The directory of this very program, and not of a link to it."""
    called = Path(os.path.realpath(sys.argv[0]))
    return (called if called.name == "mednet-watcher" else Path(sys.executable)).parent


def _put(target: Path, file: _File, *, dry: bool) -> str:
    """Write one file, whole or not at all. Gives what was done, or would be."""
    if target.exists() and (file.yours or target.read_text() == file.text):
        return "kept" if file.yours else "unchanged"
    try:
        if not dry:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.new")
            fresh.write_text(file.text)
            fresh.chmod(0o644)
            fresh.replace(target)
    except OSError as error:
        raise Fatal(
            f"{target} can not be written: {error.strerror}",
            "Run this as root, or stage the files below a directory of your own with --prefix.",
            Exit.DIRECTORY,
        ) from error
    return "would be" if dry else "installed"
