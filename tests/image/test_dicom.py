"""DICOM: what pydicom itself says of a file, as 8 bits; and what is not decoded is named."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_windowing  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from camray.errors import ErrorCode as E  # noqa: E402
from camray.errors import ImageError  # noqa: E402
from camray.image.decode import decode, upright  # noqa: E402
from tests.archive.makers import spec  # noqa: E402

MAX = 1_000_000
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
pytestmark = pytest.mark.filterwarnings("ignore")


def dataset(pixels, kind="MONOCHROME2", bits=12, **facts):
    data = Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = "1.2.3"
    data.PhotometricInterpretation = kind
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = pixels.tobytes()
    for name, value in facts.items():
        setattr(data, name, value)
    return data


def written(data, syntax=ExplicitVRLittleEndian):
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def rule_of(content):
    return decode(content, spec(), MAX).pixel_rule


def grey_of(content):
    picture = upright(content, MAX)
    assert (picture == picture[..., :1]).all()
    return picture[..., 0]


def code_of(content, limit=MAX):
    with pytest.raises(ImageError) as caught:
        decode(content, spec(), limit)
    assert "\n" not in caught.value.message
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(1000, 800), ([2000, 50], [4000, 10]), (40.5, 1.5)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1024)])
def test_the_window_is_pydicoms(function, center, width, slope, intercept):
    facts = {"WindowCenter": center, "WindowWidth": width}
    facts |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    facts |= {"VOILUTFunction": function} if function else {}
    data = dataset(RAMP, **facts)
    values = RAMP.astype(np.float64) * slope + intercept
    low, high = intercept, 4095 * slope + intercept  # the range pydicom spreads the window over
    expected = (apply_windowing(values, data) - low) / (high - low) * 255
    assert np.abs(grey_of(written(data)).astype(float) - expected).max() <= 0.5 + 1e-6
    first = [v[0] if isinstance(v, list) else v for v in (center, width)]
    assert rule_of(written(data)) == f"window {first[0]:g}/{first[1]:g}"


def test_monochrome1_is_inverted():
    facts = {"WindowCenter": 1000, "WindowWidth": 800}
    plain = grey_of(written(dataset(RAMP, **facts)))
    turned = written(dataset(RAMP, "MONOCHROME1", **facts))
    assert np.array_equal(grey_of(turned), 255 - plain)
    assert rule_of(turned) == "window 1000/800, inverted"


def test_without_a_window_deep_values_are_stretched_and_padding_is_left_out():
    pixels = np.array([[-2000, 100], [600, 1100]], np.int16)
    assert grey_of(written(dataset(pixels, bits=16))).tolist() == [[0, 173], [214, 255]]
    padded = written(dataset(pixels, bits=16, PixelPaddingValue=-2000))
    assert grey_of(padded).tolist() == [[0, 0], [128, 255]]
    assert rule_of(padded) == "min-max 100..1100"


def test_eight_bits_without_a_window_stay_as_they_are():
    pixels = np.array([[3, 90], [120, 200]], np.uint8)
    content = written(dataset(pixels, bits=8))
    assert np.array_equal(grey_of(content), pixels)
    assert rule_of(content) == "0..255"


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_a_window_that_cannot_be_is_none(width):
    content = written(dataset(RAMP, WindowCenter=100, WindowWidth=width))
    assert rule_of(content) == "min-max 0..4080"


def test_voi_lut():
    table = (np.arange(4096) // 16).astype(np.uint16)[::-1].copy()  # a negative, 8 bits
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 8]
    item["LUTDescriptor"].VR = "US"
    item.add_new(0x00283006, "OW", table.tobytes())
    content = written(dataset(RAMP, VOILUTSequence=Sequence([item])))
    assert np.array_equal(grey_of(content), table[RAMP])
    assert rule_of(content) == "voi lut"
    windowed = dataset(RAMP, VOILUTSequence=Sequence([item]), WindowCenter=5, WindowWidth=4)
    assert rule_of(written(windowed)) == "window 5/4"


def test_enhanced_files_keep_their_window_in_a_group():
    window = Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 800
    group = Dataset()
    group.FrameVOILUTSequence = Sequence([window])
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        assert rule_of(written(dataset(RAMP, **{name: Sequence([group])}))) == "window 1000/800"


def test_the_first_frame():
    frames = np.stack([np.full((4, 4), 10, np.uint8), np.full((4, 4), 200, np.uint8)])
    data = dataset(frames[0], bits=8)
    data.NumberOfFrames, data.PixelData = 2, frames.tobytes()
    assert grey_of(written(data)).max() == 10


def test_colour():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (8, 6, 3), np.uint8)
    assert np.array_equal(upright(written(dataset(rgb, "RGB", 8)), MAX), rgb)
    assert rule_of(written(dataset(rgb, "RGB", 8))) is None
    ybr = np.full((4, 4, 3), (76, 85, 255), np.uint8)  # red, as JPEG has it
    assert np.abs(upright(written(dataset(ybr, "YBR_FULL", 8)), MAX).astype(int) - (254, 0, 0)).max() <= 1
    deep = rng.integers(0, 4096, (4, 4, 3)).astype(np.uint16)
    assert np.array_equal(upright(written(dataset(deep, "RGB", 12)), MAX), np.rint(deep * (255 / 4095)))


def test_palette():
    pixels = np.array([[0, 1], [2, 0]], np.uint8)
    data = dataset(pixels, "PALETTE COLOR", 8)
    for i, colour in enumerate(("Red", "Green", "Blue")):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [3, 0, 16])
        values = np.array([0, 30 * 257 + i * 257, 65535], np.uint16)
        setattr(data, f"{colour}PaletteColorLookupTableData", values.tobytes())
    got = upright(written(data), MAX)
    assert got.tolist() == [[[0, 0, 0], [30, 31, 32]], [[255, 255, 255], [0, 0, 0]]]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_without_a_preamble(syntax):
    content = written(dataset(RAMP, WindowCenter=1000, WindowWidth=800), syntax)
    bare = content[132:]  # the header of group 2 first
    data = pydicom.dcmread(io.BytesIO(content))
    at = content.index(b"\x08\0\x16\0", 132 + 60)  # group 8 first: no header at all
    assert np.array_equal(grey_of(bare), grey_of(content))
    assert np.array_equal(grey_of(content[at:]), grey_of(content)), data


def test_rle_needs_no_codec():
    data = dataset(RAMP, WindowCenter=1000, WindowWidth=800)
    expected = grey_of(written(data))
    data.compress(RLELossless)
    buffer = io.BytesIO()
    data.save_as(buffer)
    assert np.array_equal(grey_of(buffer.getvalue()), expected)


def test_what_is_not_decoded():
    content = written(dataset(RAMP))
    assert code_of(content, 255) == (E.TOO_MANY_PIXELS, "16 x 16 = 256 pixels, more than 255")
    assert code_of(content[:-20])[0] == E.TRUNCATED_IMAGE
    empty = dataset(RAMP)
    del empty.PixelData
    assert code_of(written(empty)) == (
        E.NOT_AN_IMAGE,
        "DICOM without pixels (Secondary Capture Image Storage)",
    )
    deflated = written(dataset(RAMP), DeflatedExplicitVRLittleEndian)
    assert code_of(deflated) == (E.FORMAT_NOT_ALLOWED, "DICOM with a deflated data set is not decoded")
    floats = dataset(RAMP)
    del floats.PixelData
    floats.BitsAllocated = 32
    floats.FloatPixelData = np.full((16, 16), np.nan, np.float32).tobytes()
    assert code_of(written(floats))[0] == E.NONFINITE_PIXELS


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(3)
    content = np.frombuffer(written(dataset(RAMP, WindowCenter=1000, WindowWidth=800)), np.uint8)
    messages = []
    for _ in range(120):
        damaged = content.copy()
        damaged[rng.integers(128, 700, 3)] = rng.integers(0, 256, 3)
        try:
            upright(damaged.tobytes()[: rng.integers(300, len(content))], MAX)
        except ImageError as error:
            messages.append(error.message)
    assert len(messages) > 60
    assert all(message.isprintable() for message in messages)


def test_modality_lut():
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.ModalityLUTType = "US"
    item.add_new(0x00283006, "OW", (np.arange(4096, dtype=np.uint16) * 2 + 5).tobytes())
    content = written(dataset(RAMP, ModalityLUTSequence=Sequence([item])))
    assert rule_of(content) == "min-max 5..8165"


def test_without_the_extra_the_record_says_how_to_get_it():
    script = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from camray.image.decode import upright\n"
        "try: upright(bytes(128) + b'DICM' + bytes(99), 10**6)\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "format_not_allowed: DICOM needs an extra: pip install camray[dicom]\n"


REAL = {
    "CT_small.dcm": "min-max -896..1167",
    "JPEG2000.dcm": "min-max -30..245",
    "MR_small.dcm": "window 600/1600",
    "MR_small_bigendian.dcm": "window 600/1600",
    "SC_rgb_jpeg.dcm": None,
    "examples_palette.dcm": "0..65535",
    "examples_ybr_color.dcm": None,
    "rtdose.dcm": "min-max 795000..1.254e+06",
}
NOT_REAL = {
    "JPEG-lossy.dcm": (E.FORMAT_NOT_ALLOWED, "JPEG Extended (Process 2 and 4) of 12 bits; no codec"),
    "MR_truncated.dcm": (E.TRUNCATED_IMAGE, "8130 vs 8192 bytes"),
    "no_meta.dcm": (E.NOT_AN_IMAGE, "unknown data"),  # a byte too many at its start
}


def test_real_files(shared: Path):
    files = sorted((shared / "dicom").iterdir())
    assert {f.name for f in files} == {*REAL, *NOT_REAL}
    for file in files:
        if file.name in REAL:
            assert rule_of(file.read_bytes()) == REAL[file.name], file.name
        else:
            code, message = code_of(file.read_bytes())
            expected, says = NOT_REAL[file.name]
            assert code == expected
            assert says in message
