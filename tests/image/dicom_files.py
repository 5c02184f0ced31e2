"""DICOM files made by code over the product of their properties, with the values that went in."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import UID

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big endian": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg extended": "1.2.840.10008.1.2.4.51",
    "jpeg lossless": "1.2.840.10008.1.2.4.57",
    "jpeg lossless sv1": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg-ls near": "1.2.840.10008.1.2.4.81",
    "jpeg 2000": "1.2.840.10008.1.2.4.90",
    "jpeg 2000 lossy": "1.2.840.10008.1.2.4.91",
    "htj2k": "1.2.840.10008.1.2.4.201",
}
NATIVE = ("implicit", "explicit", "big endian")
LOSSY = ("jpeg", "jpeg extended", "jpeg-ls near", "jpeg 2000 lossy")
WAVELETS = ("jpeg 2000", "jpeg 2000 lossy", "htj2k")
CENTER, WIDTH = 0.55, 0.4  # of a window, in shares of the range of the bits
ROWS, COLUMNS = 15, 21


@dataclass(frozen=True)
class Case:
    syntax: str
    space: str = "MONOCHROME2"
    allocated: int = 8
    stored: int = 8
    signed: bool = False
    planar: int = 0
    voi: str = "none"  # or "window", or "rescaled": slope and intercept, no window
    beside: str = "zero"  # bits beside the value: zero, overlay, or above it: the value in the upper bits
    marks: str = "jfif"  # of a JPEG: jfif, adobe, none

    @property
    def high(self) -> int:
        return self.allocated - 1 if self.beside == "upper" else self.stored - 1

    def range(self) -> tuple[int, int]:
        half = 2 ** (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


def cases() -> Iterator[Case]:
    """Every combination that the standard allows."""
    depths = [(1, 1), (8, 8), (8, 5), (16, 16), (16, 12), (16, 10), (16, 8), (32, 32)]
    for syntax, space, (allocated, stored), signed in product(
        SYNTAXES, ("MONOCHROME1", "MONOCHROME2"), depths, (False, True)
    ):
        for voi, beside in product(("none", "window", "rescaled"), ("zero", "overlay", "upper")):
            case = Case(syntax, space, allocated, stored, signed, 0, voi, beside)
            if is_possible(case):
                yield case
    for syntax, space, (allocated, stored), planar in product(
        SYNTAXES,
        ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
        [(8, 8), (8, 5), (16, 12), (16, 16)],
        (0, 1),
    ):
        for marks in ("jfif", "adobe", "none"):
            case = Case(syntax, space, allocated, stored, planar=planar, marks=marks)
            if is_possible(case):
                yield case
    for syntax, (allocated, stored), beside in product(
        (*NATIVE, "rle", "jpeg lossless sv1", "jpeg-ls", "jpeg 2000"),
        [(8, 8), (16, 16), (8, 4)],
        ("8", "16", "8 in 16", "segmented"),
    ):
        yield Case(syntax, "PALETTE COLOR", allocated, stored, beside=f"table of {beside}")


def is_possible(case: Case) -> bool:
    """What the standard allows, or is seen in files, and says the same to every reader."""
    native, stored, space = case.syntax in NATIVE, case.stored, case.space
    jpeg, j2k = case.syntax in ("jpeg", "jpeg extended"), case.syntax in WAVELETS
    forbidden = (
        stored == 1 and (case.voi == "rescaled" or not native or case.signed),
        case.allocated == 32 and (not native or case.signed),
        case.beside != "zero" and (stored in (1, case.allocated) or not (native or case.syntax == "rle")),
        case.syntax == "jpeg" and stored != 8,
        case.syntax == "jpeg extended" and stored not in (8, 12),
        case.syntax in LOSSY and case.signed,
        not native and (stored > 8) is (case.allocated == 8),
        case.planar == 1 and not (native or case.syntax == "rle"),
    )
    marks = {"none"}
    if jpeg and stored == 8:  # JFIF means YBR
        marks = {"adobe", "none"} if space == "RGB" else {"adobe", "none", "jfif"}
    spaces = {
        "RGB": stored != 5 or native or j2k or case.syntax == "rle",
        "YBR_FULL": not j2k and (stored != 5 or native or case.syntax == "rle"),
        "YBR_FULL_422": (native or case.syntax == "jpeg") and stored == 8 and not case.planar,
        "YBR_RCT": case.syntax in ("jpeg 2000", "htj2k"),
        "YBR_ICT": case.syntax == "jpeg 2000 lossy",
    }
    is_colour = space in spaces
    return not any(forbidden) and (not is_colour or (spaces[space] and case.marks in marks))


def values_of(case: Case) -> NDArray[Any]:
    """A smooth picture that uses the whole range: (rows, columns) or (rows, columns, 3)."""
    low, high = case.range()
    x, y = np.meshgrid(np.linspace(0, 1, COLUMNS), np.linspace(0, 1, ROWS))
    planes = [0.5 + 0.5 * np.sin(2.5 * x + 1.5 * y + phase) for phase in (0, 1, 4)]
    if case.stored == 1:
        return (planes[0] > 0.8).astype(np.int64)
    shares = np.stack(planes, -1) if case.space.startswith(("RGB", "YBR")) else planes[0]
    shares = (shares - shares.min()) / (shares.max() - shares.min())
    return np.rint(low + shares * (high - low)).astype(np.int64)


def palette_of(case: Case) -> NDArray[np.int64]:
    """200 colours, of 8 or 16 bits, neither grey nor smooth in one channel."""
    full = 255 if "8" in case.beside else 65535
    ramp = np.linspace(0, 1, 16 if case.stored == 4 else 200)
    return np.rint(np.stack([ramp, 1 - ramp, ramp**2], -1) * full).astype(np.int64)


def to_ybr(rgb: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """PS3.3 C.7.6.3.1.2, forward."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    half = 2 ** (bits - 1)
    planes = np.stack([y, (b - y) / 1.772 + half, (r - y) / 1.402 + half], -1)
    return np.clip(np.rint(planes), 0, 2 * half - 1).astype(np.int64)


