"Pictures with a label at each pixel: shapes, colours, and files that are not what they should be."
import struct
import numpy as np
import pytest
import torch
from PIL import Image

from densegen.workbench.pictures import CLASSES, SKY, VOID, BadFile, DenseSet, colour_labels, read_image, read_mask


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
