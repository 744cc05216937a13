"""Fuzzing of the course's file readers: only its own, named errors may come out, in bounded memory and time.

    python tests/fuzz.py --seconds 180 --seed 0 [READER ...]

Whole files are damaged in many ways: flipped bits, extreme numbers, torn, spliced, inflated, the same *inside* their
compression with fitting checksums, and bombs. Each reader works in a process of its own. `--case N` repeats one case.
"""
import argparse
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

HEADROOM = 3 * 2**30  # bytes of address space beyond what the imports took
PATIENCE = 20.0  # seconds of computing for one file


# damage

NUMBERS = [0, 1, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
WORDS = [b"[", b"{", b"]", b"}", b'"', b"'", b",", b":", b"null", b"NaN", b"-1", b"1e999", b"\0", b"\xff", b"\n", b"(", b"../", b"[/x]", b"\\u0065",
         b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"-" * 9000, b"PK\x03\x04", b"IDAT", b"true", b"'descr'", b"object", b"<U0", b"(-1,)"]


def flipped(rng, data):
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)


def numbered(rng, data):
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data))
    data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))


def worded(rng, data):
    at = rng.randrange(len(data))
    word = rng.choice(WORDS)
    data[at : at + rng.choice((0, len(word)))] = word


def torn(rng, data):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    del data[rng.choice((slice(a, None), slice(None, a), slice(a, b)))]


def spliced(rng, data):
    a, b, c = (rng.randrange(len(data)) for _ in range(3))
    block = bytes(data[a : a + rng.choice((1, 16, 512, 10_000))])
    data[b : b + rng.choice((0, len(block)))] = rng.choice((block, bytes(len(block)), block[::-1], bytes(data[c : c + len(block)])))


def inflated(rng, data):
    at = rng.randrange(len(data))
    block = rng.choice((bytes(data[at : at + rng.randrange(1, 300)]), b"\0", rng.randbytes(50)))
    data[at:at] = block * rng.choice((2, 50, 2000))


DAMAGE = [flipped, flipped, numbered, numbered, worded, torn, spliced, inflated]


def damaged(rng, data: bytes) -> bytes:
    "One to three damages, one after the other."
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            rng.choice(DAMAGE)(rng, changed)
    return bytes(changed)


# inside a compression: what is in it is damaged, then it is packed again


def in_gzip(rng, data):
    return gzip.compress(damaged(rng, gzip.decompress(data)), 1)


def in_zip(rng, data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen, out = rng.randrange(len(members)), io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")
        for k, (info, content) in enumerate(members):
            if k != chosen or rng.random() < 0.9:
                archive.writestr(info, damaged(rng, content) if k == chosen else content, info.compress_type)
    return out.getvalue()


def in_png(rng, data):
    parts, at = [data[:8]], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    chosen = rng.choice(parts[1:])
    if chosen[1] and chosen[0] == b"IDAT" and rng.random() < 0.5:
        chosen[1] = zlib.compress(damaged(rng, zlib.decompress(chosen[1])))
    elif chosen[1]:
        chosen[1] = damaged(rng, chosen[1])
    pack = lambda kind, body: len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return parts[0] + b"".join(pack(*part) for part in parts[1:])


def in_mat(rng, data):
    parts, at = [data[:128]], 128
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        parts.append(zlib.decompress(data[at + 8 : at + 8 + size]) if kind == 15 else data[at : at + 8 + size])
        at += 8 + size
    chosen = rng.randrange(len(parts))
    parts[chosen] = damaged(rng, parts[chosen])
    if rng.random() < 0.5:
        parts[1:] = [struct.pack("<II", 15, len(p)) + p for p in map(zlib.compress, parts[1:])]
    return b"".join(parts)


# bombs: a gibibyte and more in about a megabyte, made at once from the same piece


def deflated(mib: int = 1100) -> tuple[bytes, int]:
    "Raw deflate of so many MiB of zeros."
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * mib + packer.flush(), mib * 2**20


@functools.cache
def gzip_bombs():
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    tail = deflated()[0] + bytes(8)
    member = gzip.compress(bytes(2**20))
    idx = gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 60_000, 28, 28))
    return [head + tail, member * 1100, idx + member * 1100, gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3)]


