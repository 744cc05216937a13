"ESPNetv2 against the authors' own outputs, its folded norms, and how its weights are read."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from densegen.dense.embedding_density import LogitDetector
from densegen.dense.detector_file import load_detector, save_detector
from densegen.dense.espnet import CITYSCAPES, EspEncoder, ESPNetv2, espnetv2_cityscapes, espnetv2_weights
from densegen.dense.segmentation import Dense, Ladder
from densegen.workbench import sources

ORACLE = ROOT.parent / "shared" / "oracles" / "espnetv2.npz"
WEIGHTS = ROOT.parent / "shared" / "data" / "models" / "espnetv2_s2_cityscapes.npz"
beside = pytest.mark.skipif(not (ORACLE.exists() and WEIGHTS.exists()), reason="no weights or no oracle beside the checkout")


@pytest.fixture
def net(monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(ROOT.parent / "shared" / "data"))
    return ESPNetv2(espnetv2_weights()).eval()


@beside
@pytest.mark.parametrize("fold", [False, True])
def test_it_equals_the_published_network(net, fold):
    case = {name: torch.from_numpy(value) for name, value in np.load(ORACLE).items()}
    with torch.no_grad():
        *maps, _, outputs = (net.fold() if fold else net).climb(case["image"][None])
    for name, got in zip(("level1", "level2", "level3", "level4"), maps):
        torch.testing.assert_close(got[0], case[name], atol=1e-4, rtol=1e-4)
    logits = F.interpolate(outputs, case["image"].shape[1:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(logits[0], case["logits"], atol=1e-4, rtol=1e-4)


@beside
def test_the_named_network_is_folded_and_ready(monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(ROOT.parent / "shared" / "data"))
    net = espnetv2_cityscapes()
    assert not net.training and sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) == 23


@pytest.mark.parametrize("size", [(64, 96), (45, 75), (90, 121)])
def test_the_contract_at_any_size(size):
    torch.manual_seed(0)
    net = ESPNetv2().eval()
    with torch.no_grad():
        output = net(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
        assert torch.equal(output.coarse, net.pools[-1].out(output.penultimate)[:, :19])
    assert isinstance(output, Dense) and output.logits.shape == (2, 19, *size) and len(CITYSCAPES) == 19
    assert [f.shape[1] for f in output.features] == [32, 128, 256, 512, 64, 48, 32]


def test_folding_changes_no_number():
    torch.manual_seed(0)
    net = ESPNetv2().eval()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.3, 3)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(images).logits
        got = net.fold()(images).logits
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_weights_come_from_either_file_and_cannot_run_code(tmp_path, monkeypatch):
    state = ESPNetv2().state_dict()
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in state.items()})
    torch.save(state, tmp_path / "a.pth")
    read = []
    for kind in ("npz", "pth"):
        monkeypatch.setattr("densegen.dense.espnet.files_of", lambda name, split: (kind, [tmp_path / f"a.{kind}"]))
        read.append(espnetv2_weights())
    assert list(read[0]) == list(read[1]) == list(state)
    assert all(torch.equal(a, b) for a, b in zip(read[0].values(), read[1].values()))
    torch.save({"x": sources.Source}, tmp_path / "a.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        espnetv2_weights()


def test_too_few_weights_are_refused():
    weights = ESPNetv2().state_dict()
    weights.popitem()
    with pytest.raises(ValueError, match="zip"):
        ESPNetv2(weights)


def test_its_encoder_carries_a_ladder():
    model = Ladder(4, rungs=(8, 8, 8), encoder=EspEncoder()).eval()
    assert model(torch.zeros(1, 3, 64, 96)).penultimate.shape == (1, 8, 32, 48)


def test_a_detector_on_it_travels_as_onnx(tmp_path):
    torch.manual_seed(0)
    detector = LogitDetector(ESPNetv2().fold())
    file = load_detector(save_detector(detector, tmp_path / "esp.onnx", (64, 96)))
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)
    torch.testing.assert_close(file.score(images), detector.anomaly_score(images), atol=1e-3, rtol=1e-3)
