"""Batches: a function of seed and step, of whatever counts as data."""
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from line import Line, line_data, run
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from densegen.workbench.batches import Batches, forked, identity, random_states


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 5))
def test_batches_cover_each_epoch_once(n, size, world, seed):
    if n < world:
        return
    parts = [Batches(torch.arange(n), size, seed, rank, world) for rank in range(world)]
    stride = parts[0].size * world
    for epoch in (0, 3):
        first = epoch * (n // stride)
        seen = [i for step in range(n // stride) for part in parts for i in part(first + step).tolist()]
        assert len(seen) == len(set(seen)) > n - stride, "only what does not fill a batch may be left out"


def test_every_epoch_has_its_own_order():
    batches = Batches(torch.arange(64), 16, seed=0)
    orders = [torch.cat([batches(4 * epoch + k) for k in range(4)]) for epoch in range(4)]
    assert all(not a.equal(b) for i, a in enumerate(orders) for b in orders[:i])
    assert all(order.sort().values.equal(torch.arange(64)) for order in orders)
    assert not orders[0].equal(torch.arange(64)) and not orders[0].equal(Batches(torch.arange(64), 64, seed=1)(0))


def test_numpy_arrays_are_data():
    x, y = (t.double().numpy() for t in line_data())
    x.setflags(write=False)
    batch = Batches((x[::-1], np.arange(200, dtype=">i4"), y.astype(np.float16)), 8)(0)
    assert [t.dtype for t in batch] == [torch.float32, torch.int32, torch.float32]
    assert torch.allclose(batch[0], torch.tensor(x[::-1].copy()).float()[Batches(torch.arange(200), 8)(0)])
    plain, _ = run(10)
    assert run(10, data=(line_data()[0].double().numpy(), line_data()[1].double().numpy()))[0].w.equal(plain.w)


class Endless(IterableDataset):
    def __iter__(self):
        return (torch.full((), float(i)) for i in range(7))


LOADERS = {
    "shuffled": lambda: DataLoader(TensorDataset(*line_data()), batch_size=32, shuffle=True),
    "own generator": lambda: DataLoader(
        TensorDataset(*line_data()), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(random.getrandbits(30))),
    "in order": lambda: DataLoader(TensorDataset(*line_data()), batch_size=32),
    "stream": lambda: DataLoader(Endless(), batch_size=2),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_loaders_are_functions_of_the_step(make):
    flat = lambda batch: torch.cat(batch) if isinstance(batch, list) else batch
    straight = Batches(make(), 1, seed=3)
    seen = [flat(straight(step)) for step in range(17)]
    torch.manual_seed(5)
    other = Batches(make(), 1, seed=3)
    before = random_states()["torch"]
    assert flat(other(16)).equal(seen[16]) and flat(other(2)).equal(seen[2]) and flat(other(3)).equal(seen[3])
    assert random_states()["torch"].equal(before), "reading ahead leaves no trace"


def test_a_loader_keeps_its_size_and_its_last_batch():
    batches = Batches(LOADERS["in order"](), 5)
    assert [len(batches(step)[0]) for step in range(8)] == [32] * 6 + [8, 32]
    with pytest.raises(ValueError, match="expected no DataLoader with 2 processes"):
        Batches(LOADERS["in order"](), 5, world=2)


def test_a_training_with_a_loader_resumes_exactly(tmp_path):
    whole, _ = run(20, data=LOADERS["shuffled"]())
    run(9, data=LOADERS["shuffled"](), checkpoint=tmp_path / "a")
    resumed, history = run(20, data=LOADERS["shuffled"](), checkpoint=tmp_path / "a")
    assert resumed.w.equal(whole.w) and resumed.seen == whole.seen and len(history.loss) == 20


class Nameless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(1)


WRONG = {
    "unequal": ((torch.zeros(32, 2), torch.zeros(64)), r"same length; got lengths \[32, 64\]"),
    "unequal, the second longer": (line_data()[:1] + (torch.zeros(300),), r"same length; got lengths \[200, 300\]"),
    "empty tuple": ((), "got an empty tuple"),
    "list": (list(line_data()), "got list; stack"),
    "text": ("data", "got str"),
    "nothing": (None, "got NoneType"),
    "a number": (torch.zeros(()), "at least one dimension"),
    "objects": (np.array(["a", "b"]), "got ndarray"),
    "stream": (Endless(), "got an IterableDataset; wrap it"),
    "no length": (Nameless(), "got Nameless"),
    "no items": (torch.zeros(0, 2), "at least one item"),
    "empty loader": (DataLoader(TensorDataset(torch.zeros(3)), batch_size=8, drop_last=True), "at least one batch"),
    "dictionary": ({"x": torch.zeros(3)}, "got dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_data_gets_one_line(name):
    data, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^data: expected .*{message}") as caught:
        Batches(data, 4)(0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^data: expected"):
        run(2, data=data, model=Line())


def test_identity_tells_data_apart():
    x = torch.arange(12.0)
    same = [identity(Batches(data, 4)) for data in (x, x.clone(), x.numpy(), TensorDataset(x))]
    assert len(set(same)) == 1 and same[0].startswith("12 float32 (checksum ")
    draw = lambda mean: lambda n, g: mean + torch.randn(n, generator=g) + np.random.rand()
    texts = {identity(Batches(data, 4)) for data in (x, x + 1, x.flip(0), x.double(), x.view(4, 3), (x, x), draw(5), draw(-5))}
    assert len(texts) == 8
    np.random.seed(3)
    first = identity(Batches(draw(5), 4))
    assert first == identity(Batches(draw(5), 4)), "drawn from fixed states"


def test_forks_leave_no_trace():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    plain = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with forked(2):
        inside = draw()
    with forked():
        assert draw() == plain
    assert draw() == plain != inside
