"""The tags of a file may cost it its class, and never give it one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.core import shipped_files
from watcher.core.records import Decision, Decoded, Identity, Outcome
from watcher.images import dicom_vocabulary
from watcher.model import checkpoint, review_triggers

CLASSES = ("ChestCT", "BreastMRI", "CXR", "AbdomenCT", "HeadCT", "Hand")
SORTED = Decision(Outcome.SORTED, "HeadCT", 0.99, top=(("HeadCT", 0.99),))
UNSURE = Decision(Outcome.REVIEW, "HeadCT", 0.5, "low_confidence", "0.5 is below 0.8", (("HeadCT", 0.5),))


def image(frames: int = 1, modality: str | None = None, body_part: str | None = None) -> Decoded:
    identity, pixels = Identity(1, 2, 3, 4), np.zeros((64, 64), np.uint8)
    return Decoded("a.dcm", identity, "d", pixels, False, 1.0, frames, modality, body_part)


class TestTags:
    def test_every_shipped_class_is_known(self) -> None:
        """The table has the classes of the shipped weights, by their very names."""
        shipped = set(checkpoint.load(shipped_files.weights()).classes)
        assert shipped == dicom_vocabulary._EXPECTED.keys() == set(CLASSES)

    @pytest.mark.parametrize(
        ("label", "modality", "part"),
        [
            ("ChestCT", "CT", "CHEST"),
            ("ChestCT", "CT", "CHESTABDOMEN"),
            ("AbdomenCT", "CT", "CHESTABDOMEN"),
            ("AbdomenCT", "CT", "ABDOMENPELVIS"),
            ("HeadCT", "CT", "BRAIN"),
            ("BreastMRI", "MR", "BREAST"),
            ("CXR", "CR", "CHEST"),
            ("CXR", "DX", "CHEST"),
            ("Hand", "DX", "WRIST"),
            ("Hand", None, None),
            ("SomethingElse", "CT", "KNEE"),
        ],
    )
    def test_what_agrees_is_left_alone(self, label: str, modality: str | None, part: str | None) -> None:
        """Tags of the class, none at all, or a class that is not known here: the decision stands."""
        assert dicom_vocabulary.disagreement(label, modality, part) is None

    @pytest.mark.parametrize(
        ("label", "modality", "part", "against"),
        [
            ("Hand", "CT", "HEAD", "Modality CT and BodyPartExamined HEAD"),
            ("CXR", "CT", "CHEST", "Modality CT"),
            ("ChestCT", "DX", "CHEST", "Modality DX"),
            ("HeadCT", None, "KNEE", "BodyPartExamined KNEE"),
            ("BreastMRI", "MG", "BREAST", "Modality MG"),
            ("AbdomenCT", "US", None, "Modality US"),
        ],
    )
    def test_what_disagrees_is_told(self, label: str, modality: str | None, part: str | None, against: str) -> None:
        """One tag that speaks against the class is enough, and the detail names it."""
        found = review_triggers.apply(
            Decision(Outcome.SORTED, label, 1.0), image(1, modality, part), review_triggers.ReviewRules()
        )
        assert (found.outcome, found.reason, found.label) == (Outcome.REVIEW, "metadata_disagrees", label)
        assert found.detail == f"the file says {against}"

    @given(st.text(max_size=20) | st.none() | st.integers() | st.lists(st.text()))
    def test_only_known_words_leave_a_decoder(self, said: object) -> None:
        """Any content of a tag, a name for example, becomes one of few words, or nothing."""
        assert dicom_vocabulary.modality(said) in dicom_vocabulary.MODALITIES | {None}
        assert dicom_vocabulary.body_part(said) in dicom_vocabulary.PARTS | {None}

    def test_spelling(self) -> None:
        """Small letters, blanks and strokes do not hide a word."""
        assert dicom_vocabulary.body_part(" c-spine ") == "CSPINE"
        assert dicom_vocabulary.body_part("Abdomen_Pelvis") == "ABDOMENPELVIS"
        assert dicom_vocabulary.modality("ct ") == "CT"
        assert dicom_vocabulary.body_part("DOE^JOHN") is None and dicom_vocabulary.modality("OT") is None


class TestTake:
    def test_agreement_never_decides(self) -> None:
        """An unsure decision stays with a person, however well the tags fit."""
        assert review_triggers.apply(UNSURE, image(1, "CT", "HEAD"), review_triggers.ReviewRules()) == UNSURE

    def test_switched_off(self) -> None:
        """Tags that are known to be wrong can be ignored."""
        rules = review_triggers.ReviewRules(metadata=False)
        assert review_triggers.apply(SORTED, image(1, "US", "KNEE"), rules) == SORTED

    def test_several_frames(self) -> None:
        """They go to a person, with the class of the middle one; with ``middle`` they are sorted by it."""
        for decision in (SORTED, UNSURE):
            found = review_triggers.apply(decision, image(30), review_triggers.ReviewRules())
            assert (found.outcome, found.reason, found.label) == (Outcome.REVIEW, "multi_frame", "HeadCT")
            assert found.detail is not None and found.detail.startswith("30 frames")
            assert review_triggers.apply(decision, image(30), review_triggers.ReviewRules("middle")) == decision
