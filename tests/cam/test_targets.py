"""Targets and refusals: which score is explained, and what is said when it cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from camray.cam import TargetRule, explain, find_target_layer, find_target_layers, list_layers
from camray.cam.targets import Aim, as_rules, ranked
from camray.errors import ModelError, UsageError
from tests.cam.cam_zoo import images
from tests.cam.tolerance import near

pytestmark = pytest.mark.usefixtures("double")

Z = torch.tensor([[2.0, -1.0, 0.5, 1.0], [0.0, 3.0, -2.0, 2.5]], dtype=torch.float64)


def settle(text: str, logits: Tensor = Z, labels: Tensor | None = None) -> tuple[list[object], Tensor]:
    aim = Aim.settle(as_rules(text), logits, labels)
    return aim.classes.tolist(), aim.scores(logits)


@pytest.mark.parametrize(
    ("text", "classes", "scores"),
    [
        ("predicted", [[0], [1]], [[2.0], [3.0]]),
        ("top:2", [[0, 3], [1, 3]], [[2.0, 1.0], [3.0, 2.5]]),
        ("class:2", [[2], [2]], [[0.5], [-2.0]]),
        ("3", [[3], [3]], [[1.0], [2.5]]),
        ("class:2,0", [[2, 0], [2, 0]], [[0.5, 2.0], [-2.0, 0.0]]),
        ("-predicted", [[0], [1]], [[-2.0], [-3.0]]),
        ("predicted@margin", [[0], [1]], [[1.0], [0.5]]),
        ("class:2@margin", [[2], [2]], [[-1.5], [-5.0]]),
        ("class:0@vs:3", [[0], [0]], [[1.0], [-2.5]]),
        ("above:0.7", [[0, 3], [1, 3]], [[2.0, 1.0], [3.0, 2.5]]),
        ("above:0.94", [[-1], [1]], [[0.0], [3.0]]),
        ("above:0.6", [[0, 3, 2], [1, 3, -1]], [[2.0, 1.0, 0.5], [3.0, 2.5, 0.0]]),
    ],
)
def test_rules_by_hand(text: str, classes: list[list[int]], scores: list[list[float]]) -> None:
    found, value = settle(text)
    assert found == classes
    assert near(value, torch.tensor(scores))


def test_softmax_and_rest_by_hand() -> None:
    p = Z.exp() / Z.exp().sum(1, keepdim=True)
    assert near(settle("class:3@softmax")[1][:, 0], p[:, 3])
    assert near(settle("class:3@rest")[1][:, 0], Z[:, 3] + p[:, 3].log())


def test_labels_may_be_unknown_for_some_images() -> None:
    found, value = settle("label", labels=torch.tensor([3, -1]))
    assert found == [[3], [-1]]
    assert value.tolist() == [[1.0], [0.0]]


def test_binary_models_have_two_classes() -> None:
    z = torch.tensor([[1.5], [-2.0]])
    assert settle("predicted", z)[0] == [[1], [0]]
    assert settle("predicted", z)[1].tolist() == [[1.5], [2.0]]
    assert settle("class:0", z)[1].tolist() == [[-1.5], [2.0]]


def test_similarity_to_an_embedding() -> None:
    e = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]])
    aim = Aim.settle((TargetRule.similarity(e),), Z, None)
    assert near(aim.scores(Z), torch.stack([Z[:, 0], Z[:, 1]], 1) / Z.norm(dim=1, keepdim=True))


def test_scores_of_packed_rows_follow_their_image() -> None:
    aim = Aim.settle(as_rules("predicted"), Z, None)
    assert aim.scores(Z[[1, 0, 1]], torch.tensor([1, 0, 1]))[:, 0].tolist() == [3.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "text",
    ["", "predictd", "top", "top:x", "class", "class:1.5", "predicted:3", "class:1@vs", "predicted@loud"],
)
def test_unreadable_targets(text: str) -> None:
    with pytest.raises(UsageError, match="target"):
        as_rules(text)


class Net(nn.Module):
    """Two convolutions, one of them run twice, one never; a head that averages."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.never = nn.Conv2d(4, 4, 3)
        self.blind = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.blind(x)
        y = self.twice(self.twice(self.first(x)).relu()).relu()
        return self.head(self.last(y).mean((2, 3)))


