"Street scenes: projection against its formulas, labels, determinism, disjoint kinds; data sets in their published layouts, damaged files."
import json
import math
import time

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import densegen.dense.streets as streets_module
from densegen.dense.streets import (
    ANOMALIES, CAR, CLASSES, KINDS, NEGATIVES, ROAD, SKY, VOID, WEATHER, BadFile, Camera, DenseSet, camvid, cityscapes,
    colour_labels, fishyscapes_static, lost_and_found, paste, read_image, read_mask, render, road_anomaly, segment_me,
    street_hazards, streets, write_segment_me,
)
from densegen.workbench.data import DataNotFound, datasets

HAVE_CAMVID = any(row["name"] == "camvid" and row["found"] != "missing" for row in datasets())


# the camera

@settings(max_examples=50, deadline=None)
@given(st.floats(-10, 10), st.floats(2, 90), st.floats(-0.2, 0.2), st.floats(-5, 5), st.floats(-0.005, 0.005))
def test_street_and_camera_coordinates(q, s, yaw, lateral, curve):
    camera = Camera(256, 128, yaw=yaw, lateral=lateral, curve=curve)
    back = camera.street(*camera.place(q, s))
    assert back == pytest.approx((q, s), abs=1e-9)


def test_ground_lies_where_the_formula_says():
    frame = render("ground", 128, 256, weather="cloudy")
    road = frame.labels == ROAD
    depth = frame.depth
    rows = np.flatnonzero(road.sum(1) > 20)
    for r in rows:
        values = depth[r][road[r]]
        assert np.ptp(values) < 1e-4 * values.mean()  # one distance in a row
    z = np.array([np.median(depth[r][road[r]]) for r in rows])
    inverse = np.polyfit(rows, 1 / z, 1)
    assert np.abs(np.polyval(inverse, rows) - 1 / z).max() < 1e-4  # 1 / z is linear in the row


@pytest.mark.parametrize("distance", [6.0, 12.0, 25.0])
def test_things_have_the_size_of_their_distance(distance):
    camera = Camera(640, 320)
    canvas = streets_module._Canvas(camera, WEATHER["cloudy"], np.random.default_rng(0), False)
    canvas.image[:] = 0
    person = streets_module._person(2)
    streets_module._draw_sprite(canvas, person, 1.0, distance)
    rows, columns = np.nonzero(canvas.labels == person.label)
    assert np.ptp(rows) + 1 == pytest.approx(camera.focal * person.height / distance, abs=2)
    foot = camera.project(1.0, 0.0, distance)
    sole = foot[1] - person.bottom * camera.focal / distance
    assert rows.max() == pytest.approx(sole, abs=2) and columns.mean() == pytest.approx(foot[0], abs=4)
    assert (canvas.depth[rows, columns] == np.float32(distance)).all()


def test_the_nearer_hides_the_farther():
    for order in ((8.0, 20.0), (20.0, 8.0)):
        canvas = streets_module._Canvas(Camera(256, 128), WEATHER["cloudy"], np.random.default_rng(0), False)
        canvas.image[:] = 0
        for z in order:
            streets_module._draw_sprite(canvas, streets_module._car("van", 0), 0.0, z, ((0.5, 0.5, 0.5),))
        assert (canvas.depth[canvas.labels == CAR] == 8.0).mean() > 0.95


@settings(max_examples=60, deadline=None)
@given(st.floats(2, 90), st.integers(2, 90), st.floats(-3, 3), st.booleans())
def test_weights_share_out_every_dot(size, n, start, flip):
    first, last = math.floor(start) - 1, math.ceil(start + size) + 1
    weights, dots = streets_module._weights(first, last, start, size, n, flip)
    full = np.zeros((last - first, n), np.float32)
    full[:, dots] = weights
    assert full.min() >= 0 and full.sum(1).max() < 1 + 1e-4
    inside = (np.arange(first, last) > start + 1) & (np.arange(first, last) < start + size - 2)
    if n >= size:  # shrinking: exact shares of area
        assert np.abs(full[inside].sum(1) - 1).max(initial=0) < 1e-3
        assert full.sum() == pytest.approx(size, abs=0.02 * size + 0.05)
    mirrored, where = streets_module._weights(first, last, start, size, n, not flip)
    other = np.zeros_like(full)
    other[:, where] = mirrored
    assert np.abs(other[:, ::-1] - full).max() < 1e-3


