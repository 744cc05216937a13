"Causality by gradient, all sequences add up to one, the cache changes no symbol, rules are kept."

import math

import pytest
import torch
from scipy import stats

from densegen.families.transformer import CausalTransformer, Layer, PixelTransformer
from densegen.workbench.training import fit

EVERY = torch.cartesian_prod(*[torch.arange(3)] * 5)
RULE = torch.tensor([[1, 1, 0]] * 2 + [[0, 1, 1]] * 3).bool()


def wild(vocabulary=3, length=5, seed=0):
    "A small transformer in double precision whose weights are large enough to make its symbols differ."
    torch.manual_seed(seed)
    model = CausalTransformer(vocabulary, length, width=12, depth=2, heads=3).double()
    for p in model.parameters():
        p.data = p.data + 0.3 * torch.randn_like(p)
    return model


def test_a_place_sees_itself_and_all_before():
    torch.manual_seed(0)
    layer, h = Layer(12, 3).double(), torch.randn(1, 6, 12, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda h: layer(h)[0].sum((0, 2)), h).abs().sum((1, 3))
    assert torch.equal(slopes > 0, torch.ones(6, 6).tril().bool())


def test_no_symbol_matters_to_itself_or_to_earlier_ones():
    "And each matters to all later ones: by exchanging one symbol."
    model, tokens = wild(), torch.tensor([[0, 1, 2, 1, 0]])
    logits = lambda t: model.net(torch.cat([torch.tensor([[3]]), t[:, :-1]], 1))[0][0]
    for place in range(5):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % 3
        changed = (logits(other) != logits(tokens)).any(1)
        assert changed.tolist() == [t > place for t in range(5)]


def test_all_sequences_add_up_to_one():
    model = wild()
    with torch.no_grad():
        log_p = model.log_prob(EVERY)
    assert abs(log_p.exp().sum() - 1) < 1e-9 and log_p.std() > 0.5


def test_under_a_rule_the_allowed_sequences_share_everything():
    model = wild()
    with torch.no_grad():
        p = model.log_prob(EVERY, RULE).exp()
    lawful = RULE[torch.arange(5), EVERY].all(1)
    assert abs(p.sum() - 1) < 1e-9 and torch.equal(p > 0, lawful)
    each = model.log_prob(EVERY[lawful], RULE.expand(int(lawful.sum()), -1, -1))
    assert torch.allclose(each.exp(), p[lawful])


def test_the_cache_changes_nothing():
    model = wild()
    with torch.no_grad():
        fed = torch.cat([torch.full((9, 1), 3), EVERY[100:109, :-1]], 1)
        whole, cache, steps = model.net(fed)[0], None, []
        for part in fed.split([2, 1, 2], 1):
            logits, cache = model.net(part, cache)
            steps.append(logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-12)
    draw = lambda **how: model.sample(40, EVERY[:40, :2], torch.Generator().manual_seed(0), **how)
    assert torch.equal(draw(), draw(cached=False)) and torch.equal(draw()[:, :2], EVERY[:40, :2])


@pytest.mark.parametrize("rule", [None, RULE])
def test_samples_follow_the_density(rule):
    model = wild(seed=1)
    with torch.no_grad():
        expected = 10_000 * model.log_prob(EVERY, rule).exp()
    drawn = model.sample(10_000, generator=torch.Generator().manual_seed(0), allowed=rule)
    observed = torch.bincount((drawn * 3 ** torch.arange(4, -1, -1)).sum(1), minlength=243).double()
    often = expected >= 5
    cells = [torch.cat([t[often], t[~often].sum(0, keepdim=True)]) for t in (observed, expected)]
    assert often.sum() > 5 and stats.chisquare(*cells).pvalue > 1e-3
    assert rule is None or rule[torch.arange(5), drawn].all()


def test_a_rule_of_each_sequence():
    "Two kinds of sequence in one batch: each keeps its own rule."
    model = wild()
    both = torch.stack([RULE, ~RULE])[torch.arange(50) % 2]
    drawn = model.sample(50, generator=torch.Generator().manual_seed(0), allowed=both)
    assert both.gather(2, drawn[..., None]).all()


def test_prompts_of_all_lengths():
    model = wild()
    for n in range(6):
        assert torch.equal(model.sample(7, EVERY[:7, :n])[:, :n], EVERY[:7, :n]) and model.sample(7, EVERY[:7, :n]).shape == (7, 5)


def test_longer_sequences_are_refused():
    with pytest.raises(ValueError, match="expected at most 5 places; got 6"):
        wild().log_prob(torch.zeros(1, 6, dtype=torch.long))
    assert wild().log_prob(torch.zeros(2, 3, dtype=torch.long)).shape == (2,)


def test_it_learns_to_look_far_back():
    "The last of six bits is the first one: the rest is noise, and the entropy is five bits."
    x = torch.randint(0, 2, (2000, 6), generator=torch.Generator().manual_seed(0))
    x[:, 5] = x[:, 0]
    torch.manual_seed(0)
    model = CausalTransformer(2, 6, width=16, depth=1, heads=2)
    fit(model, x, steps=150, batch_size=100, lr=1e-2, seed=0)
    every = torch.cartesian_prod(*[torch.arange(2)] * 6)
    true = every[every[:, 5] == every[:, 0]]
    with torch.no_grad():
        cost = -model.log_prob(true).mean() / math.log(2)
    assert 5 <= cost < 5.1


def test_images_are_read_by_rows_pixels_channels():
    model, v = PixelTransformer((2, 2, 3), 8, 1, 2, levels=16), torch.arange(12).reshape(1, 2, 2, 3)
    assert model.tokens(v).tolist() == [[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]]
    back = model.sample(1, prompt=model.tokens(v)) * 15
    assert torch.equal(back.round().long(), v)
    assert torch.allclose(model.loss(v)["bits"], -model.log_prob(v).mean() / (12 * math.log(2)))


def test_all_images_add_up_to_one():
    torch.manual_seed(0)
    model, D = PixelTransformer((2, 1, 3), 8, 1, 2, levels=2).double(), 6
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(*[torch.arange(2)] * D).reshape(-1, 2, 1, 3)).exp().sum()
    assert abs(total - 1) < 1e-9
