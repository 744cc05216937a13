"Pictures with a label at each pixel: shapes, colours, and files that are not what they should be."
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from densegen.workbench import pictures
from densegen.workbench.pictures import (
    CLASSES, SKY, VOID, BadFile, DenseSet, colour_labels, frames_on_disk, read_image, read_mask,
)


def picture(path, size=(24, 16), colour=(90, 100, 110)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_colours_of_labels():
    picture = colour_labels(torch.tensor([[SKY, VOID]]), torch.tensor([[0, 1]]))
    assert picture.tolist() == [[[128, 128, 128], [255, 90, 0]]]


def test_maps_of_another_size_are_refused():
    good, wide = torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)
    assert len(DenseSet(torch.zeros(1, 3, 4, 4), good, good, CLASSES, "x")) == 1
    for maps, name in (((wide, good), "labels"), ((good, wide), "anomaly")):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            DenseSet(torch.zeros(1, 3, 4, 4), *maps, CLASSES, "x")


def damaged(folder):
    "Bad files, and what must be said of each."
    size = (16, 24)
    Image.fromarray(np.zeros(size, np.uint16)).save(folder / "deep.png")
    yield folder / "deep.png", "8 bits"
    Image.new("CMYK", (24, 16)).save(folder / "ink.jpg")
    yield folder / "ink.jpg", "mode CMYK"
    whole = picture(folder / "whole.png", (240, 160)).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    yield folder / "cut.png", "could not be decoded"
    (folder / "text.png").write_text("this is no image")
    yield folder / "text.png", "could not be decoded"
    (folder / "empty.png").write_bytes(b"")
    yield folder / "empty.png", "could not be decoded"
    Image.new("RGB", (4, 3)).save(folder / "real.tif")
    told = bytearray((folder / "real.tif").read_bytes())
    place = told.index(struct.pack("<HH", 273, 4), struct.unpack_from("<I", told, 4)[0])
    struct.pack_into("<H", told, place + 2, 11)  # where the pixels begin: a real number, says the file
    (folder / "real.tif").write_bytes(told)
    yield folder / "real.tif", "could not be decoded"  # Pillow: TypeError
    yield folder / "nothing.png", "there is none"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "could not be decoded"


def test_each_bad_image_gets_one_sentence(tmp_path):
    for path, message in damaged(tmp_path):
        with pytest.raises(BadFile, match=message) as error:
            read_image(path)
        assert path.name in str(error.value)
    grey = tmp_path / "grey.png"
    Image.new("L", (3, 2), 7).save(grey)
    assert read_image(grey).shape == (2, 3, 3)


@pytest.mark.parametrize("make, message", [
    (lambda p: Image.fromarray(np.zeros((16, 24), np.uint16)).save(p), "one channel of 8 bits"),
    (lambda p: Image.new("RGB", (24, 16)).save(p), "one channel of 8 bits"),
    (lambda p: Image.new("L", (24, 15)).save(p), "expected 16 x 24 pixels"),
    (lambda p: Image.new("L", (24, 16), 3).save(p), r"expected the values \[0, 1, 255\]; got also \[3\]"),
])
def test_each_bad_mask_gets_one_sentence(tmp_path, make, message):
    path = tmp_path / "mask.png"
    make(path)
    with pytest.raises(BadFile, match=message):
        read_mask(path, (16, 24), {0: 0, 1: 1})


# frames on disk

def frame_files(folder, count, size=(4, 6)):
    "Images and masks whose pixels tell their number."
    files = [(folder / f"{k}.jpg", folder / f"{k}.png") for k in range(count)]
    for k, (image, mask) in enumerate(files):
        Image.fromarray(np.full((*size, 3), k, np.uint8)).save(image, quality=100)
        Image.fromarray(np.full(size, k % 3, np.uint8)).save(mask)
    return tuple(zip(*files))


def test_frames_on_disk_are_those_of_the_files(tmp_path):
    images, masks = frame_files(tmp_path, 7)
    data = frames_on_disk(images, masks, {0: 3, 1: 8}, tmp_path / "kept")
    assert data.images[:, 0, 0, 0].tolist() == [*range(7)] and data.labels[:, 1, 1].tolist() == [3, 8, VOID, 3, 8, VOID, 3]
    assert data.anomaly.shape == data.labels.shape and not data.anomaly.any()


def test_frames_are_decoded_once_and_again_when_one_changes(tmp_path, monkeypatch):
    images, masks = frame_files(tmp_path, 3)
    first = frames_on_disk(images, masks, {0: 0, 1: 1, 2: 2}, tmp_path / "kept")
    first.images[0] = 99  # a copy in memory
    monkeypatch.setattr(pictures, "read_mask", None)
    assert frames_on_disk(images, masks, {0: 0, 1: 1, 2: 2}, tmp_path / "kept").images[0].max() == 0
    monkeypatch.undo()
    os.utime(masks[1], (1, 1))
    assert frames_on_disk(images, masks, {0: 0, 1: 1, 2: 2}, tmp_path / "kept").source != first.source
    assert frames_on_disk(images, masks, {0: 0, 1: 1, 2: 5}, tmp_path / "kept").labels.max() == 5


def test_a_frame_that_does_not_fit_leaves_nothing(tmp_path):
    images, masks = frame_files(tmp_path, 3)
    Image.new("RGB", (5, 5)).save(images[2])
    with pytest.raises(BadFile, match="2.jpg: expected 4 x 6 pixels"):
        frames_on_disk(images, masks, {0: 0}, tmp_path / "kept")
    assert not any((tmp_path / "kept").iterdir())
    with pytest.raises(ValueError):
        frames_on_disk(images, masks[:2], {0: 0}, tmp_path / "kept")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_set_on_disk_is_trained_on_without_being_read_whole(tmp_path):
    frame_files(tmp_path, 240, (480, 640))
    script = f"""
        import re, threading, time
        from pathlib import Path
        import torch
        from densegen.dense.photo_negatives import mixed_crops, noise_pieces
        from densegen.dense.segmentation import class_weights, train_ladder
        from densegen.workbench.pictures import frames_on_disk
        folder = Path(r"{tmp_path}")
        files = [(folder / f"{{k}}.jpg", folder / f"{{k}}.png") for k in range(240)]
        own = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
        def work(data, draws):
            class_weights(data.labels, 3)
            draw, dice = mixed_crops(data, noise_pieces, (64, 64)), torch.Generator().manual_seed(0)
            for _ in range(draws):
                draw(4, dice)
            train_ladder(data.images, data.labels, 3, steps=3, size=(64, 64))
        data = frames_on_disk(*zip(*files), {{0: 0, 1: 1, 2: 2}}, folder / "kept")
        work(data, 1)
        before, seen, done = own(), [0.0], threading.Event()
        def watch():
            while not done.wait(0.005):
                seen.append(own())
        watcher = threading.Thread(target=watch)
        watcher.start()
        work(data, 40)
        done.set()
        watcher.join()
        print(max(seen) - before, data.images.numel() / 2**20)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    grown, size = map(float, out.split()[-2:])
    assert size > 200 and grown < size / 2
