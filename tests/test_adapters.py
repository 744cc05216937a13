"Adapters on tiny random networks of the real libraries, where they are installed; models without source."

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densegen.dense.adapters import (
    FrozenBackbone, HuggingFaceModel, MaskClassifier, TorchvisionModel, from_hugging_face, from_timm, from_torchvision,
)
from densegen.dense.detector_file import save_detector
from densegen.dense.embedding_density import LogitDetector
from densegen.dense.logits_only import LogitsModel, read_logits
from densegen.dense.two_heads import TwoHeads


def installed(name):
    try:
        return __import__(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    except RuntimeError as error:  # torchvision's wheel wants CUDA's libraries
        pytest.skip(f"{name} does not load: {error}")


IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def transformers():
    torch.manual_seed(0)
    return installed("transformers")


def segformer(t):
    tiny = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "decoder_hidden_size": 8}
    return t.SegformerForSemanticSegmentation(t.SegformerConfig(num_labels=3, **tiny))


def mobilevit(t):
    config = t.MobileViTConfig(num_labels=3, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
                               num_attention_heads=2, aspp_out_channels=8, atrous_rates=[1, 2, 3])
    return t.MobileViTForSemanticSegmentation(config)


def upernet(t):
    backbone = t.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, out_features=[f"stage{k}" for k in range(1, 5)])
    config = t.UperNetConfig(backbone_config=backbone, hidden_size=8, num_labels=3, auxiliary_channels=4,
                             auxiliary_in_channels=8)
    return t.UperNetForSemanticSegmentation(config)


SEMANTIC = pytest.mark.parametrize("make", [segformer, mobilevit, upernet])


@SEMANTIC
def test_a_semantic_model_of_transformers_equals_itself(transformers, make):
    inner = make(transformers).eval()
    model = HuggingFaceModel(inner, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), flip=True)
    with torch.no_grad():
        dense = model(IMAGES)
        x = (IMAGES.flip(1) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
        expected = inner(pixel_values=x).logits
    assert not model.training and torch.allclose(dense.coarse, expected, atol=1e-4) and len(dense.features) >= 3
    assert dense.logits.shape == (2, 3, 64, 96)


@SEMANTIC
def test_the_penultimate_map_is_what_the_classes_are_read_from(transformers, make):
    inner = make(transformers).eval()
    with torch.no_grad():
        dense = HuggingFaceModel(inner)(IMAGES)
        last = {"mobilevit": lambda: inner.segmentation_head.classifier.convolution}.get(
            make.__name__, lambda: inner.decode_head.classifier)()
        said = last(dense.penultimate)
        if said.shape != dense.coarse.shape:  # UperNet resizes by itself
            said = F.interpolate(said, dense.coarse.shape[2:], mode="bilinear", align_corners=False)
    assert torch.allclose(said, dense.coarse, atol=1e-4)
    TwoHeads(HuggingFaceModel(inner), dense.penultimate.shape[1]).eval().anomaly_score(IMAGES)


@pytest.mark.parametrize("options, mean, std, flip", [
    ({"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), False),
    ({"do_normalize": False}, (0, 0, 0), (1, 1, 1), False),
    ({"do_normalize": False, "do_rescale": False}, (0, 0, 0), (1 / 255,) * 3, False),
])
def test_pixels_are_prepared_as_the_processor_says(transformers, tmp_path, options, mean, std, flip):
    segformer(transformers).save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(**options).save_pretrained(tmp_path)
    model = from_hugging_face(str(tmp_path))
    assert not model.training and model.mean == pytest.approx(mean) and model.std == pytest.approx(std)
    assert model.flip is flip


def test_mobilevit_reads_blue_first(transformers, tmp_path):
    mobilevit(transformers).save_pretrained(tmp_path)
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path)
    model = from_hugging_face(str(tmp_path))
    assert model.flip and model.mean == (0, 0, 0) and model.std == pytest.approx((1, 1, 1))


def maskformer(t):
    backbone = t.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
                            out_features=[f"stage{k}" for k in range(1, 5)])
    decoder = t.DetrConfig(d_model=32, encoder_layers=1, decoder_layers=1, num_queries=5, decoder_attention_heads=2,
                           encoder_ffn_dim=16, decoder_ffn_dim=16)
    config = t.MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, num_labels=3, fpn_feature_size=32,
                                mask_feature_size=32)
    return t.MaskFormerForInstanceSegmentation(config)


def mask2former(t):
    backbone = t.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
                            out_features=[f"stage{k}" for k in range(1, 5)])
    config = t.Mask2FormerConfig(backbone_config=backbone, num_labels=3, hidden_dim=32, feature_size=32, mask_feature_size=32,
                                 encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=5,
                                 encoder_feedforward_dim=16)
    return t.Mask2FormerForUniversalSegmentation(config)