def test_layers_are_listed_with_the_choice_marked() -> None:
    infos = {info.name: info for info in list_layers(Net(), (3, 16, 16))}
    assert [name for name, info in infos.items() if info.chosen] == ["last"]
    assert infos["last"].shape == (1, 6, 8, 8)
    assert infos["first"].usable
    assert "2 times" in infos["twice"].problem
    assert "zero" in infos["blind"].problem
    assert "no spatial map" in infos["head"].problem
    assert "never" not in infos


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("twice", "2 times"),
        ("never", "never runs"),
        ("blind", "zero"),
        ("head", "no spatial map"),
        ("x", "has no 'x'"),
    ],
)
def test_a_layer_that_cannot_work_is_refused_and_others_named(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as refused:
        find_target_layer(Net(), (3, 16, 16), name)
    assert "last" in refused.value.fix


def test_running_twice_or_never_is_refused_without_a_probe() -> None:
    from camray.cam import TargetLayer

    for name, says in (("twice", "runs twice"), ("never", "never runs")):
        with pytest.raises(ModelError, match=says):
            explain(Net(), images(16, 2), TargetLayer(name), "gradcam")


def test_parts_of_an_image_are_not_taken_for_images() -> None:
    """A layer that sees 4 x 4 patches as a batch (TNT, window attention) has maps of patches, not images."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 4, 3, padding=1)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            parts = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            return self.head(self.patches(parts).mean((2, 3))).view(len(x), -1, 5).mean(1)

    with pytest.raises(ModelError, match="counts parts of an image"):
        find_target_layer(Folded(), (3, 16, 16), "patches")


def test_names_may_count_from_the_end_and_be_patterns() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert find_target_layer(net, (3, 16, 16), "0.-1").name == "0.2"
    assert [layer.name for layer in find_target_layers(net, (3, 16, 16), "0.*")] == ["0.0", "0.1", "0.2"]
    with pytest.raises(ModelError, match="nothing matches"):
        find_target_layers(net, (3, 16, 16), "stage*")


def test_weights_that_are_not_finite_are_named() -> None:
    net = Net()
    net.last.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"last\.weight"):
        find_target_layer(net, (3, 16, 16))
    from camray.cam import TargetLayer

    with pytest.raises(ModelError, match=r"last\.weight"):
        explain(net, images(16, 2), TargetLayer("first"), "gradcam")


def test_a_head_of_zeros_is_refused() -> None:
    net = Net()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    with pytest.raises(ModelError, match="same logit"):
        find_target_layer(net, (3, 16, 16))


def test_an_image_that_is_not_finite_leaves_its_neighbours() -> None:
    x = images(16, 3)
    clean = explain(Net(), x, "last", ["gradcam", "eigencam", "layercam"], "class:1")
    x[1, 0, 0, 0] = torch.inf
    found = explain(Net(), x, "last", ["gradcam", "eigencam", "layercam"], "class:1")
    for key, maps in found.maps.items():
        assert near(maps[[0, 2]], clean.maps[key][[0, 2]])


def test_lengths_and_ranges_are_checked() -> None:
    net, x = Net(), images(16, 3)
    with pytest.raises(UsageError, match="2 targets for 3 images"):
        explain(net, x, "last", "gradcam", torch.tensor([1, 2]))
    with pytest.raises(UsageError, match="labels: 2 for 3 images"):
        explain(net, x, "last", "gradcam", "label", torch.tensor([1, 2]))
    with pytest.raises(UsageError, match="label needs labels"):
        explain(net, x, "last", "gradcam", "label")
    with pytest.raises(UsageError, match="class 9 of a model with 5"):
        explain(net, x, "last", "gradcam", "class:9")


def test_methods_say_what_they_need() -> None:
    x = images(16, 2)
    with pytest.raises(ModelError, match="cam needs a head that averages and is linear"):
        explain(Net(), x, "first", "cam")
    weighted = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 3))
    with pytest.raises(ModelError, match="weighs positions unequally"):
        explain(weighted, x, "0", "cam")
    with pytest.raises(UsageError, match="eigencam explains no class"):
        explain(Net(), x, "last", "eigencam", "class:1")
    with pytest.raises(UsageError, match="several layers"):
        explain(Net(), x, "last", "refinecam")
    with pytest.raises(UsageError, match="asked for twice"):
        explain(Net(), x, ["last", "last"], "gradcam")
    both = explain(Net(), x, "last", ["gradcam", "eigencam"], "class:1")
    assert both.notes == ("eigencam explains no class: one result per image, whatever the target",)


def test_models_that_are_no_classifiers() -> None:
    with pytest.raises(ModelError, match="not logits"):
        find_target_layer(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 16, 16))
    with pytest.raises(ModelError, match="no layer of"):
        find_target_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), (3, 16, 16))


def test_the_first_of_a_ranking_are_those_of_all() -> None:
    """Equal logits and NaN on either side of the cut included: the lowest id first."""
    draw = torch.Generator().manual_seed(0)
    plain = torch.randn(64, 50, generator=draw).float()
    equal = torch.randint(0, 6, (64, 50), generator=draw).float()
    missing = plain.masked_fill(torch.rand(plain.shape, generator=draw) < 0.02, float("nan"))
    for logits in (plain, equal, missing, plain[:, :1], plain[:, :2], torch.zeros(3, 9)):
        for count in (1, 2, 5, 60):
            both = torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits
            if not logits.isnan().any():
                order = [
                    sorted(range(len(row)), key=lambda c, row=row: -row[c])[:count] for row in both.tolist()
                ]
                assert ranked(logits, count).tolist() == order
            assert ranked(logits, count).equal(ranked(logits)[:, :count])
