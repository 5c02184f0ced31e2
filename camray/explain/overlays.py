"""Pictures for people: the heatmap over the model's view, or over the original image in the right place.

Flows in: uint8 RGB images and layer-resolution maps. Flows out: encoded JPEG bytes and safe file names.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from camray.config import OverlayConfig
from camray.errors import in_one_line
from camray.records import EDGES, Geometry, key_of

cv2.setNumThreads(1)  # a worker draws one picture at a time; the workers share the cores

Image = NDArray[np.uint8]
Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

ORIGINAL_SIDE = 1024  # an overlay on the original is drawn at most this large
_CAPTION_CHARACTERS = 300  # of longer texts the rest is left out
INPUT_SIDE = 224  # an overlay on a smaller input is enlarged by a whole factor to at least this


_WHERE = ("width", "height", *(f"crop_{edge}" for edge in EDGES))
_BOX = tuple(f"box_{edge}" for edge in EDGES)
DRAWN = (
    "heatmap", "heat_h", "heat_w", *_WHERE, *_BOX, "predicted_class", "predicted_label", "predicted_value",
    "confidence", "target_class", "target_label", "segment_mask", "segment_h", "segment_w",
)  # fmt: skip
"""Columns of a record that its picture is made of."""
NAMED = ("target_class", "target_label", "target_kind", "detection", "index", "member")
"""Columns of a record that the name of its picture is made of."""


def draw(record: Mapping[str, Any], image: Image, style: OverlayConfig) -> Image:
    """Draw a record's map over its image: uint8 (H, W, 3).

    `image` is the model's input; with `style.on` "original" the upright image at its own size.
    """
    heat, where, box = heat_of(record), where_of(record), tuple(record[name] for name in _BOX)
    mask = _segment(record)
    if style.on == "original":
        image = image if box[0] is None else with_box(image, box)
        image = image if mask is None else with_outline(image, on_original(mask, where))
        picture = overlay_on_original(image, heat, where, style)
    else:
        # a canvas wider and higher than the image is of a detector or segmenter
        if max(where.crop_x0 or 0, where.crop_y0 or 0) < 0:
            image, heat, mask, where = _without_canvas(image, heat, mask, where)
        image = image if box[0] is None else with_box(image, _on_input(box, where, image.shape))
        image = image if mask is None else with_outline(image, mask)
        picture = overlay_on_input(image, heat, style)
    picture = with_legend(picture, float(heat.max()), style) if style.legend else picture
    return with_caption(picture, caption_of(record)) if style.caption else picture


def heat_of(record: Mapping[str, Any]) -> Map:
    """Give the map of a record: (h, w)."""
    return np.array(record["heatmap"], np.float32).reshape(record["heat_h"], record["heat_w"])


def _segment(record: Mapping[str, Any]) -> Mask | None:
    if record["segment_mask"] is None:
        return None
    bits = np.unpackbits(np.frombuffer(record["segment_mask"], np.uint8))
    shape = (record["segment_h"], record["segment_w"])
    return bits[: shape[0] * shape[1]].reshape(shape).astype(bool)


def where_of(record: Mapping[str, Any]) -> Geometry:
    """Give where the input of a record lies in its image."""
    return Geometry(*(record[name] for name in _WHERE))


def caption_of(record: Mapping[str, Any]) -> str:
    """Say what the model said, and which class the map explains where that is another one."""
    predicted, target = record["predicted_class"], record["target_class"]
    if predicted is None:
        return f"{record['predicted_value']:.4g}"
    text = f"{record['predicted_label'] or f'class {predicted}'} {record['confidence']:.1%}"
    if target != predicted:
        text += f" · map of {record['target_label'] or f'class {target}'}"
    return text


def _on_input(
    box: tuple[float, ...], where: Geometry, shape: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Turn a box of the upright image into pixels of the input."""
    across, down = shape[1] / (where.crop_x1 - where.crop_x0), shape[0] / (where.crop_y1 - where.crop_y0)
    x0, y0 = where.crop_x0, where.crop_y0
    return (box[0] - x0) * across, (box[1] - y0) * down, (box[2] - x0) * across, (box[3] - y0) * down


def _without_canvas(
    image: Image, heat: Map, mask: Mask | None, where: Geometry
) -> tuple[Image, Map, Mask | None, Geometry]:
    """Cut out of an input, and of what lies on it, the part that is image."""
    size = (image.shape[1], image.shape[0])
    x0, y0, x1, y1 = map(round, _on_input((0, 0, where.width, where.height), where, image.shape))
    part = (slice(y0, y1), slice(x0, x1))
    heat = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR)[part].astype(np.float32)
    if mask is not None:
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[part] > 0
    return image[part], heat, mask, Geometry(where.width, where.height, 0, 0, where.width, where.height)


