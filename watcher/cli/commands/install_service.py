"""``install-service``: install the files of the systemd service. A config file that exists is never changed."""

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
"""Directories that the unit hides from the service (ProtectHome, PrivateTmp)."""


@dataclass(frozen=True)
class _File:
    """One file to install. ``operators``: it belongs to the operator, and is never replaced."""

    target: Path
    text: str
    operators: bool = False


def run(args: argparse.Namespace) -> int:
    """Install the files below the prefix, or print which would be installed."""
    prefix: Path = args.prefix
    files = _files(gpu=args.gpu, metrics=args.metrics)
    for file in files:
        target = prefix / file.target
        print(f"{_install(target, file, dry_run=args.dry_run):9}  {target}")
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
    files = [
        _File(Path(_UNIT), _shipped("mednet-watcher.service")),
        _File(Path("etc/sysusers.d/mednet-watcher.conf"), _shipped("mednet-watcher.sysusers")),
        _File(Path("etc/tmpfiles.d/mednet-watcher.conf"), _shipped("mednet-watcher.tmpfiles")),
        _File(Path("etc/mednet-watcher/config.yaml"), service_config(), operators=True),
        _File(Path("etc/mednet-watcher/environment"), _shipped("environment"), operators=True),
    ]
    drop_ins = ["gpu.conf"] * gpu + ["metrics.conf"] * metrics
    files += [_File(Path(f"{_UNIT}.d/{name}"), _shipped(name)) for name in drop_ins]
    program = _program()
    [search_path] = re.findall("^Environment=PATH=(.*)$", files[0].text, re.MULTILINE)
    if str(program) not in search_path.split(":"):
        comment = "# The directory of the program, as install-service found it."
        text = f"{comment}\n[Service]\nEnvironment=PATH={program}:{search_path}\n"
        files.append(_File(Path(f"{_UNIT}.d/program.conf"), text))
    return files


def _shipped(name: str) -> str:
    return shipped_files.systemd(name).read_text()


def service_config() -> str:
    """Return the shipped config.yaml with the paths of the service."""
    section, lines = "", []
    for line in shipped_files.config().read_text().splitlines():
        key, _, value = line.partition(": ")
        section = line[:-1] if re.fullmatch(r"[a-z]+:", line) else section
        path = _PATHS.get(f"{section}.{key.strip()}") if value else None
        lines.append(line if path is None else f"{key}: {path}")
    return "\n".join(lines) + "\n"


def _program() -> Path:
    """Return the directory of this program itself, not that of a link to it."""
    called = Path(os.path.realpath(sys.argv[0]))
    return (called if called.name == "mednet-watcher" else Path(sys.executable)).parent


def _install(target: Path, file: _File, *, dry_run: bool) -> str:
    """Write one file completely, or not at all. Return what was done, or would be done."""
    if target.exists() and (file.operators or target.read_text() == file.text):
        return "kept" if file.operators else "unchanged"
    try:
        if not dry_run:
            target.parent.mkdir(parents=True, exist_ok=True)
            new_file = target.with_name(f".{target.name}.new")
            new_file.write_text(file.text)
            new_file.chmod(0o644)
            new_file.replace(target)
    except OSError as error:
        raise Fatal(
            f"{target} can not be written: {error.strerror}",
            "Run this as root, or use --prefix to install below a directory of your own.",
            Exit.DIRECTORY,
        ) from error
    return "would be" if dry_run else "installed"