# scenes

def test_every_pixel_has_its_truth():
    for k in range(6):
        frame = render(f"truth {k}", 96, 160, ANOMALIES)
        assert frame.image.dtype == np.uint8 and frame.image.shape == (3, 96, 160)
        assert set(np.unique(frame.labels)) <= {*range(len(CLASSES)), VOID}
        assert set(np.unique(frame.anomaly)) <= {0, 1, VOID}
        assert (frame.labels[frame.anomaly == 1] == VOID).all()
        assert np.isinf(frame.depth[frame.labels == SKY]).all() and (frame.depth > 1).all()


def test_all_classes_occur_and_weather_shows():
    train = streets("train", 60, 96, 192)
    counts = torch.bincount(train.labels.flatten().long(), minlength=256)
    assert (counts[: len(CLASSES)] > 0).all()
    bright = {w: render("weather", 64, 128, weather=w).image.mean() for w in WEATHER}
    assert bright["clear"] > bright["rain"] > bright["dusk"]


def test_same_arguments_same_scenes():
    a, b = (streets("test_anomaly", 3, 64, 128, depth=True) for _ in range(2))
    for name in ("images", "labels", "anomaly", "depth"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert torch.equal(streets("test_anomaly", 2, 64, 128).images, a.images[:2])
    others = [streets("test_anomaly", 2, 64, 128, seed=1), streets("val_anomaly", 2, 64, 128), streets("test", 2, 64, 128)]
    assert not any(torch.equal(other.images, a.images[:2]) for other in others)


def test_the_same_scene_at_another_size():
    small, large = render("size", 96, 192, weather="cloudy"), render("size", 192, 384, weather="cloudy")
    assert (small.labels == large.labels[::2, ::2]).mean() > 0.93


def test_anomalies_leave_the_street_as_it_is():
    plain, foreign = render("street", weather="cloudy"), render("street", weather="cloudy", kinds=("cow",))
    untouched = foreign.anomaly == 0
    assert (foreign.anomaly == 1).any()
    assert (plain.labels == foreign.labels)[untouched].mean() > 0.99


def test_kinds_of_training_and_test_are_disjoint():
    assert len(NEGATIVES) >= 10 and len(ANOMALIES) >= 10
    assert not set(NEGATIVES) & set(ANOMALIES) and set(NEGATIVES) | set(ANOMALIES) == set(KINDS)
    assert streets_module._SPLITS["test_anomaly"] == ANOMALIES and streets_module._SPLITS["val_anomaly"] == NEGATIVES
    assert not any(streets_module._SPLITS[split] for split in ("train", "val", "test"))
    drawings = [streets_module._drawing(kind, v).levels[0] for kind in KINDS for v in range(streets_module.VARIANTS)]
    assert len({d.tobytes() for d in drawings}) > 0.8 * len(drawings)


def test_anomalies_are_seen_and_small_ones_occur():
    scenes = streets("test_anomaly", 40, 96, 192)
    pixels = (scenes.anomaly == 1).flatten(1).sum(1)
    assert (pixels >= 8).all() and pixels.min() < 60 and pixels.max() > 1000


def test_fast_enough():
    "A hundred a second on a quiet core; a quarter of it must do on a busy machine."
    for k in range(30):
        render(f"warm {k}")
    began = time.process_time()
    for k in range(30):
        render(f"warm {k}")
    assert 30 / (time.process_time() - began) > 25


# sets

def test_paste_changes_only_where_it_says():
    data = streets("val", 6, 96, 160)
    pasted = paste(data, NEGATIVES, seed=3)
    changed = (pasted.images != data.images).any(1)
    assert not (changed & (pasted.labels != VOID)).any()
    assert ((pasted.anomaly == 1).flatten(1).sum(1) > 0).all() and (pasted.labels[pasted.anomaly == 1] == VOID).all()
    assert torch.equal(paste(data, NEGATIVES, seed=3).images, pasted.images)
    assert not torch.equal(paste(data, NEGATIVES, seed=4).images, pasted.images)
    ring = (pasted.anomaly == VOID) & (data.anomaly == 0)
    assert 0 < ring.sum() < 3 * (pasted.anomaly == 1).sum()


@pytest.mark.skipif(not HAVE_CAMVID, reason="CamVid is not on this machine")
def test_camvid_and_its_held_out_classes():
    whole, held = camvid("val"), camvid("val", held_out=True)
    assert len(whole) == 101 and whole.images.shape[1:] == (3, 180, 240)
    rare = (whole.labels == CLASSES.index("pedestrian")) | (whole.labels == CLASSES.index("bicyclist"))
    assert torch.equal(held.anomaly == 1, rare) and rare.any()
    assert (held.labels[rare] == VOID).all() and torch.equal(held.labels[~rare], whole.labels[~rare])
    assert held.names == CLASSES[:9] and not ((held.labels >= 9) & (held.labels != VOID)).any()
    assert torch.equal(whole.anomaly == VOID, whole.labels == VOID)


def test_photographs_have_masks_and_credits():
    data = road_anomaly()
    assets = ROOT / "densegen" / "assets"
    credits = (assets / "CREDITS.md").read_text()
    files = sorted(assets.glob("road_*.jpg"))
    assert len(data) == len(files) >= 5 and all(f.name in credits for f in files)
    assert sum(f.stat().st_size for f in assets.iterdir()) < 1e6
    assert all(any(word in row for word in ("CC0", "CC BY 2", "CC BY 3", "public domain")) and "BY-SA" not in row
               for row in credits.splitlines() if row.startswith("| road_"))
    share = (data.anomaly == 1).float().flatten(1).mean(1)
    assert set(data.anomaly.unique().tolist()) <= {0, 1, VOID} and (share > 0.002).all() and (share < 0.5).all()


def test_colours_of_labels():
    picture = colour_labels(torch.tensor([[SKY, VOID]]), torch.tensor([[0, 1]]))
    assert picture.tolist() == [[[128, 128, 128], [255, 90, 0]]]


@pytest.mark.parametrize("call, message", [
    (lambda: streets("training"), "split: expected one of"),
    (lambda: render(0, weather="snow"), "weather: expected one of"),
    (lambda: render(0, kinds=("unicorn",)), "kind: expected one of"),
    (lambda: paste(streets("val", 1, 48, 64), ("unicorn",)), "kind: expected one of"),
    (lambda: road_anomaly("animals"), "name: expected one of"),
    (lambda: DenseSet(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), CLASSES, "x"), "anomaly: expected"),
    (lambda: write_segment_me(torch.zeros(2, 3, 4), ".", "m", "t", "f"), "score: expected finite numbers"),
    (lambda: write_segment_me(torch.full((3, 4), torch.nan), ".", "m", "t", "f"), "score: expected finite numbers"),
])
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_sets_say_where_they_should_be(monkeypatch, tmp_path):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    with pytest.raises(DataNotFound, match="road_anomaly.*roadanomaly21_val.*DENSEGEN_DATA"):
        road_anomaly("anomaly_track")


