"Mixed-content batches and the two-headed detector."
import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from densegen.anomaly.scores import auroc
from densegen.dense import two_heads as module
from densegen.dense.closed_set import frozen_ladder
from densegen.dense.dense_hybrid import DenseHybrid, HybridHalf, _log_density
from densegen.dense.segmentation import Dense, Ladder, SegmentationModel, fit_size
from densegen.dense.two_heads import (
    KPlusOne, TwoHeads, answers, class_loss, fine_tune, frozen_maps, mixed_batches, outlier_loss, resized, tuned_heads,
)
from densegen.streets.pasting import paste
from densegen.streets.scenes import streets
from densegen.streets.things import NEGATIVES
from densegen.workbench.artifacts import artifact
from densegen.workbench.pictures import OUTLIER, VOID


@pytest.fixture(scope="module")
def scenes():
    return streets("train", 6, 64, 96)


def small(classes=11):
    torch.manual_seed(0)
    return Ladder(classes, (4, 8, 8, 12, 12), (8, 8, 6))


def heads(model, images):
    "Logits and log-odds at the size of the images."
    dense = model.model(images)
    return dense.logits, resized(model.log_odds(dense), images.shape[2:])


def test_half_of_the_images_get_a_thing(scenes):
    draw = mixed_batches(scenes.images, scenes.labels, (64, 96), paste, zoom=(0.99, 1.01))
    found = 0
    for k in range(6):
        x, y = draw(8, torch.Generator().manual_seed(k))
        assert x.shape == (8, 3, 64, 96) and set(y.unique().tolist()) <= {*range(11), OUTLIER, VOID}
        assert not (y[4:] == OUTLIER).any()
        found += int((y[:4] == OUTLIER).flatten(1).any(1).sum())
    assert found > 15
    a, b = (draw(4, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a[1], b[1])


def test_only_negative_kinds_are_pasted(scenes, monkeypatch):
    import densegen.streets.pasting as module

    seen, drawing = set(), module.drawing
    monkeypatch.setattr(module, "drawing", lambda kind, variant: seen.add(kind) or drawing(kind, variant))
    draw = mixed_batches(scenes.images, scenes.labels, (64, 96), paste)
    for k in range(10):
        draw(8, torch.Generator().manual_seed(k))
    assert seen and seen <= set(NEGATIVES)


def test_the_classifier_sees_positive_pixels_only(scenes):
    model = TwoHeads(small(), 6, beta=0.5).eval()
    labels = scenes.labels.clone()
    labels[:, 20:40, 20:40] = OUTLIER
    labels[:, :5] = VOID
    terms = model.loss((scenes.images, labels))
    logits, odds = heads(model, scenes.images)
    kept = labels < 11
    expected = F.cross_entropy(logits.movedim(1, -1)[kept], labels[kept].long(), model.model.weights)
    assert terms["classes"].item() == pytest.approx(expected.item(), rel=1e-4)
    odds_in, odds_out = odds[kept], odds[labels == OUTLIER]
    two_way = -odds_in.neg().sigmoid().log().mean() - odds_out.sigmoid().log().mean()
    assert terms["outlier"].item() == pytest.approx(0.5 * two_way.item(), rel=1e-4)


def test_both_means_of_the_head_by_hand():
    odds = torch.tensor([[[2.0, -1.0, 0.5, 3.0, -4.0]]])
    labels = torch.tensor([[[0, 4, OUTLIER, OUTLIER, VOID]]])
    cost_in, cost_out = (torch.tensor([2.0, -1.0]).exp() + 1).log(), (torch.tensor([-0.5, -3.0]).exp() + 1).log()
    assert outlier_loss(odds, labels).item() == pytest.approx((cost_in.mean() + cost_out.mean()).item(), rel=1e-5)
    plain = torch.cat([cost_in, cost_out]).mean().item()
    assert outlier_loss(odds, labels, balanced=False).item() == pytest.approx(plain, rel=1e-5)
    assert outlier_loss(odds, torch.full_like(labels, VOID), balanced=False) == 0
    far = outlier_loss(torch.tensor([[[-1000.0]]]), torch.tensor([[[OUTLIER]]]))
    assert far.item() == 1000.0  # not inf, as from the logarithm of a sigmoid


def test_one_class_more_is_one_softmax(scenes):
    model = KPlusOne(small(), 6).eval()
    model.model.weights.copy_(torch.linspace(0.5, 2, 11))
    labels = scenes.labels.clone()
    labels[:, 20:40, 20:40] = OUTLIER
    labels[:, :5] = VOID
    logits, odds = heads(model, scenes.images)
    log_p = torch.cat([logits, odds[:, None]], 1).log_softmax(1)
    weights, cost, total = torch.cat([model.model.weights, torch.ones(1)]), 0.0, 0.0
    for k in range(12):
        where = labels == (OUTLIER if k == 11 else k)
        cost, total = cost - weights[k] * log_p[:, k][where].sum(), total + weights[k] * where.sum()
    terms = model.loss((scenes.images, labels))
    assert terms.keys() == {"classes"} and terms["classes"].item() == pytest.approx((cost / total).item(), rel=1e-4)
    dense = model.model(scenes.images)
    p = torch.cat([dense.coarse, model.log_odds(dense)[:, None]], 1).softmax(1)
    expected = resized(p[:, 11] - p[:, :11].amax(1), scenes.images.shape[2:])
    assert torch.allclose(model.anomaly_score(scenes.images), expected, atol=1e-5)


def test_tuned_heads_are_trained_once_and_leave_the_closed_model_alone(scenes, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "artifact", partial(artifact, folder=tmp_path))
    torch.manual_seed(0)
    closed = frozen_ladder(11, 64).eval()
    before, crops = copy.deepcopy(closed.state_dict()), (*frozen_maps(scenes.images, 64)["maps"], scenes.labels)
    first, again, other = (tuned_heads(closed, crops, seed, 2) for seed in (0, 0, 1))
    assert capsys.readouterr().out.count("computed") == 2
    assert all(torch.equal(v, before[name]) for name, v in closed.state_dict().items())
    scores = [next(answers(d.model, crops[:-1], (64, 96))) for d in (first, again, other)]
    scores = [d.score(dense) for d, dense in zip((first, again, other), scores)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2]) and not first.training
    assert not torch.equal(first.model.head.weight, closed.head.weight)
    assert type(tuned_heads(closed, crops, 0, 1, "class K+1")) is KPlusOne