@pytest.mark.parametrize("make", [maskformer, mask2former])
def test_named_masks_say_what_their_own_library_says(transformers, make):
    inner = make(transformers).eval()
    model = MaskClassifier(inner)
    with torch.no_grad():
        dense, output = model(IMAGES), inner(pixel_values=model.normalized(IMAGES))
    share = torch.einsum("bqk,bqhw->bkhw", output.class_queries_logits.softmax(-1)[..., :-1], output.masks_queries_logits.sigmoid())
    assert dense.logits.shape == (2, 3, 64, 96) and torch.allclose(dense.coarse.exp(), share, atol=1e-5)
    assert len(dense.features) == 4 and dense.penultimate.shape[:2] == (2, 32)
    with pytest.raises(ValueError, match="wrap it in MaskClassifier"):
        HuggingFaceModel(inner)(IMAGES)


def test_timm_backbones_get_the_layers_that_were_asked_for():
    installed("timm")
    model = from_timm(3, "vit_tiny_patch16_224", pretrained=False, layers=[2, 5])
    output = model(torch.zeros(1, 3, 60, 90))
    assert not model.training and output.logits.shape == (1, 3, 60, 90) and len(output.features) == 2
    assert output.features[-1].shape[2:] == (4, 6) and output.penultimate is output.features[-1]
    output = from_timm(3, "deit3_small_patch16_224", pretrained=False, layers=1)(torch.zeros(1, 3, 90, 120))
    assert output.logits.shape == (1, 3, 90, 120) and output.penultimate.ndim == 4
    assert from_timm(3, "test_convnext", pretrained=False, layers=2)(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 3, 64, 96)


@pytest.mark.parametrize("name", ["mixer_s32_224", "resmlp_12_224"])
def test_a_backbone_of_one_size_is_refused_in_one_line(name):
    installed("timm")
    with pytest.raises(ValueError, match="backbone: expected one for images of any size; MlpMixer refuses: ") as info:
        from_timm(3, name, pretrained=False)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvision_comes_in_evaluation_mode(name):
    installed("torchvision")
    model = from_torchvision(name, weights=None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        alone, both = model(IMAGES[:1]).logits, model(IMAGES).logits
    assert not model.training and torch.allclose(alone, both[:1], atol=1e-4)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Batched(nn.Module):
    "Torchvision's interface, with batch norms."

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 8, 1), nn.BatchNorm2d(6))
        self.classifier = nn.Sequential(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
        forward = self.backbone.forward
        self.backbone.forward = lambda x: {"out": forward(x)}


def test_the_score_of_an_image_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    model = TorchvisionModel(Batched())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    score = LogitDetector(model).anomaly_score
    assert torch.allclose(score(IMAGES[:1]), score(IMAGES)[:1], atol=1e-4)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    dense = model(IMAGES)
    assert torch.allclose(model.model.classifier[-1](dense.penultimate), dense.coarse, atol=1e-6)


def test_a_fixed_size_is_refused_without_any_library():
    class OneSize(nn.Module):
        def forward_intermediates(self, x, **_):
            if x.shape[2:] != (28, 42):
                raise ValueError("Input size doesn't match\nmodel (28, 42).")
            return [x]

    with pytest.raises(ValueError, match=r"any size; OneSize refuses: model \(28, 42\)\."):
        FrozenBackbone(OneSize(), 3)


# models without source

NET = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()


def write(kind, folder):
    program = torch.export.export(NET, (torch.zeros(2, 3, 64, 96),))
    path = folder / f"net.{kind}"
    if kind == "onnx":
        torch.onnx.export(program, verbose=False).save(path)
    elif kind == "pt2":
        torch.export.save(program, path)
    else:
        torch.jit.trace(NET, torch.zeros(2, 3, 64, 96)).save(path)
    return path


@pytest.mark.parametrize("kind", ["onnx", "pt2", "pt"])
def test_a_file_is_scored_by_its_logits(tmp_path, kind):
    path = write(kind, tmp_path)
    if kind != "onnx":
        with pytest.raises(ValueError, match="can run any command .*trust=True"):
            read_logits(path)
    model = read_logits(path, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), trust=kind != "onnx")
    x = (IMAGES / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    dense = model(IMAGES)
    assert torch.allclose(dense.coarse, NET(x), atol=1e-4) and dense.features == () and dense.penultimate is None
    with pytest.raises(ValueError, match="expected a penultimate map, which the second head reads; got logits alone"):
        TwoHeads(model, 8).eval().anomaly_score(IMAGES)


def test_what_cannot_be_traced_says_so_in_plain_words(tmp_path):
    model = LogitsModel(NET)
    with pytest.raises(ValueError, match="known by its logits alone, which cannot be traced: score it in Python"):
        save_detector(LogitDetector(model), tmp_path / "x.onnx", (64, 96))


@pytest.mark.parametrize("data", [b"", b"PK\3\4 and so on", b"\x08\x07" + b"nonsense" * 9])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(ValueError, match="expected a model in ONNX, TorchScript or .pt2;") as info:
        read_logits(tmp_path / "x.onnx", trust=True)
    assert "\n" not in str(info.value)


def test_weights_in_another_file_are_refused(tmp_path):
    import onnx

    model = onnx.load(write("onnx", tmp_path))
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(ValueError, match="its weights lie in another file"):
        read_logits(tmp_path / "out.onnx")
