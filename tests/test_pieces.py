"Pieces from a folder, from COCO and from ADE20K: the right window of the right image, and nothing that belongs on a road (2 s)."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from densegen.dense.pieces import Cut, ade20k_cuts, coco_cuts, cut_pieces, folder_cuts
from densegen.dense.photo_negatives import paste_piece
from densegen.workbench.pictures import OUTLIER, BadFile

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)


def picture(path, boxes, size=(80, 120)):
    "Grey, with coloured boxes (top, left, height, width)."
    pixels = np.full((*size, 3), 128, np.uint8)
    for (top, left, height, width), colour in boxes:
        pixels[top : top + height, left : left + width] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def labels(path, boxes, size=(80, 120)):
    mask = np.zeros(size, np.uint8)
    for (top, left, height, width), value in boxes:
        mask[top : top + height, left : left + width] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def drawn(cuts, count=30):
    "Mean colours of some pieces, rounded to which channel is strongest."
    dice, draw = torch.Generator().manual_seed(0), cut_pieces(cuts)
    pieces = [draw(20, 30, dice) for _ in range(count)]
    assert all(classes is None and pixels.shape == (3, 20, 30) for pixels, classes in pieces)
    return [pixels.mean((1, 2)) for pixels, _ in pieces]


def test_a_folder_with_and_without_masks(tmp_path):
    box, small = (10, 20, 40, 50), (60, 90, 10, 10)
    picture(tmp_path / "i/deep/a.jpg", [(box, RED), (small, BLUE)])
    labels(tmp_path / "m/deep/a.png", [(box, 1), (small, 255)])
    picture(tmp_path / "i/b.png", [(box, GREEN)])
    assert folder_cuts(tmp_path / "i", tmp_path / "m") == [Cut(tmp_path / "i/deep/a.jpg", box)]
    assert all(m[0] > 180 and m[1] < 60 for m in drawn(folder_cuts(tmp_path / "i", tmp_path / "m")))
    assert [cut.box for cut in folder_cuts(tmp_path / "i")] == [(0, 0, 80, 120)] * 2
    with pytest.raises(BadFile, match="expected images"):
        folder_cuts(tmp_path / "nowhere")
    with pytest.raises(BadFile, match="at least one thing"):
        cut_pieces([])


def test_pieces_are_not_squeezed(tmp_path):
    path = picture(tmp_path / "a.png", [((0, 0, 80, 40), RED), ((0, 40, 80, 40), GREEN), ((0, 80, 80, 40), BLUE)])
    pixels, _ = cut_pieces([Cut(path, (0, 0, 80, 120))], flip=False)(60, 30, torch.Generator())
    assert (pixels.mean((1, 2))[1] > 190) and pixels[1].min() > 150  # the middle 40 of 120 columns, all green


def coco(root, annotations):
    data = {"categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}], "annotations": annotations,
            "images": [{"id": 5, "file_name": "000005.jpg"}]}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations/instances_train2017.json").write_text(json.dumps(data))


def test_coco_without_what_belongs_on_roads(tmp_path):
    dog, car, tiny = (10, 10, 50, 40), (10, 60, 50, 50), (70, 0, 8, 8)
    picture(tmp_path / "train2017/000005.jpg", [(dog, RED), (car, BLUE)])
    bbox = lambda b: [b[1] + 0.2, b[0], b[3], b[2]]  # x, y, width, height
    notes = [{"image_id": 5, "category_id": k, "bbox": bbox(b), "iscrowd": crowd} for k, b, crowd in
             ((18, dog, 0), (3, car, 0), (18, tiny, 0), (18, car, 1))]
    coco(tmp_path, notes)
    assert coco_cuts(tmp_path) == [Cut(tmp_path / "train2017/000005.jpg", dog)]
    assert all(m[0] > 180 and m[2] < 60 for m in drawn(coco_cuts(tmp_path)))
    assert len(coco_cuts(tmp_path, without=frozenset())) == 2
    coco(tmp_path, [{"image_id": 6, "category_id": 18, "bbox": [0, 0, 50, 50]}])
    with pytest.raises(BadFile, match="instances_train2017.json: expected COCO's instances; got KeyError"):
        coco_cuts(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").write_text("[" * 100_000)
    with pytest.raises(BadFile, match="RecursionError"):
        coco_cuts(tmp_path)


def test_a_name_in_coco_cannot_lead_out_of_the_folder(tmp_path):
    coco(tmp_path, [{"image_id": 5, "category_id": 18, "bbox": [0, 0, 50, 50]}])
    file = tmp_path / "annotations/instances_train2017.json"
    file.write_text(file.read_text().replace("000005.jpg", "../../../etc/passwd"))
    assert coco_cuts(tmp_path)[0].image == tmp_path / "train2017/passwd"


def test_ade20k_things_without_what_belongs_on_roads(tmp_path):
    wall, dog, car = (0, 0, 30, 120), (30, 10, 40, 40), (30, 70, 40, 40)
    picture(tmp_path / "images/training/ADE_train_1.jpg", [(wall, GREEN), (dog, RED), (car, BLUE)])
    labels(tmp_path / "annotations/training/ADE_train_1.png", [(wall, 1), (dog, 127), (car, 21)])
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t.1\t9\t9\t1\twall", "21\t.1\t9\t9\t0\tcar, auto, automobile",
            "127\t.1\t9\t9\t0\tanimal, animate being"]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    assert ade20k_cuts(tmp_path) == [Cut(tmp_path / "images/training/ADE_train_1.jpg", dog)]
    assert all(m[0] > 180 for m in drawn(ade20k_cuts(tmp_path)))
    (tmp_path / "objectInfo150.txt").write_text("Idx\n1\t2")
    with pytest.raises(BadFile, match="objectInfo150.txt: expected the table"):
        ade20k_cuts(tmp_path)


def test_they_are_pasted_like_the_others(tmp_path):
    cuts = [Cut(picture(tmp_path / "a.png", [((10, 20, 40, 50), RED)]), (10, 20, 40, 50))]
    image, truth = torch.zeros(3, 200, 300, dtype=torch.uint8), torch.zeros(200, 300, dtype=torch.uint8)
    paste_piece(image, truth, cut_pieces(cuts), torch.Generator().manual_seed(3), (60, 80))
    inside = truth == OUTLIER
    assert inside.any() and image[0][inside].float().mean() > image[2][inside].float().mean() + 50
