"The second road detector: ESPNetv2's maps under the heads, scores in thresholds, `--model cityscapes` (about 12 s)."
import pytest
import torch
from conftest import ROOT
from torch import nn
from typer.testing import CliRunner

from densegen.anomaly.scores import rank_metrics
from densegen.course.cli import app
from densegen.dense.city_detector import (
    CITY, CityFeatures, city_crops, city_detector, in_thresholds, load_city, train_city_detector,
)
from densegen.dense.espnet import ESPNetv2
from densegen.dense.road_detector import SHIPPED, RoadDetector, RoadHeads, ship
from densegen.dense.roads import road_anomaly
from densegen.dense.your_model import Calibration, calibrate
from densegen.workbench.data import DataNotFound
from densegen.workbench.pictures import VOID, DenseSet

DATA = ROOT.parent / "shared" / "data"
beside = pytest.mark.skipif(not (DATA / "models" / "espnetv2_s2_cityscapes.npz").exists(), reason="no weights beside the checkout")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return ESPNetv2().state_dict()


@pytest.fixture(scope="module")
def encoder(state):
    return CityFeatures(state)


def photos(count=2, size=(64, 96)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_its_maps_are_the_networks_from_fine_to_coarse(encoder):
    x = photos()
    maps, all_of_them = encoder(x), encoder.network(x).features
    assert [tuple(m.shape[1:]) for m in maps] == [(48, 16, 24), (64, 8, 12), (256, 8, 12), (512, 4, 6)]
    assert all(torch.equal(m, all_of_them[k]) for m, k in zip(maps, (5, 4, 2, 3)))
    assert not any(m.requires_grad for m in maps)


def test_what_comes_after_the_sixth_map_is_not_computed(encoder, monkeypatch):
    class Never(nn.Module):
        def forward(self, *_):
            raise AssertionError("computed")

    monkeypatch.setitem(encoder.network.sides._modules, "2", Never())
    assert len(encoder(photos())) == 4
    with pytest.raises(AssertionError, match="computed"):
        encoder.network(photos())


def test_the_network_normalizes_the_pixels_once(encoder):
    x = photos()
    detector = RoadDetector(RoadHeads(widths=encoder.widths), encoder=encoder)
    torch.testing.assert_close(detector.maps(x), encoder(x), atol=1e-4, rtol=1e-4)


def test_its_statistics_stay_while_the_heads_are_trained(encoder):
    detector = RoadDetector(RoadHeads(widths=encoder.widths), encoder=encoder).train()
    assert detector.heads.training and not any(m.training for m in encoder.modules())
    before = encoder(photos())
    detector.loss((photos(4).float(), torch.zeros(4, 64, 96, dtype=torch.uint8)))
    assert all(torch.equal(a, b) for a, b in zip(before, encoder(photos())))


def test_a_score_is_zero_at_the_centre_and_one_at_the_threshold():
    scores = torch.randn(4000, generator=torch.Generator().manual_seed(2)) * 3 - 8
    known = calibrate(scores, 0.01)
    same = in_thresholds(scores, known)
    assert (same > 1).float().mean() <= 0.01 and abs(same.median()) < 1e-5
    torch.testing.assert_close(in_thresholds(10 * scores + 3, calibrate(10 * scores + 3, 0.01)), same, atol=1e-4, rtol=1e-4)
    assert in_thresholds(torch.tensor([-6.0, -2.0, 0.0]), Calibration(-2.0, 0.01, -6.0, 9)).tolist() == [0.0, 1.0, 1.5]


def test_it_trains_on_its_crops_and_comes_back_from_half_a_megabyte(state, tmp_path):
    labels, frames = torch.zeros(3, 96, 128, dtype=torch.uint8), photos(3, (96, 128))
    crops = city_crops(frames, labels, state, 8)
    assert [m.shape[1] for m in crops["maps"]] == list(CityFeatures.widths) and crops["labels"].shape == (8, 320, 320)
    detector = train_city_detector(crops, state, 1)
    path = ship(detector, DenseSet(frames, labels, labels, (), ""), tmp_path / "d.safetensors", 0.1)
    assert path.stat().st_size < 1e6
    again = city_detector(path, state)
    assert (again.anomaly_score(frames) - detector.anomaly_score(frames)).abs().max() < 0.05


def scored(tmp_path, *words):
    (tmp_path / "photos").mkdir(exist_ok=True)
    for name in ("road_zebras.jpg", "road_goose.jpg"):
        (tmp_path / "photos" / name).write_bytes((SHIPPED.parent / name).read_bytes())
    words = ["score", tmp_path / "photos", "--out", tmp_path / "out", "--model", "cityscapes", *words]
    return CliRunner().invoke(app, [str(word) for word in words])


def test_without_the_weights_the_command_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    result = scored(tmp_path)
    assert result.exit_code == 2 and "densegen data fetch espnetv2_cityscapes" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataNotFound):
        load_city()


def test_other_weights_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "espnetv2_s2_cityscapes.npz").write_bytes(b"a bomb")
    result = scored(tmp_path)
    assert result.exit_code == 2 and "sha256" in result.output


@beside
def test_the_command_scores_with_it_in_any_tile(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(DATA))
    result = scored(tmp_path, "--classes", "--tile", "128x256")
    assert result.exit_code == 0, result.output
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == [f"road_{n}{k}" for n in ("goose", "zebras") for k in (".npz", "_classes.png", "_heat.png")]


@beside
def test_the_file_of_the_package_finds_animals_on_roads(monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(DATA))
    data, saved = road_anomaly(), load_city()
    assert CITY.stat().st_size <= 1e6 and saved.calibration.rate <= 0.01
    ap, auroc, _ = rank_metrics(saved.score(data.images), data.anomaly, VOID)
    chance = (data.anomaly == 1).float().mean().item()
    assert ap > 2 * chance and auroc > 0.7, (ap, auroc, chance)
