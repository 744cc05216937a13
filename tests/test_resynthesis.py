"Resynthesis: exchanged labels, a painter that leaves the model alone, a judge that finds wrong labels."
import pytest
import torch
from torch import nn

from densegen.anomaly.scores import auroc
from densegen.dense.resynthesis import Lesson, Painter, Resynthesis, _one_hot, swap_labels, train_painter, train_resynthesis
from densegen.dense.segmentation import Dense, Ladder, SegmentationModel
from densegen.workbench.pictures import VOID

GREYS = (30, 100, 170, 240)


class ByGrey(SegmentationModel):
    "Knows the four greys; has a batch norm, to see whether somebody trains it."

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        distance = images.float().mean(1, keepdim=True) - torch.tensor(GREYS)[None, :, None, None]
        return Dense(-distance.abs(), (self.norm(self.normalized(images)),))


def tiles(n, generator):
    "Images of grey squares whose class is their grey."
    labels = torch.randint(4, (n, 4, 6), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    grey = torch.tensor(GREYS)[labels.long()].float()[:, None].expand(-1, 3, -1, -1)
    return grey + 5 * torch.randn(grey.shape, generator=generator), labels


def test_void_is_no_class():
    seen = _one_hot(torch.tensor([[[0, 2, VOID]]], dtype=torch.uint8), 3)
    assert seen[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_swaps_change_what_they_say_and_never_void():
    _, labels = tiles(5, torch.Generator().manual_seed(0))
    labels[:, :8] = VOID
    changed, wrong = swap_labels(labels, 4, torch.Generator().manual_seed(1))
    again, _ = swap_labels(labels, 4, torch.Generator().manual_seed(1))
    assert torch.equal(changed, again)
    assert torch.equal(wrong, changed != labels) and 0 < wrong.float().mean() < 0.5
    assert not wrong[labels == VOID].any() and changed[wrong].max() < 4


def test_the_judge_finds_wrong_labels_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = ByGrey()
    model.norm.weight.data.fill_(2.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    detector = train_resynthesis(model, tiles, 4, steps=60)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    images, labels = tiles(6, torch.Generator().manual_seed(9))
    told, wrong = swap_labels(labels, 4, torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert (detector.painter(labels) - images).abs().mean() < 25
        assert auroc(detector.log_odds(images, told), wrong.long()) > 0.9


def test_training_mode_is_for_the_judge_alone():
    painter = Painter(4)
    detector = Resynthesis(ByGrey(), painter).train()
    assert detector.judge.training and not detector.model.training and not painter.training


def test_the_eyes_of_a_lesson_move_with_it_and_learn_nothing():
    "A list would hide them from `.to`; trained, their batch norm would drift."
    model = ByGrey()
    model.norm.weight.data.fill_(2.0)
    lesson = Lesson(Painter(4), model).train()
    assert lesson.painter.training and not lesson.eyes.training and model.training
    before = {k: v.clone() for k, v in lesson.eyes.state_dict().items()}
    optimizer = torch.optim.SGD(lesson.parameters(), 0.1)
    sum(lesson.loss(tiles(2, torch.Generator().manual_seed(0))).values()).backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in lesson.eyes.state_dict().items())
    assert model.norm.weight.requires_grad  # only the copy is frozen
    lesson.to(torch.float64)
    assert lesson.eyes.norm.weight.dtype == torch.float64
    detector = Resynthesis(model, lesson.painter)
    assert not [name for name in detector.state_dict() if "eyes" in name]


def test_the_control_sees_no_painting():
    "Another painter changes the scores of the detector and not those of the control, which never asks him."
    torch.manual_seed(0)
    model, painter = ByGrey(), Painter(4).eval()
    images, labels = tiles(2, torch.Generator().manual_seed(0))
    pair = [Resynthesis(model, painter, painting=p).eval() for p in (True, False)]
    before = [one.log_odds(images, labels) for one in pair]
    with torch.no_grad():
        painter.net.last.bias += 3.0
    after = [one.log_odds(images, labels) for one in pair]
    assert not torch.allclose(before[0], after[0], atol=1e-3) and torch.equal(before[1], after[1])
    assert sum(p.numel() for p in pair[0].judge.parameters()) == sum(p.numel() for p in pair[1].judge.parameters())


@pytest.mark.parametrize("size", [(33, 47), (64, 96)])
def test_scores_have_the_size_of_the_images(size):
    torch.manual_seed(0)
    model = Ladder(5, (4, 8, 8, 12, 12), (8, 8, 6))
    detector = Resynthesis(model, Painter(5)).eval()
    score = detector.anomaly_score(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    assert score.shape == (2, *size) and score.dtype == torch.float32 and (score <= 0).all()


@pytest.mark.parametrize("void", [-1, -100, 4, 200])
def test_void_has_many_names(void):
    torch.manual_seed(0)
    lesson, (images, labels) = Lesson(Painter(4), ByGrey()), tiles(3, torch.Generator().manual_seed(0))
    detector = Resynthesis(ByGrey(), lesson.painter)
    labels[:, :8] = VOID
    named = torch.where(labels == VOID, void, labels.long())
    assert torch.equal(lesson.loss((images, named))["colours"], lesson.loss((images, labels))["colours"])
    changed, wrong = swap_labels(named, 4, torch.Generator().manual_seed(1))
    expected = swap_labels(labels, 4, torch.Generator().manual_seed(1))
    assert torch.equal(wrong, expected[1]) and (changed[:, :8] == void).all()

    def cost(y):
        torch.manual_seed(5)
        return detector.loss((images, y))

    assert torch.equal(cost(named), cost(labels))
    assert cost(torch.full_like(labels, VOID)) == 0


def test_the_likeness_of_the_painter_by_hand():
    "At half of the resolution: colours in shares of 255, and a tenth of what the network sees; void is painted as it is."
    torch.manual_seed(0)
    lesson, (images, labels) = Lesson(Painter(4), ByGrey()).eval(), tiles(2, torch.Generator().manual_seed(0))
    labels[:, :8] = VOID
    small, void = nn.functional.avg_pool2d(images, 2), (labels == VOID)[:, None, ::2, ::2]
    terms, painted = lesson.loss((images, labels)), torch.where(void, small, lesson.painter.small(labels))
    assert terms["colours"].item() == pytest.approx(((painted - small).abs().mean() / 255).item(), rel=1e-5)
    see = lambda x: lesson.eyes(x).features[0]
    assert terms["perceptual"].item() == pytest.approx(0.1 * (see(painted) - see(small)).abs().mean().item(), rel=1e-5)


def test_a_painter_learns_the_colour_of_each_class():
    torch.manual_seed(0)
    painter = train_painter(ByGrey(), tiles, 4, steps=60)
    labels = torch.arange(4, dtype=torch.uint8).repeat_interleave(12)[None, None].expand(1, 32, -1)
    with torch.no_grad():
        shades = painter(labels)[0, :, 16].mean(0).reshape(4, 12)[:, 6]
    assert not painter.training and (shades - torch.tensor(GREYS)).abs().max() < 30