def test_maps_of_a_frozen_encoder_stand_for_the_images(scenes):
    torch.manual_seed(0)
    detector = DenseHybrid(frozen_ladder(11, 64), 32).eval()
    maps = frozen_maps(scenes.images, 64, batch=4)["maps"]
    assert all(m.dtype == torch.float16 and len(m) == 6 for m in maps)
    score = torch.cat([detector.score(dense) for dense in answers(detector.model, maps, (64, 96), batch=4)])
    with torch.no_grad():
        slow = detector.anomaly_score(scenes.images)
    assert (score - slow).abs().max() < 0.05 * slow.std()  # half precision
    by_images = detector.loss((scenes.images, scenes.labels))
    by_maps = detector.loss((*maps, scenes.labels))
    for name in by_images:
        assert by_maps[name].item() == pytest.approx(by_images[name].item(), rel=0.01, abs=1e-4)
    sum(detector.loss((*maps, scenes.labels)).values()).backward()
    assert all(p.grad is None for p in detector.model.encoder.parameters())


def test_the_classes_keep_their_weights_and_void_alone_costs_nothing(scenes):
    model = TwoHeads(small(), 6).eval()
    model.model.weights.copy_(torch.linspace(0.1, 3, 11))
    labels = scenes.labels.clone()
    labels[:, 20:40, 20:40] = OUTLIER
    labels[:, :5] = VOID
    logits, kept = heads(model, scenes.images)[0], labels < 11
    y = labels[kept].long()
    each = -logits.movedim(1, -1)[kept].log_softmax(1)[torch.arange(len(y)), y]
    expected = (model.model.weights[y] * each).sum() / model.model.weights[y].sum()
    assert model.loss((scenes.images, labels))["classes"].item() == pytest.approx(expected.item(), rel=1e-4)
    for detector in (model, DenseHybrid(small(), 6)):
        terms = detector.train().loss((scenes.images, torch.full_like(labels, VOID)))
        sum(terms.values()).backward()
        assert all(term == 0 for term in terms.values())
        assert all(p.grad is None or (p.grad == 0).all() for p in detector.parameters())


def test_both_losses_reach_the_features(scenes):
    model = TwoHeads(small(), 6)
    labels = scenes.labels.clone()
    labels[:, 20:40, 20:40] = OUTLIER
    for name in ("classes", "outlier"):
        model.zero_grad()
        model.train().loss((scenes.images, labels))[name].backward()
        grad = [p.grad for p in model.model.encoder.parameters()]
        assert sum(g.abs().sum() > 0 for g in grad if g is not None) > len(grad) // 2, name


