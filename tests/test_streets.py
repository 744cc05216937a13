"Street scenes: projection against its formulas, labels, determinism, disjoint kinds, pastes."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import densegen.streets.scenes as module
from densegen.streets.camera import WEATHER, Camera, Canvas, draw_sprite
from densegen.streets.cars import car
from densegen.streets.cutouts import shares
from densegen.streets.pasting import paste
from densegen.streets.people import person
from densegen.streets.scenes import render, streets
from densegen.streets.things import ANOMALIES, KINDS, NEGATIVES, VARIANTS, drawing
from densegen.workbench.pictures import CAR, CLASSES, ROAD, SKY, VOID


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
    canvas = Canvas(camera, WEATHER["cloudy"], np.random.default_rng(0), False)
    canvas.image[:] = 0
    walker = person(2)
    draw_sprite(canvas, walker, 1.0, distance)
    rows, columns = np.nonzero(canvas.labels == walker.label)
    assert np.ptp(rows) + 1 == pytest.approx(camera.focal * walker.height / distance, abs=2)
    foot = camera.project(1.0, 0.0, distance)
    sole = foot[1] - walker.bottom * camera.focal / distance
    assert rows.max() == pytest.approx(sole, abs=2) and columns.mean() == pytest.approx(foot[0], abs=4)
    assert (canvas.depth[rows, columns] == np.float32(distance)).all()


def test_the_nearer_hides_the_farther():
    for order in ((8.0, 20.0), (20.0, 8.0)):
        canvas = Canvas(Camera(256, 128), WEATHER["cloudy"], np.random.default_rng(0), False)
        canvas.image[:] = 0
        for z in order:
            draw_sprite(canvas, car("van", 0), 0.0, z, ((0.5, 0.5, 0.5),))
        assert (canvas.depth[canvas.labels == CAR] == 8.0).mean() > 0.95


@settings(max_examples=60, deadline=None)
@given(st.floats(2, 90), st.integers(2, 90), st.floats(-3, 3), st.booleans())
def test_weights_share_out_every_dot(size, n, start, flip):
    first, last = math.floor(start) - 1, math.ceil(start + size) + 1
    weights, dots = shares(first, last, start, size, n, flip)
    full = np.zeros((last - first, n), np.float32)
    full[:, dots] = weights
    assert full.min() >= 0 and full.sum(1).max() < 1 + 1e-4
    inside = (np.arange(first, last) > start + 1) & (np.arange(first, last) < start + size - 2)
    if n >= size:  # shrinking: exact shares of area
        assert np.abs(full[inside].sum(1) - 1).max(initial=0) < 1e-3
        assert full.sum() == pytest.approx(size, abs=0.02 * size + 0.05)
    mirrored, where = shares(first, last, start, size, n, not flip)
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
    assert module._SPLITS["test_anomaly"] == ANOMALIES and module._SPLITS["val_anomaly"] == NEGATIVES
    assert not any(module._SPLITS[split] for split in ("train", "val", "test"))
    drawings = [drawing(kind, v).levels[0] for kind in KINDS for v in range(VARIANTS)]
    assert len({d.tobytes() for d in drawings}) > 0.8 * len(drawings)


def test_anomalies_are_seen_and_small_ones_occur():
    scenes = streets("test_anomaly", 40, 96, 192)
    pixels = (scenes.anomaly == 1).flatten(1).sum(1)
    assert (pixels >= 8).all() and pixels.min() < 60 and pixels.max() > 1000


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


@pytest.mark.parametrize("call, message", [
    (lambda: streets("training"), "split: expected one of"),
    (lambda: render(0, weather="snow"), "weather: expected one of"),
    (lambda: render(0, kinds=("unicorn",)), "kind: expected one of"),
    (lambda: paste(streets("val", 1, 48, 64), ("unicorn",)), "kind: expected one of"),
])
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
