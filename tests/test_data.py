"""Data: the densities against quadrature and samples, sets and their hashes, splits, damage, no network."""
import dataclasses
import hashlib
import math
import os
import socket

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_formats import home, unhashed, write_cifar, write_idx, write_mat, write_npz  # noqa: F401

from densegen.workbench import data, sources
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


# splits


def test_the_parts_of_the_digits_share_nothing_and_leave_nothing_out():
    from sklearn.datasets import load_digits

    parts = [images("digits", split) for split in ("train", "test")]
    assert [len(p) for p in parts] == [1500, 297]
    rows = lambda pixels, labels: {(p.tobytes(), int(y)) for p, y in zip(pixels.astype(np.uint8), labels)}
    train, test = (rows(p.images[:, 0].numpy(), p.labels.numpy()) for p in parts)
    assert len(train) == 1500 and len(test) == 297 and not train & test
    assert train | test == rows(load_digits().images, load_digits().target)


def test_the_parts_of_the_lossless_cifar_share_nothing(home, unhashed):  # noqa: F811
    written = np.random.default_rng(0).integers(0, 256, (4000, 32, 32, 3), dtype=np.uint8)
    np.savez(home / "cifar10_lossless_train4k.npz", images=written, labels=np.arange(4000) % 10, names=list("abcdefghij"))
    train, test = images("cifar10"), images("cifar10", "test")
    assert np.array_equal(train.images.permute(0, 2, 3, 1), written[:3500]) and train.labels.tolist() == [k % 10 for k in range(3500)]
    assert np.array_equal(test.images.permute(0, 2, 3, 1), written[3500:]) and test.labels.tolist() == [k % 10 for k in range(3500, 4000)]


def test_each_split_has_its_own_file(home, unhashed):  # noqa: F811
    for k, split in enumerate(("train", "val", "test")):
        write_npz(home / SOURCES["camvid"].npz[k], (k + 2, 180, 240, 3), classes=12, dense=True)
    assert [len(images("camvid", split)) for split in ("train", "val", "test")] == [2, 3, 4]


# the official formats, in tiny files


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_idx_files(home, unhashed, name):  # noqa: F811
    written = write_idx(home / name)
    for split, (pixels, labels) in zip(("train", "test"), written, strict=True):
        got = images(name, split)
        assert np.array_equal(got.images[:, 0].numpy(), pixels) and np.array_equal(got.labels.numpy(), labels)


def test_idx_files_of_one_set_are_not_taken_for_another(home, unhashed):  # noqa: F811
    write_idx(home / "mnist")
    with pytest.raises(DataNotFound):
        images("fashion_mnist")


def test_a_split_needs_its_own_files_only(home, unhashed):  # noqa: F811
    write_idx(home / "mnist", parts=("t10k",))
    assert len(images("mnist", "test")) == 5
    with pytest.raises(DataNotFound, match="mnist_28x28.npz"):
        images("mnist", "train")


def test_the_official_training_images_of_kmnist_are_found_beside_the_npz_of_its_test(home, unhashed):  # noqa: F811
    write_npz(home / "kmnist_28x28_test.npz", (3, 28, 28))
    with pytest.raises(DataNotFound, match="train-images-idx3-ubyte.gz.*in a folder kmnist"):
        images("kmnist", "train")
    write_idx(home / "kmnist")
    assert len(images("kmnist", "train")) == 5 and len(images("kmnist", "test")) == 3


def test_cifar_binary(home, unhashed):  # noqa: F811
    rows = write_cifar(home / "cifar10" / "cifar-10-binary.tar.gz")
    train, test = images("cifar10"), images("cifar10", "test")
    assert train.images.shape == (5, 3, 32, 32) and test.images.shape == (1, 3, 32, 32)
    assert np.array_equal(test.images[0].flatten().numpy(), rows[5, 1:]) and test.labels[0] == rows[5, 0]
    assert np.array_equal(train.images.flatten(1).numpy(), rows[:5, 1:]) and train.labels.tolist() == rows[:5, 0].tolist()


def test_svhn_matlab(home, unhashed):  # noqa: F811
    pixels = write_mat(home / "svhn", [10, 1, 2, 9])
    got = images("svhn", "test")
    assert np.array_equal(got.images[2].permute(1, 2, 0).numpy(), pixels[..., 2]) and got.labels.tolist() == [0, 1, 2, 9]


# another file under the same name


@pytest.mark.parametrize("kind", ["npz", "idx", "cifar", "mat"])
def test_a_file_with_another_hash_is_refused(home, kind):  # noqa: F811
    if kind == "npz":
        write_npz(home / "mnist_28x28.npz", (5, 28, 28))
    if kind == "idx":
        write_idx(home / "mnist")
    if kind == "cifar":
        write_cifar(home / "cifar10" / "cifar-10-binary.tar.gz")
    if kind == "mat":
        write_mat(home / "svhn", [1, 2, 3, 4])
    name = {"cifar": "cifar10", "mat": "svhn"}.get(kind, "mnist")
    with pytest.raises(DataCorrupted, match="expected (sha256|md5) [0-9a-f]{32,64}; got") as error:
        images(name, "test")
    assert "\n" not in str(error.value)
    assert data.check(name) == str(error.value).replace(name + ": ", "", 1) or "expected" in data.check(name)


