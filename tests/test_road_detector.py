"Pasted photographs, the road detector, and the one that comes with the package (about 15 s)."
import math
import zipfile

import pytest
import torch
import torch.nn.functional as F

from densegen.anomaly.scores import rank_metrics
from densegen.dense import photo_negatives, road_detector
from densegen.dense.lite import lite0_weights
from densegen.dense.one_liners import one_liners
from densegen.dense.photo_negatives import (
    FOREIGN, decoy_pieces, mixed_crops, noise_pieces, outline, paste_piece, photo_pieces, photographs, road_frames,
)
from densegen.dense.road_detector import (
    SCORES, SHIPPED, RoadDetector, RoadHeads, all_scores, encoded_crops, load_shipped, road_crops, ship, shipped_detector,
    train_road_detector,
)
from densegen.dense.roads import road_anomaly
from densegen.workbench.data import DataCorrupted, DataNotFound
from densegen.workbench.pictures import OUTLIER, VOID, DenseSet


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def frames():
    "Six frames whose pixels tell their class: 10 times it."
    labels = torch.arange(11, dtype=torch.uint8).repeat_interleave(11)[:120][None, :, None].expand(6, 120, 160).contiguous()
    return DenseSet((10 * labels)[:, None].expand(6, 3, 120, 160).contiguous(), labels, torch.zeros_like(labels), (), "")


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=dice())


def test_an_outline_is_soft_and_has_no_corner():
    for seed in range(30):
        opacity = outline(60, 90, 3.0, dice(seed))
        assert opacity.shape == (60, 90) and 0 <= opacity.min() and opacity.max() == 1
        assert 0.15 < (opacity > 0.5).float().mean() < 0.9
        assert opacity[0, 0] == opacity[0, -1] == opacity[-1, 0] == opacity[-1, -1] == 0
        assert ((opacity > 0) & (opacity < 1)).any()


def test_a_pasted_thing_is_marked_where_it_is_and_nowhere_else(frames, photos):
    seen = 0
    for seed in range(40):
        image, labels = frames.images[0].clone(), frames.labels[0].clone()
        paste_piece(image, labels, photo_pieces(photos), dice(seed), (14, 90))
        changed, marked = (image != frames.images[0]).any(0), labels == OUTLIER
        assert (labels == frames.labels[0])[~changed & (labels != VOID)].all()
        assert not (marked & (labels == frames.labels[0])).any()
        assert set(labels[labels != frames.labels[0]].tolist()) <= {OUTLIER, VOID}
        assert (changed & ~marked & (labels != VOID)).float().mean() < 0.05  # the faint end of the border
        seen += marked.any()
    assert seen == 40


def test_a_decoy_keeps_its_classes(frames):
    plain = decoy_pieces(frames.images, frames.labels, blur=0)
    for seed in range(20):
        pixels, classes = plain(40, 50, dice(seed))
        assert pixels.shape == (3, 40, 50) and classes.shape == (40, 50)
        assert ((pixels[0] / 10 - classes).abs() < 0.5).float().mean() > 0.9
        image, labels = frames.images[1].clone(), frames.labels[1].clone()
        paste_piece(image, labels, plain, dice(seed), (30, 60))
        assert not (labels == OUTLIER).any() and (labels == VOID).any()


def test_crops_are_the_same_for_the_same_seed_and_foreign_in_the_wanted_share(frames, photos):
    draw = mixed_crops(frames, photo_pieces(photos, frames.images), (96, 128), share=0.5)
    (x, y), (_, again) = draw(60, dice(3)), draw(60, dice(3))
    assert x.shape == (60, 3, 96, 128) and x.dtype == torch.float32 and torch.equal(y, again)
    assert 18 <= (y == OUTLIER).flatten(1).any(1).sum() <= 42
    for decoys in (False, True):
        none = mixed_crops(frames, photo_pieces(photos), (96, 128), decoys, (0.99, 1.01), share=0.0)(20, dice())[1]
        assert not (none == OUTLIER).any() and set(none.unique().tolist()) <= {*range(11), VOID}
        assert (none == VOID).any() == decoys  # the borders of decoys


def test_labels_stay_with_their_pixels(frames):
    x, y = photo_negatives._cropped(frames.images, frames.labels, (96, 128), (0.8, 1.2), dice(1))
    known = y != VOID
    assert known.float().mean() > 0.5
    assert ((x[:, 0] / 10 - y.float()).abs()[known] < 0.6).float().mean() > 0.9
    two = torch.where(frames.labels % 2 == 0, 0, 10).to(torch.uint8)  # nothing between them
    assert set(photo_negatives._cropped(frames.images, two, (96, 128), (0.8, 1.2), dice(1))[1].unique().tolist()) <= {0, 10, VOID}


