"""DICOM: the picture as it is meant to be shown, or the reason why there is none."""

from __future__ import annotations

import functools
import io
import itertools
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1

from tests.support.dicom_files import SHADE, SYNTAXES, dataset, dicom, written
from watcher import images
from watcher.core.errors import Reject
from watcher.core.records import Decoded
from watcher.images import decode, dicom_pixels
from watcher.images.decoder_pool import DecoderPool
from watcher.images.formats.dicom import check

BUNDLED = Path(pydicom.data.__file__).parent
FILES = sorted(
    str(path.relative_to(BUNDLED))
    for path in BUNDLED.rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc", ".json", ".md", ".txt", ".dump", ".icc", ".gz")
)

SEVERAL = {
    "SC_rgb_rle_16bit_2frame.dcm": 2,
    "SC_rgb_rle_2frame.dcm": 2,
    "SC_rgb_rle_32bit_2frame.dcm": 2,
    "examples_ybr_color.dcm": 30,
    "rtdose.dcm": 15,
    "rtdose_expb.dcm": 15,
    "rtdose_rle.dcm": 15,
}
"""Files of several frames, with their number."""

NO_PICTURE = """DICOMDIR DICOMDIR-bigEnd DICOMDIR-empty.dcm DICOMDIR-implicit DICOMDIR-nooffset DICOMDIR-nopatient
    DICOMDIR-reordered ExplVR_BigEndNoMeta.dcm ExplVR_LitEndNoMeta.dcm UN_sequence.dcm chrJapMulti.dcm
    chrJapMultiExplicitIR6.dcm chrKoreanMulti.dcm chrSQEncoding.dcm chrSQEncoding1.dcm empty_charset_LEI.dcm fall.dcm
    hotiron.dcm hotmetalblue.dcm no_meta_group_length.dcm pet.dcm pet20step.dcm priv_SQ.dcm reportsi.dcm
    reportsi_with_empty_number_tags.dcm rtplan.dcm rtstruct.dcm spring.dcm summer.dcm test-SR.dcm waveform_ecg.dcm
    winter.dcm"""

REFUSED = {
    "JPEG-lossy.dcm": "unsupported_format",  # 12 bits with loss: only a GPL plugin could
    "JPGExtended.dcm": "unsupported_format",
    "JPEG2000-embedded-sequence-delimiter.dcm": "damaged",  # of purpose: a delimiter in the middle of the picture
    "MR_truncated.dcm": "truncated",
    "rtplan_truncated.dcm": "truncated",
    "badVR.dcm": "unreadable",  # NumberOfFrames is 1A
    "meta_missing_tsyntax.dcm": "unreadable",  # pixels without rows
    "nested_priv_SQ.dcm": "unreadable",
    "no_meta.dcm": "unsupported_format",  # a blank before its first element
    "README": "unsupported_format",
    **dict.fromkeys(NO_PICTURE.split(), "no_pixel_data"),
}
"""Files that show no picture in a syntax that is read, with the reason. TINY_ALPHA's have no pixels either."""


def expected(name: str) -> str:
    short = Path(name).name
    return REFUSED.get(short, "no_pixel_data" if "TINY_ALPHA" in name else "decoded")


def refused(data: bytes, limits: decode.Limits = decode.Limits()) -> str:
    with pytest.raises(Reject) as caught:
        decode.grey64(data, limits)
    assert caught.value.detail
    return caught.value.reason


def levels(data: bytes) -> np.ndarray:
    """Return the levels before they are scaled to 8 bits."""
    whole = check(data, 1 << 26)
    return dicom_pixels.read(data, whole, 64_000_000).levels


def by_pydicom(data: bytes) -> np.ndarray:
    """The whole of pydicom's own way, which reads every tag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pydicom.dcmread(io.BytesIO(data), force=True)
        pixels = found.pixel_array
        if found.PhotometricInterpretation == "PALETTE COLOR":
            return apply_color_lut(pixels, found)
        if found.SamplesPerPixel == 3:
            return pixels
        return apply_voi_lut(apply_modality_lut(pixels, found), found)


def table(values: np.ndarray, first: int, vr: str = "US") -> Sequence:
    """A modality or VOI LUT (PS3.3, C.11.1 and C.11.2)."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(values), first, 16])
    item.add_new("LUTData", "US", values.tolist())
    item.ModalityLUTType = "US"
    return Sequence([item])


def without_loss(data: bytes) -> bytes:
    """Return the file with its pixels as lossless JPEG, written by another library than reads them first."""
    with tempfile.TemporaryDirectory() as place:
        before, after = f"{place}/before", f"{place}/after"
        Path(before).write_bytes(data)
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(before)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(after)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(after).read_bytes()


