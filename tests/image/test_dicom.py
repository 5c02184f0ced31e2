"""DICOM: what pydicom itself says of a file, as 8 bits; and what is not decoded is named."""

import io
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_windowing  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from camray.errors import ErrorCode as E  # noqa: E402
from camray.errors import ImageError  # noqa: E402
from camray.image.decode import decode, upright  # noqa: E402
from camray.image.dicom import count_frames, read_dicom  # noqa: E402
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


HAS_GDCM, HAS_OPENJPEG = (find_spec(name) is not None for name in ("gdcm", "openjpeg"))
EXTENDED = "DICOM, JPEG Extended (Process 2 and 4) needs python-gdcm: pip install camray[dicom]"
REAL = (
    {
        "CT_small.dcm": "min-max -896..1167",
        "MR_small.dcm": "window 600/1600",
        "MR_small_bigendian.dcm": "window 600/1600",
        "SC_rgb_jpeg.dcm": None,
        "examples_palette.dcm": "0..65535",
        "examples_ybr_color.dcm": None,
        "rtdose.dcm": "min-max 795000..1.254e+06",
    }
    | ({"JPEG-lossy.dcm": "min-max 0..264"} if HAS_GDCM else {})
    | ({"JPEG2000.dcm": "min-max -30..245"} if HAS_OPENJPEG else {})
)
NOT_REAL = {
    "JPEG-lossy.dcm": (E.FORMAT_NOT_ALLOWED, EXTENDED),
    "JPEG2000.dcm": (E.FORMAT_NOT_ALLOWED, "JPEG 2000 Image Compression"),
    "MR_truncated.dcm": (E.TRUNCATED_IMAGE, "8130 vs 8192 bytes"),
    "no_meta.dcm": (E.NOT_AN_IMAGE, "unknown data"),  # a byte too many at its start
}


def test_real_files(shared: Path):
    """Read where the extra is whole, else refused by name: never by what else is installed."""
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


@pytest.mark.parametrize(
    ("syntax", "module", "package"),
    [
        ("1.2.840.10008.1.2.4.51", "gdcm", "python-gdcm"),
        ("1.2.840.10008.1.2.4.57", "gdcm", "python-gdcm"),
        ("1.2.840.10008.1.2.4.70", "gdcm", "python-gdcm"),
        ("1.2.840.10008.1.2.4.80", "gdcm", "python-gdcm"),
        ("1.2.840.10008.1.2.4.81", "gdcm", "python-gdcm"),
        ("1.2.840.10008.1.2.4.90", "pylibjpeg", "pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.91", "pylibjpeg", "pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.201", "pylibjpeg", "pylibjpeg-openjpeg"),
    ],
)
def test_without_its_codec_an_encoding_is_refused_with_the_package_that_reads_it(syntax, module, package):
    data = dataset(RAMP)
    data.PixelData = pydicom.encaps.encapsulate([b"encoded"])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    content = written(data, pydicom.uid.UID(syntax))
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from camray.image.decode import upright\n"
        f"try: upright({content!r}, 10**6)\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    name = pydicom.uid.UID(syntax).name
    expected = f"format_not_allowed: DICOM, {name} needs {package}: pip install camray[dicom]\n"
    assert done.stdout == expected


def test_video_and_unknown_encodings_are_refused_by_name():
    for syntax in ("1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.110", "1.2.3.4.5"):
        data = dataset(RAMP)
        data.PixelData = pydicom.encaps.encapsulate([b"encoded"])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta = FileMetaDataset()
        content = written(data, pydicom.uid.UID("1.2.840.10008.1.2.4.102"))
        content = content.replace(b"1.2.840.10008.1.2.4.102\0", syntax.encode().ljust(24, b"\0"))
        code, message = code_of(content)
        assert code == E.FORMAT_NOT_ALLOWED
        assert pydicom.uid.UID(syntax).name in message


# ── depths that are neither 8 nor 16 ─────────────────────────────────────────────────────────────


def test_a_segmentation_of_one_bit_is_black_and_white():
    mask = np.zeros((5, 7), np.uint8)
    mask[1:4, 2:6] = 1
    data = dataset(mask, bits=1)
    data.BitsAllocated = 1
    data.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes() + b"\0"
    assert np.array_equal(grey_of(written(data)), mask * 255)
    assert rule_of(written(data)) == "0..1"


def test_fewer_bits_than_a_byte_fill_the_range():
    pixels = np.array([[0, 15], [5, 10]], np.uint8)
    assert grey_of(written(dataset(pixels, bits=4))).tolist() == [[0, 255], [85, 170]]
    colours = np.stack([pixels] * 3, -1)
    assert upright(written(dataset(colours, "RGB", 4)), MAX)[..., 1].tolist() == [[0, 255], [85, 170]]


