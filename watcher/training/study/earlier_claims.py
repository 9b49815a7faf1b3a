"""What the proof of concept found, held against the verdicts of a study."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.training.study.significance import ChangeVerdict

CLAIM = """\
The proof of concept tells of 31 errors of 5,740 test images brought down to 3 by one change after another. The test
images take no part in this study. Its steps are added to its starting point here, or taken back from where it ended;
what it tried besides, and did not take over, is added to that."""

_CLAIMED = {"step": "helps", "undone": "to take it back hurts", "tried": "does not help"}

_WORDS = {
    ("step", "helped"): "**holds**",
    ("step", "hurt"): "**does not hold**: it hurts",
    ("undone", "hurt"): "**holds**",
    ("undone", "helped"): "**does not hold**: it helps to take it back",
    ("tried", "hurt"): "**holds**: it hurts",
    ("tried", "helped"): "**does not hold**: it helps",
    ("tried", "no difference"): "nothing against it",
}


def answer(claim: str, verdict: ChangeVerdict | None) -> str:
    """Whether a claim (``step``, ``undone`` or ``tried``) holds by the verdict on its variant."""
    return _WORDS.get((claim, verdict.word if verdict else ""), "can not be told")


def table(claims: Sequence[tuple[str, str, str, ChangeVerdict | None]]) -> list[str]:
    """Markdown of claims: each a name, what was changed, its kind, and the verdict."""
    head = ["| variant | what changes | the proof of concept | here | does it hold? |", "|---|---|---|---|---|"]
    return head + [
        f"| `{name}` | {says} | {_CLAIMED[claim]} | {verdict.word if verdict else '-'} | {answer(claim, verdict)} |"
        for name, says, claim, verdict in claims
    ]
