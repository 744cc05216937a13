"The games at their best discriminator, the slopes against closed forms, the circle of two players, and what is counted."

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from densegen.families.gan import GAN, TwoPlayers, adversarial, slopes, train_gan

N = 4000
QUANTILES = (torch.arange(N).double()[:, None] + 0.5) / N
MIXED = torch.randperm(N, generator=torch.Generator().manual_seed(0))


def ratio(p, q):
    "Data, drawings, and the best logit."
    return p.icdf(QUANTILES), q.icdf(QUANTILES), lambda x: p.log_prob(x) - q.log_prob(x)


def jensen_shannon(p, q, cell):
    middle = (p + q) / 2
    return (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).sum().item() * cell / 2


@pytest.fixture(scope="module")
def two():
    p, q = Normal(torch.zeros(1).double(), 1.0), Normal(torch.full((1,), 1.2).double(), 0.7)
    return p, q, torch.linspace(-8, 9, 1701).double()[:, None]


class Point(nn.Module):
    "Draws `at` plus noise."

    def __init__(self, at, noise=0.0):
        super().__init__()
        self.at, self.noise = nn.Parameter(torch.tensor([[at]])), noise

    def forward(self, z):
        return self.at + self.noise * z


def line(slope):
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, slope)
    return net


def test_value_at_the_best_discriminator_is_jensen_shannon(two):
    p, q, grid = two
    real, fake, best = ratio(p, q)
    js = jensen_shannon(p.log_prob(grid).exp(), q.log_prob(grid).exp(), 0.01)
    discriminator, generator = adversarial("saturating", best(real), best(fake))
    assert abs(-discriminator.item() - (2 * js - math.log(4))) < 1e-3
    real_part = -nn.functional.softplus(-best(real)).mean()
    assert torch.allclose(-discriminator, real_part + generator)  # both players have the same V
    assert torch.equal(adversarial("non-saturating", best(real), best(fake))[0], discriminator)


def test_relativistic_value_is_that_of_pairs(two):
    p, q, grid = two
    real, fake, best = ratio(p, q)
    a, b = p.log_prob(grid[::4]).exp(), q.log_prob(grid[::4]).exp()
    js = jensen_shannon(a * b.T, b * a.T, 0.04**2)
    pairs = adversarial("relativistic", best(real[::4])[:, None], best(fake[::4])[None])[0]  # all pairs
    assert abs(pairs.item() - (math.log(2) - js)) < 2e-3


@pytest.mark.parametrize("game", ["saturating", "non-saturating", "relativistic"])
def test_the_best_discriminator_is_the_best(two, game):
    real, fake, best = ratio(*two[:2])
    lowest = adversarial(game, best(real), best(fake)[MIXED])[0]
    for k in (0.5, 1.0, 3.0):
        for size in (-0.3, 0.3):
            bent = lambda x: best(x) + size * torch.sin(k * x)
            assert adversarial(game, bent(real), bent(fake)[MIXED])[0] > lowest + 1e-4
    shifted = adversarial(game, best(real) + 1, best(fake)[MIXED] + 1)[0]
    assert torch.allclose(shifted, lowest) if game == "relativistic" else shifted > lowest + 1e-2


def test_generators_pull_towards_the_data():
    "The drawn points lie above the data, the logit falls with x: all games pull down, the saturating one hardly."
    real, fake = Normal(0.0, 1.0).icdf(QUANTILES), Normal(8.0, 1.0).icdf(QUANTILES)
    pulls = {}
    for game in ("saturating", "non-saturating", "relativistic", "wasserstein"):
        y = fake.clone().requires_grad_()
        d = (lambda x: -x) if game == "wasserstein" else (lambda x: 32 - 8 * x)
        pulls[game] = torch.autograd.grad(adversarial(game, d(real), d(y)[MIXED])[1], y)[0].sum().item()
    assert 0 < pulls["saturating"] < 0.01 and abs(pulls["wasserstein"] - 1) < 1e-9
    assert abs(pulls["non-saturating"] - 8) < 0.01 and abs(pulls["relativistic"] - 8) < 0.01


def test_losses_of_extreme_logits_are_finite():
    far = torch.tensor([[200.0]])
    for game in ("saturating", "non-saturating", "relativistic", "wasserstein"):
        assert all(torch.isfinite(loss) for loss in (*adversarial(game, far, -far), *adversarial(game, -far, far)))
    with pytest.raises(ValueError, match="relativistic"):
        adversarial("hinge", far, far)