def test_score_is_the_log_posterior(scenes):
    model = TwoHeads(small(), 6).eval()
    score = model.anomaly_score(scenes.images)
    assert score.shape == (6, 64, 96) and score.dtype == torch.float32 and (score <= 0).all() and not score.requires_grad
    dense = model.model(scenes.images)
    two = F.interpolate(model.outlier(dense.penultimate), dense.logits.shape[2:], mode="bilinear", align_corners=False)
    assert torch.allclose(score, two.log_softmax(1)[:, 1], atol=1e-5)
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.outlier[2].bias += torch.tensor([200.0, 0.0])
    assert sure.anomaly_score(scenes.images).isfinite().all()  # softmax().log() would give -inf
    assert torch.equal(model(scenes.images).logits, model.model(scenes.images).logits)


def test_fine_tuning_finds_pasted_things():
    "Pastes stand out in a grey world: after a few steps the head must rank them above it."
    torch.manual_seed(0)
    grey = torch.full((4, 3, 48, 64), 90, dtype=torch.uint8)
    labels = torch.full((4, 48, 64), 3, dtype=torch.uint8)
    detector = fine_tune(TwoHeads(small(), 6), mixed_batches(grey, labels, (48, 64), paste), steps=60, lr=1e-2)
    x, y = mixed_batches(grey, labels, (48, 64), paste)(16, torch.Generator().manual_seed(99))
    assert not detector.training
    assert auroc(detector.anomaly_score(x), (y == OUTLIER).long(), y == VOID) > 0.8


def test_importing_loads_no_other_library():
    banned = "matplotlib sklearn skimage scipy PIL IPython h5py lightning_fabric pooch papermill".split()
    modules = ", ".join(f"densegen.dense.{m}" for m in ("metrics", "segmentation", "embedding_density", "two_heads", "dense_hybrid", "roads"))
    script = f"import sys, {modules}; print([m for m in {banned} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


