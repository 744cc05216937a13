"Every detector of the course becomes a file that nobody need trust, for any number of images, with the same scores."
import pytest
import torch
from torch import nn

from densegen.anomaly.scores import LOGIT_SCORES
from densegen.dense.dense_hybrid import DenseHybrid, HybridHalf
from densegen.dense.detector_file import export_detector, load_detector, save_detector
from densegen.dense.embedding_density import DENSITIES, ODIN, EmbeddingDensity, LogitDetector, PositionPrior
from densegen.dense.one_liners import ColourDistance, LocalContrast, MiddleOfPicture
from densegen.dense.resynthesis import Painter, Resynthesis
from densegen.dense.segmentation import Ladder
from densegen.dense.synthetic_negatives import NFlowJS, PatchFlow
from densegen.dense.two_heads import TwoHeads

SIZE = (32, 48)


@pytest.fixture(scope="module")
def ladder():
    torch.manual_seed(0)
    return Ladder(4, (4, 8, 8, 8, 8), (8, 8, 6)).eval()


@pytest.fixture(scope="module")
def scenes():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8, generator=g)
    return images, torch.randint(0, 4, (4, *SIZE), dtype=torch.uint8, generator=g)


def embedding(model, images, kind):
    return EmbeddingDensity(model, (0, 2), kind=kind).fit(images, steps=1)


def resynthesis(model, images, labels):
    return Resynthesis(model, Painter(4, 8), 8)


KINDS = {
    **{kind: lambda m, x, y, kind=kind: LogitDetector(m, kind) for kind in LOGIT_SCORES},
    "position prior": lambda m, x, y: PositionPrior(m, y, 4),
    "colour distance": lambda m, x, y: ColourDistance(x, y, 4),
    "middle of the picture": lambda m, x, y: MiddleOfPicture(),
    "local contrast": lambda m, x, y: LocalContrast(3, 9),
    **{f"embedding density, {kind}": lambda m, x, y, kind=kind: embedding(m, x, kind) for kind in DENSITIES},
    "resynthesis": resynthesis,
    "two heads": lambda m, x, y: TwoHeads(m, 6),
    "DenseHybrid": lambda m, x, y: DenseHybrid(m, 6),
    "posterior": lambda m, x, y: HybridHalf(DenseHybrid(m, 6), 0),
    "density": lambda m, x, y: HybridHalf(DenseHybrid(m, 6), 1),
    "NFlowJS": lambda m, x, y: NFlowJS(m, PatchFlow()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_scored(ladder, scenes, tmp_path, kind):
    torch.manual_seed(0)
    detector = KINDS[kind](ladder, *scenes).eval()
    file = load_detector(save_detector(detector, tmp_path / "d.onnx", SIZE))
    for count in (1, 3):
        images = scenes[0][:count]
        torch.testing.assert_close(file.score(images), detector.anomaly_score(images), atol=1e-3, rtol=1e-3)


def test_odin_needs_python_and_says_so(ladder):
    with pytest.raises(ValueError, match="ODIN takes a step along a gradient, .* score it in Python"):
        export_detector(ODIN(ladder), SIZE)


def test_a_model_that_asks_for_its_length_gets_the_reason_in_full(ladder):
    class Counts(nn.Module):
        def anomaly_score(self, images):
            return images.float().mean(1) + torch.zeros(len(images), 1, 1)

    with pytest.raises(ValueError, match=r"`len\(x\)` of a tensor does that, .* `x.shape\[0\]` stays free$"):
        export_detector(Counts(), SIZE)


def test_a_part_in_torchscript_gets_a_reason():
    class Wraps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.jit.trace(nn.Conv2d(3, 1, 1), torch.zeros(1, 3, *SIZE))

        def anomaly_score(self, images):
            return self.net(images.float())[:, 0]

    with pytest.raises(ValueError, match="a part in TorchScript, which has no source: score it in Python"):
        export_detector(Wraps(), SIZE)