def test_slopes_of_linear_and_quadratic_logits():
    g = torch.Generator().manual_seed(0)
    x, w, A = (torch.randn(*s, generator=g).double() for s in ((500, 2, 3), (6, 1), (6, 6)))
    A = A + A.T
    logits, steep = slopes(lambda x: x.flatten(1) @ w, x)
    assert torch.allclose(steep, w.norm().expand(500)) and torch.allclose(logits, x.flatten(1) @ w)
    bowl = lambda x: 0.5 * ((x.flatten(1) @ A) * x.flatten(1)).sum(1, keepdim=True)
    assert torch.allclose(slopes(bowl, x)[1], (x.flatten(1) @ A).norm(dim=1))


def test_slopes_train_the_discriminator():
    "The penalty's gradient with respect to the weights, against 2 psi of psi squared; also where the slope is 0."
    for start in (0.7, -1.3, 0.0):
        net = line(start)
        slopes(net, torch.randn(5, 1))[1].square().mean().backward()
        assert abs(net.weight.grad.item() - 2 * start) < 1e-5


@pytest.mark.parametrize("game", ["non-saturating", "relativistic"])
def test_zero_centred_penalty_is_half_gamma_of_both(game):
    "With a quadratic logit a x^2 / 2 the slopes are a x: of all data and of all drawings."

    class Bowl(nn.Module):
        def forward(self, x):
            return 0.5 * 3.0 * x.square()

    x = torch.tensor([[1.0], [2.0]])
    model = TwoPlayers(Point(5.0), Bowl(), 1, game, penalty=0.4)
    expected = 0.2 * 9 * ((1 + 4) / 2 + 25)
    assert abs(model.discriminator_loss(x)["penalty"].item() - expected) < 1e-4


def test_wasserstein_penalty_wants_slope_one_between_data_and_drawings():
    model = TwoPlayers(Point(5.0), line(3.0), 1, "wasserstein", penalty=10.0)
    assert abs(model.discriminator_loss(torch.zeros(4, 1))["penalty"].item() - 40) < 1e-4
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x

    model.discriminator = Spy()
    model.discriminator_loss(torch.zeros(2000, 1))
    between = max(seen, key=lambda x: x.unique().numel())
    assert 0 <= between.min() and between.max() <= 5 and abs(between.mean() - 2.5) < 0.15 and between.std() > 1.3


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_a_straight_critic_reads_the_distance_and_its_known_excess(weight):
    torch.manual_seed(0)
    model = TwoPlayers(Point(-2.0, noise=1.0), line(1.0), 1, "wasserstein", weight)
    x = torch.randn(40_000, 1)
    for _ in range(2):
        loss = sum(model.discriminator_loss(x).values())
        model.discriminator.weight.data -= 0.5 / weight * torch.autograd.grad(loss, model.discriminator.weight)[0]
    assert abs(-model.discriminator_loss(x)["game"].item() - (2 + 4 / (2 * weight))) < 0.05


@pytest.mark.parametrize("game, penalty", [("saturating", 0.0), ("non-saturating", 0.0), ("relativistic", 0.0),
                                           ("non-saturating", 0.2), ("relativistic", 0.2)])
def test_two_players_circle_as_predicted(game, penalty):
    model, h, radius = TwoPlayers(Point(0.1), line(0.0), 1, game, penalty), 0.2, []
    data = torch.zeros(1, 1)
    for _ in range(100):
        psi, theta = model.discriminator.weight, model.generator.at
        radius.append(math.hypot(psi.item(), theta.item()))
        first = torch.autograd.grad(sum(model.discriminator_loss(data).values()), psi)[0]
        second = torch.autograd.grad(model.generator_loss(data), theta)[0]
        psi.data -= h * first
        theta.data -= h * second
    field = torch.tensor([[-2 * penalty, -0.5], [0.5, 0.0]])
    factor = torch.linalg.eigvals(torch.eye(2) + h * field).abs().max().item()
    assert abs((radius[-1] / radius[30]) ** (1 / 69) - factor) < 2e-3


def test_generator_loss_reaches_the_generator_alone_in_training():
    "The discriminator's weights move only by its own loss: a step of the generator leaves them."
    torch.manual_seed(0)
    model = TwoPlayers(Point(1.0), line(0.5), 1, "non-saturating", 0.0)
    before = model.discriminator.weight.item()
    curves = train_gan(model, torch.zeros(8, 1), steps=1, batch_size=8, lr=0.1, ema=0.5)
    assert abs(model.discriminator.weight.item() - (before - 0.1)) < 1e-3  # Adam's first step has the size lr
    assert abs(curves["generator"][0] - math.log1p(math.exp(-(before - 0.1) * 1.0))) < 1e-3


def test_training_moves_a_gaussian_onto_the_data():
    torch.manual_seed(0)
    model = TwoPlayers(Point(3.0, noise=1.0), line(0.0), 1, "relativistic", penalty=1.0)
    train_gan(model, lambda n, g: torch.randn(n, 1, generator=g), steps=250, batch_size=64, lr=4e-2, ema=0.95)
    assert abs(model.generator.at.item()) < 0.25