def make(case: Case) -> bytes:
    """Write the file."""
    data, values = facts_of(case), values_of(case)
    native = case.space in ("YBR_FULL", "YBR_FULL_422")
    samples = to_ybr(values, case.stored) if native else values
    data.PixelData = _pixels(case, samples, values, data)
    if data.PixelData[:4] == b"\xfe\xff\0\xe0":
        data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OW" if case.allocated == 16 else "OB"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def facts_of(case: Case) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(SYNTAXES[case.syntax])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.PhotometricInterpretation = ROWS, COLUMNS, case.space
    data.SamplesPerPixel = 3 if case.space.startswith(("RGB", "YBR")) else 1
    data.BitsAllocated, data.BitsStored, data.HighBit = case.allocated, case.stored, case.high
    data.PixelRepresentation = int(case.signed)
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = case.planar
    low, high = case.range()
    if case.voi == "window":
        data.WindowCenter = [round(low + CENTER * (high - low)), 3]
        data.WindowWidth = [max(2, round(WIDTH * (high - low))), 4]
    if case.voi == "rescaled":
        data.RescaleSlope, data.RescaleIntercept = 2, -100
    if case.space == "PALETTE COLOR":
        _add_palette(data, case)
    return data


def _add_palette(data: Dataset, case: Case) -> None:
    order = ">" if case.syntax == "big endian" else "<"
    bits = 8 if "8" in case.beside else 16
    for name, column in zip(("Red", "Green", "Blue"), palette_of(case).T, strict=True):
        tag = f"{name}PaletteColorLookupTable"
        setattr(data, f"{tag}Descriptor", [len(column), 0, bits])
        data[f"{tag}Descriptor"].VR = "US"
        if case.beside.endswith("segmented"):  # one discrete segment
            words = np.concatenate([[0, len(column)], column])
            setattr(data, f"Segmented{tag}Data", words.astype(f"{order}u2").tobytes())
        elif case.beside.endswith(" 8"):
            packed = column.astype(np.uint8).tobytes()
            packed += bytes(len(packed) % 2)
            words = np.frombuffer(packed, "<u2").astype(f"{order}u2")
            setattr(data, f"{tag}Data", words.tobytes())
        else:
            setattr(data, f"{tag}Data", column.astype(f"{order}u2").tobytes())


def _pixels(case: Case, samples: NDArray[Any], values: NDArray[Any], data: Dataset) -> bytes:
    if case.stored == 1:
        packed = np.packbits(samples.astype(np.uint8).ravel(), bitorder="little").tobytes()
        return packed + bytes(len(packed) % 2)
    if case.syntax in NATIVE or case.syntax == "rle":
        return _native(case, samples, data)
    return encapsulate([_encoded(case, samples, values)])


