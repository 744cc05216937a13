"""Reversible back-propagation against ordinary back-propagation: the same model, data and seed, every gradient compared."""
import copy

import pytest
import torch
from zoo import BIJECTIONS, randomized

from densegen.flows.bijections import Affine, Bijection, Compose, Flow, Inverse, Permutation, SinhArcsinh, StandardNormal
from densegen.flows.coupling import Coupling, Couplings, ImageCoupling, RealNVP, Shift
from densegen.flows.dequantization import ConditionalPrior, OnFirstHalf
from densegen.flows.glow import Glow, GlowStep
from densegen.flows.memory import NotInvertible, set_memory
from densegen.flows.residual import ResidualBlock, lipschitz_net

MODES = ["reversible", "checkpoint"]


def gradients(model, x, context, weights, seed=3):
    "Gradients of the input, the context and all parameters under a loss that weighs each item differently."
    torch.manual_seed(seed)
    inputs = [t.clone().requires_grad_() for t in (x, context) if t is not None]
    z, ladj = model(*inputs)
    loss = (weights * (z.flatten(1).square().sum(1) + z.flatten(1).sum(1) - ladj)).sum()
    wanted = [*inputs, *(p for p in model.parameters() if p.requires_grad)]
    return torch.autograd.grad(loss, wanted, materialize_grads=True)


def largest_difference(model, memory, shape, context=0, n=7, dtype=torch.float64):
    model = model.to(dtype)
    twin = set_memory(copy.deepcopy(model), memory)
    x, weights = torch.randn(n, *shape, dtype=dtype), torch.randn(n, dtype=dtype)
    c = torch.randn(n, context, dtype=dtype) if context else None
    pairs = zip(gradients(twin, x, c, weights), gradients(model, x, c, weights), strict=True)
    return max(((a - b).norm() / (b.norm() + 1e-12)).item() for a, b in pairs)


def chain(case, length=3):
    return randomized(Compose(*[case.make() for _ in range(length)]), 0.3)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("case", BIJECTIONS.values(), ids=BIJECTIONS)
def test_every_bijection_of_the_zoo(case, memory):
    model = chain(case)
    if memory == "checkpoint" and any(isinstance(part, ResidualBlock) for part in model.modules()):
        pytest.skip("exact determinants use torch.func, which torch's checkpoints do not support")
    if not list(model.parameters()):
        model = Compose(model, Affine(case.shape))
    assert largest_difference(model, memory, case.shape, case.context) < 1e-8


@pytest.mark.parametrize("memory", MODES)
def test_dropout_context_and_nesting(memory):
    make = lambda: Couplings(5, layers=3, width=16, context=2, dropout=0.5)
    model = randomized(Compose(make(), Compose(make(), Permutation(torch.tensor([4, 2, 0, 1, 3])), Compose(make()))), 0.3)
    assert largest_difference(model.train(), memory, (5,), 2) < 1e-9


@pytest.mark.parametrize("memory", MODES)
def test_float32(memory):
    model = randomized(Compose(*[Couplings(6, layers=2, width=32, dropout=0.2) for _ in range(8)]), 0.1).train()
    assert largest_difference(model, memory, (6,), n=64, dtype=torch.float32) < 1e-4


def test_chance_in_a_roulette_is_replayed():
    model = randomized(Compose(*[ResidualBlock(lipschitz_net((3,), 8)) for _ in range(3)]), 0.3).double().train()
    x, weights = torch.randn(5, 3).double(), torch.randn(5).double()
    for _ in range(2):  # the first call brings the norms up to date
        wanted = gradients(model, x, None, weights)
    ours = gradients(set_memory(model, "reversible"), x, None, weights)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(ours, wanted))


def test_random_numbers_after_the_backward_pass_are_those_of_plain_training():
    model = set_memory(Compose(*[Coupling(4, 8, dropout=0.5) for _ in range(3)]), "reversible")
    drawn = []
    for memory in ("plain", "reversible"):
        torch.manual_seed(0)
        z, ladj = set_memory(model, memory)(torch.randn(5, 4))
        (z.sum() + ladj.sum()).backward()
        drawn.append(torch.rand(3))
    assert drawn[0].equal(drawn[1])


def test_a_layer_used_twice_collects_both_gradients():
    shared = Coupling(4, 8)
    model = randomized(Compose(shared, Permutation(torch.tensor([2, 3, 0, 1])), shared), 0.4)
    assert largest_difference(model, "reversible", (4,)) < 1e-9


