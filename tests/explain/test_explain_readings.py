"""What a network of one's own returns is explained as what it is, or refused: never as something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from camray.errors import ModelError
from camray.explain.explainer import resolve
from tests.explain.own_net import as_input, built, config, explained, heat, pixels, write

ENDINGS = {
    "module": "return nn.Softmax(1)(self.logits(x))",
    "function": "return F.softmax(self.logits(x), dim=1)",
    "method": "return self.logits(x).softmax(-1)",
    "log": "return F.log_softmax(self.logits(x), dim=1)",
    "exp of log": "return self.logits(x).log_softmax(1).exp()",
    "log of softmax": "return torch.softmax(self.logits(x), 1).log()",
    "reshaped": "return self.logits(x)[:, :, None, None].softmax(1)",
    "gate before, head beside": "return {'logits': "
    "(self.logits(x) * torch.sigmoid(x.mean()) ** 0).softmax(1), "
    "'aux': x.mean((2, 3)).sigmoid()}",
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam"])
def test_a_softmax_at_the_end_is_explained_by_the_logit_before_it(
    tmp_path: Path, ending: str, method: str
) -> None:
    """Equal to the same weights without the softmax, where the network is so sure that 1 - p is 0."""
    if method == "ablationcam" and ending not in ("module", "log"):
        pytest.skip("one replay of each kind is enough")
    made = []
    for name, lines in (("with", ENDINGS[ending]), ("without", "return self.logits(x)")):
        given = config(write(tmp_path / name, lines, gain=400.0))
        given = replace(given, method=type(given.method)(name=method))  # fmt: skip
        made.append(explained(given)[0])
    found, wanted = heat(made[0]), heat(made[1])
    scale = wanted.abs().amax(1, keepdim=True)
    assert bool((scale > 0).any())
    assert float(((found - wanted).abs() / scale.clamp(min=1e-6)).max()) <= 1e-5
    assert max(row["confidence"] for row in made[1]) > 1 - 1e-9
    for one, other in zip(*made, strict=True):
        assert one["predicted_class"] == other["predicted_class"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-6)


NO_SCORES = {  # what a network returns, what is said of it
    "return self.logits(x).softmax(1).topk(3)": r"sorted \(topk\)",
    "return self.logits(x).sort(1, descending=True).values": r"sorted \(sort\)",
    "return 64 * F.normalize(self.logits(x))": "an embedding of 4 numbers, each image's of length 64",
    "return F.layer_norm(self.logits(x), (4,))": "an embedding of 4 numbers, each image's of length 2",
    "return self.logits(x).softmax(1) * 100": "sum to 100 for every image: percents",
    "z = self.logits(x)\nreturn torch.cat([z[:, :2].softmax(1), z[:, 2:].softmax(1)], 1)": "sum to 2 for",
}


@pytest.mark.parametrize("ending", NO_SCORES)
def test_what_is_no_score_of_a_class_is_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ModelError, match=NO_SCORES[ending]):
        resolve(config(write(tmp_path / "net", ending)))


@pytest.mark.parametrize(
    "ending",
    ["self.logits(x).sigmoid() * 100", "-self.logits(x).log_softmax(1)", "F.softplus(self.logits(x)) + 2"],
)
def test_outputs_that_are_never_negative_are_told(tmp_path: Path, ending: str) -> None:
    told = resolve(config(write(tmp_path / "net", f"return {ending}")))[1].notes
    assert any("never negative" in note and "distances" in note for note in told)


def test_one_share_of_a_softmax_is_the_logit_against_the_others(tmp_path: Path) -> None:
    two = write(tmp_path / "share", "return self.logits(x).softmax(1)[:, 1]", 2, gain=300.0)
    one = write(tmp_path / "plain", "z = self.logits(x)\nreturn z[:, 1:] - z[:, :1]", 2, gain=300.0)
    (found, loaded), (wanted, _) = explained(config(two)), explained(config(one))
    assert torch.allclose(heat(found), heat(wanted), rtol=1e-4, atol=1e-5)
    assert loaded.num_classes == 2
    assert [r["predicted_class"] for r in found] == [r["predicted_class"] for r in wanted]


def test_saturated_sigmoids_are_explained_by_their_logits(tmp_path: Path) -> None:
    """Beyond +-16 a sigmoid is 0 or 1 in float32 and its gradient is gone."""
    ends = write(tmp_path / "s", "return torch.sigmoid(self.logits(x))", gain=2000.0)
    plain = write(tmp_path / "p", "return self.logits(x)", gain=2000.0)
    found, loaded = explained(config(ends))
    wanted, _ = explained(config(replace(plain, activation="sigmoid")))  # fmt: skip
    assert torch.allclose(heat(found), heat(wanted), rtol=1e-5)
    assert [r["predicted_class"] for r in found] == [r["predicted_class"] for r in wanted]
    assert any("the logits before it are explained" in note for note in loaded.notes)


TWO = "h = self.body(x)\nf = h.mean((2, 3))\nz = self.fc(f)\n"
SEVERAL = {
    "tuple": ("return f, z", "1", "0 (4, 12), 1 (4, 4)"),
    "dict": (
        "return {'embedding': f, 'prediction': z}",
        "prediction",
        "embedding (4, 12), prediction (4, 4)",
    ),
    "list of heads": ("return [z[:, :3], z]", "1", "0 (4, 3), 1 (4, 4)"),
    "nested": ("return {'heads': (f, z), 'n': 3}", "heads.1", "heads.0 (4, 12), heads.1 (4, 4)"),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_of_several_outputs_the_named_one_is_explained_or_all_are_listed(tmp_path: Path, form: str) -> None:
    lines, name, listed = SEVERAL[form]
    model = write(tmp_path / "net", TWO + lines)
    with pytest.raises(ModelError, match="--output") as caught:
        resolve(config(model))
    assert listed in str(caught.value)
    named = replace(model, output=name)
    found, loaded = explained(config(named))
    wanted, _ = explained(config(write(tmp_path / "plain", "return self.logits(x)")))
    assert loaded.num_classes == 4
    assert torch.equal(heat(found), heat(wanted))
    wrong = replace(model, output="nope")
    with pytest.raises(ModelError, match="no output 'nope'"):
        resolve(config(wrong))


@pytest.mark.parametrize("lines", ["return {'features': h, 'out': z}", "return (h, z)",
                                   "return {'a': f, 'logits': z}"])  # fmt: skip
def test_the_only_output_that_can_be_class_scores_needs_no_name(tmp_path: Path, lines: str) -> None:
    found, _ = explained(config(write(tmp_path / "net", TWO + lines)))
    wanted, _ = explained(config(write(tmp_path / "plain", "return self.logits(x)")))
    assert torch.equal(heat(found), heat(wanted))


@pytest.mark.parametrize("said", [False, True])
def test_shares_that_no_softmax_ends_are_taken_as_scores(tmp_path: Path, said: bool) -> None:
    """The mean of two softmaxes, one over mirrored features: confidence is the mean, both gradients count."""
    lines = """f = self.body(x).mean((2, 3))
