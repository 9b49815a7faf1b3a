"""Errors, named by what follows from them.

A station raises one of these and never logs; :mod:`watcher.service.pipeline` decides what
becomes of the file, :mod:`watcher.cli.main` turns :class:`Fatal` into an exit code.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of ``mednet-watcher``, documented in the README."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    MODEL = 4
    DIRECTORY = 5
    ALREADY_RUNNING = 6
    INTERRUPTED = 130


class WatcherError(Exception):
    """Base of every error this product raises on purpose."""


class Reject(WatcherError):
    """This file can not be read as an image: it goes to quarantine, with the reason.

    ``reason`` is one of a small fixed vocabulary (it labels metrics), ``detail``
    says in words what was wrong with this very file.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Retry(WatcherError):
    """Nothing is wrong with the file; the surroundings failed. Try again later."""


class Vanished(WatcherError):
    """The file is no longer in the inbox, or is not the file that was classified."""


class Fatal(WatcherError):
    """The daemon can not go on. Says what to do, and the process's exit code."""

    def __init__(self, problem: str, advice: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(f"{problem}\n  {advice}")
        self.problem = problem
        self.advice = advice
        self.code = code