# published layouts

def picture(path, size=(24, 16), colour=(90, 100, 110)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def mask(path, values, size=(24, 16)):
    "A mask whose columns hold the values in turn."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size[::-1])).save(path)
    return path


def test_cityscapes_layout(tmp_path):
    for city in ("aachen", "ulm"):
        picture(tmp_path / f"leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png")
        mask(tmp_path / f"gtFine/val/{city}/{city}_000000_000019_gtFine_labelIds.png", [0, 7, 26, 33])
    pairs = cityscapes(tmp_path)
    image, labels, anomaly = pairs[1]
    assert len(pairs) == 2 and image.shape == (16, 24, 3) and pairs.check() == []
    assert labels[0, :4].tolist() == [VOID, 0, 13, 18] and anomaly[0, :4].tolist() == [VOID, 0, 0, 0]


def test_fishyscapes_layouts(tmp_path):
    frame = "04_Maurener_Weg_8_000000_000030"
    picture(tmp_path / f"leftImg8bit/test/04_Maurener_Weg_8/{frame}_leftImg8bit.png")
    mask(tmp_path / f"fishyscapes_lostandfound/0000_{frame}_labels.png", [0, 1, 255])
    image, labels, anomaly = lost_and_found(tmp_path)[0]
    assert anomaly[0, :3].tolist() == [0, 1, VOID] and (labels == VOID).all() and image.dtype == np.uint8
    picture(tmp_path / "static/original/0001.png")
    mask(tmp_path / "static/labels/0001.png", [1, 0])
    assert fishyscapes_static(tmp_path / "static")[0][2][0, :2].tolist() == [1, 0]


