"""Data: the densities against quadrature and samples, official formats, damage, no network."""
import gzip
import hashlib
import io
import math
import socket
import tarfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.io import savemat

from densegen.workbench import data
from densegen.workbench.data import DENSITIES_2D, SOURCES, DataCorrupted, DataNotFound, density2d, images, patches
from densegen.workbench.figures import grid_2d

every_density = pytest.mark.parametrize("name", DENSITIES_2D)


@every_density
def test_density_integrates_to_one(name):
    nodes, area = grid_2d(5.0, 600)
    assert abs(density2d(name).log_prob(nodes).double().exp().sum() * area - 1) < 1e-3


@every_density
def test_samples_fall_into_cells_as_the_density_says(name):
    "Chi-square over a coarse grid: catches a sampler that is shifted, mirrored or wrongly weighted."
    n, side = 40_000, 24
    nodes, area = grid_2d(3.6, side * 20)
    fine = density2d(name).log_prob(nodes).double().exp().reshape(side, 20, side, 20) * area
    expected = n * fine.sum((1, 3))
    x = density2d(name).sample(n, torch.Generator().manual_seed(1))
    got, *_ = np.histogram2d(x[:, 1].numpy(), x[:, 0].numpy(), bins=side, range=[[-3.6, 3.6]] * 2)
    full = expected > 10
    chi2 = ((torch.from_numpy(got)[full] - expected[full]).square() / expected[full]).sum()
    cells = int(full.sum())
    assert chi2 < cells + 5 * math.sqrt(2 * cells)
    assert got[~full.numpy()].sum() < 3 * expected[~full].sum() + 20


@every_density
def test_samples_obey_the_generator(name):
    draw = lambda seed: density2d(name).sample(4, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


@every_density
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_keeps_type_and_takes_empty_batches(name, dtype):
    values = density2d(name).log_prob(torch.zeros(3, 2, dtype=dtype))
    assert values.shape == (3,) and values.dtype == dtype
    assert density2d(name).log_prob(torch.zeros(0, 2, dtype=dtype)).shape == (0,)
    with pytest.raises(ValueError, match=r"expected points of shape \[B, 2\]"):
        density2d(name).log_prob(torch.zeros(3, 3, dtype=dtype))


def test_patches_of_test_and_training_come_from_different_photographs():
    assert not set(patches(1).names) & set(patches(1, split="test").names)


@pytest.mark.parametrize("n, size, colour", [(0, 8, True), (3, 1, False), (2, 300, True)])
def test_patches_of_any_size(n, size, colour):
    assert patches(n, size, colour).images.shape == (n, 3 if colour else 1, size, size)


# the official formats, in tiny files


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    return tmp_path


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.tobytes())


def write_idx(folder, n=5):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    written = []
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        written.append((pixels, labels))
    return written


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_idx_files(home, name):
    written = write_idx(home / name)
    for split, (pixels, labels) in zip(("train", "test"), written, strict=True):
        got = images(name, split)
        assert np.array_equal(got.images[:, 0].numpy(), pixels) and np.array_equal(got.labels.numpy(), labels)


def test_idx_files_of_one_set_are_not_taken_for_another(home):
    write_idx(home / "mnist")
    with pytest.raises(DataNotFound):
        images("fashion_mnist")


def test_cifar_binary(home):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6, 3073), dtype=np.uint8)
    rows[:, 0] %= 10
    (home / "cifar10").mkdir()
    with tarfile.open(home / "cifar10" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for i, part in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            content = rows[i].tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{part}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    train, test = images("cifar10"), images("cifar10", "test")
    assert train.images.shape == (5, 3, 32, 32) and test.images.shape == (1, 3, 32, 32)
    assert np.array_equal(test.images[0].flatten().numpy(), rows[5, 1:]) and test.labels[0] == rows[5, 0]


def test_svhn_matlab(home):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    (home / "svhn").mkdir()
    for part in ("train", "test"):
        savemat(home / "svhn" / f"{part}_32x32.mat", {"X": pixels, "y": np.array([[10], [1], [2], [9]])})
    got = images("svhn", "test")
    assert np.array_equal(got.images[2].permute(1, 2, 0).numpy(), pixels[..., 2]) and got.labels.tolist() == [0, 1, 2, 9]


# what goes wrong


@pytest.mark.parametrize("damage", [b"", b"no gzip", gzip.compress(b"\x00\x00\x0d\x03"), gzip.compress(b"\x00\x00\x08\x03" + bytes(12) + b"xx")])
def test_damaged_idx_is_named(home, damage):
    write_idx(home / "mnist")
    (home / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(DataCorrupted, match="densegen data check mnist"):
        images("mnist")
    assert "expected md5" in data.check("mnist")


def test_truncated_npz_is_named(home):
    np.savez(home / "mnist_28x28.npz", train_images=np.zeros((9, 28, 28), np.uint8), train_labels=np.zeros(9), names=["0"])
    path = home / "mnist_28x28.npz"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataCorrupted, match="delete the damaged file"):
        images("mnist")
    assert data.check("mnist").startswith(str(path))


def test_pickles_are_not_opened(home):
    np.savez(home / "mnist_28x28.npz", train_images=np.array([{}], object), train_labels=np.zeros(1), names=["0"])
    with pytest.raises(DataCorrupted):
        images("mnist")


def test_missing_set_names_file_folder_and_alternative(home):
    with pytest.raises(DataNotFound) as error:
        images("mnist")
    assert all(word in str(error.value) for word in ("mnist_28x28.npz", str(home), "densegen data fetch mnist", "digits"))


def test_unknown_names_and_splits(home):
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        images("fashionmnist")
    with pytest.raises(ValueError, match="expected split train or test; got 'val'"):
        images("mnist", "val")


def test_download_with_a_wrong_hash_is_refused(home, monkeypatch):
    def retrieve(url, known_hash, fname, path, **_):
        raise ValueError("hash of downloaded file does not match")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(DataCorrupted, match="another hash"):
        images("svhn", download=True)


def test_download_without_a_network_says_what_to_do(home, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DataNotFound, match="could not be fetched.*by hand.*digits"):
        data.fetch("mnist")


def test_download_goes_into_the_cache_and_is_checked(home, monkeypatch):
    content = {name: name.encode() for name, _ in SOURCES["svhn"].official}
    known = tuple((name, hashlib.md5(raw).hexdigest()) for name, raw in content.items())
    monkeypatch.setitem(SOURCES, "svhn", data.Source("3x32x32", "", (), url="here:", official=known, read="svhn"))

    def retrieve(url, known_hash, fname, path, **_):
        assert known_hash == f"md5:{dict(known)[fname]}"
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(content[fname])
        return str(path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert [p.name for p in data.fetch("svhn")] == list(content)
    assert data.check("svhn") == "ok"


# the real sets, where they are

REAL = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.npz])
def test_real_sets_are_whole(name, monkeypatch):
    if not (REAL / SOURCES[name].npz[0]).exists():
        pytest.skip(f"{name}: no {SOURCES[name].npz[0]} in {REAL}")
    monkeypatch.setenv("DENSEGEN_DATA", str(REAL))
    assert data.check(name) == "ok"
    for split in SOURCES[name].splits:
        if (name, split) == ("kmnist", "train"):
            continue
        got = images(name, split)
        assert got.images.dtype == torch.uint8 and got.images.ndim == 4 and len(got.labels) == len(got) > 0
        assert got.images.float().std() > 10