def test_another_shape_of_the_latent():
    class Flat(Bijection):
        def forward(self, x, context=None):
            return x.flatten(1), x.new_zeros(len(x))

        def inverse(self, z, context=None):
            return z.reshape(-1, 2, 2, 2), z.new_zeros(len(z))

    model = randomized(Compose(ImageCoupling(2, 8), Flat(), Couplings(8, layers=2, width=8), SinhArcsinh(8)), 0.3)
    assert largest_difference(model, "reversible", (2, 2, 2)) < 1e-9


def test_a_chain_hidden_inside_an_unknown_bijection():
    class Doubled(Bijection):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, context=None):
            z, ladj = self.inner(x, context)
            return 2 * z, ladj + z.shape[1] * torch.tensor(2.0, dtype=z.dtype).log()

        def inverse(self, z, context=None):
            x, ladj = self.inner.inverse(z / 2, context)
            return x, ladj - z.shape[1] * torch.tensor(2.0, dtype=z.dtype).log()

    inner = Compose(*[Coupling(4, 8) for _ in range(3)])
    assert largest_difference(randomized(Compose(Doubled(inner), Coupling(4, 8)), 0.3), "reversible", (4,)) < 1e-9
    chance = Compose(*[Coupling(4, 8, flip=i == 1, dropout=0.5) for i in range(3)])
    with pytest.raises(NotInvertible):  # its inverse draws in another order: noticed, not guessed
        largest_difference(randomized(Compose(Doubled(chance), Coupling(4, 8)), 0.5).train(), "reversible", (4,))


def test_a_changed_coupling_is_not_taken_for_a_coupling():
    class Tripled(Coupling):
        def forward(self, x, context=None):
            z, ladj = super().forward(x, context)
            return 3 * z, ladj + 4 * torch.tensor(3.0, dtype=z.dtype).log()

        def inverse(self, z, context=None):
            x, ladj = super().inverse(z / 3, context)
            return x, ladj - 4 * torch.tensor(3.0, dtype=z.dtype).log()

    assert largest_difference(randomized(Compose(Tripled(4, 8), Tripled(4, 8, flip=True)), 0.3), "reversible", (4,)) < 1e-9


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(memory, n):
    assert largest_difference(chain(BIJECTIONS["couplings"]), memory, (3,), n=n) < 1e-9


@pytest.mark.parametrize("memory", MODES)
def test_frozen_parameters_stay_without_gradient(memory):
    model = set_memory(chain(BIJECTIONS["couplings"]), memory)
    frozen = next(model.parameters()).requires_grad_(False)
    z, ladj = model(torch.randn(4, 3))
    (z.sum() - ladj.sum()).backward()
    assert frozen.grad is None and all(p.grad is not None for p in model.parameters() if p is not frozen)
    for p in model.parameters():
        p.requires_grad_(False)
    assert not model(torch.randn(4, 3))[0].requires_grad


@pytest.mark.parametrize("memory", MODES)
def test_without_gradients_it_is_the_plain_forward(memory):
    model, x = chain(BIJECTIONS["couplings"]), torch.randn(4, 3)
    wanted = model(x)
    with torch.no_grad():
        z, ladj = set_memory(model, memory)(x)
    assert torch.equal(z, wanted[0]) and torch.equal(ladj, wanted[1]) and not z.requires_grad


@pytest.mark.parametrize("which", ["z", "ladj"])
def test_a_loss_of_one_output_alone(which):
    model, x = chain(BIJECTIONS["couplings"]).double(), torch.randn(4, 3).double()
    twin = set_memory(copy.deepcopy(model), "reversible")
    for a, b in zip(*(torch.autograd.grad(m(x)[which == "ladj"].square().sum(), list(m.parameters())) for m in (twin, model))):
        assert torch.allclose(a, b, atol=1e-10)


