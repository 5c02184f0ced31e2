"""Pictures: the heat lies where the model looked, and file names are harmless."""

import io
import posixpath
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont

from camray.config import OverlayConfig
from camray.explain import overlays
from camray.explain.overlays import (
    encode_jpeg,
    overlay_name,
    overlay_on_input,
    overlay_on_original,
    with_caption,
    with_legend,
)
from camray.records import Geometry

GREY = 128
STYLE = OverlayConfig()


def grey(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, np.uint8)


def one_hot(h: int, w: int, row: int, column: int) -> NDArray[np.float32]:
    heat = np.zeros((h, w), np.float32)
    heat[row, column] = 1
    return heat


def hottest(picture: NDArray[np.uint8], plain: NDArray[np.uint8]) -> tuple[float, float]:
    """Centre (x, y) in pixels of where the picture differs most from the plain one."""
    change = np.abs(picture.astype(int) - plain.astype(int)).sum(2)
    rows, columns = np.nonzero(change >= change.max() * 0.98)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 5), (3, 3), (6, 2)])
@pytest.mark.parametrize(("width", "height"), [(224, 224), (448, 224), (64, 64)])
def test_hot_cell_lands_on_its_part_of_the_input(width: int, height: int, row: int, column: int) -> None:
    picture = overlay_on_input(grey(width, height), one_hot(7, 7, row, column), STYLE)
    shown_height, shown_width = picture.shape[:2]
    assert shown_width / shown_height == width / height
    assert min(picture.shape[:2]) >= 224
    x, y = hottest(picture, grey(shown_width, shown_height))
    # bilinear: a border cell's heat is flat out to the border, so its centre may lie half a cell outwards
    assert x / shown_width == pytest.approx((column + 0.5) / 7, abs=0.5 / 7)
    assert y / shown_height == pytest.approx((row + 0.5) / 7, abs=0.5 / 7)
    if 0 < row < 6 and 0 < column < 6:
        assert (x, y) == pytest.approx(
            ((column + 0.5) / 7 * shown_width, (row + 0.5) / 7 * shown_height), abs=2
        )


GEOMETRIES = [
    pytest.param(Geometry(400, 200, 100, 0, 300, 200), id="wide, centre crop"),
    pytest.param(Geometry(200, 400, 0, 100, 200, 300), id="tall, centre crop"),
    pytest.param(Geometry(300, 300, 18.75, 18.75, 281.25, 281.25), id="inner crop with fractions"),
    pytest.param(Geometry(400, 200, 0, 0, 400, 200), id="squashed"),
    pytest.param(Geometry(400, 200, 0, -100, 400, 300), id="padded above and below"),
    pytest.param(Geometry(1600, 800, 400, 0, 1200, 800), id="drawn smaller"),
]


@pytest.mark.parametrize("where", GEOMETRIES)
@pytest.mark.parametrize(("row", "column"), [(3, 3), (2, 4), (4, 1)])
def test_hot_cell_lands_on_its_place_in_the_original(where: Geometry, row: int, column: int) -> None:
    image, cold = grey(where.width, where.height), np.zeros((7, 7), np.float32)
    picture = overlay_on_original(image, one_hot(7, 7, row, column), where, STYLE)
    plain = overlay_on_original(image, cold, where, STYLE)
    scale = picture.shape[1] / where.width
    x, y = hottest(picture, plain)
    expected_x = where.crop_x0 + (column + 0.5) / 7 * (where.crop_x1 - where.crop_x0)
    expected_y = where.crop_y0 + (row + 0.5) / 7 * (where.crop_y1 - where.crop_y0)
    cell = min(where.crop_x1 - where.crop_x0, where.crop_y1 - where.crop_y0) / 7
    assert (x / scale, y / scale) == pytest.approx((expected_x, expected_y), abs=max(2 / scale, cell * 0.06))


def test_what_the_model_never_saw_is_dimmed_and_the_rest_is_not() -> None:
    where = Geometry(400, 200, 100, 0, 300, 200)
    picture = overlay_on_original(grey(400, 200), np.zeros((7, 7), np.float32), where, STYLE)
    assert set(np.unique(picture[:, 100:300])) == {GREY}
    assert set(np.unique(picture[:, :99])) == set(np.unique(picture[:, 301:])) == {GREY // 2 + 48}


@pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 5000), (3000, 2), (1, 1)])
def test_a_strip_is_drawn_whole(width: int, height: int) -> None:
    """Where a side is rounded up to one pixel, the other side's scale is not its own."""
    where = Geometry(width, height, 0, 0, width, height)
    picture = overlay_on_original(grey(width, height), np.ones((3, 3), np.float32), where, STYLE)
    assert max(picture.shape[:2]) <= overlays.ORIGINAL_SIDE
    assert min(picture.shape[:2]) >= 1
    assert (np.abs(picture.astype(int) - GREY).sum(2) > 60).all()  # all of it was seen and is hot


