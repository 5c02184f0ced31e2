"""Frames: each is the picture that went in at its place, whatever the container; thumbnails are none."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image.decode import upright
from camray.image.frames import count_frames
from camray.image.guarded import GuardedDecoder

MAX = 10**6
COLOURS = ((200, 30, 40), (20, 180, 60), (40, 50, 210))
FORMATS = ("GIF", "WEBP", "PNG", "AVIF", "TIFF", "DICOM")


def picture(i: int, side: int = 32) -> NDArray[np.uint8]:
    """One colour, with a corner that says which frame it is."""
    pixels = np.full((side, side, 3), COLOURS[i % 3], np.uint8)
    pixels[: 4 * (i + 1), :4] = 255
    return pixels


def animation(name: str, count: int = 3) -> bytes:
    if name == "DICOM":
        return dicom(count)
    frames = [Image.fromarray(picture(i)) for i in range(count)]
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "GIF": {"disposal": 1}}
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if count > 1 else {}
    frames[0].save(buffer, name, **more, **options.get(name, {}))
    return buffer.getvalue()


def dicom(count: int) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7.4", "1.2.3"
    data.Rows = data.Columns = 32
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.NumberOfFrames = count
    data.PixelData = b"".join(picture(i).tobytes() for i in range(count))
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_each_frame_is_what_went_in(name: str) -> None:
    content = animation(name)
    assert count_frames(content) == 3
    for i in range(3):
        got = upright(content, MAX, i)
        assert np.abs(got.astype(int) - picture(i)).mean() < 3, i
    assert np.array_equal(upright(content, MAX), upright(content, MAX, 0))
    assert count_frames(animation(name, 1)) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_frame_that_is_not_there(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        upright(animation(name), MAX, 7)
    assert name == "DICOM" or caught.value.code == ErrorCode.NO_SUCH_FRAME


def test_only_pages_of_full_resolution_count() -> None:
    """A thumbnail first, a level of a pyramid between, a mask at the end."""
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        pages = ((picture(2, 8), 1), (picture(0), 0), (picture(0, 16), 1), (picture(1), 0))
        for pixels, kind in pages:
            tiff.write(pixels, subfiletype=kind, photometric="rgb")
        tiff.write(picture(2)[..., 0] > 100, subfiletype=4, photometric=4)
    content = buffer.getvalue()
    assert count_frames(content) == 2
    assert [np.array_equal(upright(content, MAX, i), picture(i)) for i in (0, 1)] == [True, True]


def test_what_a_camera_puts_beside_a_jpeg_is_no_frame() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(
        buffer, "MPO", save_all=True, append_images=[Image.fromarray(picture(1, 16))]
    )
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert image.n_frames == 2
    with pytest.raises(Exception, match="cannot identify"):
        count_frames(buffer.getvalue())


def test_the_size_of_the_frame_is_the_one_that_is_checked() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 16)).save(
        buffer, "TIFF", save_all=True, append_images=[Image.fromarray(picture(1, 64))]
    )
    assert upright(buffer.getvalue(), 300, 0).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="64 x 64"):
        upright(buffer.getvalue(), 300, 1)


def test_the_guarded_process_counts_and_turns_to_frames() -> None:
    decoder = GuardedDecoder(MAX)
    try:
        content = animation("GIF")
        assert decoder.count_frames(content) == 3
        assert np.array_equal(decoder.upright(content, 1), upright(content, MAX, 1))
        assert decoder.count_frames(b"no image") == decoder.count_frames(animation("PNG", 1)) == 1
    finally:
        decoder.close()