class TestBundled:
    """Every file that pydicom brings along."""

    @pytest.mark.parametrize("name", FILES)
    def test_decodes_as_pydicom_does_or_says_why_not(self, name: str) -> None:
        """One frame in a syntax that is read: pydicom's very levels. Any other: the reason that names its cause."""
        data = (BUNDLED / name).read_bytes()
        if expected(name) != "decoded":
            assert refused(data) == expected(name)
            return
        picture = decode.read(data)
        assert picture.frames == SEVERAL.get(Path(name).name, 1)
        assert (picture.grey.shape, picture.grey.dtype) == ((64, 64), np.uint8)
        whole = by_pydicom(data)
        wanted = whole[picture.frames // 2] if picture.frames > 1 else whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = dicom_pixels.open_dataset(data, check(data, 1 << 26))
            found = dicom_pixels.levels(opened, pixel_array(opened, index=picture.frames // 2))
        np.testing.assert_array_equal(found, wanted)

    def test_none_crashes_a_decoder(self, tmp_path: Path) -> None:
        """One process reads them all, one after the other, and lives."""
        names = [str(BUNDLED / name) for name in FILES]
        pool = DecoderPool(None, {"max_bytes": 1 << 26, "max_pixels": 64_000_000, "memory_mb": 1024}, 30)
        said: dict[str, str] = {}
        try:
            for name in names:
                pool.submit(name)
            [first] = [child.process.pid for child in pool._children]
            while len(said) < len(names):
                wait(pool.connections, 10)
                said |= {one.name: "decoded" if isinstance(one, Decoded) else one.reason for one in pool.collect()}
            assert [child.process.pid for child in pool._children] == [first]
        finally:
            pool.close()
        assert said == {str(BUNDLED / name): expected(name) for name in FILES}


class TestShown:
    def test_every_syntax_shows_the_same(self) -> None:
        """Byte order, implicit tags, deflated, RLE, JPEG-LS, JPEG 2000: the same picture."""
        wanted = decode.grey64(dicom())
        for name, syntax in SYNTAXES.items():
            if name != "JPEG":
                np.testing.assert_array_equal(decode.grey64(dicom(SHADE, syntax)), wanted, err_msg=name)
        assert wanted[0, 0] == 0 and wanted[-1, -1] == 255

    def test_deep_levels_as_of_a_png(self) -> None:
        """Without a window it is the picture that a 16-bit PNG of the same levels is."""
        buffer = io.BytesIO()
        Image.fromarray(SHADE).save(buffer, "PNG")
        np.testing.assert_array_equal(decode.grey64(dicom()), decode.grey64(buffer.getvalue()))

    def test_monochrome1_is_inverted_once(self) -> None:
        """White stored as 0, with and without a window, with the shape that says the same once more."""
        for tags in ({}, {"WindowCenter": 500, "WindowWidth": 400}):
            plain = levels(dicom(SHADE, **tags))
            inverted = levels(
                dicom(SHADE, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **tags)
            )
            np.testing.assert_allclose(inverted, plain.max() - plain + plain.min(), rtol=1e-4)
            assert inverted[0, 0] > inverted[-1, -1]

    def test_the_first_window_counts(self) -> None:
        """Of several windows the first; what is below it is black, what is above it white."""
        found = levels(dicom(SHADE, WindowCenter=[500, 40], WindowWidth=[200, 400]))
        np.testing.assert_array_equal(found, levels(dicom(SHADE, WindowCenter=500, WindowWidth=200)))
        assert (found[SHADE < 400] == found.min()).all() and (found[SHADE > 600] == found.max()).all()

    @pytest.mark.parametrize("width", [0, -5, ""])
    def test_a_window_that_is_none(self, width: object) -> None:
        """A width of 0, as some devices write it, hides no picture."""
        np.testing.assert_array_equal(levels(dicom(SHADE, WindowCenter=5, WindowWidth=width)), SHADE)

    def test_rescale_to_hounsfield_units_and_window(self) -> None:
        """Signed levels with an intercept, seen through a window of Hounsfield units."""
        stored = SHADE.astype(np.int16) - 300
        found = levels(dicom(stored, RescaleIntercept=-100, RescaleSlope=2, WindowCenter=0, WindowWidth=100))
        units = stored * 2 - 100
        assert (found[units <= -51] == found.min()).all() and (found[units >= 51] == found.max()).all()
        assert (np.diff(found[units.argmax() // 36]) >= 0).all()

    def test_tables_in_place_of_rescale_and_window(self) -> None:
        """A modality LUT, then a VOI LUT behind it, each by its own first value and beyond its ends; no window then."""
        stored = (SHADE // 16).astype(np.uint8)  # 0 to 118
        modality = np.arange(100, dtype=np.uint16) * 30  # from 10 on: below as 10, from 109 on as 109
        found = levels(dicom(stored, ModalityLUTSequence=table(modality, 10, "US"), RescaleSlope=7))
        units = modality[np.clip(stored.astype(int) - 10, 0, 99)]
        np.testing.assert_array_equal(found, units)
        voi = (np.sqrt(np.arange(2000)) * 90).astype(np.uint16)  # from 500 on
        tags = {"ModalityLUTSequence": table(modality, 10, "US"), "VOILUTSequence": table(voi, 500)}
        found = levels(dicom(stored, **tags, WindowCenter=5, WindowWidth=3))
        np.testing.assert_array_equal(found, voi[np.clip(units.astype(int) - 500, 0, 1999)])
        inverted = levels(dicom(stored, **tags, PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_array_equal(inverted, found.max() - found + found.min())

    def test_jpeg_without_loss_is_as_deep_as_it_was(self) -> None:
        """Process 14, as CTs are archived: every level of 12 bits, also below 0, comes back."""
        for stored in (SHADE, SHADE.astype(np.int16) - 300):
            plain = dicom(stored, BitsStored=16 if stored.min() < 0 else 12, HighBit=15 if stored.min() < 0 else 11)
            packed = without_loss(plain)
            assert pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID == JPEGLosslessSV1
            np.testing.assert_array_equal(levels(packed), stored)

    def test_a_small_slope_hides_nothing(self) -> None:
        """Levels of a ten-thousandth, as PET has them, are spread over 0 to 255."""
        found = decode.grey64(dicom(SHADE, RescaleSlope=0.00001, RescaleIntercept=0))
        np.testing.assert_allclose(found.astype(int), decode.grey64(dicom()).astype(int), atol=1)

    def test_overlays_and_what_is_above_the_bits_stored(self) -> None:
        """Bits above those stored, where old devices kept overlays, are no part of the picture; nor is an overlay."""
        marked = SHADE | np.uint16(0x8000) * (np.arange(36) % 2 == 0).astype(np.uint16)
        data = dataset(marked, BitsStored=12, HighBit=11)
        data.add_new(0x60000010, "US", 34)
        data.add_new(0x60000011, "US", 36)
        data.add_new(0x60003000, "OW", b"\xff" * 154)
        np.testing.assert_array_equal(levels(written(data)), SHADE & 0x0FFF)

    def test_what_lies_outside_of_the_picture(self) -> None:
        """Padding far below every other level neither sets the scale nor shows, also if white is stored as 0."""
        stored = SHADE.astype(np.int16)
        padded = np.where(np.arange(36) < 5, np.int16(-2000), stored)
        for kind in ("MONOCHROME1", "MONOCHROME2"):
            tags = {"PhotometricInterpretation": kind, "PixelPaddingValue": -2000}
            found = levels(dicom(padded, **tags))
            assert (found[:, :5] == found[:, 5:].min()).all() and np.ptp(found) == np.ptp(stored[:, 5:])

    def test_colours_become_their_luminance(self) -> None:
        """RGB of 8 bits is what a PNG of it is, also with the colours in planes; 16 bits are scaled."""
        colours = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).save(buffer, "PNG")
        wanted = decode.grey64(buffer.getvalue())
        np.testing.assert_array_equal(decode.grey64(dicom(colours)), wanted)
        planes = dataset(colours, PlanarConfiguration=1)
        planes.PixelData = colours.transpose(2, 0, 1).tobytes()
        np.testing.assert_array_equal(decode.grey64(written(planes)), wanted)
        deep = decode.grey64(dicom(colours.astype(np.uint16) * 8)).astype(float)
        assert np.corrcoef(deep.ravel(), wanted.ravel())[0, 1] > 0.999 and (deep.min(), deep.max()) == (0, 255)

    def test_palette(self) -> None:
        """A palette says what a level looks like: here, inverted."""
        tables = {"PhotometricInterpretation": "PALETTE COLOR"}
        for colour in ("Red", "Green", "Blue"):
            tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            tables[f"{colour}PaletteColorLookupTableData"] = (np.arange(255, -1, -1) * 257).astype("<u2").tobytes()
        found = decode.grey64(dicom((SHADE // 16).astype(np.uint8), **tables))
        assert found[0, 0] == 255 and found[-1, -1] == 0

    def test_without_preamble(self) -> None:
        """A file that begins with its first element, as older archives keep them, in every way to write elements."""
        for name in ("explicit", "implicit", "big-endian"):
            data = dicom(SHADE, SYNTAXES[name], Modality="CT")
            group = data.index(b"\x08\x00\x16\x00" if name != "big-endian" else b"\x00\x08\x00\x16", 140)
            for bare in (data[132:], data[group:]):
                found = decode.read(bare)
                np.testing.assert_array_equal(found.grey, decode.grey64(data), err_msg=name)
                assert found.modality == "CT"

    def test_a_preamble_that_is_a_tiff(self) -> None:
        """A file that is both is taken for what the archive meant."""
        data = b"II*\0\x08\0\0\0" + dicom()[8:]
        np.testing.assert_array_equal(decode.grey64(data), decode.grey64(dicom()))

    @pytest.mark.parametrize("syntax", ["explicit", "RLE", "JPEG 2000", "JPEG"])
    def test_the_middle_frame_counts(self, syntax: str) -> None:
        """Of several frames the middle one is shown, and their number is told."""
        frames = np.stack([np.full((34, 36), level, np.uint8) for level in (9, 30, 0, 90, 200)])
        frames[2] = SHADE // 16
        found = decode.read(dicom(frames, SYNTAXES[syntax]))
        assert found.frames == 5
        wanted = decode.grey64(dicom(frames[2], SYNTAXES[syntax]))
        np.testing.assert_array_equal(found.grey, wanted)


class TestWhole:
    @pytest.mark.parametrize("syntax", SYNTAXES)
    @pytest.mark.parametrize("bare", [False, True], ids=["", "no preamble"])
    def test_every_prefix_is_refused(self, syntax: str, bare: bool) -> None:
        """No DICOM file cut short at any byte is shown, however it is written, with sequences around its pixels."""
        side = 33 if syntax == "JPEG 2000" else 9
        pixels = (SHADE[:side, :side] // 16).astype(np.uint8)
        inner = Dataset()
        inner.CodeValue = "1"
        inner.PurposeOfReferenceCodeSequence = Sequence([Dataset()])
        found = dataset(pixels, SYNTAXES[syntax], RequestAttributesSequence=Sequence([inner, Dataset()]))
        found["RequestAttributesSequence"].is_undefined_length = True
        found.add_new(0x00091001, "UN", b"private!")
        data = written(found)[132 * bare :]
        decode.grey64(data)
        taken = []
        for cut in range(len(data)):
            try:
                decode.grey64(data[:cut])
            except Reject:
                continue
            taken.append(cut)
        assert taken == []

    def test_what_follows_the_pixels(self) -> None:
        """An element behind the pixels is not cut in two; where it is missing altogether, the picture is whole."""
        found = dataset()
        without = len(written(found))
        found.DataSetTrailingPadding = bytes(50)
        data = written(found)
        for cut in range(without + 1, len(data)):
            if data[without:cut].strip(b"\0"):
                assert refused(data[:cut]) == "truncated"
        decode.grey64(data[:without])
        decode.grey64(data + bytes(300))

    def test_fewer_pixels_than_rows_and_columns_say(self) -> None:
        """An element that is whole, and holds too few pixels, is cut short."""
        for tags in ({"Rows": 35}, {"NumberOfFrames": 2}, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}):
            assert refused(dicom(SHADE, **tags)) == "truncated"

    def test_a_jpeg_within_that_is_cut_short(self) -> None:
        """A fragment is judged as the JPEG that it is."""
        found = dataset((SHADE // 16).astype(np.uint8), JPEGBaseline8Bit)
        whole = written(found)
        assert whole.count(b"\xff\xd9") == 1
        assert refused(whole.replace(b"\xff\xd9", b"\0\0")) == "truncated"


class TestHostile:
    def test_sizes_that_are_not_there(self) -> None:
        """Numbers in the header cost nothing."""
        for tags in ({"Rows": 65535, "Columns": 65535}, {"Rows": 65535, "Columns": 2000}):
            assert refused(dicom(SHADE, **tags)) == "too_large"
        assert refused(dicom(SHADE, NumberOfFrames=2**31 - 1)) == "truncated"
        for tags in ({"Rows": 0}, {"SamplesPerPixel": 200}, {"BitsAllocated": 12}, {"NumberOfFrames": -3}):
            assert refused(dicom(SHADE, **tags)) == "unreadable"

    def test_compressed_pixels_that_are_more_than_is_said(self) -> None:
        """A small picture whose code says 60,000 x 60,000 is refused before a decoder lays it out."""
        small = dataset(SHADE, JPEG2000Lossless)
        place = small.PixelData.index(b"\xff\x4f\xff\x51") + 8
        small.PixelData = small.PixelData[:place] + struct.pack(">II", 60_000, 60_000) + small.PixelData[place + 8 :]
        assert refused(written(small)) == "damaged"
        other = dataset((SHADE[:8, :8] // 16).astype(np.uint8), JPEGBaseline8Bit)
        place = other.PixelData.index(b"\xff\xc0") + 5
        other.PixelData = other.PixelData[:place] + struct.pack(">HH", 60_000, 60_000) + other.PixelData[place + 4 :]
        assert refused(written(other)) in ("damaged", "too_complex")

    def test_inflating_without_end(self) -> None:
        """A few bytes that inflate to more than a file may have are refused."""
        data = dicom(SHADE, SYNTAXES["deflated"])
        packer = zlib.compressobj(9, wbits=-15)
        head = data[: data.index(b"1.2.840.10008.1.2.1.99") + 22]
        bomb = head + packer.compress(bytes(50_000_000)) + packer.flush()
        assert refused(bomb, decode.Limits(max_bytes=10_000_000)) == "too_large"

    def test_elements_without_end(self) -> None:
        """Any number of elements, or of sequences within each other, is refused in a moment."""
        started = time.process_time()
        head = dicom()[: dicom().index(b"\x08\x00\x16\x00", 140)]
        assert refused(head + b"\x08\0\x05\0CS\0\0" * 5_000_000) == "too_complex"
        deep = (b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 100_000
        assert refused(head + deep) == "too_complex"
        assert time.process_time() - started < 5

    def test_what_is_not_in_the_standard(self) -> None:
        """An unknown transfer syntax is told as that, and its text is kept back."""
        found = dataset()
        found.file_meta.TransferSyntaxUID = "1.2.3.4.5.6"
        buffer = io.BytesIO()
        found.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=False)
        data = bytes(128) + b"DICM" + buffer.getvalue() if buffer.getvalue()[128:132] != b"DICM" else buffer.getvalue()
        assert refused(data) == "unsupported_format"

    def test_any_byte_overwritten(self) -> None:
        """One byte after the other set to a few values: an image or a reason, and nothing else."""
        data = dicom((SHADE[:5, :6] // 16).astype(np.uint8), Modality="CT", WindowCenter=40, WindowWidth=400)
        for place, value in itertools.product(range(130, len(data) - 30), (0, 0x41, 0xFF)):
            hurt = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                decode.grey64(hurt)
            except Reject as error:
                assert error.reason


class TestExtra:
    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host without pydicom quarantines DICOM files, with what to install; what is cut short is told as that."""
        monkeypatch.setitem(sys.modules, "pydicom", None)
        monkeypatch.delitem(sys.modules, dicom_pixels.__name__)
        monkeypatch.delattr(images, "dicom_pixels")
        monkeypatch.setattr(decode, "load_dicom_reader", functools.cache(decode.load_dicom_reader.__wrapped__))
        with pytest.raises(Reject, match=r"mednet-watcher\[dicom\]") as caught:
            decode.grey64(dicom())
        assert caught.value.reason == "needs_dicom_extra"
        assert refused(dicom()[:-5]) == "truncated"

    def test_costs_nothing_without_dicom_files(self, tmp_path: Path, png: Callable[..., bytes]) -> None:
        """A decoder loads what DICOM files need with the first of them, blames no file for it, and so does its heir."""
        (tmp_path / "a").write_bytes(png())
        (tmp_path / "b").write_bytes(dicom())
        pool = DecoderPool(tmp_path, {"max_bytes": 1 << 26, "max_pixels": 64_000_000, "memory_mb": 512}, 30)

        def ask(*names: str) -> str:
            for name in names:
                pool.submit(name)
            answers: list[object] = []
            while len(answers) < len(names):
                wait(pool.connections, 10)
                answers += pool.collect()
            assert all(isinstance(answer, Decoded) for answer in answers)
            [child] = pool._children
            return Path(f"/proc/{child.process.pid}/maps").read_text()

        try:
            assert "gdcm" not in ask("a", "a")
            assert "gdcm" in ask("b", "a", "b", "b")
            pool._children[0].process.kill()
            pool._children[0].process.wait()
            assert "gdcm" in ask("a")
        finally:
            pool.close()


def test_nothing_is_written_in_a_wrong_format() -> None:
    """The files that these tests make are ones that pydicom reads without a warning."""
    for syntax in SYNTAXES.values():
        found = pydicom.dcmread(io.BytesIO(dicom((SHADE // 16).astype(np.uint8), syntax)))
        assert found.pixel_array.shape == SHADE.shape
    assert ExplicitVRLittleEndian in SYNTAXES.values()
