"The codebook against k-means, the gradient against the decoder's, the bound against a sum over all tokens."

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from densegen.families.vq import VQVAE, Codebook, usage
from densegen.workbench.training import fit


def cloud(n=500, dims=3, seed=0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def book(z, codes=8, **options):
    "A codebook in double precision that starts at the first vectors."
    made = Codebook(codes, z.shape[1], **options).double()
    made.vectors.copy_(z[:codes])
    made.total.copy_(z[:codes])
    return made


def tiny(codes=5, commitment=0.0, **options):
    "A model in double precision whose images of 4 x 4 pixels are one token each."
    torch.manual_seed(0)
    model = VQVAE((1, 4, 4), codes=codes, dims=3, width=4, commitment=commitment, **options).double().eval()
    model.codebook.vectors.normal_()
    z = torch.randn(40, 1, 1, 3, dtype=torch.float64)  # what the encoder is made to say: far from all codes
    model.features = lambda v: z
    return model, torch.randint(0, 256, (40, 1, 4, 4))


def test_the_nearest_code_is_the_nearest():
    z = cloud()
    codes = book(z)
    codes.vectors.mul_(torch.linspace(0.2, 3, 8, dtype=torch.float64)[:, None])  # lengths matter
    assert torch.equal(codes.nearest(z), torch.cdist(z, codes.vectors).argmin(1))


def test_an_update_with_decay_0_is_a_step_of_k_means():
    z = cloud()
    codes = book(z, decay=0.0, restart=False, smoothing=0.0)
    for steps in (1, 2, 3):
        codes.update(z, codes.nearest(z))
        reference = KMeans(8, init=z[:8].numpy(), n_init=1, max_iter=steps, tol=0).fit(z.numpy())
        assert np.allclose(codes.vectors, reference.cluster_centers_)


def test_k_means_to_the_end():
    z = cloud()
    codes = book(z, decay=0.0, restart=False, smoothing=0.0)
    for _ in range(100):
        codes.update(z, codes.nearest(z))
    lost = (z - codes.vectors[codes.nearest(z)]).square().sum()
    assert abs(lost - KMeans(8, init=z[:8].numpy(), n_init=1, max_iter=300, tol=0).fit(z.numpy()).inertia_) < 1e-8


def test_averages_are_those_of_the_formula():
    z = cloud()
    codes = book(z, decay=0.9, restart=False, smoothing=0.5)
    count, total = torch.ones(8, dtype=torch.float64), z[:8].clone()
    for _ in range(3):
        index = codes.nearest(z)
        for k in range(8):
            count[k] = 0.9 * count[k] + 0.1 * (index == k).sum()
            total[k] = 0.9 * total[k] + 0.1 * z[index == k].sum(0)
        codes.update(z, index)
        smooth = count.sum() * (count + 0.5) / (count + 0.5).sum()
        assert torch.allclose(codes.count, count) and torch.allclose(codes.vectors, total / smooth[:, None])


def test_smoothing_keeps_a_code_without_vectors_finite():
    z = cloud()
    codes = book(z, decay=0.0, restart=False)
    codes.vectors[3] = 1e6
    codes.update(z, codes.nearest(z))
    assert codes.count[3] == 0 and codes.vectors.isfinite().all()


def test_dead_codes_move_onto_vectors_and_live_ones_stay():
    torch.manual_seed(0)
    z = cloud()
    restarted, left = book(z, restart=True), book(z, restart=False)
    for codes in (restarted, left):
        codes.vectors[2:4] = codes.total[2:4] = 1e6
        codes.count[2:4] = 1.0
        codes.update(z, codes.nearest(z))
    live = torch.ones(8, dtype=torch.bool)
    live[2:4] = False
    assert torch.equal(restarted.vectors[live], left.vectors[live])
    assert (torch.cdist(restarted.vectors[2:4], z).amin(1) < 1e-6).all() and (restarted.count[2:4] == 1).all()
    restarted.update(z, restarted.nearest(z))
    assert (torch.cdist(restarted.vectors[2:4], z).amin(1) < 1).all()  # their sums moved with them


def test_codes_follow_vectors_that_drift():
    torch.manual_seed(0)
    codes = Codebook(16, 2)
    for step in range(100):
        z = torch.randn(400, 2) + torch.tensor([0.02 * step, 0.0])
        codes.update(z, codes.nearest(z))
    index = codes.nearest(z)
    assert usage(index, 16)[0] > 7 and (z - codes.vectors[index]).square().sum(1).mean() < 0.5


def test_usage_of_known_shares():
    assert math.isclose(usage(torch.arange(64).repeat(3), 64)[0], 64)
    assert usage(torch.full((3, 7, 7), 5), 64) == (1.0, 1)
    perplexity, used = usage(torch.tensor([[0, 0], [9, 3]]), 64)
    assert math.isclose(perplexity, 2**1.5) and used == 3


def test_the_encoder_gets_the_gradient_of_the_decoder_at_the_code():
    model, v = tiny()
    z = model.features(v).detach().requires_grad_()
    model.features = lambda v: z
    model.loss(v)["reconstruction"].backward()
    code = model.codebook.vectors[model.tokens(v)].requires_grad_()
    pixels = model._log_likelihood(v, code).mean() / (16 * math.log(2))
    expected = -torch.autograd.grad(pixels, code)[0]
    elsewhere = torch.autograd.grad(model._log_likelihood(v, z).mean(), z)[0] / (16 * math.log(2))
    assert torch.allclose(z.grad, expected) and not torch.allclose(z.grad, -elsewhere)


def test_commitment_pulls_the_encoder_to_its_code_and_not_the_code():
    model, v = tiny(commitment=0.3)
    z = model.features(v).detach().requires_grad_()
    model.features = lambda v: z
    loss = model.loss(v)["commitment"]
    gap = z - model.codebook.vectors[model.tokens(v)]
    assert torch.allclose(loss, 0.3 * gap.square().mean())
    assert torch.allclose(torch.autograd.grad(loss, z)[0], 0.6 * gap / gap.numel())


def test_the_loss_is_the_cost_of_pixels_given_their_tokens():
    model, v = tiny()
    bits = -model.log_likelihood(v, model.tokens(v)).mean() / (16 * math.log(2))
    assert torch.allclose(model.loss(v)["reconstruction"], bits)


def test_the_bound_lies_below_the_sum_over_all_tokens():
    model, v = tiny()
    every = torch.stack([model.log_likelihood(v, torch.full((40, 1, 1), t)) for t in range(5)])
    gap = every.logsumexp(0) - math.log(5) - model.log_prob(v)
    best = every.argmax(0) == model.tokens(v).flatten()
    assert (gap > 0).all() and (gap[best] < math.log(5)).all() and 1 < best.sum() < 20


def test_codes_move_in_training_only():
    model, v = tiny()
    before = model.codebook.vectors.clone()
    model.loss(v)
    model.tokens(v)
    assert torch.equal(model.codebook.vectors, before)
    model.train().loss(v)
    assert not torch.equal(model.codebook.vectors, before)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_shapes_and_saved_codes(shape):
    torch.manual_seed(0)
    model = VQVAE(shape, codes=16, dims=4, width=4).eval()
    v = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    t = model.encode(v)
    assert t.dtype == torch.int64 and t.shape == (3, shape[1] // 4, shape[2] // 4)
    assert model.decode(t).shape == (3, *shape) and model.log_prob(v).shape == (3,)
    copy = VQVAE(shape, codes=16, dims=4, width=4).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.decode(copy.tokens(v)), model.decode(t))
    drawn = model.sample(2, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, *shape) and torch.equal(drawn, model.sample(2, torch.Generator().manual_seed(0)))


def test_a_trained_model_copies_four_images():
    torch.manual_seed(0)
    base = torch.randint(0, 256, (4, 1, 2, 2)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    v = base[torch.arange(256) % 4]
    model = VQVAE((1, 8, 8), codes=16, dims=4, width=8)
    fit(model, v, steps=100, batch_size=32, lr=8e-3, seed=0)
    with torch.no_grad():
        assert (model.decode(model.tokens(base)) - base / 255).abs().mean() < 0.1
        assert usage(model.tokens(base), 16)[1] > 4