def test_a_dead_or_negative_map_leaves_the_picture_alone() -> None:
    for heat in (np.zeros((7, 7), np.float32), -np.ones((7, 7), np.float32)):
        assert (overlay_on_input(grey(224, 224), heat, STYLE) == GREY).all()


def test_alpha_is_the_strength() -> None:
    heat = one_hot(7, 7, 3, 3)
    plain = OverlayConfig(alpha=0.0, contour=0.0)
    assert (overlay_on_input(grey(224, 224), heat, plain) == GREY).all()
    weak, strong = (
        np.abs(
            overlay_on_input(grey(224, 224), heat, OverlayConfig(alpha=a, contour=0.0)).astype(int) - GREY
        ).max()
        for a in (0.2, 1.0)
    )
    assert weak < strong


def test_the_scale_of_the_map_does_not_matter() -> None:
    heat = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    first, second = (overlay_on_input(grey(224, 224), heat * k, STYLE) for k in (1, 1e-6))
    assert np.abs(first.astype(int) - second.astype(int)).max() <= 2


def test_the_source_is_not_drawn_on() -> None:
    image = grey(224, 224)
    overlay_on_input(image, np.ones((7, 7), np.float32), STYLE)
    overlay_on_original(image, np.ones((7, 7), np.float32), Geometry(224, 224, 0, 0, 224, 224), STYLE)
    assert (image == GREY).all()


def test_jpeg_keeps_the_order_of_the_colours() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 220
    with Image.open(io.BytesIO(encode_jpeg(red, 90))) as back:
        assert back.format == "JPEG"
        r, g, b = np.asarray(back.convert("RGB"))[16, 16].astype(int)
    assert r > 200
    assert max(g, b) < 20


HOSTILE = [
    "../../etc/passwd", "/abs/olute", "a\\..\\b", "con", "a\x00b", "a\nb", "\u202egpj", "." * 300, "ü" * 50,
    "x" * 300, "", " ", "a b.c", "~", "$(rm)", "%2e%2e%2f", "CON.jpg", "-rf",
]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_names_are_harmless(key: str) -> None:
    check_name(key)


@given(st.text(st.characters(exclude_categories=[])))
def test_any_name_is_harmless(key: str) -> None:
    check_name(key)


def check_name(key: str) -> None:
    for path in (overlay_name("k-c", 7, key, "3 tabby cat"), overlay_name("k-c", 7, "x", key)):
        assert posixpath.normpath(path) == path
        assert re.fullmatch(r"k-c/000007(-[a-z0-9]([a-z0-9-]{0,69}[a-z0-9])?)?\.jpg", path)


def test_names_differ_by_index_and_help_people() -> None:
    assert overlay_name("s", 0, "x", "3") != overlay_name("s", 1, "x", "3")
    assert overlay_name("s", 12, "cats/Tabby 3", "4 Big cat") == "s/000012-tabby-3-4-big-cat.jpg"


def test_the_triple_shows_image_map_and_blend() -> None:
    heat = one_hot(7, 7, 3, 3)
    triple = overlay_on_input(grey(224, 224), heat, OverlayConfig(picture="triple", colormap="bone"))
    assert triple.shape == (224, 672, 3)
    image, colours, blend = np.split(triple, 3, axis=1)
    assert (image == GREY).all()
    assert (blend == overlay_on_input(grey(224, 224), heat, OverlayConfig(colormap="bone"))).all()
    assert (colours[0, 0] == 0).all()  # bone runs from black
    assert (colours[112, 112] > 200).all()  # to white