def test_bits_beside_the_value_are_no_part_of_it():
    """An overlay in the upper bits of old files, and values in the upper bits of their cells."""
    window = {"WindowCenter": 1000, "WindowWidth": 800}
    expected = grey_of(written(dataset(RAMP, **window)))
    overlay = RAMP | np.uint16(0x9000)
    assert np.array_equal(grey_of(written(dataset(overlay, **window))), expected)
    upper = dataset(RAMP << np.uint16(4), **window)
    upper.HighBit = 15
    assert np.array_equal(grey_of(written(upper)), expected)


def test_a_range_of_padding_is_left_out():
    pixels = np.array([[-2000, -1990], [100, 1100]], np.int16)
    facts = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    assert rule_of(written(dataset(pixels, bits=16, **facts))) == "min-max 100..1100"


def test_a_palette_of_a_big_endian_file_is_that_of_its_little_endian_twin():
    pictures = []
    for syntax, order in ((ExplicitVRLittleEndian, "<"), (ExplicitVRBigEndian, ">")):
        for bits in (8, 16):
            data = dataset(np.array([[0, 1], [2, 3]], np.uint8), "PALETTE COLOR", 8)
            for i, colour in enumerate(("Red", "Green", "Blue")):
                values = np.array([0, 60 + i, 120, 255]) * (1 if bits == 8 else 257)
                setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, bits])
                setattr(data, f"{colour}PaletteColorLookupTableData", values.astype(f"{order}u2").tobytes())
            pictures.append(upright(written(data, syntax), MAX))
    assert pictures[0].tolist() == [[[0, 0, 0], [60, 61, 62]], [[120] * 3, [255] * 3]]
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])


def test_an_adobe_marker_does_not_turn_colours_twice():
    """Pillow obeys the marker: what it gives is RGB already, whatever the header calls it."""
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:8], rgb[8:] = (220, 40, 30), (30, 60, 200)
    plain = io.BytesIO()
    Image.fromarray(rgb).save(plain, "JPEG", quality=95, subsampling=0)
    encoded = plain.getvalue()
    bare = encoded[:2] + encoded[4 + int.from_bytes(encoded[4:6], "big") :]  # without JFIF
    adobe = bare[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + bare[2:]
    for one in (encoded, bare, adobe):
        data = dataset(rgb, "YBR_FULL_422", 8)
        data.PixelData = pydicom.encaps.encapsulate([one])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        got = upright(written(data, pydicom.uid.JPEGBaseline8Bit), MAX)
        assert np.abs(got.astype(int) - rgb).mean() < 3


# ── objects that are no images ───────────────────────────────────────────────────────────────────

NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR Storage",
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State Storage",
    "1.2.840.10008.1.3.10": "Media Storage Directory Storage",
    "1.2.840.10008.5.1.4.1.1.481.5": "RT Plan Storage",
    "1.2.840.10008.5.1.4.1.1.104.1": "Encapsulated PDF Storage",
    "1.2.840.10008.5.1.4.1.1.66.5": "Surface Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.67": "Real World Value Mapping Storage",
    "1.3.12.2.1107.5.9.1": "1.3.12.2.1107.5.9.1",  # a vendor's own
}
IMAGES = ["7", "2", "4.1", "481.2", "66.4", "30", "6.2", "77.1.6"]  # of 1.2.840.10008.5.1.4.1.1


@pytest.mark.parametrize("sop_class", NO_IMAGES)
def test_objects_that_are_no_images_say_so_by_their_class(sop_class):
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = sop_class, "1.2.3", "OT"
    expected = (E.NO_PIXELS, f"DICOM without pixels ({NO_IMAGES[sop_class]})")
    assert code_of(written(data)) == expected


@pytest.mark.parametrize("ending", IMAGES)
def test_an_image_class_without_pixels_is_a_failure(ending):
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = f"1.2.840.10008.5.1.4.1.1.{ending}", "1.2.3"
    assert code_of(written(data))[0] == E.NOT_AN_IMAGE


def test_frames_have_windows_of_their_own():
    groups = []
    for center in (1000, 2000):
        group, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 800
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    data = dataset(RAMP, PerFrameFunctionalGroupsSequence=Sequence(groups))
    data.NumberOfFrames, data.PixelData = 2, np.stack([RAMP, RAMP]).tobytes()
    assert [read_dicom(written(data), MAX, frame)[1] for frame in (0, 1)] == [
        "window 1000/800",
        "window 2000/800",
    ]
    assert count_frames(written(data)) == 2