@pytest.mark.parametrize("penalty, after", [(0.0, -0.6), (10.0, -0.4)])
def test_the_penalty_counts_in_training(penalty, after):
    "The game makes this slope steeper, a heavy penalty flatter; Adam's first step has the size lr."
    model = TwoPlayers(Point(1.0), line(-0.5), 1, "non-saturating", penalty)
    train_gan(model, torch.zeros(8, 1), steps=1, batch_size=8, lr=0.1, ema=0.5)
    assert abs(model.discriminator.weight.item() - after) < 1e-3


def test_rare_penalties_are_as_many_times_as_heavy():
    "Every third step, three times as heavy: at step 0 known, between nothing; no penalty wanted, none paid."
    for penalty in (0.5, 0.0):
        model = TwoPlayers(Point(1.0), line(-0.5), 1, "non-saturating", penalty)
        curves = train_gan(model, torch.zeros(8, 1), steps=5, batch_size=8, lr=1e-9, ema=0.5, penalty_every=3)
        expected = 3 * penalty * 0.5**2  # gamma / 2 (R1 + R2) of a line with the slope 0.5
        assert torch.allclose(torch.tensor(curves["penalty"]), torch.tensor([expected, 0, 0, expected, 0]), atol=1e-5)


def test_norms_are_counted_for_the_averaged_generator():
    "Its images in eval mode are those of a large batch in training mode, and each is drawn alone."
    torch.manual_seed(0)
    model = GAN((1, 8, 8), latents=4, width=4)
    images = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    train_gan(model, images, steps=20, batch_size=16, lr=2e-2, ema=0.9)
    z = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone, three, together = model.eval().generator(z), model.generator(z[:3]), model.train().generator(z)
    assert (alone - together).abs().mean() < 0.02 < 0.1 < together.std()
    assert torch.allclose(three, alone[:3], atol=1e-5)


def test_the_schedule_scales_the_steps_of_both():
    seen, model = [], TwoPlayers(Point(1.0), line(0.5), 1, "non-saturating", 0.0)
    schedule = lambda done: seen.append(done) or 0.25
    train_gan(model, torch.zeros(8, 1), steps=1, batch_size=8, lr=0.1, ema=0.5, schedule=schedule)
    assert seen == [0.0] and abs(model.discriminator.weight.item() - (0.5 - 0.025)) < 1e-3
    assert abs(model.generator.at.item() - (1 + 0.025)) < 1e-3 or abs(model.generator.at.item() - (1 - 0.025)) < 1e-3


@pytest.mark.parametrize("data", ["many images", "one image"])
def test_training_is_a_function_of_the_seed(data):
    "Of the batches and of the latents: with one image only the latents can differ."
    images = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images, ends = images if data == "many images" else images[:1].repeat(64, 1, 1, 1), []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = GAN((1, 8, 8), latents=4, width=2)
        torch.manual_seed(len(ends))  # what came before does not matter
        train_gan(model, images, steps=3, batch_size=8, seed=seed)
        ends.append(model.sample(2, torch.Generator().manual_seed(0)))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_generator_ends_with_its_average():
    "With a decay of one half the second step of size 0.1 moves the average by half of it."
    seen, model = [], TwoPlayers(Point(1.0), line(0.5), 1, "non-saturating", 0.0)
    watch = lambda step, average: seen.append(average.at.item())
    train_gan(model, torch.zeros(8, 1), steps=2, batch_size=8, lr=0.1, ema=0.5, watch=watch, every=1)
    assert model.generator.at.item() == seen[1] and 0.03 < abs(seen[1] - seen[0]) < 0.07


def test_a_loss_that_is_not_finite_stops():
    model = TwoPlayers(Point(1.0), line(math.nan), 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        train_gan(model, torch.zeros(8, 1), steps=2, batch_size=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_have_one_shape(dtype):
    model = GAN((3, 8, 8), latents=3, width=4, levels=17).to(dtype)
    v = torch.randint(0, 17, (5, 3, 8, 8), dtype=torch.uint8)
    drawn = model.sample(6, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 3, 8, 8) and drawn.dtype == dtype and 0 <= drawn.min() and drawn.max() <= 1
    assert torch.equal(drawn, model.sample(6, torch.Generator().manual_seed(0)))  # whatever the global generator
    x = model.inputs(torch.tensor([[[[0, 8, 16]]]]))
    assert x.flatten().tolist() == [-1, 0, 1] and model.log_prob_is == "none" and not hasattr(model, "log_prob")
    for game in ("saturating", "non-saturating", "relativistic", "wasserstein"):
        model.game = game
        assert all(part.dim() == 0 for part in (*model.discriminator_loss(v).values(), model.generator_loss(v)))