a, b = 9 * self.fc(f), 3 * self.fc(f * f).roll(1, 1)
return (a.softmax(1) + b.softmax(1)) / 2"""
    model = write(tmp_path / "net", lines)
    if said:
        model = replace(model, activation="none")
    rows, loaded = explained(config(model))
    net = built(tmp_path / "net")
    x = as_input(pixels())
    kept = []
    net.body.register_forward_hook(lambda _m, _a, out: kept.append(out) or out)
    p = net(x)
    assert [r["predicted_class"] for r in rows] == p.argmax(1).tolist()
    assert torch.allclose(torch.tensor([r["confidence"] for r in rows]), p.amax(1), atol=1e-6)
    (slope,) = torch.autograd.grad(p.amax(1).sum(), kept[0])
    by_hand = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1)
    assert torch.allclose(heat(rows), by_hand.flatten(1), atol=1e-6)
    assert loaded.activation == "none"
    assert any("--activation none" in note for note in loaded.notes) != said


def test_outputs_between_0_and_1_that_no_sigmoid_ends_are_told(tmp_path: Path) -> None:
    """Sigmoids stretched so that each class's threshold lies at one half: .731 was said for 1.0."""
    lines = "p = self.logits(x).sigmoid()\nreturn torch.where(p < 0.3, p / 0.6, 1 - (1 - p) / 1.4)"
    model = write(tmp_path / "net", lines)
    _, loaded = explained(config(model))
    assert any("lie between 0 and 1" in n and "--activation none" in n for n in loaded.notes)
    told = replace(model, activation="none")
    rows, loaded = explained(config(told, "above:0.5"))
    net = built(tmp_path / "net")
    p = net(as_input(pixels())).detach()
    assert not any("lie between" in n for n in loaded.notes)
    by_member: dict[int, list] = {}
    for row in rows:
        by_member.setdefault(row["index"], []).append(row)
    for i, own_rows in by_member.items():
        assert own_rows[0]["confidence"] == pytest.approx(float(p[i].max()), abs=1e-6)
        above = {r.get("target_class") for r in own_rows} - {None}
        assert above == set((p[i] >= 0.5).nonzero()[:, 0].tolist())
    assert len({len(r) for r in by_member.values()}) > 1 or len(rows) != 6