def test_gamma_spreads_or_narrows_the_colours() -> None:
    heat = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    wide, narrow = (
        np.abs(overlay_on_input(grey(224, 224), heat, OverlayConfig(gamma=g)).astype(int) - GREY).sum()
        for g in (0.3, 3.0)
    )
    assert wide > 1.5 * narrow


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nb", "\u2028", "\x00\x1b[31m", "\u202egpj", "\ud800", "", "x" * 10**6, "\n" * 10**5]
)
def test_any_caption_is_one_line(text: str) -> None:
    """A class name may hold anything: no control character moves the text."""
    plain = with_caption(grey(224, 224), "word")
    drawn = with_caption(grey(224, 224), text)
    assert drawn.shape == plain.shape or len(text) > 300
    assert drawn.shape[0] < 4 * 224
    shown = with_caption(grey(224, 224), text.encode("unicode_escape").decode() if len(text) == 3 else text)
    assert (drawn == shown).all()


@pytest.mark.parametrize("text", ["tabby cat 97.3% " + "very " * 50 + "long", "sidewinder" * 25, "short"])
def test_a_caption_stands_under_the_picture_whole(text: str) -> None:
    """There is as much ink as of its letters in one line, and none at the edge."""
    picture = grey(224, 224)
    captioned = with_caption(picture, text)
    assert captioned.shape[1] == 224
    assert (captioned[:224] == GREY).all()
    assert (captioned[224:, -4:] == 255).all()
    alone = np.array(ImageFont.load_default(size=12).getmask(text.replace(" ", "")), float).sum()
    assert (255.0 - captioned[224:, :, 0]).sum() == pytest.approx(alone, rel=0.02)


def test_the_legend_runs_from_nothing_to_the_peak() -> None:
    """The colours of the bar are those of the map, its marks are of black on white."""
    ramp = np.tile(np.linspace(0, 0.8, 224, dtype=np.float32), (224, 1))
    style = OverlayConfig(legend=True, colormap="bone", contour=0.0)
    strip = with_legend(grey(224, 224), float(ramp.max()), style)[224:].astype(int)
    bar = strip[12, 24:186].sum(1)
    assert bar[0] < 30
    assert bar[-1] > 700
    assert (np.diff(bar) >= 0).all()
    marked = with_legend(grey(224, 224), 0.8, replace(style, contour=0.5))[224:].astype(int)
    assert np.abs(np.nonzero((marked != strip).any(2).any(0))[0].mean() - (24 + 194 - 24 * 0.8) / 2) < 12


def test_the_contour_runs_where_the_map_crosses_half_of_its_peak() -> None:
    """Columns of a ramp from 0 to 1: the line is upright, at the middle, and light on dark in grey, too."""
    ramp = np.tile(np.linspace(0, 1, 224, dtype=np.float32), (224, 1))
    plain, lined = (overlay_on_input(grey(224, 224), ramp, OverlayConfig(contour=c)) for c in (0.0, 0.5))
    row = lined[112].astype(int).sum(1)
    white, black = np.nonzero(row == 765)[0], np.nonzero(row == 0)[0]
    assert white[0] == pytest.approx(112, abs=2)
    assert {white[0] - 1, white[-1] + 1} & set(black)
    assert (lined[112, :100] == plain[112, :100]).all()


def test_the_canvas_around_a_smaller_image_is_not_drawn() -> None:
    """A detector's image lies on a canvas that camray made: the picture is of the image, its box in place."""
    record = dict.fromkeys(overlays.DRAWN) | {
        "heatmap": one_hot(16, 16, 7, 8).ravel().tolist(), "heat_h": 16, "heat_w": 16,
        "width": 300, "height": 260,
        "crop_x0": -170.0, "crop_y0": -190.0, "crop_x1": 470.0, "crop_y1": 450.0,
        "box_x0": 100.0, "box_y0": 90.0, "box_x1": 200.0, "box_y1": 170.0,
    }  # fmt: skip
    canvas = np.zeros((640, 640, 3), np.uint8)
    canvas[190:450, 170:470] = GREY
    picture = overlays.draw(record, canvas, OverlayConfig(alpha=0.0, contour=0.0))
    assert picture.shape == (260, 300, 3)
    assert (picture[:80] == GREY).all()
    assert (picture[90, 100:200] == 255).all()
    assert (picture[94:166, 104:196] == GREY).all()
    x, y = hottest(overlays.draw(record, canvas, STYLE), picture)
    assert (x, y) == pytest.approx((340 - 170, 300 - 190), abs=21)  # the middle of cell 7, 8
    wide = record | {"crop_x0": 0.0, "crop_x1": 300.0, "width": 300, "crop_y0": -20.0, "crop_y1": 280.0}
    assert overlays.draw(wide, canvas[:300, :300], STYLE).shape == (300, 300, 3)  # as a letterbox is seen