def zip_bombs(data):
    "A member of the archive becomes a bomb; its directory tells the truth, or does not."
    packed, size = deflated()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    bombs = []
    for name in names[:3]:
        for told in (size, 1000):
            fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(packed), told, len(name), 0)
            local = b"PK\x03\x04" + fields + name.encode() + packed
            entry = b"PK\x01\x02\x14\0" + fields + bytes(14) + name.encode()
            bombs.append(local + entry + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(entry), len(local), 0))
    return bombs


def png_bombs():
    pack = lambda kind, body: len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    pixels = b"\x78\xda" + deflated()[0] + bytes(4)
    make = lambda w, h, kind: b"\x89PNG\r\n\x1a\n" + pack(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, kind, 0, 0, 0)) + pack(b"IDAT", pixels) + pack(b"IEND", b"")
    text = b"\x89PNG\r\n\x1a\n" + pack(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)) + pack(b"zTXt", b"a\0\0" + pixels)
    return [make(2**31 - 1, 2**31 - 1, 0), make(100_000, 100_000, 2), make(30_000, 30_000, 0), make(8, 8, 0), text, make(17_000, 10_000, 2)]


def mat_bombs():
    body = b"\x78\xda" + deflated()[0] + bytes(4)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM"
    return [head + struct.pack("<II", 15, len(body)) + body, head + struct.pack("<II", 14, 2**32 - 1) + bytes(64)]


TEXTS = [b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**6, b'["' + b"a" * 10**7 + b'"]', b"null", b"[]", b"{}", b"3", b'""', b"\xff\xfe[\0", b"[1e999]", b"NaN",
         b'{"cells": null}', b'{"cells": [], "nbformat": 4, "metadata": {}}', b'{"nbformat": 3}', b'{"rows": 3}', b'{"rows": [], "provenance": null}']


# readers


@dataclasses.dataclass
class Reader:
    "A file of the course: how a whole one is made, and how it is read."
    make: Callable[[Path], Path]  # empty folder -> the file
    read: Callable[[Path], object]
    inner: Callable | None = None  # damage inside its compression
    bombs: Callable[[bytes], list[bytes]] = lambda data: []
    sealed: bool = False  # has a hash: what is read at all must be what was written


READERS: dict[str, Callable[[], Reader]] = {}


def reader(build):
    READERS[build.__name__.replace("_", "-")] = build
    return build


def ours(name: str, *modules: str):
    "A name of the package, from the first of these modules that has it."
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(f"densegen.{module}"), name)
    raise ImportError(f"{name} is in none of {modules}")


def read_set(name, split):
    from densegen.workbench.data import images

    def read(path):
        got = images(name, split)
        return got.images.numpy().tobytes(), got.labels.numpy().tobytes(), tuple(got.names)

    return read


def set_of(name, split, file, write, sealed=False, **more) -> Reader:
    "A data set whose file `write` makes; with its hash, or with the hash taken for right."
    from densegen.workbench import sources

    def make(folder):
        os.environ["DENSEGEN_DATA"] = str(folder)
        write(folder)
        path = folder / file
        if sealed:
            known = hashlib.sha256(path.read_bytes()).hexdigest()
            sources.SOURCES[name] = dataclasses.replace(sources.SOURCES[name], sha256=(known,))
        else:
            sources.verify = lambda path, known: None
        return path

    return Reader(make, read_set(name, split), sealed=sealed, **more)


@reader
def npz_with_hash():
    from test_formats import write_npz

    return set_of("mnist", "test", "mnist_28x28.npz", lambda f: write_npz(f / "mnist_28x28.npz", (40, 28, 28)), sealed=True, inner=in_zip, bombs=zip_bombs)


@reader
def npz():
    from test_formats import write_npz

    return set_of("mnist", "test", "mnist_28x28.npz", lambda f: write_npz(f / "mnist_28x28.npz", (40, 28, 28)), inner=in_zip, bombs=zip_bombs)