def test_segment_me_layout(tmp_path):
    picture(tmp_path / "images/validation0000.jpg")
    picture(tmp_path / "images/animals01_x.jpg")
    mask(tmp_path / "labels_masks/validation0000_labels_semantic.png", [0, 1, 255])
    pairs = segment_me(tmp_path)
    assert len(pairs) == 1 and pairs[0][2][0, :3].tolist() == [0, 1, VOID]
    everything = segment_me(tmp_path, "")
    assert len(everything) == 2 and len(everything.check()) == 1 and "animals01_x_labels_semantic.png" in everything.check()[0]


def test_street_hazards_layout(tmp_path):
    rows = [{"fpath_img": "images/test/t5/300.png", "fpath_segm": "annotations/test/t5/300.png", "width": 24, "height": 16}]
    picture(tmp_path / "test" / rows[0]["fpath_img"])
    mask(tmp_path / "test" / rows[0]["fpath_segm"], [1, 13, 14, 0])
    (tmp_path / "test" / "test.odgt").write_text(json.dumps(rows))
    _, labels, anomaly = street_hazards(tmp_path)[0]
    assert labels[0, :4].tolist() == [0, 12, VOID, VOID] and anomaly[0, :4].tolist() == [0, 0, 1, VOID]
    (tmp_path / "test" / "test.odgt").write_text("{broken")
    with pytest.raises(BadFile, match="test.odgt: expected a JSON list"):
        street_hazards(tmp_path)


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


def test_one_bad_file_does_not_stop_the_rest(tmp_path):
    for k in range(4):
        picture(tmp_path / f"images/validation{k}.jpg")
        mask(tmp_path / f"labels_masks/validation{k}_labels_semantic.png", [0, 1], (24, 16) if k != 2 else (16, 24))
    (tmp_path / "images/validation1.jpg").write_bytes(b"\xff\xd8\xff")
    pairs = segment_me(tmp_path)
    messages = pairs.check()
    assert len(messages) == 2 and "validation1.jpg" in messages[0] and "validation2_labels" in messages[1]
    assert pairs[0][0].shape == pairs[3][0].shape
    with pytest.raises(BadFile, match="expected files like"):
        segment_me(tmp_path / "nowhere")


def test_results_for_the_benchmark(tmp_path):
    score = torch.linspace(-30, -29.9, 1001).expand(2, -1)
    path = write_segment_me(score, tmp_path, "ours", "AnomalyTrack-all", "validation0000")
    assert path == tmp_path / "anomaly_p/ours/AnomalyTrack-all/validation0000.hdf5"
    with h5py.File(path) as file:
        values = file["value"][()]
    assert values.shape == (2, 1001) and len(np.unique(values)) == 1001 and np.allclose(values, score)