def test_a_single_unbounded_number_is_told_and_regression_keeps_its_value(tmp_path: Path) -> None:
    model = write(tmp_path / "net", "return 40 + 9 * self.logits(x)[:, 0]", 1)
    _, loaded = explained(config(model))
    assert any("--task regression" in note for note in loaded.notes)
    rows, loaded = explained(config(replace(model, task="regression")))
    net = built(tmp_path / "net", 1)
    x, kept = as_input(pixels()), []
    net.body.register_forward_hook(lambda _m, _a, out: kept.append(out) or out)
    values = net(x)
    (slope,) = torch.autograd.grad(values.sum(), kept[0])
    by_hand = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1)
    assert torch.allclose(heat(rows), by_hand.flatten(1), rtol=1e-5, atol=1e-6)
    assert [r["predicted_value"] for r in rows] == pytest.approx(values.tolist(), rel=1e-5)
    nothing = (
        "predicted_class",
        "confidence",
        "margin",
        "topk",
        "target_class",
        "correct",
        "predicted_label",
    )
    assert all(row[name] is None for row in rows for name in nothing)
    assert loaded.class_names == ()
    four = write(tmp_path / "four", "return self.logits(x)")
    with pytest.raises(ModelError, match="--task: regression, but the network gives 4 numbers"):
        resolve(config(replace(four, task="regression")))


def test_an_embedding_is_no_classes(tmp_path: Path) -> None:
    model = write(tmp_path / "net", "return F.normalize(self.logits(x), dim=1)")
    with pytest.raises(ModelError, match="its output is an embedding of 4 numbers"):
        resolve(config(model))


def test_of_equal_scores_the_lowest_class_is_predicted_and_explained(tmp_path: Path) -> None:
    """Sigmoids all at 1.0, and two classes exactly equal: one rule for prediction, target and top k."""
    lines = (
        "z = 300 + self.logits(x)\nz = torch.cat([z[:, :1] - 500, z[:, 1:2], z[:, 1:2], z[:, 1:2] - 1], 1)\n"
    )
    for ending in ("return z.sigmoid()", "return z"):
        model = write(tmp_path / ending[-3:-2], lines + ending)
        rows, _ = explained(config(model))
        assert {(r["predicted_class"], r["target_class"], r["topk"][0]["class_id"]) for r in rows} == {
            (1, 1, 1)
        }
        assert [t["class_id"] for t in rows[0]["topk"]] == [1, 2, 3, 0]
        top, _ = explained(config(model, "top:2"))
        assert [r["target_class"] for r in top] == [1, 2] * 6