def test_twice_backward_through_one_graph():
    model = set_memory(chain(BIJECTIONS["couplings"]).double(), "reversible")
    z, ladj = model(torch.randn(4, 3).double())
    loss = z.square().sum() - ladj.sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_no_second_derivative_is_an_error_not_a_wrong_number():
    model = set_memory(chain(BIJECTIONS["couplings"]), "reversible")
    x = torch.randn(4, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(model(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        dx.sum().backward()


def test_autocast_is_restored():
    model = randomized(Compose(*[ImageCoupling(4, 16) for _ in range(4)]), 0.1)
    twin, x = set_memory(copy.deepcopy(model), "reversible"), torch.randn(8, 4, 4, 4)
    grads = []
    for m in (twin, model):
        with torch.autocast("cpu", torch.bfloat16):
            z, ladj = m(x)
            loss = (z.float().square().flatten(1).sum(1) - ladj).mean()
        grads.append(torch.autograd.grad(loss, list(m.parameters())))
    for a, b in zip(*grads):
        assert (a - b).norm() < 0.02 * b.norm() + 1e-6


class Sloppy(Affine):
    def inverse(self, z, context=None):
        return 1.1 * super().inverse(z)[0], -self(z)[1]


def test_an_inverse_that_does_not_lead_back_is_an_error():
    flow = set_memory(Flow(Compose(SinhArcsinh(3), Sloppy(3), SinhArcsinh(3)), StandardNormal(3)), "reversible")
    with pytest.raises(NotInvertible, match="expected inverse to lead back"):
        flow.loss(torch.randn(8, 3)).backward()


@pytest.mark.parametrize("memory", MODES)
def test_whole_flows(memory):
    for make, x in (
        (lambda: RealNVP(4, layers=4, width=8, dropout=0.2), torch.randn(9, 4)),
        (lambda: Glow((1, 8, 8), levels=2, steps=2, width=8), torch.rand(3, 1, 8, 8)),
    ):
        model = randomized(make(), 0.1).double().train()
        twin = set_memory(copy.deepcopy(model), memory)
        grads = []
        for m in (twin, model):
            torch.manual_seed(0)
            m.zero_grad()
            (-m.log_prob(x.double()) * torch.arange(1.0, len(x) + 1)).sum().backward()
            grads.append([p.grad for p in m.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(*grads))


def test_the_steps_of_a_chain():
    steps = Compose(Affine(2), Compose(), Compose(Couplings(2, layers=2, width=4), Inverse(Compose(Affine(2), SinhArcsinh(2))))).steps()
    assert [type(s).__name__ for s in steps] == ["Affine", "Coupling", "Coupling", "Inverse", "Inverse"]
    assert isinstance(steps[3].bijection, SinhArcsinh)
    x = torch.randn(3, 2)
    empty = set_memory(Compose(), "reversible")
    assert torch.equal(empty(x)[0], x)


def held(make, depth, memory):
    "Bytes that wait for the backward pass."
    model = set_memory(Compose(*[make() for _ in range(depth)]), memory)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = model(torch.randn(16, 8, 8, 8))
    del result
    return sum(kept.values())


def test_what_waits_for_the_backward_pass_does_not_grow_with_depth():
    make = lambda: GlowStep(8, 16)
    assert held(make, 16, "reversible") == held(make, 2, "reversible")
    assert held(make, 16, "checkpoint") < held(make, 16, "plain") / 5
    halves = lambda: OnFirstHalf(Compose(*[GlowStep(4, 16) for _ in range(8)]))
    assert held(halves, 1, "reversible") < held(halves, 1, "plain") / 10


def calls(model, x):
    "How often the network of a coupling is evaluated in a reversible step of training."
    count = []
    for part in model.modules():
        if isinstance(part, (Coupling, ImageCoupling)):
            part.net.register_forward_hook(lambda *_: count.append(1))
    z, ladj = set_memory(model, "reversible")(x)
    (z.sum() - ladj.sum()).backward()
    return len(count)


def test_a_coupling_is_undone_with_one_evaluation_of_its_network():
    class Own(Coupling):
        "A user's coupling, changed only where it may be."

        def __init__(self):
            super().__init__(4, 8, transform=Shift())

    assert calls(Compose(Coupling(4, 8), Coupling(4, 8, flip=True)), torch.randn(3, 4)) == 4
    assert calls(Compose(Own(), Own()), torch.randn(3, 4)) == 4
    assert calls(Compose(ImageCoupling(4, 8), ConditionalPrior(4)), torch.randn(3, 4, 2, 2)) == 4


def test_own_directions_do_not_inherit_steps_or_undo():
    class Twice(Compose):
        def forward(self, x, context=None):
            x, first = super().forward(x, context)
            x, second = super().forward(x, context)
            return x, first + second

        def inverse(self, z, context=None):
            z, first = super().inverse(z, context)
            z, second = super().inverse(z, context)
            return z, first + second

    model = randomized(Compose(Twice(Coupling(4, 8)), Affine(4)), 0.3)
    assert len(model.steps()) == 2 and largest_difference(model, "reversible", (4,)) < 1e-9


@pytest.mark.parametrize("memory", ["none", "Reversible", None])
def test_an_unknown_name_is_refused(memory):
    with pytest.raises(ValueError, match="memory: expected 'plain', 'checkpoint' or 'reversible'; got"):
        set_memory(Flow(Compose(Affine(2)), StandardNormal(2)), memory)


def test_a_single_bijection_has_no_chain_to_save():
    with pytest.raises(ValueError, match="expected a Compose"):
        set_memory(Flow(Affine(2), StandardNormal(2)), "reversible")
