"""The data of a patient in a DICOM file stay in the file."""

from __future__ import annotations

import os
import struct
import urllib.request
from pathlib import Path

import numpy as np
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.support.daemon import Daemon, mednet
from tests.support.dicom_files import SHADE, SYNTAXES, dataset, written
from tests.support.waiting import LONGEST_S
from watcher.images import dicom_filenames

CANARY = b"CANARY^DOE"
TEXT = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI"}
TAGS = {
    keyword: (struct.pack("<HH", tag >> 16, tag & 0xFFFF), kind)
    for tag, (kind, _, _, _, keyword) in DicomDictionary.items()
    if kind in TEXT and keyword and 0x0008 <= tag >> 16 < 0x7FE0
}
"""Every tag of text in the standard."""

PICTURE = {"PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept"}
"""Without these there is no picture. Their own canaries come one by one."""


def spoilt(keep: set[str] = PICTURE, syntax: str = "explicit") -> bytes:
    """A file whose every tag of text holds the canary, also within a sequence and in a private tag."""
    plain = {"RescaleSlope": "1", "RescaleIntercept": "0"}
    found, inner = dataset((SHADE // 16).astype(np.uint8), SYNTAXES[syntax], **plain), Dataset()
    for keyword in TAGS.keys() - keep - {"SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet"}:
        for place in (found, inner):
            place.add_new(tag_for_keyword(keyword), "LT", CANARY.decode())
    found.ReferencedImageSequence = Sequence([inner])
    found.add_new(0x00091001, "LO", CANARY.decode())
    data = written(found)
    for head in (b"\x08\0\x18\0UI", b"\x02\0\x03\0UI"):
        data = data.replace(head + b"\x06\x001.2.3\0", head + b"\x0a\0" + CANARY)
    for tag, kind in TAGS.values():
        data = data.replace(tag + b"LT", tag + kind.encode())
    return data


def files() -> dict[str, bytes]:
    """Whole ones, and ones that every step has something to complain of."""
    made = {"whole": spoilt(), "no pixels": spoilt().replace(b"\xe0\x7f\x10\0", b"\xe0\x7f\x11\0")}
    made |= {keyword: spoilt(PICTURE - {keyword}) for keyword in PICTURE}
    made["modality"] = made["whole"].replace(b"\x08\0\x60\0CS\x0a\0" + CANARY, b"\x08\0\x60\0CS\x0a\0US        ")
    made["syntax"] = made["whole"].replace(SYNTAXES["explicit"].encode() + b"\0", (CANARY * 2), 1)
    made["cut"] = made["whole"][:-300]
    made["jpeg"] = spoilt(syntax="JPEG")
    made["bad jpeg"] = made["jpeg"][:-400] + CANARY * 5 + made["jpeg"][-350:]
    made["bad J2K"] = spoilt(syntax="JPEG 2000").replace(b"\xff\x52\0", CANARY[:3])
    assert len(set(made.values())) == len(made)
    return made


def test_it_is_in_no_output_of_the_daemon(tmp_path: Path) -> None:
    """Log, standard error, ledger, metrics, reasons beside files, names of files: none holds a word of it.

    Nor do the names that are made of every tag that may be in one.
    """
    dropped = files()
    assert all(data.count(CANARY) > 1000 for data in dropped.values())
    template = "-".join(f"{{{tag}}}" for tag in dicom_filenames.SAFE)
    settings = f'metrics: {{port: 0}}\noutput: {{dicom_name: "{template}"}}\n'
    with Daemon(tmp_path, settings, stub=True) as daemon:
        for name, data in dropped.items():
            (tmp_path / "outside").write_bytes(data)
            os.rename(tmp_path / "outside", daemon.inbox / f"{name}.dcm")
        daemon.until_filed(len(dropped))
        where = daemon.events("metrics.serving")[-1]
        with urllib.request.urlopen(f"http://{where['address']}:{where['port']}/metrics", timeout=LONGEST_S) as answer:
            told = answer.read()
        outcomes = {line["name"].removesuffix(".dcm"): line for line in daemon.outcomes()}
        assert daemon.stop() == 0
    assert Path(outcomes["whole"]["destination"]).name.startswith("unknown-unknown-")
    broken = {"no pixels", "cut", "syntax", "bad jpeg", "RescaleSlope"}
    quarantined = {name for name, line in outcomes.items() if line["event"] == "image.quarantined"}
    assert quarantined >= broken
    assert outcomes["whole"]["event"] != "image.quarantined", outcomes["whole"]["detail"]
    assert outcomes["modality"]["reason"] in ("metadata_disagrees", "low_confidence")
    written_by_us = [told, daemon.log.read_bytes()]
    for path in tmp_path.rglob("*"):
        assert "CANARY" not in path.name
        if path.is_file() and path.suffix != ".dcm":
            written_by_us.append(path.read_bytes())
    assert len(written_by_us) > len(dropped) // 2
    assert [each[max(0, each.find(b"CANARY") - 200) :][:400] for each in written_by_us if b"CANARY" in each] == []


def test_it_is_in_no_output_of_a_command(tmp_path: Path) -> None:
    """Nor does ``classify`` tell."""
    for name, data in files().items():
        (tmp_path / f"{name}.dcm").write_bytes(data)
    for how in ([], ["--json"]):
        told = mednet("classify", str(tmp_path), *how)
        assert "CANARY" not in told.stdout + told.stderr
        assert "no_pixel_data" in told.stdout
