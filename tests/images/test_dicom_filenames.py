"""Names of DICOM files from their tags: only what may be told, and the file's own name back when it is put back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, mednet
from tests.support.dicom_files import SHADE, dicom
from watcher.config import loader
from watcher.config.loader import ConfigError
from watcher.core import no_overwrite
from watcher.core.records import Decision, Decoded, Filed, Identity, MoveOrder, Outcome, Timing
from watcher.filing import put_back_requests
from watcher.filing.decision_executor import DecisionExecutor
from watcher.filing.destinations import Destinations
from watcher.filing.mover import Mover
from watcher.filing.recovery import recover
from watcher.images import decoder_answers, dicom_filenames
from watcher.images.decoder_pool import DecoderPool
from watcher.ledger.reader import LedgerReader
from watcher.ledger.writer import Ledger

TEMPLATE = "{Modality}-{BodyPartExamined}-{SOPInstanceUID}"
HASH = hashlib.sha256(b"1.2.3").hexdigest()[:16]


class TestTemplate:
    def test_tags_in_their_order(self) -> None:
        """The tags are told that a template names."""
        assert dicom_filenames.tags("{Modality}_x-{StudyInstanceUID}") == ("Modality", "StudyInstanceUID")

    @pytest.mark.parametrize(
        "template",
        [
            *("", "name", "{PatientName}", "{Modality", "{}", "{0}", "{Modality!r}", "{Modality:9}", "{Modality.x}"),
            *(
                "../{Modality}",
                "a/{Modality}",
                ".{Modality}",
                "{Modality} x",
                "{Modality}\n",
                "{{{Modality}",
                "ä{Modality}",
            ),
        ],
    )
    def test_others_are_refused(self, template: str) -> None:
        """A template with no tag or an unknown one, or that is no plain file name, is refused in words."""
        with pytest.raises(ValueError, match="must have"):
            dicom_filenames.tags(template)

    def test_what_is_told(self) -> None:
        """Words of the standard, digits of a digest, plain letters; nothing else of what a file says."""
        said = {
            ("Modality", "CT"): "CT",
            ("Modality", "DOE^JOHN"): "unknown",
            ("BodyPartExamined", "c spine"): "CSPINE",
            ("SOPInstanceUID", "1.2.3"): HASH,
            ("SOPInstanceUID", None): "unknown",
            ("StudyInstanceUID", "DOE^JOHN"): hashlib.sha256(b"DOE^JOHN").hexdigest()[:16],
            ("PatientID", "../12 3/\n"): "_12_3_",
            ("PatientID", ""): "unknown",
            ("StudyDate", "20260301"): "20260301",
            ("StudyDate", "DOE"): "unknown",
        }
        assert {key: dicom_filenames.part_of_name(*key) for key in said} == said

    @pytest.mark.parametrize("text", ["../x", "a/b", "", ".x", "x" * 65, "1.2.3", "0" * 17, 5, None, ["CT"]])
    def test_a_decoder_is_not_believed(self, text: object) -> None:
        """A text that no such tag can have is no part of a name, even if a decoder that was taken over sends it."""
        for tag in ("SOPInstanceUID", "Modality", "StudyDate"):
            assert dicom_filenames.checked(tag, text) == "unknown"
        answer = {"identity": [1, 2, 3, 4], "digest": "0" * 64, "blank": False, "decode_ms": 1.0, "frames": 1}
        answer |= {"modality": None, "body_part": None, "tags": {"SOPInstanceUID": text}}
        found = decoder_answers.parse("a", json.dumps(answer).encode() + b"\n" + bytes(64 * 64))
        assert isinstance(found, Decoded) and found.tags == (("SOPInstanceUID", "unknown"),)


class TestConfig:
    def test_who_the_patient_is_must_be_asked_for(self, tmp_path: Path) -> None:
        """A tag that says who the patient is is refused by its line, until a second key allows it."""
        file = tmp_path / "config.yaml"
        file.write_text('output:\n  dicom_name: "{Modality}-{PatientID}"\n')
        with pytest.raises(ConfigError, match=r"config\.yaml:2:3: output\.dicom_name: PatientID says who the patient"):
            loader.load(file, {})
        found = loader.load(file, {"MEDNET_OUTPUT__PATIENT_DATA_IN_NAMES": "true"})
        assert found.output.dicom_name == "{Modality}-{PatientID}"

    def test_no_template_is_told_with_what_may_be_in_one(self, tmp_path: Path) -> None:
        """The tags that there are, and the place of the mistake."""
        file = tmp_path / "config.yaml"
        file.write_text('output: {dicom_name: "{PatientName}"}\n')
        with pytest.raises(ConfigError, match=r"1:10: output\.dicom_name: must have one of Modality, BodyPart"):
            loader.load(file, {})


def test_a_decoder_tells_what_is_asked_for(tmp_path: Path) -> None:
    """Of a DICOM file the tags of the template, of other files nothing, and nothing where nothing is asked for."""
    (tmp_path / "a").write_bytes(dicom(Modality="CT", PatientID="12 3"))
    told = {}
    for tags in ((), dicom_filenames.tags(TEMPLATE), ("PatientID",)):
        limits = {"max_bytes": 1 << 26, "max_pixels": 64_000_000, "memory_mb": 1024}
        pool = DecoderPool(tmp_path, limits, 30, tags=tags)
        try:
            pool.submit("a")
            while not (found := list(pool.collect())):
                wait(pool.connections, 10)
        finally:
            pool.close()
        assert isinstance(found[0], Decoded)
        told[tags] = dict(found[0].tags)
    assert list(told.values()) == [
        {},
        {"Modality": "CT", "BodyPartExamined": "unknown", "SOPInstanceUID": HASH},
        {"PatientID": "12_3"},
    ]


def test_names_on_record(tmp_path: Path, identify: Callable[[Path], Identity]) -> None:
    """A file with a name of its own lies under it, is found under it after a crash, and gets its old name back."""
    inbox, book = tmp_path / "inbox", Ledger(tmp_path / "state/ledger.sqlite3")
    (inbox / "x").mkdir(parents=True)
    places = Destinations(*(tmp_path / place for place in ("sorted", "review", "quarantine", "rejected")))
    executor = DecisionExecutor(book, Mover(inbox), places, "m", keep_subdirectories=True)
    orders = []
    for name in ("x/IM0001", "x/IM0002"):
        (inbox / name).write_bytes(name.encode())
        digest = no_overwrite.digest(inbox / name)
        decision = Decision(Outcome.SORTED, "Hand", 1.0)
        orders.append(MoveOrder(name, identify(inbox / name), digest, decision, Timing(0.0), new_name="CT.dcm"))
    hand = tmp_path / "sorted/Hand/x"
    destinations = [hand / "CT.dcm", hand / f"CT-{orders[1].digest[:8]}.dcm"]
    results = [result for _, result in executor.carry_out(orders)]
    assert [Path(result.destination) for result in results if isinstance(result, Filed)] == destinations
    with LedgerReader(tmp_path / "state/ledger.sqlite3") as ledger_reader:
        chosen = list(
            put_back_requests.filed(
                ledger_reader, batch=1, name_of=put_back_requests.name_in_inbox(inbox, recursive=True)
            )
        )
        assert [request.name for request in chosen] == ["x/IM0001", "x/IM0002"]
        flat = put_back_requests.filed(
            ledger_reader, batch=1, name_of=put_back_requests.name_in_inbox(inbox, recursive=False)
        )
        assert [request.name for request in flat] == ["IM0001", "IM0002"]
    (inbox / "x/IM0003").write_bytes(b"3")
    third = replace(orders[0], name="x/IM0003", identity=identify(inbox / "x/IM0003"), digest="3" * 64)
    with book.transaction():
        book.record_decisions([third], [str(hand)], "m", inbox)
    (inbox / "x/IM0003").rename(hand / f"CT-{'3' * 8}.dcm")
    assert [(ending.state, ending.destination) for ending in recover(book)] == [
        ("filed", str(hand / f"CT-{'3' * 8}.dcm"))
    ]
    book.close()


def test_the_real_daemon(tmp_path: Path) -> None:
    """A DICOM file is filed under its template's name, others keep theirs; explain knows both, undo gives it back."""
    daemon = Daemon(tmp_path, f'output: {{dicom_name: "{TEMPLATE}"}}\n', stub=True)
    (tmp_path / "a").write_bytes(dicom((SHADE // 8).astype("uint8"), Modality="MR", PatientID="canary"))
    with daemon:
        os.rename(tmp_path / "a", daemon.inbox / "IM0001")
        (daemon.inbox / "other.dcm").write_bytes(b"no picture")
        daemon.until_filed(2)
        told = {line["name"]: Path(line["destination"]).name for line in daemon.outcomes()}
        assert daemon.stop() == 0
    assert told == {"IM0001": f"MR-unknown-{HASH}.dcm", "other.dcm": "other.dcm"}
    for word in ("IM0001", told["IM0001"]):
        explained = mednet("explain", word, "--json", "--config", str(daemon.config))
        assert json.loads(explained.stdout)["name"] == told["IM0001"]
    assert mednet("undo", "--since", "1d", "--config", str(daemon.config)).returncode == 0
    assert sorted(path.name for path in daemon.inbox.iterdir()) == ["IM0001", "other.dcm"]
