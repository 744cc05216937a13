"""The four formats: what is written comes back; damage, lies and bombs end in one line of `DataCorrupted`."""
import contextlib
import dataclasses
import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from densegen.workbench.data import SOURCES
from densegen.workbench.formats import LARGEST, DataCorrupted, read_idx, read_mat, read_npz, read_tar, reading


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    return tmp_path


@pytest.fixture
def unhashed(monkeypatch):
    "Small files that a test has made pass for the published ones; everything behind the hash is at work."
    monkeypatch.setattr("densegen.workbench.sources.verify", lambda path, known: None)


def idx(array, shape=None):
    sizes = b"".join(n.to_bytes(4, "big") for n in shape or array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_idx(folder, n=5, parts=("train", "t10k")):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    written = []
    for part in parts:
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        written.append((pixels, labels))
    return written


def write_cifar(path, label=None):
    rows = np.random.default_rng(0).integers(0, 256, (6, 3073), dtype=np.uint8)
    rows[:, 0] = rows[:, 0] % 10 if label is None else label
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for i, part in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{part}")
            info.size = rows[i].size
            archive.addfile(info, io.BytesIO(rows[i].tobytes()))
    return rows


def write_mat(folder, labels, compress=True):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for part in ("train", "test"):
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": np.array(labels)[:, None]}, do_compression=compress)
    return pixels


def write_npz(path, shape, classes=10, dense=False):
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = rng.integers(0, classes, shape[:3] if dense else shape[0], dtype=np.uint8)
    np.savez_compressed(path, images=rng.integers(0, 256, shape, dtype=np.uint8), labels=labels, names=[str(k) for k in range(classes)])


def refused(read, *arguments):
    with pytest.raises(DataCorrupted) as error:
        read(*arguments)
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"{arguments[0]}: expected ") and "replace it by a whole copy" in message
    return message


# what is written comes back


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_npz_gives_what_was_written(tmp_path, compress):
    path = tmp_path / "a.npz"
    arrays = {"grey": np.arange(6, dtype=np.uint8).reshape(2, 3), "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
              "train_names": np.array(["a", "bcd"]), "big": np.arange(3, dtype=">u2"), "one": np.array(4), "none": np.zeros((0, 3), int)}
    compress(path, **arrays)
    for got, (name, array) in zip(read_npz(path, ("grey", "turned", "names", "big", "one", "none"), "train_"), arrays.items(), strict=True):
        assert np.array_equal(got, array) and got.dtype == array.dtype and got.shape == array.shape, name


@pytest.mark.parametrize("compress", [True, False])
def test_mat_gives_what_was_written(tmp_path, compress):
    pixels = write_mat(tmp_path, [1, 2, 3, 4], compress)
    got, labels = read_mat(tmp_path / "train_32x32.mat", ["X", "y"])
    assert np.array_equal(got, pixels) and labels.ravel().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("array", [
    np.arange(24, dtype=kind).reshape(2, 3, 4) for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
] + [np.array([[-1.5, np.inf]]), np.zeros((0, 3), np.uint8), np.array([[7]], np.uint8), np.full((5, 1), -300)])
def test_mat_agrees_with_scipy(tmp_path, array):
    savemat(tmp_path / "a.mat", {"other": {"a": [1, "text"]}, "x": array, "text": "abc"})
    (got,), wanted = read_mat(tmp_path / "a.mat", ["x"]), loadmat(tmp_path / "a.mat")["x"]
    assert np.array_equal(got, wanted) and got.dtype == wanted.dtype and got.shape == wanted.shape


# damage


@pytest.mark.parametrize("damage", [b"", b"no gzip", gzip.compress(b"\x00\x00\x0d\x03", mtime=0), gzip.compress(b"\x00\x00\x08\x03" + bytes(12) + b"xx", mtime=0),
                                    gzip.compress(b"\x00\x00\x08\x01\x00", mtime=0), gzip.compress(b"\x00\x00\x08\x00", mtime=0), b"\x1f\x8b" + bytes(30)])
def test_damaged_idx_is_named(tmp_path, damage):
    (tmp_path / "a.gz").write_bytes(damage)
    refused(read_idx, tmp_path / "a.gz")


def test_a_wrong_checksum_at_the_end_of_idx_is_noticed(tmp_path):
    whole = idx(np.zeros((2, 3), np.uint8))
    (tmp_path / "a.gz").write_bytes(whole[:-8] + b"\x00\x00\x00\x01" + whole[-4:])
    assert "CRC" in refused(read_idx, tmp_path / "a.gz")


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{}], object))
    refused(read_npz, tmp_path / "a.npz", ("images",))


HEADERS = ["{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }", "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }", "{" * 300,
           "-" * 9000 + "1", "'''", "{'descr': '|u1'", "{'descr': 'O', 'fortran_order': False, 'shape': (1,), }",
           "{'descr': '<U0', 'fortran_order': False, 'shape': (3,), }", "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (2,), }",
           "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }", "{'descr': '|u1', 'fortran_order': False, 'shape': (2.0,), }"]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_wrong_header_in_npz_is_named(tmp_path, header):
    head = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\x01\x02")
    refused(read_npz, tmp_path / "a.npz", ("images",))


