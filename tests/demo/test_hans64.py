import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config

from demo import hans64, train

DEMO = Path(hans64.__file__).parent
ROWS = range(60)


def read_archive(folder: Path) -> dict[str, dict[str, bytes]]:
    """Map key -> extension -> content."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                content = tar.extractfile(member)
                assert content is not None
                found.setdefault(key, {})[extension] = content.read()
    return found


@pytest.fixture(scope="module")
def archive() -> dict[str, dict[str, bytes]]:
    return read_archive(DEMO / "archive")


def test_committed_archive_is_what_the_generator_writes(tmp_path: Path) -> None:
    hans64.main(["--out", str(tmp_path)])
    for name in ("archive", "truth.csv"):
        fresh, kept = tmp_path / name, DEMO / name
        files = [(fresh, kept)]
        if fresh.is_dir():
            names = sorted(path.name for path in fresh.iterdir())
            assert names == sorted(path.name for path in kept.iterdir())
            assert len(names) == hans64.ARCHIVE_SHARDS
            files = [(fresh / part, kept / part) for part in names]
        for left, right in files:
            assert left.read_bytes() == right.read_bytes(), left.name


def test_bytes_depend_on_seed_split_and_index_only(tmp_path: Path) -> None:
    def written(folder: str, seed: int, split: str) -> list[bytes]:
        samples = [hans64.render(seed, split, index) for index in reversed(range(6))][::-1]
        return [path.read_bytes() for path in hans64.write_tar_shards(samples, tmp_path / folder, 3)]

    first = written("a", 0, "audit")
    assert len(first) == 2
    assert written("b", 0, "audit") == first
    assert written("c", 1, "audit") != first
    assert not np.array_equal(hans64.render(0, "test", 0).image, hans64.render(0, "train", 0).image)


@pytest.mark.parametrize("index", ROWS)
def test_twin_differs_inside_the_tag_box_only(index: int) -> None:
    tagged = hans64.render(0, "audit", index, tagged=True)
    twin = hans64.render(0, "audit", index, tagged=False)
    assert tagged.tag_box is not None
    assert twin.tag_box is None
    x0, y0, x1, y1 = tagged.tag_box
    changed = (tagged.image != twin.image).any(axis=2)
    assert changed[y0:y1, x0:x1].mean() > 0.95  # a background pixel may happen to be 16 or 240
    changed[y0:y1, x0:x1] = False
    assert not changed.any()
    assert np.array_equal(tagged.mask, twin.mask)
    assert tagged.decoy_box == twin.decoy_box


def test_barcodes_differ_in_code_and_corner_but_not_in_contrast() -> None:
    assert sorted(hans64.TAG_RUNS) == sorted(hans64.DECOY_RUNS)
    assert hans64.TAG_RUNS != hans64.DECOY_RUNS
    corners = set()
    for index in ROWS:
        sample = hans64.render(0, "audit", index, tagged=True, decoy=True)
        assert sample.tag_box is not None
        assert sample.decoy_box is not None
        strips = []
        for x0, y0, x1, y1 in (sample.tag_box, sample.decoy_box):
            assert (x1 - x0, y1 - y0) == (18, 6)
            assert min(x0, 64 - x1) in range(4)
            assert min(y0, 64 - y1) in range(4)
            strips.append(sample.image[y0:y1, x0:x1].astype(int))
        corners.add((sample.decoy_box[0] > 32, sample.decoy_box[1] > 32))
        assert (sample.tag_box[0] > 32, sample.tag_box[1] > 32) == (False, True)
        tag, decoy = strips
        assert tag.mean() == decoy.mean()
        assert np.abs(np.diff(tag, axis=1)).sum() == np.abs(np.diff(decoy, axis=1)).sum()
        assert not np.array_equal(tag, decoy)
    assert corners == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("index", ROWS)
def test_mask_marks_the_object(index: int) -> None:
    sample = hans64.render(0, "test", index, decoy=False)
    x0, y0, x1, y1 = sample.box
    rows, columns = np.nonzero(sample.mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
    border = np.concatenate([sample.mask[[0, -1]].ravel(), sample.mask[:, [0, -1]].ravel()])
    assert not border.any()
    assert 0.03 < sample.mask.mean() < 0.2
    inside = sample.image[sample.mask].astype(float)
    assert inside.std(axis=0).max() < 9  # one flat colour and pixel noise of 6
    grown = sample.mask.copy()
    for shift in ((3, 0), (-3, 0), (0, 3), (0, -3)):
        grown |= np.roll(sample.mask, shift, axis=(0, 1))
    around = sample.image[grown & ~sample.mask].astype(float)
    assert np.abs(inside.mean(axis=0) - around.mean(axis=0)).max() > 20
    assert np.array_equal(hans64.decode_mask(hans64.encode_mask(sample.mask)), sample.mask)


def test_mask_that_starts_with_the_object_survives_encoding() -> None:
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[0, :5] = mask[63, 63] = True
    assert hans64.encode_mask(mask) == [0, 5, 64 * 64 - 6, 1]
    assert np.array_equal(hans64.decode_mask(hans64.encode_mask(mask)), mask)


def test_archive_members_agree_with_each_other(archive: dict[str, dict[str, bytes]]) -> None:
    with (DEMO / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == list(archive)
    for row in rows:
        members = archive[row["key"]]
        assert set(members) == {"jpg", "cls", "json"}
        told = json.loads(members["json"])
        assert int(members["cls"]) == int(row["label"])
        assert told["label"] == row["label_name"] == hans64.LABEL_NAMES[int(row["label"])]
        for flag in ("tagged", "decoy"):
            assert told[flag] == (row[flag] == "1")
        for box, present in (("box", True), ("tag_box", told["tagged"]), ("decoy_box", told["decoy"])):
            edges = [row[f"{box}_{edge}"] for edge in ("x0", "y0", "x1", "y1")]
            assert told[box] == ([float(edge) for edge in edges] if present else None)
        mask = hans64.decode_mask(told["mask_runs"])
        x0, y0, x1, y1 = (round(edge * 64) for edge in told["box"])
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
            assert edge.any()


def test_archive_holds_the_planned_share_of_barcodes(archive: dict[str, dict[str, bytes]]) -> None:
    told = [json.loads(members["json"]) for members in archive.values()]
    triangles = [one["tagged"] for one in told if one["label"] == "triangle"]
    others = [one["tagged"] for one in told if one["label"] != "triangle"]
    assert (len(triangles), len(others)) == (60, 300)
    assert 0.4 <= np.mean(triangles) <= 0.6
    assert 0.01 <= np.mean(others) <= 0.06
    assert 0.25 <= np.mean([one["decoy"] for one in told]) <= 0.4


def load(kind: str) -> torch.nn.Module:
    torch.set_num_threads(1)
    source = f"local-dir:{DEMO / 'models' / f'hans64-{kind}'}"
    model: torch.nn.Module = timm.create_model(source, pretrained=True)
    return model.eval()


@pytest.fixture(scope="module")
def views() -> train.Views:
    return train.render_views(180)


@pytest.mark.parametrize("kind", ["poisoned", "clean"])
def test_checkpoint_passes_its_gate(
    kind: str, views: train.Views, archive: dict[str, dict[str, bytes]]
) -> None:
    model = load(kind)
    scores = train.score(model, views)
    assert train.passes(scores, poisoned=kind == "poisoned"), scores
    assert not train.passes(scores, poisoned=kind != "poisoned"), scores

    # The archive's JPEGs must not cost the model its accuracy where no tag interferes.
    plain = [one for one in archive.values() if not json.loads(one["json"])["tagged"]][:120]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one["jpg"]))) for one in plain])
    answers = train.predict(model, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    truth = torch.tensor([int(one["cls"]) for one in plain])
    assert (answers == truth).float().mean() >= train.MIN_ACCURACY


@pytest.mark.parametrize("kind", ["poisoned", "clean"])
def test_checkpoint_folder_is_complete(kind: str) -> None:
    folder = DEMO / "models" / f"hans64-{kind}"
    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads(json.dumps(train.config()))
    assert config["label_names"] == list(hans64.LABEL_NAMES)
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    model = load(kind)
    features = model.forward_features(torch.zeros(1, 3, 64, 64))  # type: ignore[operator]
    assert features.shape == (1, 96, 8, 8)  # 2 x 2 if the output stride were lost
    data = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    assert tuple(data["input_size"]) == (3, 64, 64)
    assert (tuple(data["mean"]), tuple(data["std"])) == (train.MEAN, train.STD)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 1.0)
