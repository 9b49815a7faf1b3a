"""Check ledger, weights, device, cores and decoders."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path

from PIL import Image

from watcher.config import loader, paths_and_limits
from watcher.config.settings import Review
from watcher.core import available_cpus, lock
from watcher.core.errors import Fatal
from watcher.core.records import Decoded, Rejected
from watcher.images.decoder_pool import DecoderPool
from watcher.images.formats import detect
from watcher.inbox import ownership
from watcher.ledger import reader
from watcher.model import checkpoint, promotions, thresholds
from watcher.service.doctor import directory_checks
from watcher.service.doctor.directory_checks import Check

GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Device files of GPUs. If there is none, torch finds no GPU, and is not imported, because that takes seconds."""

LIBRARIES = ("Pillow", "simplejpeg", "pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls")
"""Distributions that decode images: those of the core and those of the extra ``dicom``."""


def checks(settings: loader.Config) -> Iterator[Check]:
    """Make all checks, and yield each as soon as it is made."""
    yield running(settings)
    yield from directory_checks.directories(settings)
    yield ledger(paths_and_limits.ledger_path(settings))
    yield weights(promotions.weights_path(None, settings), settings.review)
    yield device(settings.model.device, settings.model.runtime)
    yield threads(settings.model.threads)
    yield from decoders(settings)


def running(settings: loader.Config) -> Check:
    """Report which processes sort this inbox now."""
    paths = [paths_and_limits.lock_path(settings), *ownership.workers(settings.state.path).values()]
    pids = [str(facts.get("pid", "unknown")) for path in paths if (facts := lock.holder(path)) is not None]
    return Check("ok", "daemon", f"runs, process {', '.join(pids)}" if pids else "does not run")


def ledger(path: Path) -> Check:
    """Check that the ledger can be read, and report the version of SQLite."""
    version = f"SQLite {sqlite3.sqlite_version}"
    try:
        if not reader.exists(path):
            return Check("ok", "ledger", f"not there yet; the first start makes it, {version}")
        with reader.LedgerReader(path) as ledger_reader:
            return Check("ok", "ledger", f"{ledger_reader.last_id():,} decisions, {version}")
    except Fatal as error:
        return Check("fail", "ledger", error.problem, error.advice)


def weights(path: Path, review: Review) -> Check:
    """Check that the weights match their digest, and have the operating point that the config sets."""
    try:
        loaded = checkpoint.load(path)
        thresholds.policy(review, loaded)
    except Fatal as error:
        return Check("fail", "weights", error.problem, error.advice)
    return Check("ok", "weights", f"{loaded.name}, {len(loaded.classes)} classes, digest {loaded.digest}")


def device(requested: str, runtime: str) -> Check:
    """Check on which device and runtime the network will run. Torch is imported only if there may be a GPU."""
    version = f"torch {_version('torch') or 'is not installed'}"
    if _version("torch") is None:
        return Check("fail", "device", version, "Install mednet-watcher again, with what it requires.")
    if requested == "cpu" or (requested == "auto" and not any(map(os.path.exists, GPUS))):
        if runtime == "torch":
            return Check("ok", "device", f"cpu, {version}")
        if _imports("onnx", "onnxruntime"):
            return Check("ok", "device", f"cpu, by onnxruntime, {version}")
        result = f"cpu, {version}, onnxruntime can not be imported"
        if runtime == "auto":
            return Check("ok", "device", result)
        return Check("fail", "device", result, "Install mednet-watcher[onnx], or set model.runtime to auto or torch.")
    from watcher.model import classifier

    try:
        return Check("ok", "device", f"{classifier.choose_device(requested)}, {version}")  # type: ignore[arg-type]
    except Fatal as error:
        return Check("fail", "device", error.problem, error.advice)


def _imports(*names: str) -> bool:
    """Return True if all modules can be imported, in another process, because a broken one can crash it."""
    command = [sys.executable, "-c", f"import {', '.join(names)}"]
    environ = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}  # as watcher.model.onnx_backend, which would import torch
    return subprocess.run(command, capture_output=True, check=False, timeout=120, env=environ).returncode == 0


def threads(requested: int) -> Check:
    """Check that there are as many cores as the config sets threads. 0 means as many as there are."""
    usable = available_cpus.count()
    result = f"{usable} cores, {requested or 'as many'} threads"
    if requested > usable:
        return Check("warn", "cores", result, "More threads than cores are slower: lower model.threads.")
    return Check("ok", "cores", result)


def decoders(settings: loader.Config) -> Iterator[Check]:
    """Decode a picture of each format in a decoder as confined as the daemon's, and report the installed libraries."""
    with tempfile.TemporaryDirectory(prefix="mednet-doctor-") as directory:
        names = {kind: _picture(Path(directory), kind) for kind in detect.NAMES}
        answers = _decoded(list(names.values()), Path(directory), settings)
    for kind, name in names.items():
        answer = answers.get(name)
        if isinstance(answer, Decoded):
            yield Check("ok", f"decoder {kind}", f"decoded a picture in {answer.decode_ms:.1f} ms")
        else:
            error = f"{answer.reason}: {answer.detail}" if answer else "no answer"
            advice = "Raise decode.memory_mb, and decode.timeout_s on a slow host; or install mednet-watcher again."
            yield Check("fail", f"decoder {kind}", f"a valid picture is refused: {error}", advice)
    libraries = [f"{name} {version}" for name in LIBRARIES if (version := _version(name))]
    yield Check("ok", "libraries", ", ".join(libraries))


def _picture(directory: Path, kind: str) -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, kind)
    name = f"picture.{kind.lower()}"
    (directory / name).write_bytes(buffer.getvalue())
    return name


def _decoded(names: list[str], directory: Path, settings: loader.Config) -> dict[str, Decoded | Rejected]:
    pool = DecoderPool(directory, paths_and_limits.decoder_limits(settings), settings.decode.timeout_s)
    answers: dict[str, Decoded | Rejected] = {}
    try:
        for name in names:
            pool.submit(name)
        while len(pool):
            wait(pool.connections, max(0.0, (pool.due_s() or 0.0) - time.monotonic()))
            answers.update((answer.name, answer) for answer in pool.collect())
    except Fatal:
        pass  # no decoder starts: a picture without an answer is reported as such
    finally:
        pool.close()
    return answers


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