def test_borrowed_detail_sharpens_a_photograph_and_leaves_what_it_shows(photos):
    scenes = torch.randint(0, 256, (3, 3, 150, 150), dtype=torch.uint8, generator=dice(5))
    fine = lambda x: (x[:, 1:] - x[:, :-1]).abs().mean()
    soft = torch.stack([photo_pieces(photos)(120, 120, dice(k))[0] for k in range(12)])
    sharp = torch.stack([photo_pieces(photos, scenes)(120, 120, dice(k))[0] for k in range(12)])
    assert sum(fine(b) > 1.5 * fine(a) for a, b in zip(soft, sharp)) >= 5
    small = lambda x: F.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    assert (small(sharp) - small(soft)).abs().mean() < 20


def test_automobiles_and_trucks_are_never_pasted(monkeypatch):
    from densegen.workbench import data

    labels = torch.arange(10)
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(10, 3, 32, 32)
    monkeypatch.setattr(data, "images", lambda *_: data.ImageSet(pixels, labels, [], ""))
    assert photographs()[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8] and "automobile" not in FOREIGN
    assert photographs(("cat", "dog"))[:, 0, 0, 0].tolist() == [3, 5]
    with pytest.raises(KeyError):
        photographs(("cow",))


def test_without_data_there_are_photographs_and_a_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    assert torch.equal(road_frames("anomaly_track").images, road_anomaly().images)
    with pytest.raises(DataNotFound, match="val.zip: not here"):
        road_frames("val")
    with pytest.raises(KeyError):
        road_frames("cows")


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return RoadDetector(RoadHeads(), lite0_weights()).eval()


def test_an_archive_that_is_not_the_published_one_is_never_opened(monkeypatch, tmp_path):
    (tmp_path / "camvid_480x360").mkdir()
    path = tmp_path / "camvid_480x360" / "val.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/a.jpg", b"a bomb")
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    with pytest.raises(DataCorrupted, match="val.zip: expected sha256 d0c34f9d.*fetch the published file again"):
        road_frames("val")