@reader
def npz_lzma():
    file = "road_anomaly/roadanomaly21_val_320x180.npz"

    def write(folder):
        (folder / file).parent.mkdir()
        arrays = {"images": np.zeros((2, 180, 320, 3), np.uint8), "labels": np.zeros((2, 180, 320), np.uint8), "names": np.array(["a", "b"])}
        with zipfile.ZipFile(folder / file, "w", zipfile.ZIP_LZMA) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"{name}.npy", buffer.getvalue())

    return set_of("road_anomaly", "anomaly_track", file, write, inner=in_zip, bombs=zip_bombs)


@reader
def idx():
    from test_formats import write_idx

    return set_of("mnist", "train", "mnist/train-images-idx3-ubyte.gz", lambda f: write_idx(f / "mnist"), inner=in_gzip, bombs=lambda data: gzip_bombs())


@reader
def cifar_tar():
    from test_formats import write_cifar

    file = "cifar10/cifar-10-binary.tar.gz"
    return set_of("cifar10", "train", file, lambda f: write_cifar(f / file), inner=in_gzip, bombs=lambda data: gzip_bombs())


@reader
def svhn_mat():
    from test_formats import write_mat

    return set_of("svhn", "train", "svhn/train_32x32.mat", lambda f: write_mat(f / "svhn", [1, 2, 3, 10]), inner=in_mat, bombs=lambda data: mat_bombs())


@reader
def checkpoint():
    fit = ours("fit", "workbench.training")
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))

        def loss(self, batch):
            return (self.net(batch) - batch).square().mean()

    def train(path, steps):
        model = Model()
        fit(model, data, steps=steps, batch_size=8, ema=0.9, checkpoint=path, seed=0, evaluate=lambda m: float(m.loss(data)), every=2)
        return tuple(t.numpy().tobytes() for t in model.state_dict().values())

    def make(folder):
        train(folder / "a.ckpt", 3)
        return folder / "a.ckpt"

    return Reader(make, lambda path: train(path, 5), inner=in_zip, bombs=zip_bombs, sealed=True)


@reader
def table():
    load_table = ours("load_table", "workbench.run")
    rows = {"provenance": {"scale": "long", "date": "2026-01-01", "seed": 0}, "rows": [{"model": "a", "bits": 3.25}, {"model": "b", "bits": None}]}

    def make(folder):
        (folder / "nbs").mkdir()
        (folder / "results").mkdir()
        (folder / "settings.ini").write_text("")
        os.chdir(folder)
        (folder / "results" / "t.json").write_text(json.dumps(rows, indent=1))
        return folder / "results" / "t.json"

    return Reader(make, lambda path: load_table("t"), bombs=lambda data: TEXTS)


def picture(mode, kind, **options):
    from PIL import Image

    def make(folder):
        size = (48, 40) + ((3,) if mode == "RGB" else ())
        pixels = np.random.default_rng(0).integers(0, 2 if mode == "L" else 256, size).astype(np.uint8)
        Image.fromarray(pixels, mode).save(folder / f"a.{kind}", **options)
        return folder / f"a.{kind}"

    return make


def image_of(kind, **more) -> Reader:
    read_image = ours("read_image", "workbench.pictures")
    return Reader(picture("RGB", kind), lambda path: read_image(path).tobytes(), **more)


@reader
def image_png():
    return image_of("png", inner=in_png, bombs=lambda data: png_bombs())


@reader
def image_jpeg():
    return image_of("jpg")


@reader
def image_webp():
    return image_of("webp")


@reader
def image_tiff():
    return image_of("tif")


@reader
def mask_png():
    read_mask = ours("read_mask", "workbench.pictures")
    return Reader(picture("L", "png"), lambda path: read_mask(path, (48, 40), {0: 0, 1: 1}).tobytes(), inner=in_png, bombs=lambda data: png_bombs())


@reader
def street_hazards_list():
    street_hazards = ours("street_hazards", "dense.roads")

    def make(folder):
        (folder / "test").mkdir()
        path = folder / "test" / "test.odgt"
        path.write_text(json.dumps([{"fpath_img": f"images/{k}.png", "fpath_segm": f"masks/{k}.png"} for k in range(5)]))
        return path

    def read(path):
        pairs = street_hazards(path.parent.parent)
        return pairs.check() and len(pairs)

    return Reader(make, read, bombs=lambda data: TEXTS)


class Grey(torch.nn.Module):
    "A detector: how far each pixel is from grey."

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 1, 3, padding=1)

    def anomaly_score(self, images):
        return self.net(images.float() / 255)[:, 0].abs()


