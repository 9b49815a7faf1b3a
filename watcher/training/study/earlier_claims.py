"""Compare the claims of the proof of concept with the verdicts of a study."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.training.study.significance import ChangeVerdict

CLAIM = """\
The proof of concept reports that one change after another brought 31 errors of 5,740 test images down to 3. The test
images take no part in this study. Here its steps are added to its starting point, or taken back from its end. Changes
that it tried and did not take are added to its end."""

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
    """Say if a claim (``step``, ``undone`` or ``tried``) holds, by the verdict on its variant."""
    return _WORDS.get((claim, verdict.word if verdict else ""), "can not be told")


def table(claims: Sequence[tuple[str, str, str, ChangeVerdict | None]]) -> list[str]:
    """Return a Markdown table of claims: the variant, what it changes, the kind of claim and the verdict of each."""
    head = ["| variant | what changes | the proof of concept | here | does it hold? |", "|---|---|---|---|---|"]
    return head + [
        f"| `{name}` | {says} | {_CLAIMED[claim]} | {verdict.word if verdict else '-'} | {answer(claim, verdict)} |"
        for name, says, claim, verdict in claims
    ]
