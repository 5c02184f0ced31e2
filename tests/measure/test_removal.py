import pytest
import torch

from camray.measure.faithfulness import fill_with
from camray.measure.removal import Judge, Ranking, Removal, class_probability, score_removals
from tests.cam.tolerance import SAME
from tests.measure.measure_toys import Small, images, tie_free

pytestmark = pytest.mark.usefixtures("double")


def test_exactly_so_many_pixels_go_however_many_are_equal() -> None:
    heat = torch.zeros(1, 1, 8, 8)
    heat[..., :2, :2] = 1.0  # four hot pixels, sixty equal ones
    ranking = Ranking.of(heat)
    for fraction in (0.1, 0.25, 0.5, 0.9):
        assert int((ranking.ranks < ranking.count(fraction)).sum()) == round(fraction * 64)
    assert ranking.order[0, 0].tolist()[:6] == [0, 1, 8, 9, 2, 3]  # then the rest from the top left


def test_the_coldest_are_the_last_of_the_same_order() -> None:
    model, x = Small().eval(), images(2, 16)
    judge = Judge(model, torch.tensor([0, 1]))
    ranking = Ranking.of(tie_free(2, 3, 16, 16))
    p = class_probability(model(x), judge.classes, "softmax")
    removals = [Removal(100, "zero"), Removal(156, "zero", hottest=False), Removal(0, "zero")]
    fills = {"zero": fill_with(x, torch.zeros_like(x))}
    found = score_removals(judge, ranking, removals, fills, p)
    for b in range(2):
        for m in range(3):
            rank = ranking.ranks[b, m].reshape(16, 16)
            for r, gone in enumerate((rank < 100, rank >= 100, rank < 0)):
                alone = (model((x[b] * ~gone)[None]).double().softmax(1))[0, b]
                assert found.probability[b, m, r].item() == pytest.approx(alone.item(), abs=SAME)
    assert found.forwards == 2 * 3 * 2  # the unaltered image is known


def test_equal_alterations_are_run_once() -> None:
    model, x = Small().eval(), images(3, 16)
    judge = Judge(model, torch.zeros(3, dtype=torch.int64), chunk=4)
    one = tie_free(3, 1, 16, 16) * 0.8 + 0.1
    ranking = Ranking.of(torch.cat([one, one * 1.1, one.square(), 1 - one], 1))  # three are one order
    fills = {"zero": fill_with(x, torch.zeros_like(x))}
    removals = [Removal(64, "zero"), Removal(128, "zero"), Removal(256, "zero")]
    p = class_probability(model(x), judge.classes, "softmax")
    found = score_removals(judge, ranking, removals, fills, p)
    assert found.forwards == 3 * (2 + 2 + 1)  # two orders, and everything gone is the same for both
    assert torch.equal(found.probability[:, 0], found.probability[:, 2])
    # the coldest half of a map is the hottest of its inverse
    back = score_removals(judge, ranking, [Removal(128, "zero"), Removal(128, "zero", False)], fills, p)
    assert back.forwards == 3 * 2
    assert torch.equal(back.probability[:, 0, 0], back.probability[:, 3, 1])


@pytest.mark.parametrize(("outputs", "activation"), [(3, "softmax"), (3, "sigmoid"), (1, "softmax")])
def test_probability(outputs: int, activation: str) -> None:
    z = torch.tensor([[0.5], [-2.0]]).expand(2, outputs) + torch.arange(outputs)
    p = class_probability(z, torch.tensor([0, min(1, outputs)]), activation)  # type: ignore[arg-type]
    if outputs == 1:
        truth = [1 - z[0, 0].sigmoid(), z[1, 0].sigmoid()]
    else:
        all_ = z.softmax(1) if activation == "softmax" else z.sigmoid()
        truth = [all_[0, 0], all_[1, 1]]
    assert p.tolist() == pytest.approx([float(t) for t in truth], abs=SAME)