@reader
def detector():
    save, load = (ours(name, "dense.detector_file") for name in ("save_detector", "load_detector"))
    zeros = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

    def read(path):
        found = load(path)
        return found.score(zeros.expand(1, 3, *found.tile)).shape

    return Reader(lambda folder: save(Grey(), folder / "a.onnx", (16, 16)), read)


def photo_folder():
    SavedDetector = ours("SavedDetector", "dense.detector_file", "dense.your_model")
    Job, score_files = (ours(name, "dense.photo_folder", "dense.your_model") for name in ("Job", "score_files"))
    saved = SavedDetector(lambda tiles: tiles.float().mean(1), (16, 16), 4, None, "0" * 64)

    def score(folder):
        outcomes = list(score_files(saved, [Job(folder / "a.png", "a")], folder / "out"))
        assert [o.state for o in outcomes] in (["scored"], ["kept"], ["failed"])
        if outcomes[0].error:
            raise ValueError(outcomes[0].error)

    return score


@reader
def scored_image():
    score = photo_folder()  # the last of the bombs is just a large picture, and scoring it takes its time
    return Reader(picture("RGB", "png"), lambda path: score(path.parent), inner=in_png, bombs=lambda data: png_bombs()[:-1])


@reader
def scores_of_before():
    score = photo_folder()

    def make(folder):
        picture("RGB", "png")(folder)
        score(folder)
        return folder / "out" / "a.npz"

    return Reader(make, lambda path: score(path.parent.parent), inner=in_zip, bombs=zip_bombs)


def notebook(folder):
    import nbformat
    from nbformat import v4

    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell('scale = "cpu"\nn = 3', metadata={"tags": ["parameters"]}), v4.new_code_cell("print(n)")]
    cells[2].outputs = [v4.new_output("error", ename="ValueError", evalue="no", traceback=["a"])]
    (folder / "nbs").mkdir()
    (folder / "settings.ini").write_text("")
    nbformat.write(v4.new_notebook(cells=cells), folder / "nbs" / "10_a.ipynb")
    return folder / "nbs" / "10_a.ipynb"


@reader
def lecture():
    lectures, parameters = (ours(name, "course.lectures", "course.runner") for name in ("lectures", "parameters"))

    def read(path):
        return [(e.title, parameters(e)) for e in lectures(path.parent.parent)]

    return Reader(notebook, read, bombs=lambda data: TEXTS)


@reader
def executed_notebook():
    failure = ours("failure", "course.runner")
    return Reader(notebook, lambda path: failure(path, path.with_name("log.txt")), bombs=lambda data: TEXTS)


@reader
def result_of_a_run():
    last_result, Result = (ours(name, "course.runner") for name in ("last_result", "Result"))

    def make(folder):
        result = Result("10_a", "done", 1.0, "a.ipynb", [{"claim": "a", "kind": "measured", "holds": True}])
        (folder / "result.json").write_text(json.dumps({"key": "1", **dataclasses.asdict(result)}))
        return folder / "result.json"

    def read(path):
        found = last_result(path.parent)
        return found and found[1].ok

    return Reader(make, read, bombs=lambda data: TEXTS)


# one reader, in a process of its own


class Slow(BaseException):
    "A file took too long."


def named(error: BaseException, path: Path) -> bool:
    "Whether an error is one of the course: its own class (or ValueError), one line, and the file stands in it."
    text = str(error)
    known = type(error) is ValueError or type(error).__module__.startswith("densegen")
    return known and "\n" not in text and path.name in text and len(text) < 2000


def case(chosen: Reader, whole: bytes, bombs: list[bytes], seed: str) -> bytes:
    rng = random.Random(seed)
    if bombs and rng.random() < 0.03:
        return rng.choice(bombs)
    if chosen.inner and rng.random() < 0.6:
        return chosen.inner(rng, whole)
    return damaged(rng, whole)