def test_a_hash_is_computed_once_for_each_state_of_a_file(home, monkeypatch):  # noqa: F811
    path = home / "mnist_28x28.npz"
    write_npz(path, (5, 28, 28))
    known = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], sha256=(known,)))
    counted, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: counted.append(1) or digest(*a))
    for split in ("train", "test", "train"):
        images("mnist", split)
    assert len(counted) == 1
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time: only the entry's change tells
    with pytest.raises(DataCorrupted, match="expected sha256"):
        images("mnist")
    assert len(counted) == 2


def test_a_file_beyond_all_sizes_is_refused_before_it_is_read(home, monkeypatch):  # noqa: F811
    with open(home / "mnist_28x28.npz", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataCorrupted, match="expected at most 512 MiB"):
        images("mnist")


@pytest.mark.parametrize("name", SOURCES)
def test_every_file_of_every_set_has_a_hash(name):
    source = SOURCES[name]
    assert len(source.npz) == len(source.sha256) and len(source.official) % len(source.splits) in (0, 1)
    assert all(len(known) == 64 for file, known in zip(source.npz, source.sha256) if file)
    assert all(len(known) == (64 if source.read == "pth" else 32) for _, known in source.official)


def test_a_folder_or_an_unreadable_file_is_no_set(home, monkeypatch):  # noqa: F811
    (home / "mnist_28x28.npz").mkdir()
    with pytest.raises(DataNotFound):
        images("mnist")
    write_npz(home / "notmnist_28x28_test.npz", (5, 28, 28))
    monkeypatch.setattr(sources.os, "stat", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataCorrupted, match="Permission denied"):
        sources.verify(home / "notmnist_28x28_test.npz", "0" * 64)


# what goes wrong


def good():
    rng = np.random.default_rng(0)
    return {"images": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8), "labels": np.arange(10), "names": list("abcdefghij")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": np.zeros((10, 2, 3), np.uint8)},
        {"images": np.zeros((10, 28, 28, 3), np.uint8)},
        {"images": np.zeros((10, 28, 28))},
        {"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, int)},
        {"images": np.uint8(3)},
        {"labels": np.arange(4)},
        {"labels": np.arange(10) - 5},
        {"labels": np.arange(10) + 491},
        {"labels": np.full(10, 255, np.uint8)},
        {"labels": np.arange(10) / 2},
        {"labels": np.full(10, np.nan)},
        {"labels": np.arange(10) > 3},
        {"labels": np.array(list("abcdefghij"))},
        {"labels": np.zeros((10, 28, 28), np.uint8)},
        {"labels": np.zeros((10, 1), np.uint8)},
        {"labels": np.array([{}] * 10)},
        {"names": ["a"]},
        {"names": np.arange(10)},
        {"names": np.array(["a"])[0]},
        {"names": None},
    ],
    ids=lambda wrong: "-".join(f"{k}_{getattr(v, 'dtype', '')}{getattr(v, 'shape', '')}" for k, v in wrong.items()),
)
def test_what_is_no_mnist_is_not_taken_for_it(home, unhashed, wrong):  # noqa: F811
    arrays = {k: v for k, v in (good() | wrong).items() if v is not None}
    np.savez(home / "mnist_28x28.npz", **arrays)
    with pytest.raises(DataCorrupted) as error:
        images("mnist", "test")
    assert str(home) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("label, fine", [(1, True), (255, True), (2, False), (254, False)])
def test_void_is_a_label_where_the_set_has_it(home, unhashed, label, fine):  # noqa: F811
    path = home / SOURCES["road_anomaly"].npz[1]
    path.parent.mkdir()
    labels = np.zeros((2, 180, 320), np.uint8)
    labels[0, 5, 5] = label
    np.savez(path, images=np.zeros((2, 180, 320, 3), np.uint8), labels=labels, names=["normal", "anomaly"])
    if fine:
        assert images("road_anomaly", "anomaly_track").labels[0, 5, 5] == label
    else:
        with pytest.raises(DataCorrupted, match=f"labels: expected 0 to 1; got 0 to {label}"):
            images("road_anomaly", "anomaly_track")


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [1, 2, 3, 11], [1, 2, 3], [1.5, 2, 3, 4]])
def test_wrong_labels_of_svhn(home, unhashed, labels):  # noqa: F811
    write_mat(home / "svhn", labels)
    with pytest.raises(DataCorrupted):
        images("svhn")


def test_wrong_labels_of_cifar(home, unhashed):  # noqa: F811
    write_cifar(home / "cifar10" / "cifar-10-binary.tar.gz", label=10)
    with pytest.raises(DataCorrupted, match="labels: expected 0 to 9; got 10 to 10"):
        images("cifar10")


