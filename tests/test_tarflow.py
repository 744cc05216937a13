"Transformer flows: dependence, volume, the cache, the first layer, noise, cleaning, guidance."
import math

import pytest
import torch
from zoo import randomized

from densegen.flows.bijections import Bijection, Flow, StandardNormal, reference_ladj
from densegen.flows.dequantization import bits_per_dim
from densegen.flows.tarflow import CausalBlock, Equalize, GaussianNoise, Guided, Patches, TarFlow, denoised

both = pytest.mark.parametrize("flip", [False, True], ids=["forwards", "turned"])
LABELS = torch.tensor([0, 2, 1])
CONTEXTS = {"none": None, "labels": LABELS, "guided": Guided(LABELS, 2.5)}
contexts = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


def block(flip=False, classes=0, **options):
    torch.manual_seed(0)
    return randomized(CausalBlock((5, 3), width=8, heads=2, flip=flip, classes=classes, **options), 0.4).double()


def painter(**options):
    torch.manual_seed(0)
    return randomized(TarFlow((1, 8, 8), width=8, blocks=2, heads=2, **options), 0.2)


def one(context, i):
    "The context of item i."
    if context is None:
        return None
    return Guided(context.labels[i : i + 1], context.weight) if isinstance(context, Guided) else context[i : i + 1]


@both
def test_a_token_depends_on_exactly_those_before(flip):
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda v: block(flip)(v)[0][0], x)[:, :, 0]  # [T, D, T, D]
    strength = J.abs().amax((1, 3))
    strength = strength.T if flip else strength
    assert strength.triu(1).max() == 0 and strength[torch.ones(5, 5).tril() > 0].min() > 0
    within = J[torch.arange(5), :, torch.arange(5)]
    assert (within * (1 - torch.eye(3))).abs().max() == 0


@both
@contexts
def test_volume_and_way_back(flip, context):
    model, x = block(flip, classes=3), torch.randn(3, 5, 3, dtype=torch.float64)
    z, ladj = model(x, context)
    back, ladj_back = model.inverse(z, context)
    assert torch.allclose(back, x, atol=1e-10) and torch.allclose(ladj, -ladj_back, atol=1e-10)
    for i in range(3):
        single = reference_ladj(lambda_of(model, one(context, i)), x[i : i + 1])
        assert torch.allclose(single, ladj[i : i + 1], atol=1e-9)


def lambda_of(model, context):
    "The model under one context, as a map without."

    class Under(Bijection):
        def forward(self, x, nothing=None):
            return model(x, context)

    return Under()


@both
@contexts
def test_cached_sampling_equals_uncached(flip, context):
    model, z = block(flip, classes=3).float(), torch.randn(3, 5, 3)
    with torch.no_grad():
        cached, whole = model.inverse(z, context), model.inverse(z, context, cached=False)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(cached, whole))


def test_the_log_scale_is_bounded():
    model = block()
    torch.nn.init.constant_(model.net.head.bias, 1e4)
    ladj = model(torch.randn(2, 5, 3, dtype=torch.float64))[1]
    assert torch.allclose(ladj, torch.full_like(ladj, -15 * model.limit))


def test_patches_are_squares_row_by_row():
    image = torch.arange(24.0).view(1, 1, 4, 6)
    tokens, ladj = Patches((1, 4, 6), 2)(image)
    assert tokens[0, :2].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9]] and tokens.shape == (1, 6, 4)
    assert Patches((1, 4, 6), 2).inverse(tokens)[0].equal(image) and ladj.tolist() == [0.0]
    with pytest.raises(ValueError, match="multiples of 3"):
        Patches((1, 4, 6), 3)


