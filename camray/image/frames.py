"""The frames of a file: animations, pages of a TIFF, frames of a DICOM file; counted from 0.

Of a TIFF only pages of full resolution count: no thumbnails, no levels of a pyramid, no masks. What a camera
puts beside a JPEG (MPO: previews, gain maps) is no frame.
"""

from __future__ import annotations

import io

from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image.dicom import count_frames as count_dicom_frames
from camray.image.dicom import is_dicom
from camray.image.tiff import full_pages, is_tiff

_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")


def count_frames(content: bytes) -> int:
    """Give the number of frames, at least 1; of what is no image or has no frames too.

    Raises:
        Exception: whatever a decoder raises of a damaged file.
    """
    if is_dicom(content[:132]):
        return count_dicom_frames(content)
    if is_tiff(content):
        return max(1, len(full_pages(content)))
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return int(getattr(image, "n_frames", 1))


def seek_frame(image: Image.Image, frame: int) -> None:
    """Turn an opened image to a frame, as `count_frames` counts them.

    Raises:
        ImageError: NO_SUCH_FRAME.
    """
    try:
        image.seek(frame)
    except EOFError:
        raise ImageError(ErrorCode.NO_SUCH_FRAME, f"no frame {frame}") from None