def test_a_model_whose_answers_depend_on_the_batch_is_refused_unless_alone(tmp_path: Path) -> None:
    lines = "h = F.batch_norm(self.body(x), None, None, training=True)\nreturn self.fc(h.amax((2, 3)))"
    model = write(tmp_path / "net", lines)
    with pytest.raises(ModelError, match="depends on the others of the batch") as caught:
        resolve(config(model))
    assert "--batch-size 1" in str(caught.value)
    _, loaded = resolve(config(model, batch_size=1))
    assert any("every image is explained alone" in note for note in loaded.notes)


def test_a_model_that_answers_differently_each_time_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path / "net", "return self.fc(F.dropout(self.body(x).mean((2, 3)), 0.5, True))")
    with pytest.raises(ModelError, match="answers the same image differently each time"):
        resolve(config(model))


@pytest.mark.parametrize("norm", ["", "nn.BatchNorm2d(8), "])
def test_lazy_modules_take_their_shapes_from_the_weights(tmp_path: Path, norm: str) -> None:
    """With a batch norm behind, too, which is folded before there are any weights."""
    plain = write(tmp_path / "plain", "return self.logits(x)")
    lazy = write(tmp_path / "lazy", "return self.logits(x)")
    file = tmp_path / "plain/net.py"
    text = file.read_text().replace("2, 1), nn.ReLU(), nn.Conv", f"2, 1), {norm}nn.ReLU(), nn.Conv")
    file.write_text(text)
    (file.parent / "net.pth").unlink()
    torch.save(built(file.parent).state_dict(), file.parent / "net.pth")
    text = text.replace("nn.Linear(12, num_classes)", "nn.LazyLinear(num_classes)")
    text = text.replace("nn.Conv2d(3, 8,", "nn.LazyConv2d(8,").replace("nn.Batch", "nn.LazyBatch")
    (tmp_path / "lazy/net.py").write_text(text.replace("LazyBatchNorm2d(8)", "LazyBatchNorm2d()"))
    lazy = replace(lazy, checkpoint=plain.checkpoint)
    (found, loaded), (wanted, _) = explained(config(lazy)), explained(config(plain))
    assert torch.equal(heat(found), heat(wanted))
    assert [r["confidence"] for r in found] == [r["confidence"] for r in wanted]
    assert loaded.num_classes == 4


NO_GRAD = [
    "with torch.no_grad():\n    h = self.body(x)\nreturn self.gain * self.fc(h.mean((2, 3)))",
    "with torch.no_grad():\n    h = self.body(x)\nwith torch.enable_grad():\n    h = h.mean((2, 3))\n"
    "return self.gain * self.fc(h)",
]


@pytest.mark.parametrize("lines", NO_GRAD)
def test_a_backbone_within_no_grad_is_explained(tmp_path: Path, lines: str) -> None:
    found, _ = explained(config(write(tmp_path / "net", lines)))
    wanted, _ = explained(config(write(tmp_path / "plain", "return self.logits(x)")))
    assert torch.equal(heat(found), heat(wanted))
    assert {r["target_layer"] for r in found} == {"body.3"}


def test_a_network_that_runs_twice_is_refused_with_the_way_on(tmp_path: Path) -> None:
    model = write(tmp_path / "net", "return (self.logits(x) + self.logits(x.flip(3))) / 2")
    with pytest.raises(ModelError) as caught:
        resolve(config(model))
    assert "body, a Sequential, runs 2 times in one forward" in str(caught.value)
    assert "give the network inside" in str(caught.value)


def test_answers_that_are_no_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its output is torch.int64: answers, no scores"):
        resolve(config(write(tmp_path / "net", "return self.logits(x).argmax(1, keepdim=True)")))