def test_the_first_layer_makes_its_own_pixels_gaussian():
    counts = torch.tensor([70, 1, 9, 20])
    v = torch.multinomial(counts.double(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    x = (v + torch.rand(40_000, generator=torch.Generator().manual_seed(1))) / 4
    z, _ = Equalize(counts)(x[:, None])
    assert abs(z.mean()) < 0.02 and abs(z.var() - 1) < 0.03 and abs(z.abs().mean() - math.sqrt(2 / math.pi)) < 0.02


def test_the_first_layer_alone_costs_what_the_histogram_does():
    counts = torch.tensor([70, 1, 9, 20])
    flow = TarFlow((1, 4, 4), width=8, blocks=2, grey_levels=4, first=Equalize(counts))
    v = torch.randint(0, 4, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    share = counts / counts.sum()
    assert torch.allclose(flow.bits_per_dim(v), -share[v].log2().flatten(1).mean(1).float(), atol=1e-5)


def test_volume_of_the_first_layer():
    layer, x = Equalize(torch.tensor([8, 1, 2, 5])).double(), torch.rand(6, 2, 3, dtype=torch.float64)
    z, ladj = layer(x)
    assert torch.allclose(ladj, reference_ladj(layer, x), atol=1e-6)
    assert torch.allclose(layer.inverse(z)[0], x, atol=1e-9) and torch.allclose(layer.inverse(z)[1], -ladj, atol=1e-6)
    assert (layer(x + 1)[1] == -torch.inf).all()
    half = Equalize(torch.tensor([8, 1, 2, 5])).half()
    assert torch.allclose(half(x.float())[0], z.float(), atol=1e-4)  # counts are not rounded with the weights


def test_gaussian_noise_has_no_bits():
    flow = painter(noise=GaussianNoise(0.1))
    v = torch.randint(0, 256, (4, 1, 8, 8))
    with pytest.raises(ValueError, match="Gaussian noise"):
        flow.bits_per_dim(v)
    g = lambda: torch.Generator().manual_seed(3)
    y = (v + 0.5) / 256 + 0.1 * torch.randn(v.shape, generator=g())
    assert torch.allclose(flow.noised_bits(v, generator=g()), bits_per_dim(flow.log_prob(y), 64), atol=1e-4)


class Linear(Bijection):
    "z = x / scale."

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x, context=None):
        return x / self.scale, -self.scale.log().sum().expand(len(x))


def test_cleaning_gaussians_is_their_conditional_mean():
    spread = torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64)
    y = torch.randn(9, 3, dtype=torch.float64)
    flow = Flow(Linear((spread**2 + 0.3**2).sqrt()), StandardNormal(3))
    with torch.no_grad():
        clean = denoised(flow, y, 0.3)
    assert torch.allclose(clean, y * spread**2 / (spread**2 + 0.3**2), atol=1e-12)


def test_weights_nought_and_one_are_what_they_say():
    flow, z = painter(classes=3), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        told, untold = flow.decode(z, LABELS), flow.decode(z)
        assert torch.allclose(flow.decode(z, Guided(LABELS, 0.0)), untold, atol=1e-4)
        assert torch.allclose(flow.decode(z, Guided(LABELS, 1.0)), told, atol=1e-4)
        strong = flow.decode(z, Guided(LABELS, 2.0))
        assert (told - untold).abs().max() > 1e-2 and (strong - told).abs().max() > 1e-2
        assert torch.allclose(flow.encode(strong, Guided(LABELS, 2.0)), z, atol=1e-3)


def test_labels_reach_their_own_item_only():
    flow, x = painter(classes=3), torch.rand(3, 1, 8, 8)
    changed = flow.log_prob(x, torch.tensor([0, 2, 2])) - flow.log_prob(x, LABELS)
    assert changed[:2].abs().max() < 1e-4 and changed[2].abs() > 1e-3
    with pytest.raises(ValueError, match="classes=0"):
        painter().log_prob(x, LABELS)


def test_a_tenth_of_the_labels_is_hidden_in_training():
    flow, v = painter(classes=3), torch.randint(0, 256, (3, 1, 8, 8))
    flow.hidden = 1.0
    torch.manual_seed(0)
    blind = flow.loss((v, LABELS))
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.allclose(blind, flow.loss(v), atol=1e-5)


def test_all_directions_on_meta():
    flow, z = painter(classes=3, first=Equalize(torch.ones(256))).to("meta"), torch.empty(3, 1, 8, 8, device="meta")
    labels = torch.empty(3, dtype=torch.long, device="meta")
    assert flow.decode(z, labels).is_meta and flow.encode(z, Guided(labels, 2.0)).is_meta
    assert flow.loss((torch.empty(3, 1, 8, 8, dtype=torch.uint8, device="meta"), labels)).is_meta
    assert denoised(flow, z, 0.1, labels).is_meta and flow.sample(3).is_meta
