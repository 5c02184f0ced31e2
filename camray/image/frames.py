"""The frames of a file: animations, pages of a TIFF, frames of a DICOM file; counted from 0.

Of a TIFF only pages of full resolution count: no thumbnails, no levels of a pyramid, no masks. What a camera
puts beside a JPEG (MPO: previews, gain maps) is no frame.
"""

from __future__ import annotations

import io
import itertools

from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image.dicom import count_frames as count_dicom_frames
from camray.image.dicom import is_dicom

_FORMATS = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255
_REDUCED, _MASK = 1, 4  # bits of the new one
_OLD_REDUCED = 2


def count_frames(content: bytes) -> int:
    """Give the number of frames, at least 1; of what is no image or has no frames too.

    Raises:
        Exception: whatever a decoder raises of a damaged file.
    """
    if is_dicom(content[:132]):
        return count_dicom_frames(content)
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return len(full_pages(image)) if image.format == "TIFF" else int(getattr(image, "n_frames", 1))


def seek_frame(image: Image.Image, frame: int) -> None:
    """Turn an opened image to a frame, as `count_frames` counts them.

    Raises:
        ImageError: NO_SUCH_FRAME.
    """
    try:
        image.seek(full_pages(image)[frame] if image.format == "TIFF" else frame)
    except (EOFError, IndexError):
        raise ImageError(ErrorCode.NO_SUCH_FRAME, f"no frame {frame}") from None


def full_pages(image: Image.Image) -> list[int]:
    """Give the pages of a TIFF that are pictures of full resolution; the first, where none says so."""
    pages = []
    for page in itertools.count():
        try:
            image.seek(page)
        except EOFError:
            break
        except SyntaxError:  # Pillow's word for pixels it has no mode for: the tags are read by then
            pass
        tags = image.tag_v2  # type: ignore[attr-defined]
        kind = int(tags.get(_NEW_SUBFILE_TYPE, 0) or 0)
        if not kind & (_REDUCED | _MASK) and tags.get(_SUBFILE_TYPE) != _OLD_REDUCED:
            pages.append(page)
    return pages or [0]