def overlay_on_input(image: Image, heat: Map, style: OverlayConfig) -> Image:
    """Draw a map (h, w) over the model's input (H, W, 3)."""
    factor = -(-INPUT_SIDE // min(image.shape[:2]))  # rounded up; nearest, so that pixels stay pixels
    image = image.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else image
    height, width = image.shape[:2]
    unit = cv2.resize(_unit(heat), (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return _drawn(image, unit, style)


def overlay_on_original(image: Image, heat: Map, geometry: Geometry, style: OverlayConfig) -> Image:
    """Draw a map over the upright original; what the model never saw is dimmed, not stretched over."""
    scale = min(1.0, ORIGINAL_SIDE / max(geometry.width, geometry.height))
    width, height = max(1, round(geometry.width * scale)), max(1, round(geometry.height * scale))
    if (width, height) != (geometry.width, geometry.height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    h, w = heat.shape
    # Pixel centre of the drawn image -> source -> input share -> map cell, as bilinear resizing would.
    to_x = _axis(width, geometry.width, geometry.crop_x0, geometry.crop_x1, w)
    to_y = _axis(height, geometry.height, geometry.crop_y0, geometry.crop_y1, h)
    grid_x, grid_y = np.meshgrid(to_x, to_y)
    unit = cv2.remap(_unit(heat), grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = np.outer((to_y >= -0.5) & (to_y <= h - 0.5), (to_x >= -0.5) & (to_x <= w - 0.5))  # inside the crop
    image = np.where(seen[..., None], image, image // 2 + 48).astype(np.uint8)
    return _drawn(image, np.where(seen, unit, 0).astype(np.float32), style)


def heat_mask(heat: Map, geometry: Geometry, input_size: tuple[int, int], share: float) -> bytes:
    """Give a PNG of the upright image's size, 255 where the map reaches `share` of its peak in the input."""
    unit = cv2.resize(np.maximum(heat, 0), input_size[::-1], interpolation=cv2.INTER_LINEAR)
    mask = on_original((unit >= share * unit.max()) & (unit > 0), geometry)
    done, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not done:
        raise ValueError("OpenCV could not encode the mask")
    return bytes(data)


def on_original(mask: Mask, geometry: Geometry) -> Mask:
    """Give a mask of the input as one of the upright image; what the model never saw is no part of it."""
    height, width = mask.shape
    to_x = _axis(geometry.width, geometry.width, geometry.crop_x0, geometry.crop_x1, width)
    to_y = _axis(geometry.height, geometry.height, geometry.crop_y0, geometry.crop_y1, height)
    rows, columns = (np.rint(to).astype(int) for to in (to_y, to_x))
    seen = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    return np.asarray(mask[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)] & seen)


def with_box(image: Image, box: tuple[float, float, float, float]) -> Image:
    """Draw a box (x0, y0, x1, y1), in pixels, in white edged with black: seen on every picture."""
    (x0, y0), (x1, y1) = ((round(box[i]), round(box[i + 1])) for i in (0, 2))
    return _edged(image, [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.int32)])


def with_outline(image: Image, mask: Mask) -> Image:
    """Draw the outline of a mask, enlarged to the image, as a box is drawn."""
    size = (image.shape[1], image.shape[0])
    whole = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return _edged(image, cv2.findContours(whole, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0])


def _edged(image: Image, lines: Sequence[NDArray[Any]]) -> Image:
    """Draw closed lines in white, edged with black."""
    thick = max(1, round(max(image.shape[:2]) / 300))
    drawn = np.ascontiguousarray(image).copy()
    for colour, width in (((0, 0, 0), 3 * thick), ((255, 255, 255), thick)):
        cv2.polylines(drawn, lines, True, colour, width)
    return drawn


def with_caption(image: Image, text: str) -> Image:
    """Write under the picture, on a white strip, in as many lines as its width asks for."""
    text = in_one_line(text[:_CAPTION_CHARACTERS]) + "…" * (len(text) > _CAPTION_CHARACTERS)
    size = max(12, image.shape[1] // 20)
    font = ImageFont.load_default(size=size)
    lines = _lines(text, lambda part: font.getlength(part) <= image.shape[1] - size)
    canvas, draw = _with_strip(image, round(size * (0.8 + 1.2 * len(lines))))
    for number, line in enumerate(lines):
        draw.text((size // 2, image.shape[0] + size * (1 / 3 + 1.2 * number)), line, fill="black", font=font)
    return np.asarray(canvas, np.uint8)


def with_legend(image: Image, peak: float, style: OverlayConfig) -> Image:
    """Draw the scale of the colours under the picture, from 0 to the map's peak, with the line's place."""
    size, across = max(12, image.shape[1] // 20), image.shape[1]
    font = ImageFont.load_default(size=size)
    canvas, draw = _with_strip(image, 2 * size)
    top, end = image.shape[0] + size // 2, f"{peak:.2g}"
    left, right = round(2 * size), round(across - 1.5 * size - font.getlength(end))
    draw.text((size // 2, top - size // 6), "0", fill="black", font=font)
    draw.text((right + size // 2, top - size // 6), end, fill="black", font=font)
    bar = cv2.resize(_colour_table(style.colormap), (max(right - left, 1), size))
    canvas.paste(PillowImage.fromarray(bar), (left, top))
    if style.contour:
        mark = left + style.contour * (right - left)
        draw.rectangle((mark - 2, top - 3, mark + 2, top + size + 2), fill="white", outline="black")
    return np.asarray(canvas, np.uint8)


def _with_strip(image: Image, height: int) -> tuple[PillowImage.Image, ImageDraw.ImageDraw]:
    """Give a picture with so much white under it, to draw on."""
    canvas = PillowImage.new("RGB", (image.shape[1], image.shape[0] + height), "white")
    canvas.paste(PillowImage.fromarray(image))
    return canvas, ImageDraw.Draw(canvas)


def _lines(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Break a text into lines that fit: between words, else within one."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if fits(joined):
            lines[-1] = joined
            continue
        rest = word
        while rest:
            count = max(1, bisect(range(1, len(rest) + 1), False, key=lambda n: not fits(rest[:n])))
            lines.append(rest[:count])
            rest = rest[count:]
    return lines[1:] if len(lines) > 1 and not lines[0] else lines


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode RGB as JPEG, from pixels alone: no metadata of the source survives."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("OpenCV could not encode the overlay")
    return bytes(data)


def name_of(shard_id: str, record: Mapping[str, Any]) -> str:
    """Name the overlay of a record."""
    class_id, label, number = (record[n] for n in ("target_class", "target_label", "detection"))
    target = f"{class_id} {label}" if label else f"class {class_id}"
    target = record["target_kind"] if class_id is None else target  # a value
    target = target if number is None else f"{number} {target}"
    return overlay_name(shard_id, record["index"], key_of(record["member"]), target)


def overlay_name(shard_id: str, index: int, key: str, target: str) -> str:
    """Name an overlay after its image and the class explained: safe and bounded whatever these are called.

    Unique by shard content, index and target; two targets whose names slug alike differ in `target`'s class.
    """
    name = "-".join(part for part in (_slug(key.rpartition("/")[2], 40), _slug(target, 30)) if part)
    return f"{shard_id}/{index:06d}{'-' if name else ''}{name}.jpg"


def _slug(text: str, limit: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:limit].strip("-")


def _axis(pixels: int, length: int, low: float, high: float, cells: int) -> NDArray[np.float32]:
    source = (np.arange(pixels) + 0.5) * length / pixels
    return ((source - low) / (high - low) * cells - 0.5).astype(np.float32)


def _unit(heat: Map) -> Map:
    """Scale the positive part to 0..1; a dead map stays 0."""
    positive = np.maximum(heat, 0, dtype=np.float32)
    top = float(positive.max())
    return (positive / top).astype(np.float32) if top > 0 else positive


def _drawn(image: Image, unit: Map, style: OverlayConfig) -> Image:
    """Give the blend, or image, map and blend side by side.

    All in OpenCV: for 224 x 224 pixels 1 ms, where NumPy's temporary arrays took 5.
    """
    unit = np.clip(unit, 0, 1)
    level = (unit * 255).astype(np.uint8)
    colours = cv2.LUT(cv2.merge([level] * 3), _colour_table(style.colormap))  # (H, W, 3)
    # Cold regions keep the image's own colours: the weight falls with the heat, slower for gamma < 1.
    weight = cv2.merge([cv2.pow(unit, style.gamma) * style.alpha] * 3)
    change = cv2.multiply(cv2.subtract(colours, image, dtype=cv2.CV_32F), weight)
    blend = cv2.add(image, change, dtype=cv2.CV_8U).astype(np.uint8)  # rounded
    if style.contour:
        blend = _with_contour(blend, unit, style.contour)
    if style.picture == "blend":
        return blend
    return np.concatenate([image, colours, blend], axis=1).astype(np.uint8)


def _with_contour(blend: Image, unit: Map, level: float) -> Image:
    """Draw a line around what reaches so much of the peak, white edged with black: seen on every picture."""
    hot = cv2.copyMakeBorder((unit >= level).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    lines, _ = cv2.findContours(hot, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(-1, -1))
    thick = max(1, round(min(blend.shape[:2]) / 112))
    drawn = np.ascontiguousarray(blend).copy()
    for colour, width in (((0, 0, 0), 3 * thick), ((255, 255, 255), thick)):
        cv2.drawContours(drawn, lines, -1, colour, width)
    return drawn


@cache
def _colour_table(name: str) -> Image:
    """RGB of one of OpenCV's colour maps: (1, 256, 3)."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    table = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}"))
    return np.ascontiguousarray(table[..., ::-1]).astype(np.uint8)