def test_hybrid_score_and_its_parts(scenes):
    model = DenseHybrid(small(), 6).eval()
    posterior, density = model.parts(scenes.images)
    dense = model.model(scenes.images)
    fit = lambda x: F.interpolate(x[:, None], scenes.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(density, fit(dense.coarse.exp().sum(1).log()), atol=1e-4)
    assert torch.allclose(posterior, fit(model.outlier(dense.penultimate).log_softmax(1)[:, 1]), atol=1e-5)
    assert torch.allclose(model.anomaly_score(scenes.images), posterior - density, atol=1e-4)
    assert torch.equal(model.score(dense), model.anomaly_score(scenes.images))
    with torch.no_grad():
        model.model.head.bias += 1000.0
        model.outlier[2].bias += torch.tensor([300.0, 0.0])
    score = model.anomaly_score(scenes.images)
    assert score.isfinite().all() and score.dtype == torch.float32 and len(score.unique()) > 100


def test_hybrid_without_coarse_logits_and_with_a_coarser_map(scenes):
    "A model of the user's may hand out full-size logits only, or a penultimate map on another grid than its logits."

    class Other(SegmentationModel):
        def __init__(self, coarse):
            super().__init__()
            self.low, self.high, self.coarse = torch.nn.Conv2d(3, 6, 8, 8), torch.nn.Conv2d(3, 11, 1), coarse

        def forward(self, images):
            x = self.normalized(images)
            coarse = self.high(x[:, :, ::4, ::4])
            full = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
            return Dense(full, (), coarse if self.coarse else None, self.low(x))

    torch.manual_seed(0)
    for coarse in (True, False):
        model = DenseHybrid(Other(coarse), 6).eval()
        density = model.parts(scenes.images)[1]
        dense = model.model(scenes.images)
        lse = dense.coarse.logsumexp(1) if coarse else dense.logits.logsumexp(1)
        expected = F.interpolate(lse[:, None], scenes.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        assert torch.allclose(density, expected, atol=1e-5)
        assert all(v.isfinite() for v in model.train().loss((scenes.images, scenes.labels)).values())


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_as_printed_is_the_loss_as_run(scenes, balanced):
    "L = E_in[-log P(y)] + 10 beta E[-log P(d)] + beta E_out[max(s, m)], with both kinds of means and a floor inside the range."
    beta = 0.05
    model = DenseHybrid(small(), 6, beta, balanced).eval()
    labels = scenes.labels.clone()
    labels[:, 20:40, 20:40] = OUTLIER
    labels[:, :5] = VOID
    logits, odds = heads(model, scenes.images)
    lse = F.interpolate(model.model(scenes.images).coarse.exp().sum(1).log()[:, None], labels.shape[1:],
                        mode="bilinear", align_corners=False)[:, 0]
    foreign, inside = labels == OUTLIER, labels < 11
    model.floor = lse[foreign].median().item()
    terms = model.loss((scenes.images, labels))
    classes = F.cross_entropy(logits.movedim(1, -1)[inside], labels[inside].long(), model.model.weights)
    cost_in, cost_out = -(1 - odds.sigmoid())[inside].log(), -odds.sigmoid()[foreign].log()
    two = cost_in.mean() + cost_out.mean() if balanced else torch.cat([cost_in, cost_out]).mean()
    pushed = torch.maximum(lse[foreign], torch.tensor(model.floor))
    expected = {"classes": classes, "outlier": 10 * beta * two, "density": beta * pushed.mean()}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4), name
    model.beta = DenseHybrid(small(), 6, beta, balanced, head=0.7).beta  # the head's weight alone
    heavier = model.loss((scenes.images, labels))
    assert heavier["outlier"].item() == pytest.approx(0.7 * two.item(), rel=1e-4)
    assert heavier["density"].item() == terms["density"].item()


def test_the_floor_lets_go_of_what_lies_below_it(scenes):
    labels = scenes.labels.clone()
    labels[:, 20:40, 20:40] = OUTLIER
    for floor, pulls in ((None, True), (-1e3, True), (1e3, False)):
        model = DenseHybrid(small(), 6, floor=floor).eval()
        slope = torch.autograd.grad(model.loss((scenes.images, labels))["density"], model.model.head.bias)[0]
        assert (slope.sum() > 0) == pulls and (slope >= 0).all()  # a step downhill lowers all logits
        without = model.loss((scenes.images, scenes.labels))
        assert without["density"] == 0 and all(torch.isfinite(v) for v in without.values())


def test_masked_classes_give_numbers_or_a_reason(scenes):
    "A class masked by -inf in a part of the image, and all classes at one place."

    class Masked(SegmentationModel):
        def __init__(self, by):
            super().__init__()
            self.ladder, self.by = small(), by

        def forward(self, images):
            dense = self.ladder(images)
            coarse = dense.coarse.clone()
            coarse[:, 0, :8], coarse[:, :, 2, 3] = self.by, self.by
            return Dense(fit_size(coarse, images.shape[2:]), dense.features, coarse, dense.penultimate)

    hybrid = DenseHybrid(Masked(-torch.inf), 6).eval()
    assert hybrid.model(scenes.images).logits.isnan().any()
    score = hybrid.anomaly_score(scenes.images)
    assert score.isfinite().all()
    impossible = score[:, 8:12, 12:16].flatten(1).amax(1)  # no class is left there
    assert torch.equal(score.flatten(1).amax(1), impossible) and (impossible > 1e3).all()
    with pytest.raises(ValueError, match="mask the class with -1e4"):
        hybrid.loss((scenes.images, scenes.labels))
    kept = torch.where(scenes.labels == 0, VOID, scenes.labels)
    kept[:, :24, :32] = VOID
    with_number = DenseHybrid(Masked(-1e4), 6).train()
    sum(with_number.loss((scenes.images, kept)).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in with_number.parameters())
    broken = torch.full((1, 3, 4, 4), torch.nan)
    assert class_loss(with_number, broken, torch.zeros(1, 4, 4)).isnan()  # a broken network is not a masked one


@pytest.mark.parametrize("place", [0, 1, 4])
def test_the_density_is_the_sum_over_the_classes_that_are_possible(place):
    free = torch.randn(2, 4, 3, 5)
    masked = torch.cat([free[:, :place], torch.full((2, 1, 3, 5), -torch.inf), free[:, place:]], 1).requires_grad_()
    density = _log_density(masked)
    torch.testing.assert_close(density, free.logsumexp(1))
    slope = torch.autograd.grad(density.sum(), masked)[0]
    torch.testing.assert_close(torch.cat([slope[:, :place], slope[:, place + 1 :]], 1), free.softmax(1))
    assert (slope[:, place] == 0).all()
    broken = free.index_fill(1, torch.tensor(place % 4), torch.nan)
    assert _log_density(broken).isnan().all()


def test_a_half_of_the_hybrid_is_one_of_its_terms(scenes):
    hybrid = DenseHybrid(small(), 6).eval()
    posterior, density = hybrid.parts(scenes.images)
    assert torch.equal(HybridHalf(hybrid, 0).anomaly_score(scenes.images), posterior)
    assert torch.equal(HybridHalf(hybrid, 1).anomaly_score(scenes.images), -density)