def attempt(chosen: Reader, path: Path, truth: object) -> tuple[str, str]:
    "What reading this file led to, and where if that was wrong."
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = chosen.read(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if named(error, path):
            return type(error).__name__, ""
        place = [f for f in traceback.extract_tb(error.__traceback__) if "densegen" in f.filename][-1:]
        where = f"{Path(place[0].filename).name}:{place[0].lineno}" if place else "?"
        return f"!{type(error).__name__}", f"{where}: {str(error)[:150]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    same = value == truth
    return ("the same" if same else "!OTHER CONTENT" if chosen.sealed else "other content"), ""


def work(name: str, seconds: float, seed: int, only: int | None) -> None:
    "Damage and read until the time is over; the last line printed is the account."
    import pooch

    random.seed(0)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    pooch.os_cache = lambda project: folder / "cache"
    chosen = READERS[name]()
    path = chosen.make(folder)
    whole = path.read_bytes()
    beside = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    truth, bombs = chosen.read(path), chosen.bombs(whole)

    def too_slow(*_):
        raise Slow(f"more than {PATIENCE} s")

    signal.signal(signal.SIGPROF, too_slow)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + HEADROOM, taken + HEADROOM))
    counts, examples, slowest, k = Counter(), {}, (0.0, 0), 0
    before, end = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + seconds
    while time.monotonic() < end and (only is None or k == 0):
        number = k if only is None else only
        for other, content in beside.items():
            other.write_bytes(content)
        path.write_bytes(case(chosen, whole, bombs, f"{seed}/{name}/{number}"))
        print(number, flush=True)
        began = time.process_time()
        what, where = attempt(chosen, path, truth)
        slowest = max(slowest, (time.process_time() - began, number))
        counts[what] += 1
        if what.startswith("!"):
            examples.setdefault(f"{what[1:]} {where.partition(': ')[0]}", f"case {number}: {where}")
        k += 1
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps({"counts": counts, "examples": examples, "slowest": slowest, "MiB": more}), flush=True)


def run(name: str, seconds: float, seed: int, only: int | None) -> dict:
    "The account of a child; a child that died or hangs is an account, too."
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds), "--seed", str(seed)]
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch, open(Path(scratch) / "out", "w+b") as out, open(Path(scratch) / "err", "w+b") as err:
        process = subprocess.Popen(command + ([] if only is None else ["--case", str(only)]), stdout=out, stderr=err, env=os.environ | {"TMPDIR": scratch})
        try:
            process.wait(timeout=seconds + 4 * PATIENCE + 60)
            ended = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = "hangs"
        out.seek(0)
        err.seek(0)
        lines, complaint = out.read().decode().splitlines(), err.read().decode(errors="replace").strip().splitlines()[-1:]
    if process.returncode == 0 and lines:
        return json.loads(lines[-1])
    if not lines and complaint and complaint[0].startswith("ImportError"):
        return {"absent": complaint[0]}
    return {"counts": {"!process": 1}, "examples": {ended: f"case {lines[-1] if lines else 'none'}: {complaint}"}, "slowest": (0, 0), "MiB": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--seconds", type=float, default=180, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="repeat one case of one reader")
    parser.add_argument("--child", choices=READERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        work(asked.child, asked.seconds, asked.seed, asked.case)
        os._exit(0)  # whatever a reader has left running
    if unknown := set(asked.readers) - set(READERS):
        parser.error(f"readers: expected some of {', '.join(READERS)}; got {', '.join(sorted(unknown))}")
    chosen, bad = asked.readers or list(READERS), 0
    print("| reader | files | same | other content | named errors | wrong | slowest, s | memory, MiB |\n|" + " --- |" * 8)
    details = []
    for name in chosen:
        account = run(name, asked.seconds / len(chosen), asked.seed, asked.case)
        if "absent" in account:
            details.append(f"{name}: not here ({account['absent']})")
            continue
        counts = account["counts"]
        errors = ", ".join(f"{n} {c}" for n, c in sorted(counts.items()) if n[0] not in "!" and n not in ("the same", "other content"))
        wrong = sum(c for n, c in counts.items() if n[0] == "!")
        bad += wrong
        cells = [name, sum(counts.values()), counts.get("the same", 0), counts.get("other content", 0), errors, wrong, f"{account['slowest'][0]:.1f}", account["MiB"]]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        details += [f"{name}: {what}, {where}" for what, where in account["examples"].items()]
    print("\n".join(["", *details]))
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