def test_two_members_with_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"a")
        archive.writestr("images.npy", b"b")
    refused(read_npz, tmp_path / "a.npz", ("images",))


def test_flipped_bits_never_give_other_arrays(tmp_path):
    "Without any hash: the checksums inside the formats are compared."
    rng = np.random.default_rng(1)
    write_idx(tmp_path / "idx", n=2)
    write_cifar(tmp_path / "cifar.tar.gz")
    write_npz(tmp_path / "a.npz", (3, 8, 8))
    write_mat(tmp_path / "mat", [1, 2, 3, 4])
    files = {
        tmp_path / "idx" / "train-images-idx3-ubyte.gz": lambda path: [read_idx(path)],
        tmp_path / "cifar.tar.gz": lambda path: read_tar(path, [f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 4)]),
        tmp_path / "a.npz": lambda path: read_npz(path, ("images", "labels", "names")),
        tmp_path / "mat" / "train_32x32.mat": lambda path: read_mat(path, ["X", "y"]),
    }
    for path, read in files.items():
        data, truth = path.read_bytes(), read(path)
        caught = 0
        for bit in rng.integers(0, 8 * len(data), 150):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            try:
                assert all(np.array_equal(a, b) for a, b in zip(read(path), truth, strict=True)), f"{path.name}: bit {bit}"
            except DataCorrupted:
                caught += 1
        assert caught > 75, path.name  # the others hit dates, names and fields that nobody reads


def test_no_byte_of_a_tag_stops_the_process(tmp_path):
    "A compiled reader ended in a segmentation fault here; every byte of the tags, each with each value of a few."
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([[1.0], [2.0]])})
    whole = path.read_bytes()
    assert len(whole) < 300
    for at in range(124, len(whole)):
        for value in {0, 1, 4, 5, 127, 128, 255, whole[at] ^ 1, whole[at] ^ 16} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            with contextlib.suppress(DataCorrupted):
                assert all(a.size <= 64 for a in read_mat(path, ["X", "y"]))


def test_a_damaged_block_of_the_archive_of_cifar_is_noticed(tmp_path):
    "The pixels change, tar is content: only the checksum at the end of gzip tells."
    path = tmp_path / "cifar.tar.gz"
    write_cifar(path)
    plain = bytearray(gzip.decompress(path.read_bytes()))
    whole = gzip.compress(plain, mtime=0)
    plain[600:1112] = bytes(512)  # pixels of the first batch
    torn = gzip.compress(plain, mtime=0)
    path.write_bytes(torn[:-8] + whole[-8:])
    assert "CRC" in refused(read_tar, path, ["cifar-10-batches-bin/data_batch_1.bin"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert "not a plain file" in refused(read_tar, tmp_path / "a.tar.gz", ["a"])


def test_interruptions_pass():
    with pytest.raises(KeyboardInterrupt), reading("a", "a file"):
        raise KeyboardInterrupt


# bombs


def peak(call):
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("densegen.workbench.formats.LARGEST", 2**20)
    return 2**20


def test_a_bomb_of_gzip_is_not_expanded(tmp_path, small):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x01\x00\x01\x00\x00" + bytes(2**26)))
    assert peak(lambda: refused(read_idx, path)) < 2**22
    assert peak(lambda: refused(read_tar, path, ["a"])) < 2**23
    assert "more than 1 MiB when expanded" in refused(read_tar, path, ["a"])
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x02" + b"\xff" * 8))
    assert "announced, more than" in refused(read_idx, path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("lie", [False, True])
def test_a_bomb_of_zip_is_not_expanded(tmp_path, small, method, lie):
    path = tmp_path / "a.npz"
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + b"{'descr': '|u1', 'fortran_order': False, 'shape': (872,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", header + bytes(2**26 if method == zipfile.ZIP_DEFLATED or not lie else 2**28))
    if lie:  # the directory says 1,000 bytes
        data = bytearray(path.read_bytes())
        entry = data.rindex(b"PK\x01\x02")
        data[entry + 24 : entry + 28] = struct.pack("<I", 1000)
        path.write_bytes(data)
    most = 2**26 + 2**25 if lie and method == zipfile.ZIP_LZMA else 2**22  # LZMA cannot be asked for less than one piece
    assert peak(lambda: refused(read_npz, path, ("images",))) < most


def test_a_bomb_of_matlab_is_not_expanded(tmp_path, small):
    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    for size in (2**20, 2**26):
        body = zlib.compress(bytes(size))
        (tmp_path / "a.mat").write_bytes(head + struct.pack("<II", 15, len(body)) + body)
        assert peak(lambda: refused(read_mat, tmp_path / "a.mat", ["X"])) < 2**23


def test_a_sparse_member_is_refused(tmp_path):
    "Eight terabytes of holes in an archive of a kilobyte (the old GNU format)."
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 0)  # one piece, empty
    block[483:495] = b"\x80" + (2**43).to_bytes(11, "big")  # its real size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(block) + bytes(1024)))
    assert "not a plain file" in refused(read_tar, tmp_path / "a.tar.gz", ["a"])


def test_the_limit_leaves_room_for_every_set():
    assert LARGEST > 2 * 73257 * 3072  # SVHN's training images, the largest split that the course reads
    assert all(dataclasses.is_dataclass(source) for source in SOURCES.values())
