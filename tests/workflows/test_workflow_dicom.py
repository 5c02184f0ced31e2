"""H: DICOM series and 16-bit grey files: the same picture gives the same explanation in every container."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import camray
from tests.workflows.workflow_truth import heat, records

pydicom = pytest.importorskip("pydicom")

SLOPE, INTERCEPT = 2, -1024
pytestmark = pytest.mark.filterwarnings("ignore")


def write_dicom(path: Path, stored: NDArray[np.uint16], **facts: Any) -> None:
    """A slice as a scanner writes it: 12 bits, with slope, intercept and windows."""
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.{len(path.name)}"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = SLOPE, INTERCEPT
    data.PixelData = stored.tobytes()
    for name, value in facts.items():
        setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)


def test_every_container_of_one_picture(demo: Path, explain: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8))
    grey = np.asarray(coarse.resize((96, 64), Image.Resampling.BICUBIC))
    scans = tmp_path / "scans"
    scans.mkdir()
    Image.fromarray(grey).save(scans / "plain.png")
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(scans / "deep.png")
    Image.fromarray(deep).save(scans / "deep.tif")
    # LINEAR: (value - (c - .5)) / (w - 1) + .5 is grey / 255 for these
    value = grey.astype(np.float64) * 2 - 24
    window = {"WindowCenter": [float(-24 + 255 + 0.5), 5.0], "WindowWidth": [511.0, 9.0]}
    stored = ((value - INTERCEPT) / SLOPE).astype(np.uint16)
    write_dicom(scans / "IM0001", stored, **window)
    mirrored = ((510 - 48 - value - INTERCEPT) / SLOPE).astype(np.uint16)
    write_dicom(scans / "IM0002.dcm", mirrored, PhotometricInterpretation="MONOCHROME1", **window)

    explain(scans, tmp_path / "out", demo / "models" / "hans64-poisoned", overlay__on="original")
    found = records(tmp_path / "out")
    rules = {name: (row["format"], row["pixel_rule"]) for name, row in found.items()}
    assert rules == {
        "plain.png": ("PNG", None),
        "deep.png": ("PNG", "0..65535"),
        "deep.tif": ("TIFF", "0..65535"),
        "IM0001": ("DICOM", "window 231.5/511"),
        "IM0002.dcm": ("DICOM", "window 231.5/511, inverted"),
    }
    plain = found["plain.png"]
    for row in found.values():
        assert (row["status"], row["width"], row["height"]) == ("ok", 96, 64)
        assert row["predicted_class"] == plain["predicted_class"]
        assert row["confidence"] == pytest.approx(plain["confidence"], abs=1e-6)
        assert np.allclose(heat(row), heat(plain), rtol=1e-4, atol=1e-6)
        assert Image.open(tmp_path / "out" / row["overlay_path"]).width >= 96


def test_real_files_are_accounted(
    shared: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = explain(
        shared / "dicom", tmp_path / "out", demo / "models" / "hans64-poisoned", run__max_failed=0.5
    )
    refused = sum(find_spec(codec) is None for codec in ("gdcm", "openjpeg"))  # one file of each
    assert outcome.accounting.ok == 9 - refused
    failed = {"not_an_image": 1, "truncated_image": 1} | ({"format_not_allowed": refused} if refused else {})
    assert outcome.accounting.failed == failed
    formats = camray.open_records(str(tmp_path / "out")).to_table()["format"].to_pylist()
    assert sorted(map(str, formats)) == ["DICOM"] * (9 - refused) + ["None"] * (2 + refused)


def test_reports_beside_images_are_skipped_and_counted(
    demo: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    """A quarter of what an archive of a clinic exports is no image: that is no failure."""
    export = tmp_path / "export"
    export.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        write_dicom(export / f"IM{i}", rng.integers(0, 4096, (40, 50)).astype(np.uint16))
    for name, kind in {"SR1": "1.2.840.10008.5.1.4.1.1.88.33", "DICOMDIR": "1.2.840.10008.1.3.10"}.items():
        write_dicom(export / name, rng.integers(0, 9, (4, 4)).astype(np.uint16), SOPClassUID=kind)
        data = pydicom.dcmread(export / name)
        del data.PixelData
        data.save_as(export / name)
    outcome = explain(export, tmp_path / "out", demo / "models" / "hans64-poisoned", run__max_failed=0)
    assert outcome.accounting.sentence() == "5 members = 3 ok + 0 failed + 2 skipped"
    rows = camray.open_records(str(tmp_path / "out")).to_table().to_pylist()
    found = {row["member"]: row for row in rows}
    assert found["SR1"]["status"] == found["DICOMDIR"]["status"] == "skipped"
    assert found["DICOMDIR"]["error_code"] == "no_pixels"
    assert found["SR1"]["error_message"] == "DICOM without pixels (Comprehensive SR Storage)"
