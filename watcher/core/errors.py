"""Define the errors of this product. Each is named by what the daemon does about it.

The packages raise them and never log. :mod:`watcher.service.pipeline` decides what happens to the file, and
:mod:`watcher.cli.main` turns :class:`Fatal` into an exit code.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of ``mednet-watcher``, as documented in the README."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    MODEL = 4
    DIRECTORY = 5
    ALREADY_RUNNING = 6
    INTERRUPTED = 130


class WatcherError(Exception):
    """Base class of all errors that this product raises on purpose."""


class Reject(WatcherError):
    """The file cannot be read as an image, so it goes to quarantine.

    Attributes:
        reason: One of a few fixed words. It labels metrics.
        detail: What is wrong with this file, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Retry(WatcherError):
    """The file is fine, but its surroundings failed (a full disk, a lost mount). Try again later."""


class Vanished(WatcherError):
    """The file is no longer in the inbox, or another file has its name."""


class Fatal(WatcherError):
    """The program cannot go on.

    Attributes:
        problem: What is wrong, for people.
        advice: What to do about it.
        code: The exit code of the process.
    """

    def __init__(self, problem: str, advice: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(f"{problem}\n  {advice}")
        self.problem = problem
        self.advice = advice
        self.code = code