def test_maps_have_the_strides_of_the_contract(untrained):
    dense = untrained(torch.zeros(2, 3, 97, 130, dtype=torch.uint8))
    assert dense.logits.shape == (2, 11, 97, 130) and dense.coarse.shape[2:] == dense.features[-1].shape[2:]
    assert [tuple(f.shape[1:]) for f in dense.features[:4]] == [(24, 25, 33), (40, 13, 17), (112, 7, 9), (320, 4, 5)]
    scores, classes = all_scores(untrained, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert tuple(scores) == SCORES and classes.shape == (1, 64, 64)


def test_the_hybrid_is_posterior_over_density(untrained, photos):
    scores, _ = all_scores(untrained, photos.repeat(1, 1, 3, 3))
    posterior, density = scores["two heads"], -scores["density"]
    assert torch.allclose(scores["hybrid"], posterior - density, atol=1e-4) and (posterior < 0).all()
    assert torch.allclose(scores["hybrid"], untrained.anomaly_score(photos.repeat(1, 1, 3, 3)), atol=1e-4)
    score, classes = untrained.both(photos.repeat(1, 1, 3, 3))
    assert torch.equal(score, untrained.anomaly_score(photos.repeat(1, 1, 3, 3)))
    assert torch.equal(classes, untrained.predict(photos.repeat(1, 1, 3, 3))) and classes.dtype == torch.uint8


def test_void_teaches_nothing_and_foreign_pixels_have_no_class(untrained, monkeypatch):
    heads = RoadHeads(classes=3)
    logits = torch.randn(1, 3, 8, 8, generator=dice()).requires_grad_()
    odds = torch.randn(1, 8, 8, generator=dice(1)).requires_grad_()
    monkeypatch.setattr(heads, "forward", lambda maps: (logits, odds, None))
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[:, :, :8], labels[:, 8:, 8:] = VOID, OUTLIER
    terms = heads.loss((logits.detach(), labels))
    part = lambda name, to: torch.autograd.grad(terms[name], to, retain_graph=True, allow_unused=True)[0][0]
    for name, to in (("classes", logits), ("overlap", logits), ("outlier", odds), ("density", logits)):
        assert (part(name, to)[..., :4] == 0).all(), name
    assert (part("classes", logits)[:, 4:, 4:] == 0).all() and (part("density", logits)[:, :4] == 0).all()
    up, down = part("outlier", odds)[4:, 4:], part("outlier", odds)[:4, 4:]
    assert (up < 0).all() and (down > 0).all()
    known, foreign = F.softplus(odds[0, :4, 4:]), F.softplus(-odds[0, 4:, 4:])
    assert terms["outlier"].item() == pytest.approx((known.mean() + foreign.mean()).item() / 2, rel=1e-5)


def test_the_density_is_pushed_to_zero_and_no_further(monkeypatch):
    heads = RoadHeads(classes=2)
    logits = torch.full((1, 2, 4, 4), -3.0).requires_grad_()
    logits.data[:, :, :2] = 1.0
    monkeypatch.setattr(heads, "forward", lambda maps: (logits, torch.zeros(1, 4, 4), None))
    term = heads.loss((logits.detach(), torch.full((1, 8, 8), OUTLIER, dtype=torch.uint8)))["density"]
    slope = torch.autograd.grad(term, logits)[0]
    assert (slope[:, :, 2:] == 0).all() and (slope[:, :, :2] > 0).all()
    assert term.item() == pytest.approx(0.03 * (1 + math.log(2)) / 2, rel=1e-5)


def test_crops_are_what_the_encoder_sees_of_them(untrained):
    seen = []

    def draw(n, generator):
        seen.append(255 * torch.rand(n, 3, 64, 64, generator=generator))
        return seen[-1], torch.full((n, 64, 64), len(seen), dtype=torch.uint8)

    crops = encoded_crops(draw, 16)
    want = untrained.maps(torch.cat(seen))
    assert all(torch.allclose(a.float(), b, atol=0.02, rtol=0.002) for a, b in zip(crops["maps"], want))
    assert crops["labels"][:, 0, 0].tolist() == [1] * 8 + [2] * 8 and crops["maps"][0].dtype == torch.float16
    assert torch.equal(encoded_crops(draw, 8)["maps"][3], crops["maps"][3][:8])  # the same for the same draw


@pytest.fixture(scope="module")
def crops(frames):
    "A small store with noise pasted in."
    return road_crops(frames.images, frames.labels, "noise", 8, 64)


def test_training_moves_the_heads_and_not_the_encoder(frames, crops):
    assert (crops["labels"] == OUTLIER).any()
    detector = train_road_detector(crops, steps=2)
    fresh = RoadDetector(RoadHeads(), lite0_weights())
    same = [torch.equal(a, b) for a, b in zip(detector.encoder.state_dict().values(), fresh.encoder.state_dict().values())]
    assert all(same) and not detector.training
    x = frames.images[:1]
    assert torch.equal(detector.anomaly_score(x), train_road_detector(crops, steps=2).anomaly_score(x))
    other = train_road_detector(crops, steps=2, seed=1)
    assert not torch.allclose(detector.anomaly_score(x), other.anomaly_score(x))


def test_the_rules_find_the_middle_and_what_differs_from_its_surroundings():
    images = torch.full((1, 3, 90, 160), 90, dtype=torch.uint8)
    images[:, :, 60:66, 30:36] = 200
    rules = one_liners(images)
    flat = lambda name: divmod(int(rules[name][0].argmax()), 160)
    assert abs(flat("middle of the picture")[0] / 89 - 0.55) < 0.01 and abs(flat("middle of the picture")[1] / 159 - 0.5) < 0.01
    row, column = flat("local contrast")
    assert 60 <= row < 66 and 30 <= column < 36


def test_a_shipped_detector_scores_as_it_did(frames, untrained, tmp_path):
    path = ship(untrained, frames, tmp_path / "d.safetensors", rate=0.1)
    assert path.stat().st_size < 1e6
    x = frames.images[:2]
    assert (shipped_detector(path).anomaly_score(x) - untrained.anomaly_score(x)).abs().max() < 0.05
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception):
        shipped_detector(path)


def test_the_detector_of_the_package_finds_animals_on_roads():
    data, saved = road_anomaly(), load_shipped()
    assert SHIPPED.stat().st_size <= 1e6 and saved.calibration.rate <= 0.01
    scores = saved.score(data.images)
    ap, auroc, _ = rank_metrics(scores, data.anomaly, VOID)
    chance = (data.anomaly == 1).float().mean().item()
    assert ap > 3 * chance and auroc > 0.8, (ap, auroc, chance)
    with pytest.raises(ValueError, match="device"):
        load_shipped("vulkan")


def test_score_without_a_model_uses_it(tmp_path):
    from typer.testing import CliRunner

    from densegen.course.cli import app

    (tmp_path / "photos").mkdir()
    for name in ("road_zebras.jpg", "road_goose.jpg"):
        (tmp_path / "photos" / name).write_bytes((SHIPPED.parent / name).read_bytes())
    result = CliRunner().invoke(app, ["score", str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["road_goose.npz", "road_goose_heat.png", "road_zebras.npz", "road_zebras_heat.png"]
