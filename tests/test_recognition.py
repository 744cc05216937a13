"Gaussians of classes against scikit-learn and quadrature; EM never falls; the dimension of known surfaces."

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import one_hot

from densegen.families.recognition import class_gaussians, intrinsic_dimension, with_unlabelled


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=g, dtype=torch.float64) @ torch.randn(5, 5, generator=g, dtype=torch.float64)
    y = torch.randint(3, (300,), generator=g)
    return x + 2 * torch.randn(3, 5, generator=g, dtype=torch.float64)[y], y


def test_posterior_is_that_of_scikit_learn(data):
    x, y = data
    ours = class_gaussians(x, one_hot(y, 3).double(), shrink=0.0).log_joint(x).softmax(1)
    covariance = sum(torch.cov(x[y == k].T, correction=0) * (y == k).sum() for k in range(3)) / len(x)
    covariance += 1e-4 * covariance.diagonal().mean() * torch.eye(5)
    theirs = LinearDiscriminantAnalysis("lsqr", covariance_estimator=type("Given", (), {"fit": lambda s, x: s, "covariance_": covariance.numpy()})())
    assert np.abs(ours.numpy() - theirs.fit(x.numpy(), y.numpy()).predict_proba(x.numpy())).max() < 1e-9


def test_density_is_that_of_torch(data):
    x, y = data
    model = class_gaussians(x, one_hot(y, 3).double(), shrink=0.3)
    parts = torch.distributions.MultivariateNormal(model.means, scale_tril=model.root)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(model.shares), parts)
    assert torch.allclose(model.log_prob(x), mixture.log_prob(x))
    seen = torch.tensor([True, False, True, True, False])
    covariance = (model.root @ model.root.T)[seen][:, seen]
    part = torch.distributions.MultivariateNormal(model.means[:, seen], covariance)
    assert torch.allclose(model.log_joint(x, seen), model.shares.log() + part.log_prob(x[:, None, seen]))


def test_shrinkage_keeps_the_mean_variance(data):
    x, y = data
    trace = [float((m.root @ m.root.T).trace()) for m in (class_gaussians(x, one_hot(y, 3).double(), s) for s in (0.0, 0.5, 1.0))]
    assert max(trace) - min(trace) < 1e-9 * max(trace)
    whole = class_gaussians(x, one_hot(y, 3).double(), 1.0).root
    assert torch.allclose(whole, whole[0, 0] * torch.eye(5).double())


def test_codes_and_samples(data):
    x, y = data
    model = class_gaussians(x, one_hot(y, 3).double(), 0.0).float()
    assert torch.allclose(model.decode(model.encode(x.float(), y), y), x.float(), atol=1e-4)
    drawn = model.sample(20_000, torch.Generator().manual_seed(1))
    again = class_gaussians(drawn, model.log_joint(drawn).softmax(1), 0.0)
    assert torch.allclose(again.shares, model.shares, atol=0.02) and torch.allclose(again.means, model.means, atol=0.15)


def test_em_never_falls_and_finds_the_classes(data):
    x, y = data
    few = torch.cat([(y == k).nonzero()[:2, 0] for k in range(3)])
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[few] = False
    model, heights = with_unlabelled(x[few], one_hot(y[few], 3).double(), x[rest], steps=30, shrink=0.0)
    assert all(b > a - 1e-3 for a, b in zip(heights, heights[1:])) and heights[-1] > heights[0] + 0.05
    apart = x + 8 * torch.eye(3, 5).double()[y]
    found, _ = with_unlabelled(apart[few], one_hot(y[few], 3).double(), apart[rest], steps=30)
    assert (found.log_joint(apart).argmax(1) == y).double().mean() > 0.95


def test_one_image_a_class_has_a_density():
    model = class_gaussians(torch.eye(4), torch.eye(4))
    assert model.log_prob(torch.eye(4)).isfinite().all() and (model.log_joint(torch.eye(4)).argmax(1) == torch.arange(4)).all()


@pytest.mark.parametrize("d", [1, 2, 5])
def test_dimension_of_flat_surfaces(d):
    g = torch.Generator().manual_seed(d)
    x = torch.rand(1500, d, generator=g) @ torch.randn(d, 40, generator=g)
    assert abs(intrinsic_dimension(x) / d - 1) < 0.12
