"""Embeddings without a head: the cosine to a reference image, or to centroids of labelled ones, is explained.

The truth is the network itself, a backward by hand, and grad-cam's way with such a target.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from camray.audit.job import audit
from camray.config import ArchiveConfig, Config, MethodConfig, ModelConfig, PreprocessConfig
from camray.errors import ExitCode, ModelError
from camray.explain.explainer import resolve
from camray.flow.progress import Reporter
from camray.ledger.table import Table
from camray.models.load import load_model
from camray.options import load
from camray.storage import open_folder

Explain = Callable[..., Any]
SIDE = 64


def photograph(seed: int) -> Image.Image:
    """A picture of the size of the input, so that nothing is resized."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], nn.Module]:
    """A timm network without a head: settings, and the network."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=0).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    file = tmp_path_factory.mktemp("tower") / "w.safetensors"
    save_file(net.state_dict(), file)
    given = {"model__checkpoint": str(file), "preprocess__input_size": SIDE, "preprocess__resize": SIDE,
             "preprocess__mean": 0.5, "preprocess__std": 0.25}  # fmt: skip
    return given, net


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        photograph(i).save(folder / f"{i}.png")
    return folder


def as_input(picture: Image.Image) -> Tensor:
    return ((torch.tensor(np.array(picture)).permute(2, 0, 1) / 255 - 0.5) / 0.25)[None].float()


def records(out: Path) -> dict[str, dict[str, Any]]:
    table = Table(open_folder(str(out), "OUT"))
    table.update()
    return {row["member"]: row for row in table.dataset().to_table().to_pylist()}


def rows_of(out: Path) -> int:
    table = Table(open_folder(str(out), "OUT"))
    table.update()
    return int(table.dataset().count_rows())


def grad_cam(pgc: Any, net: nn.Module, layer: str, x: Tensor, concept: Tensor) -> tuple[Any, float]:
    """The raw map of grad-cam for the similarity to a concept, and the size of the terms that it sums."""

    class SimilarityToConcept:
        def __call__(self, output: Tensor) -> Tensor:
            return cosine_similarity(output, concept, dim=0)

    made: list[Any] = []
    cam = pgc.GradCAM(net, [net.get_submodule(layer)])

    def seen(*args: Any, **more: Any) -> Any:
        weights = cam.get_cam_weights(*args[:5])
        made.extend((np.asarray(inner(*args, **more)), np.abs(weights[:, :, None, None] * args[3])))
        return made[0]

    inner, cam.get_cam_image = cam.get_cam_image, seen
    cam(x, [SimilarityToConcept()])
    cam.activations_and_grads.release()
    return made[0][0], float(np.asarray(made[1]).sum(1).max())


def test_the_cosine_to_a_reference_is_the_value_that_is_explained(
    tmp_path: Path, archive: Path, tower: tuple[dict[str, Any], nn.Module], explain: Explain
) -> None:
    """Value and map equal those of grad-cam with a target of similarity, <= 1e-5; and it is resumed."""
    pgc = pytest.importorskip("pytorch_grad_cam")
    given, net = tower
    photograph(9).save(tmp_path / "ref.png")
    target = {"method__target": f"similarity:{tmp_path / 'ref.png'}", "overlay__caption": True}
    done = explain(archive, tmp_path / "out", "test_resnet", **given, **target)
    assert done.code == ExitCode.DONE
    with torch.no_grad():
        concept = net(as_input(photograph(9)))[0]

    for i in range(3):
        row, x = records(tmp_path / "out")[f"{i}.png"], as_input(photograph(i))
        assert (row["predicted_class"], row["confidence"], row["target_kind"]) == (None, None, "similarity")
        with torch.no_grad():
            cosine = float(cosine_similarity(net(x), concept[None]))
        assert row["predicted_value"] == pytest.approx(cosine, abs=1e-5)
        theirs, scale = grad_cam(pgc, net, row["target_layer"].removeprefix("tower."), x, concept)
        assert np.abs(np.reshape(row["heatmap"], theirs.shape) - theirs).max() <= 1e-5 * scale
    again = explain(archive, tmp_path / "out", "test_resnet", **given, **target)
    assert again.code == ExitCode.DONE
    assert rows_of(tmp_path / "out") == 3
    photograph(10).save(tmp_path / "ref.png")  # another concept under the same name
    assert explain(archive, tmp_path / "out", "test_resnet", **given, **target).code == ExitCode.DONE
    assert rows_of(tmp_path / "out") == 6


@pytest.mark.slow
def test_an_audit_of_values_makes_no_looks_and_ends_well(
    tmp_path: Path, archive: Path, tower: tuple[dict[str, Any], nn.Module]
) -> None:
    """No answer has a class, so that there is nothing to look at again."""
    given, _ = tower
    photograph(9).save(tmp_path / "ref.png")
    named = {name.replace("__", "."): value for name, value in given.items()} | {
        "archive.path": str(archive), "out": str(tmp_path / "out"), "run.engine": "here",
        "model.name": "test_resnet", "method.target": f"similarity:{tmp_path / 'ref.png'}",
    }  # fmt: skip
    assert audit(load(None, named, "audit"), Reporter()).code == ExitCode.DONE
    assert rows_of(tmp_path / "out") == 3


def test_the_content_of_the_reference_names_the_explainer(
    tmp_path: Path, tower: tuple[dict[str, Any], nn.Module]
) -> None:
    given, _ = tower

    def named(path: str) -> str:
        model = ModelConfig(name="test_resnet", checkpoint=given["model__checkpoint"])
        small = PreprocessConfig(input_size=(SIDE,))
        target = MethodConfig(target=f"similarity:{path}")
        return resolve(Config(model=model, preprocess=small, method=target))[0].id

    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        photograph(seed).save(tmp_path / folder / "ref.png")
    one, same, other = (named(f"{tmp_path}/{folder}/ref.png") for folder in "abc")
    assert one == same != other


@pytest.mark.slow
def test_labelled_images_are_classes_by_their_centroids(
    tmp_path: Path, archive: Path, tower: tuple[dict[str, Any], nn.Module], explain: Explain
) -> None:
    """The nearest centroid is the answer, its cosine the confidence; the label may be the target."""
    given, net = tower
    wanted = []
    with torch.no_grad():
        for name, seeds in (("cat", (1, 5)), ("dog", (0, 6, 7))):
            (tmp_path / "refs" / name).mkdir(parents=True)
            for seed in seeds:
                photograph(seed).save(tmp_path / "refs" / name / f"{seed}.png")
            each = [normalize(net(as_input(photograph(seed)))[0], dim=0) for seed in seeds]
            wanted.append(normalize(torch.stack(each).mean(0), dim=0))
        cosines = [normalize(net(as_input(photograph(i)))) @ torch.stack(wanted).T for i in range(3)]
    for i in range(3):
        (archive / f"{i}.cls").write_text(str(i % 2))
    done = explain(
        archive, tmp_path / "out", "test_resnet", model__head=str(tmp_path / "refs"), method__target="label",
        run__max_failed=3, **given,
    )  # fmt: skip
    assert done.code == ExitCode.DONE
    for i, row in enumerate(records(tmp_path / "out")[f"{i}.png"] for i in range(3)):
        best = int(cosines[i].argmax())
        assert (row["predicted_label"], row["label_class"]) == (("cat", "dog")[best], i % 2)
        assert row["confidence"] == pytest.approx(float(cosines[i].max()), abs=1e-5)
        assert row["label_score"] == pytest.approx(float(cosines[i][0, i % 2]), abs=1e-5)
        assert (row["target_class"], row["heat_status"]) == (i % 2, "ok")
    loaded = load_model(ModelConfig(name="test_resnet", checkpoint=given["model__checkpoint"],
                                    head=str(tmp_path / "refs")))  # fmt: skip
    assert "mean direction of 5 images of 2 classes" in " ".join(loaded.notes)


def test_references_that_are_none_are_refused(
    tmp_path: Path, tower: tuple[dict[str, Any], nn.Module]
) -> None:
    given, _ = tower
    (tmp_path / "empty" / "only").mkdir(parents=True)
    (tmp_path / "text.png").write_text("no image")
    model = ModelConfig(name="test_resnet", checkpoint=given["model__checkpoint"])

    def refused(target: str = "predicted", **more: Any) -> str:
        from dataclasses import replace

        config = Config(
            model=replace(model, **more), method=MethodConfig(target=target), archive=ArchiveConfig("x")
        )
        with pytest.raises(ModelError) as caught:
            resolve(config)
        return str(caught.value)

    assert "names nothing. Fix: similarity:IMAGE" in refused("similarity:")
    assert "No such file" in refused(f"similarity:{tmp_path}/none.png")
    assert "text.png: not_an_image" in refused(f"similarity:{tmp_path}/text.png")
    assert "holds no image" in refused(f"similarity:{tmp_path}/empty")
    assert "holds 1 folders of images" in refused(head=f"{tmp_path}/empty")
    assert "given together with --target" in refused(f"similarity:{tmp_path}/text.png", head="h.safetensors")
    assert "resnet18 has a head of its own" in refused(
        f"similarity:{tmp_path}/text.png", name="torchvision:resnet18", checkpoint=None
    )