def test_missing_set_names_file_folder_and_alternative(home):  # noqa: F811
    with pytest.raises(DataNotFound) as error:
        images("mnist")
    assert all(word in str(error.value) for word in ("mnist_28x28.npz", str(home), "densegen data fetch mnist", "digits"))


@pytest.mark.parametrize("name, split", [("MNIST", "TEST"), ("mnist", "Test"), ("Mnist", "test")])
def test_case_does_not_count(home, unhashed, name, split):  # noqa: F811
    write_idx(home / "mnist")
    assert torch.equal(images(name, split).images, images("mnist", "test").images)
    assert torch.equal(images("Digits", split).images, images("digits", "test").images)
    assert torch.equal(patches(2, split=split).images, patches(2, split="test").images)
    assert density2d("Two_Moons").name == "two_moons" and data.check(name) == "ok"


def test_unknown_names_and_splits(home):  # noqa: F811
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        images("fashionmnist")
    with pytest.raises(ValueError, match="mnist: split: expected one of train, test; got 'tset'; did you mean 'test'"):
        images("mnist", "tset")
    with pytest.raises(ValueError, match="digits: split: expected one of train, test; got 'val'"):
        images("digits", "val")
    with pytest.raises(ValueError, match="expected one of .*two_moons.*got None"):
        density2d(None)
    with pytest.raises(ValueError, match="did you mean 'svhn'"):
        data.fetch("SVNH")


def test_download_with_a_wrong_hash_is_refused(home, monkeypatch):  # noqa: F811
    def retrieve(url, known_hash, fname, path, **_):
        raise ValueError("hash of downloaded file does not match")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(DataCorrupted, match="another hash"):
        images("svhn", download=True)


def test_download_without_a_network_says_what_to_do(home, monkeypatch):  # noqa: F811
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DataNotFound, match="could not be fetched.*by hand.*digits"):
        data.fetch("mnist")


def test_download_goes_into_the_cache_and_is_checked(home, monkeypatch):  # noqa: F811
    content = {name: name.encode() for name, _ in SOURCES["svhn"].official}
    known = tuple((name, hashlib.md5(raw).hexdigest()) for name, raw in content.items())
    monkeypatch.setitem(SOURCES, "svhn", sources.Source((3, 32, 32), 10, "", url="here:", official=known, read="svhn"))

    def retrieve(url, known_hash, fname, path, **_):
        assert known_hash == f"md5:{dict(known)[fname]}"
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(content[fname])
        return str(path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert [p.name for p in data.fetch("svhn")] == list(content)
    assert data.check("svhn") == "ok"


def test_weights_are_no_images_and_are_fetched_by_their_sha256(home, monkeypatch):  # noqa: F811
    with pytest.raises(ValueError, match="name: expected one of digits, mnist"):
        images("espnetv2_cityscapes")
    with pytest.raises(DataNotFound, match="espnetv2_s2_cityscapes.npz in .* `densegen data fetch espnetv2_cityscapes`"):
        sources.files_of("espnetv2_cityscapes", "weights")
    asked = []
    monkeypatch.setattr("pooch.retrieve", lambda url, known_hash, fname, path: asked.append((url, known_hash)) or fname)
    data.fetch("espnetv2_cityscapes")
    ((url, known),) = asked
    assert url.startswith("https://raw.githubusercontent.com/sacmehta/EdgeNets/2b232d3f7fb6") and url.endswith(".pth")
    assert known.startswith("sha256:") and len(known) == 71


# the real sets, where they are

REAL = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.npz and source.read != "pth"])
def test_real_sets_are_whole(name, monkeypatch):
    if not (REAL / SOURCES[name].npz[0]).exists():
        pytest.skip(f"{name}: no {SOURCES[name].npz[0]} in {REAL}")
    monkeypatch.setenv("DENSEGEN_DATA", str(REAL))
    assert data.check(name) == "ok"
    parts = [split for split in SOURCES[name].splits if sources.locate(name, split)]
    sets = [images(name, split) for split in parts]
    for k, got in enumerate(sets):
        assert not any(torch.equal(got.images[:9], other.images[:9]) for other in sets[:k])
        assert got.images.dtype == torch.uint8 and got.images.ndim == 4 and len(got.labels) == len(got) > 0
        assert got.images.float().std() > 10


def test_mnist5k_is_whole_and_its_parts_are_apart():
    parts = [images("mnist5k", split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [4000, 1000] and parts[0].images.shape[1:] == (1, 28, 28)
    assert all(torch.bincount(part.labels).tolist() == [len(part) // 10] * 10 for part in parts)
    rows = [{tuple(row) for row in part.images.flatten(1).tolist()} for part in parts]
    assert len(rows[0]) == 4000 and len(rows[1]) == 1000 and not rows[0] & rows[1]
    upper = parts[0].images[parts[0].labels == 7][:, 0, :14].float().mean(), parts[0].images[parts[0].labels == 7][:, 0, 14:].float().mean()
    assert upper[0] > upper[1], "a seven has its bar above"