def _cells(case: Case, samples: NDArray[Any]) -> NDArray[Any]:
    """Put values into their cells, with what lies beside them."""
    cells = (samples & (2**case.stored - 1)) << (case.high - case.stored + 1)
    if case.beside == "overlay":
        noise = np.random.default_rng(5).integers(0, 2 ** (case.allocated - case.stored), samples.shape)
        cells |= noise << case.stored
    return cells.astype(f"u{case.allocated // 8}")


def _native(case: Case, samples: NDArray[Any], data: Dataset) -> bytes:
    if case.space == "YBR_FULL_422":
        even = np.concatenate([samples, samples[:, -1:]], 1)[:, : COLUMNS // 2 * 2]
        data.Columns = even.shape[1]
        y, cb, cr = even[..., 0], even[:, ::2, 1], even[:, ::2, 2]
        samples = np.stack([y[:, ::2], y[:, 1::2], cb, cr], -1)
    cells = _cells(case, samples)
    if case.syntax == "rle":
        return encapsulate([_rle(case, cells, data)])
    if case.planar and cells.ndim == 3:
        cells = np.moveaxis(cells, -1, 0)
    order = ">" if case.syntax == "big endian" else "<"
    packed = np.ascontiguousarray(cells).astype(cells.dtype.newbyteorder(order)).tobytes()
    return packed + bytes(len(packed) % 2)


def _rle(case: Case, cells: NDArray[Any], data: Dataset) -> bytes:
    whole = Dataset()  # whole cells: what lies beside the value is packed with it
    whole.Rows, whole.Columns, whole.SamplesPerPixel = *cells.shape[:2], data.SamplesPerPixel
    whole.BitsAllocated = whole.BitsStored = case.allocated
    whole.PixelRepresentation, whole.PlanarConfiguration, whole.NumberOfFrames = 0, 0, 1
    whole.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
    whole.PixelData = cells.tobytes()
    whole.file_meta = data.file_meta
    return bytes(get_encoder(UID(SYNTAXES["rle"])).encode(whole, encoding_plugin="pydicom"))


def _encoded(case: Case, samples: NDArray[Any], values: NDArray[Any]) -> bytes:
    """Encode with imagecodecs, which reads nothing here."""
    size = 1 if case.stored <= 8 else 2
    cells = (samples & (2**case.stored - 1)).astype(f"u{size}")
    if case.syntax in WAVELETS:
        signed = values.astype(f"i{size}") if case.signed else cells
        if case.syntax == "htj2k":
            return bytes(imagecodecs.htj2k_encode(signed, reversible=True))
        level = 55 if case.syntax == "jpeg 2000 lossy" else 0
        options = {"level": level, "reversible": not level, "mct": case.space.startswith("YBR")}
        return bytes(
            imagecodecs.jpeg2k_encode(signed, codecformat="j2k", bitspersample=case.stored, **options)
        )
    if case.syntax.startswith("jpeg-ls"):
        return bytes(imagecodecs.jpegls_encode(cells, level=int("near" in case.syntax)))
    lossless = {"lossless": True, "predictor": 1 if "sv1" in case.syntax else 5}
    options = lossless if "lossless" in case.syntax else {"level": 97}
    if cells.ndim == 3:
        options |= {"colorspace": "RGB", "outcolorspace": "RGB", "subsampling": "444"}
    encoded = bytes(imagecodecs.jpeg8_encode(cells, bitspersample=max(case.stored, 8), **options))
    return _marked(encoded, case)


def _marked(encoded: bytes, case: Case) -> bytes:
    """Take the encoder's own marker out, and put in the one asked for."""
    marker, length = encoded[2:4], int.from_bytes(encoded[4:6], "big")
    bare = encoded[:2] + encoded[4 + length :] if marker in (b"\xff\xe0", b"\xff\xee") else encoded
    if case.space not in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        return encoded
    bare = _numbered(bare)
    if case.marks == "jfif":
        return bare[:2] + b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + bare[2:]
    if case.marks == "adobe":
        transform = bytes([0 if case.space == "RGB" else 1])
        return bare[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + transform + bare[2:]
    return bare


def _numbered(encoded: bytes) -> bytes:
    """Call the components 1, 2, 3 in frame and scan, which says nothing of their colours."""
    out, at = bytearray(encoded), 2
    while at < len(out):
        marker, length = out[at + 1], int.from_bytes(out[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC3):
            for i in range(out[at + 9]):
                out[at + 10 + 3 * i] = i + 1
        if marker == 0xDA:
            for i in range(out[at + 4]):
                out[at + 5 + 2 * i] = i + 1
            break
        at += 2 + length
    return bytes(out)
