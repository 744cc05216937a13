"""A detector file from a stranger, and folders as people have them: one line each, nothing runs, nothing is lost."""
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from attacks import ATTACKS
from conftest import lines
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from densegen.course import cli, console
from densegen.dense.detector_file import load_detector, save_detector
from densegen.dense.find_photos import Job, find_images, is_result, mask_meaning
from densegen.dense.photo_folder import score_files
from densegen.dense.photograph import read_photo
from densegen.dense.safe_graph import check_graph
from densegen.dense.segmentation import Dense, SegmentationModel
from densegen.dense.your_model import Calibration, score_images
from densegen.workbench.pictures import BadFile


class Near(nn.Module):
    "Sees three pixels around each pixel."

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 1, 7, padding=3)

    @torch.no_grad()
    def anomaly_score(self, images):
        return self.conv(images.float() / 255)[:, 0]


NOTE = {"tile": [32, 48], "overlap": 12, "calibration": {"threshold": 0.2, "rate": 0.1, "centre": 0.0, "pixels": 9}}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "near.onnx"
    return save_detector(Near(), path, (32, 48), Calibration(0.2, 0.1, 0.0, 9), 12)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return save_detector(Near(), tmp_path_factory.mktemp("exported") / "near.pt2", (32, 48))


@pytest.fixture(scope="module")
def saved(file):
    return load_detector(file)


def picture(path, height=40, width=60, seed=0, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def refused(shell, path, tmp_path, *words):
    "The one line with which the command refuses a model, after the reader has refused it in one line."
    with pytest.raises(ValueError) as error:
        load_detector(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", path, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2 and len(lines(result)) == 1 and result.exception.__class__ is SystemExit
    assert not (tmp_path / "out").exists()
    return lines(result)[0]


# ------------------------------------------------------------------------------------------------- files that run code


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_a_file_that_wants_to_run_code_does_not(attack, exported, shell, tmp_path):
    graph = attack == "e graph"
    target = tmp_path / "target"
    target.write_bytes(b"mine") if graph else None
    path = ATTACKS[attack](exported, tmp_path / "bad.pt2", target if graph else f"touch {target}")
    for name in ("bad.pt2", "bad.onnx"):
        assert "can run any command" in refused(shell, path.rename(path.with_name(name)), tmp_path)
        path = path.with_name(name)
    assert target.read_bytes() == b"mine" if graph else not target.exists()
    try:  # the file is no dud: who trusts it is attacked
        load_detector(path, trust=True)
    except ValueError:
        pass
    assert target.exists() and target.read_bytes() == (bytes(4) if graph else b"")


def test_a_pickle_with_the_name_of_a_graph(shell, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "p.onnx").write_bytes(pickle.dumps(Runs(), protocol))
        refused(shell, tmp_path / "p.onnx", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_trust_reads_an_exported_program(shell, exported, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    words = [tmp_path / "photos", "--model", exported, "--out", tmp_path / "out"]
    assert shell(*words).exit_code == 2
    result = shell(*words, "--trust")
    assert result.exit_code == 0 and "1 scored" in result.stdout
    told = " ".join(shell("--help").stdout.replace("│", " ").split())
    assert "can do on this machine whatever you can do" in told


# -------------------------------------------------------------------------------------------------------- hostile graphs


def graph(nodes=None, weights=(), note=NOTE, images=("n", 3, 32, 48), scores=("n", 32, 48), kinds=(2, 1), opsets=(("", 18),)):
    "A detector written by hand: the mean over the channels, or other nodes."
    nodes = nodes or [helper.make_node("ReduceMean", ["f", "axis"], ["scores"], keepdims=0)]
    first = helper.make_node("Cast", ["images"], ["f"], to=TensorProto.FLOAT)
    ends = [[helper.make_tensor_value_info(*end)] for end in (("images", kinds[0], images), ("scores", kinds[1], scores))]
    weights = [numpy_helper.from_array(np.array([1]), "axis"), *weights]
    model = helper.make_model(helper.make_graph([first, *nodes], "g", *ends, weights),
                              opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10)
    model.metadata_props.add(key="densegen", value=note if isinstance(note, str) else json.dumps(note))
    return model


def written(model, path):
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def plus(node, *inputs, weights=(), **attributes):
    "A graph whose scores are the mean plus the sum of what a node gives."
    nodes = [helper.make_node(node, inputs, ["x"], **attributes), helper.make_node("Cast", ["x"], ["xf"], to=1),
             helper.make_node("ReduceSum", ["xf"], ["s"], keepdims=0),
             helper.make_node("ReduceMean", ["f", "axis"], ["m"], keepdims=0), helper.make_node("Add", ["m", "s"], ["scores"])]
    return graph(nodes, [numpy_helper.from_array(np.array(v), name) for name, v in weights])


def test_a_graph_by_hand_is_read_and_gives_its_scores(tmp_path):
    saved = load_detector(written(graph(), tmp_path / "g.onnx"))
    x = torch.randint(0, 256, (5, 3, 32, 48), dtype=torch.uint8)
    assert torch.allclose(saved.score(x), x.float().mean(1))
    assert saved[1:4] == ((32, 48), 12, Calibration(0.2, 0.1, 0.0, 9))


def external(location):
    model = plus("Identity", "w", weights=[("w", np.ones(1, np.float32))])
    weight = model.graph.initializer[1]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return model


def constant_elsewhere():
    model = graph([helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32))),
                   helper.make_node("ReduceMean", ["f", "axis"], ["m"], keepdims=0), helper.make_node("Add", ["m", "c"], ["scores"])])
    model.graph.node[1].attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    return model


def with_function():
    model = graph()
    model.functions.append(helper.make_function("d", "F", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 18)]))
    return model


def with_key(key):
    model = graph()
    model.metadata_props.add(key=key, value='{"session_options": {"enable_profiling": true}}')
    return model


def loop():
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b",
                             [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, [])],
                             [helper.make_tensor_value_info("d", 9, [])])
    return plus("Loop", "n", "t", weights=[("n", 2**62), ("t", True)], body=body)


NAN = np.array([np.nan], np.float32)
HOSTILE = {
    "weights outside the folder": (external("../../etc/passwd"), "lies in another file"),
    "weights at a path": (external("/etc/passwd"), "lies in another file"),
    "weights beside it": (external("weights.bin"), "lies in another file"),
    "a constant elsewhere": (constant_elsewhere(), "lies in another file"),
    "NaN": (plus("Identity", "w", weights=[("w", NAN)]), "holds NaN"),
    "NaN of half precision": (plus("Identity", "w", weights=[("w", NAN.astype(np.float16))]), "holds NaN"),
    "NaN when it runs": (plus("Log", "w", weights=[("w", -np.ones(1, np.float32))]), "finite numbers"),
    "a foreign operator": (graph([helper.make_node("ReadFile", ["f"], ["scores"], domain="stranger")], opsets=(("", 18), ("stranger", 1))), "own operators"),
    "a foreign node": (graph([helper.make_node("EPContext", ["f"], ["scores"], domain="com.microsoft")]), "standard operators"),
    "an unknown operator": (graph([helper.make_node("System", ["f"], ["scores"])]), "System"),
    "a loop": (loop(), "'Loop'"),
    "a function": (with_function(), "functions"),
    "options for the runtime": (with_key("ort_config"), "one note"),
    "input of floats": (graph(kinds=(1, 1)), "images uint8"),
    "input of four channels": (graph(images=("n", 4, 32, 48)), "images uint8"),
    "input of any size": (graph(images=("n", 3, "h", "w"), scores=("n", "h", "w")), "images uint8"),
    "one image at a time": (graph(images=(1, 3, 32, 48), scores=(1, 32, 48)), "any number"),
    "input of three sizes": (graph(images=("n", 32, 48)), "images uint8"),
    "scores for each class": (graph(scores=("n", 5, 32, 48)), "scores"),
    "scores of doubles": (graph(kinds=(2, 11)), "scores"),
    "scores of another rank": (graph([helper.make_node("ReduceMean", ["f"], ["scores"], keepdims=0)]), "rank"),
    "scores of another shape than promised": (graph([helper.make_node("Squeeze", ["f"], ["scores"])]), "scores: expected float32"),
    "terabytes of ones": (plus("ConstantOfShape", "n", weights=[("n", np.array([10**12]))]), "memory"),
    "terabytes by repetition": (plus("Tile", "one", "n", weights=[("one", np.ones(9, np.float32)), ("n", np.array([10**11]))]), "bytes"),
    "a bomb of small messages": (b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 10**6, "fields"),
    "a bomb of numbers": (b"\x3a\x89\x80\x80\x28\x2a\x84\x80\x80\x28\x22" + b"\xff\xff\xff\x27" + bytes(2**26 + 10), "field"),
    "a bomb of depth": (b"\x3a" * 1000, "no message"),
    "nothing": (b"", "one note"),
    "a text": (b"no graph of anything", "no message"),
    "half": (graph().SerializeToString()[:150], "no message"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_and_broken_graphs_cost_one_line(name, shell, tmp_path):
    model, said = HOSTILE[name]
    assert said in refused(shell, written(model, tmp_path / "bad.onnx"), tmp_path)


def test_a_bomb_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(onnx.ModelProto, "FromString", lambda data: pytest.fail("parsed"), raising=False)
    with pytest.raises(ValueError, match="fields"):
        check_graph(HOSTILE["a bomb of small messages"][0], "densegen")


def test_the_runtime_takes_the_bytes_for_nothing_but_onnx(tmp_path):
    model = graph()
    model.producer_name = "ORTM"  # where the runtime's own format has its mark
    data = model.SerializeToString()
    assert data[4:8] == b"ORTM"
    assert load_detector(written(data, tmp_path / "g.onnx")).tile == (32, 48)


def noted(**other):
    return {**NOTE, **other}


def calibrated(**other):
    return noted(calibration={**NOTE["calibration"], **other})


@pytest.mark.parametrize(
    "note",
    [noted(tile=[-32, 48]), noted(tile=[10**6, 10**6]), noted(tile="big"), noted(tile=32), noted(tile=[32.0, 48]), noted(tile=[32, 48, 3]),
     noted(tile=[True, 48]), noted(tile=[64, 48]), noted(overlap=-1), noted(overlap=32), noted(overlap=31), noted(overlap=0.5), noted(overlap="12"),
     noted(calibration="low"), calibrated(threshold=float("nan")), calibrated(threshold="0.2"), calibrated(centre=float("inf")),
     calibrated(pixels=-1), calibrated(rate=None), calibrated(more=1), calibrated(threshold=10**400), {}, [], None, "no json", "{" * 100_000,
     "[" * 9_000],
)
def test_the_note_is_not_trusted(note, shell, tmp_path):
    told = refused(shell, written(graph(note=json.dumps(note) if note is None else note), tmp_path / "bad.onnx"), tmp_path)
    assert "save_detector" in told


@pytest.mark.parametrize("kind", ["pipe", "endless", "itself", "folder"])
def test_a_model_that_is_no_file(kind, shell, tmp_path):
    path = tmp_path / "m.onnx"
    {"pipe": lambda: os.mkfifo(path), "endless": lambda: path.symlink_to("/dev/zero"), "itself": lambda: path.symlink_to(path),
     "folder": path.mkdir}[kind]()
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and len(lines(result)) == 1 and not (tmp_path / "out").exists()


def test_a_file_is_bounded_before_it_is_read(shell, tmp_path):
    path = tmp_path / "m.onnx"
    with open(path, "wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "at most" in lines(result)[0]


# ------------------------------------------------------------------------------------------------------------- the file


def test_the_file_gives_the_same_scores_for_any_number_of_images(saved):
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7):
        x = torch.randint(0, 256, (n, 3, 32, 48), dtype=torch.uint8, generator=generator)
        assert torch.allclose(saved.score(x), Near().anomaly_score(x), atol=1e-5)
    assert saved[1:4] == ((32, 48), 12, Calibration(0.2, 0.1, 0.0, 9))


def test_the_file_tells_nothing_about_the_machine_of_its_author(file):
    data = file.read_bytes()
    assert b".py" not in data and os.getcwd().encode() not in data
    (note,) = onnx.ModelProto.FromString(data).metadata_props
    assert json.loads(note.value) == NOTE


class Frozen(nn.Module):
    def anomaly_score(self, images):
        return images.float().mean(1) * len(str(images.sum().item() ** 2))


class Jump(nn.Module):
    def anomaly_score(self, images):
        return images.float().mean(1) if images.sum() > 0 else images[:, 0].float()


class Whitens(nn.Module):
    def anomaly_score(self, images):
        x = images.float().flatten(2)
        return images[:, 0] / 255 + torch.linalg.slogdet(x @ x.mT + torch.eye(3))[1][:, None, None]


class Fixed(nn.Module):
    def anomaly_score(self, images):
        return images.float().mean(1) + torch.zeros(2, 1, 1)


@pytest.mark.parametrize("detector", [Frozen, Jump, Whitens, Fixed])
def test_detectors_that_cannot_be_written_say_so(detector, tmp_path):
    with pytest.raises(ValueError, match="^detector: expected [^\n]+$"):
        save_detector(detector(), tmp_path / "x.onnx", (32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tile, overlap", [((32, 8), None), ((32, 32), 17), ((32, 32), -1), ((10**5, 32), None), ((32.0, 32), None)])
def test_senseless_tiles_are_not_written(tile, overlap, tmp_path):
    with pytest.raises(ValueError, match="tile"):
        save_detector(Near(), tmp_path / "x.onnx", tile, overlap=overlap)
    with pytest.raises(ValueError, match="NAME.onnx"):
        save_detector(Near(), tmp_path / "x.pth", (32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["meta", "quantum", "cuda", "cpu:x", "[/x]"])
def test_unknown_devices_get_the_list_of_known_ones(device, shell, file, tmp_path):
    import onnxruntime

    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("cuda is known here")
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out", "--device", device)
    (told,) = lines(result)
    assert result.exit_code == 2 and "--device: expected one that is here (cpu" in told and device in told


def test_without_the_runtime_a_line_says_how_to_get_it(shell, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "pip install 'densegen[score]'" in lines(result)[0]


@pytest.mark.parametrize("threshold", ["nan", "inf", "-inf"])
def test_a_threshold_is_a_number(threshold, shell, file, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out", f"--threshold={threshold}")
    assert result.exit_code == 2 and "--threshold: expected a number" in lines(result)[0]


# --------------------------------------------------------------------------------------------------- whose files are they


def test_files_of_the_user_are_not_written_over(shell, file, tmp_path):
    for name in ("x", "y", "z"):
        picture(tmp_path / f"{name}.jpg", seed=ord(name))
    picture(tmp_path / "x_heat.png", seed=1)
    np.savez(tmp_path / "y.npz", score=np.zeros(3))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "y.npz").symlink_to("../y.npz")
    picture(tmp_path / "sub" / "y.png")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = shell(tmp_path, "--model", file, "--out", tmp_path)
    assert result.exit_code == 1 and "2 scored, 0 kept, 3 failed" in result.stdout  # z and x_heat themselves
    assert all("another --out" in line for line in lines(result)) and len(lines(result)) == 3
    assert all(p.read_bytes() == data for p, data in before.items())
    again = shell(tmp_path, "--model", file, "--out", tmp_path)
    assert "0 scored, 2 kept, 3 failed" in again.stdout and all(p.read_bytes() == data for p, data in before.items())


def test_a_link_out_of_the_folder_is_not_followed(shell, file, tmp_path):
    picture(tmp_path / "photos" / "deep" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "elsewhere")
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "leads out of it" in lines(result)[0] and not list((tmp_path / "elsewhere").iterdir())


def test_results_are_recognised_even_in_half(saved, tmp_path):
    jobs = find_images([picture(tmp_path / "a.png")]).jobs
    assert [o.state for o in score_files(saved, jobs, tmp_path / "out")] == ["scored"]
    for path in (tmp_path / "out").iterdir():
        assert is_result(path)
        path.write_bytes(path.read_bytes()[:200])
        assert is_result(path)
    assert not is_result(tmp_path / "a.png")
    assert [o.state for o in score_files(saved, jobs, tmp_path / "out")] == ["scored"]


def test_an_image_called_heat_does_not_collide(shell, file, tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    picture(tmp_path / "photos" / "a_heat.jpg", seed=1)
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "2 scored" in result.stdout
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["a.npz", "a_heat.npz", "a_heat.png", "a_heat_heat.png"]
    assert "0 scored, 2 kept" in shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out").stdout


def test_a_folder_that_cannot_be_written_is_noticed_first(shell, file, tmp_path, monkeypatch):
    from densegen.dense import photo_folder

    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "wall").write_text("a file")
    monkeypatch.setattr(photo_folder, "score_images", lambda *_: pytest.fail("scored"))
    for out in ("/proc/densegen", tmp_path / "wall" / "out"):
        result = shell(tmp_path / "photos", "--model", file, "--out", out)
        assert result.exit_code == 2 and "can be written" in lines(result)[0]


# --------------------------------------------------------------------------------------------------------- what is there


def test_what_is_skipped_is_named_and_counted(shell, file, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    for name in ("b.gif", "c.gif", "d.txt", "e"):
        (tmp_path / "photos" / name).write_text("not looked at")
    picture(tmp_path / "other" / "f.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "other")
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "1 scored" in result.stdout
    (line,) = lines(result, "note")
    assert all(word in line for word in ("5 skipped", "2 .gif", "1 .txt", "1 no ending", "1 linked folder", "b.gif", "linked"))


def test_what_is_no_image_costs_one_line_and_never_hangs(shell, file, tmp_path):
    photos = tmp_path / "photos"
    picture(photos / "good.png")
    (photos / "itself.png").symlink_to("itself.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(photos / "pipe.png")
    (photos / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n")  # Pillow would call ghostscript
    result = shell(photos, "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "1 scored, 0 kept, 5 failed" in result.stdout and len(lines(result)) == 5
    masks = tmp_path / "masks"
    masks.mkdir()
    os.mkfifo(masks / "good.png")
    result = shell(photos / "good.png", "--model", file, "--out", tmp_path / "out", "--masks", masks)
    assert result.exit_code == 1 and "pipe" in lines(result)[0]


def test_names_are_no_markup(shell, file, tmp_path):
    for name in ("[red]a[bold].png", "b[x.png"):
        picture(tmp_path / "[/bold]" / name)
    (tmp_path / "[/bold]" / "c[red].png").write_text("no image")
    (tmp_path / "[/bold]" / "d\n\x1b[31m.png").write_text("no image")
    (tmp_path / "[/bold]" / "[z].txt").write_text("other")
    result = shell(tmp_path / "[/bold]", "--model", file, "--out", tmp_path / "[/bold]" / "[out]")
    assert result.exit_code == 1 and "2 scored, 0 kept, 2 failed" in result.stdout
    assert "[/bold]/c[red].png: " in result.stderr and "[z].txt" in result.stderr and "\x1b" not in result.stderr
    for words in (["--model", "[/x].onnx"], ["--model", file, "--masks", "[/m]"], ["--model", file, "--device", "[/d]"]):
        result = shell(tmp_path / "[/bold]", "--out", tmp_path / "o", *words)
        assert result.exit_code == 2 and words[-1] in lines(result)[0]


# ------------------------------------------------------------------------------------------------------- what a person sees


def test_a_picture_on_its_side_is_turned(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    path = picture(tmp_path / "a.png", 40, 60, exif=turned)
    plain = picture(tmp_path / "b.png", 40, 60)
    assert np.array_equal(read_photo(path).pixels, np.rot90(read_photo(plain).pixels, -1))


def test_heat_map_and_scores_stand_upright(saved, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 8
    jobs = find_images([picture(tmp_path / "a.jpg", 40, 60, exif=turned)]).jobs
    list(score_files(saved, jobs, tmp_path / "out"))
    assert Image.open(tmp_path / "out" / "a_heat.png").size == (40, 60)
    assert np.load(tmp_path / "out" / "a.npz")["score"].shape == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_stand_on_grey(mode, tmp_path):
    shown = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    shown.paste((10, 10, 10, 255), (0, 0, 20, 40))
    shown.convert(mode).save(tmp_path / ("a.tif" if mode == "PA" else "a.png")) if mode != "PA" else shown.quantize().save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert abs(photo.pixels[:, :20].astype(int) - 10).max() <= 1 and (photo.pixels[:, 20:] == 128).all()
    assert "grey 128" in photo.notes[0]


def test_16_bits_are_scaled_and_said(tmp_path):
    values = np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        photo = read_photo(tmp_path / name)
        assert np.array_equal(photo.pixels[..., 0], np.round(values / 257).astype(np.uint8)) and "65535" in photo.notes[0]
    Image.fromarray((values // 16).astype(np.uint16)).save(tmp_path / "camera.png")
    assert "has 4095" in read_photo(tmp_path / "camera.png").notes[0]


@pytest.mark.parametrize("mode, ending", [("CMYK", "jpg"), ("LA", "png"), ("1", "png"), ("L", "webp"), ("P", "gif"), ("YCbCr", "jpg")])
def test_what_pillow_converts_is_read(mode, ending, tmp_path):
    plain = Image.fromarray(np.full((40, 40, 3), 200, np.uint8))
    plain.convert(mode).save(tmp_path / f"a.{ending}")
    pixels = read_photo(tmp_path / f"a.{ending}").pixels
    assert pixels.shape == (40, 40, 3) and (mode in "1P" or abs(pixels.astype(int) - 200).max() <= 4)


def test_the_first_of_many_is_scored_and_said(shell, file, tmp_path):
    frames = [Image.fromarray(np.full((40, 60, 3), v, np.uint8)) for v in (10, 200, 100)]
    for name in ("a.png", "b.webp", "c.tif"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        frames[0].save(tmp_path / "photos" / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "webp" in name else {}))
        assert (read_photo(tmp_path / "photos" / name).pixels == 10).all()
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 0 and sum("first of 3" in line for line in lines(result, "note")) == 3


def test_numbers_without_black_and_white_are_refused(tmp_path):
    for kind in (np.int32, np.float32):
        Image.fromarray(np.zeros((40, 40), kind)).save(tmp_path / "a.tif")
        with pytest.raises(BadFile, match="nobody knows"):
            read_photo(tmp_path / "a.tif")


# ---------------------------------------------------------------------------------------------------------------- stops


def test_killed_many_times_nothing_is_lost_or_left_behind(file, saved, tmp_path):
    count, out = 40, tmp_path / "out"
    for k in range(count):
        picture(tmp_path / "photos" / f"{k:03}.png", 64, 96, k)
    code = "import sys; from densegen.course import cli; cli.app(sys.argv[1:])"
    words = ["score", tmp_path / "photos", "--model", file, "--out", out, "--batch", 1]
    for kills in range(1, 3):
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        before = len(list(out.glob("*.npz"))) if out.exists() else 0
        while process.poll() is None and (not out.exists() or len(list(out.glob("*.npz"))) < before + 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npz")}
    outcomes = list(score_files(saved, find_images([tmp_path / "photos"]).jobs, out))
    assert {o.job.name for o in outcomes if o.state == "kept"} >= {name[:-4] for name in done}
    assert all((out / name).stat().st_mtime_ns == t for name, t in done.items())
    assert sorted(p.suffix for p in out.iterdir()) == [".npz"] * count + [".png"] * count
    image = torch.from_numpy(np.array(Image.open(tmp_path / "photos" / "007.png"))).permute(2, 0, 1)
    (expected,) = score_images(saved.score, [image], saved.tile, saved.overlap)
    assert np.allclose(np.load(out / "007.npz")["score"], expected, atol=1e-6)


# ------------------------------------------------------------------------------- other sizes, classes, alarms, masks


class Named(SegmentationModel):
    "Scores red; names the class by which of red, green, blue is strongest."

    def forward(self, images):
        return Dense(images.float(), ())

    def anomaly_score(self, images):
        return images[:, 0].float() / 255


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    return save_detector(Named().eval(), tmp_path_factory.mktemp("named") / "n.onnx", (32, 48), Calibration(0.5, 0.1, 0.1, 9), 12)


def test_a_graph_names_classes_and_is_asked_only_if_they_are_wanted(named):
    saved = load_detector(named)
    x = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    scores, classes = saved.both(x)
    assert torch.equal(classes, x.argmax(1).to(torch.uint8)) and torch.equal(scores, saved.score(x))
    assert load_detector(save_detector(Near(), named.with_name("near.onnx"), (32, 48))).both is None


def test_class_maps_and_alarms(shell, named, file, tmp_path):
    path = picture(tmp_path / "photos" / "a.png", 100, 150)
    pixels = np.asarray(Image.open(path))
    words = [tmp_path / "photos", "--out", tmp_path / "out"]
    assert shell(*words, "--model", named).exit_code == 0 and not (tmp_path / "out/a_classes.png").exists()
    result = shell(*words, "--model", named, "--classes", "--alarm")
    assert result.exit_code == 0 and "1 scored" in result.stdout  # the first result had no classes
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/a_classes.png")), pixels.argmax(2))
    alarm = np.asarray(Image.open(tmp_path / "out/a_alarm.png"))
    assert np.array_equal(alarm, np.where(pixels[:, :, 0] > 127.5, 255, 0))
    assert "1 kept" in shell(*words, "--model", named, "--classes", "--alarm", "--threshold", "0.9").stdout
    assert (np.asarray(Image.open(tmp_path / "out/a_alarm.png")) > 0).sum() < (alarm > 0).sum()
    for option, model in (("--classes", file), ("--alarm", save_detector(Near(), tmp_path / "n.onnx", (32, 48)))):
        refused = shell(*words, "--model", model, option)
        assert refused.exit_code == 2 and lines(refused)[0].startswith(f"error {option}: "), refused.output


def test_results_of_an_earlier_run_are_no_photographs_whatever_they_are_called(shell, named, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    words = ["--model", named, "--out", tmp_path / "out", "--classes", "--alarm"]
    shell(tmp_path / "photos", *words)
    for k, result in enumerate(sorted((tmp_path / "out").glob("*.png"))):
        (tmp_path / "photos" / f"holiday{k}.png").write_bytes(result.read_bytes())
    assert "0 scored, 1 kept, 0 failed" in shell(tmp_path / "photos", *words).stdout
    result = shell(tmp_path / "out" / "a_heat.png", *words)
    assert result.exit_code == 2 and "result of an earlier run" in lines(result)[0]


def test_a_photograph_is_scored_at_another_size_and_its_results_have_its_own(shell, named, tmp_path):
    path = picture(tmp_path / "photos" / "a.png", 80, 200)
    words = [tmp_path / "photos", "--model", named, "--out", tmp_path / "out", "--classes"]
    shell(*words)
    whole = np.load(tmp_path / "out/a.npz")["score"]
    assert "1 scored" in shell(*words, "--resize", "100").stdout  # other scores, no kept ones
    with np.load(tmp_path / "out/a.npz") as data:
        small, classes = data["score"], data["classes"]
    red = np.asarray(Image.open(path).resize((100, 40), Image.Resampling.BILINEAR))
    expected = torch.nn.functional.interpolate(torch.from_numpy(red[None, None, :, :, 0].astype(np.float32)), (80, 200), mode="bilinear")
    assert small.shape == whole.shape == (80, 200) and np.allclose(small, expected[0, 0] / 255, atol=1e-5)
    assert np.array_equal(classes, red.argmax(2).repeat(2, 0).repeat(2, 1))


def test_the_tile_of_a_file_is_fixed_and_that_of_the_package_is_not(shell, named, tmp_path):
    picture(tmp_path / "photos" / "a.png", 70, 100)
    words = [tmp_path / "photos", "--out", tmp_path / "out"]
    refused = shell(*words, "--model", named, "--tile", "64x64")
    assert refused.exit_code == 2 and "the tile of its graph, 32x48" in lines(refused)[0]
    assert shell(*words, "--tile", "64").exit_code == shell(*words, "--tile", "8x64").exit_code == 2
    assert "1 scored" in shell(*words, "--tile", "64x96").stdout and "1 scored" in shell(*words, "--tile", "64x64").stdout


def judged(result):
    "The first number of the table."
    return float(result.stdout.splitlines()[-1].split()[0])


def test_what_masks_mean(shell, named, tmp_path):
    path = picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "photos" / "b.png", seed=1)
    odd = np.asarray(Image.open(path))[:, :, 0] > 200
    (tmp_path / "masks").mkdir()
    ap = {}
    for name, values, words in (("benchmark", (0, 1), []), ("painted", (0, 255), []), ("classes", (3, 7), ["--anomaly", "7"]),
                                ("inverse", (3, 7), ["--anomaly", "3"])):
        Image.fromarray(np.where(odd, values[1], values[0]).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
        result = shell(tmp_path / "photos", "--model", named, "--out", tmp_path / "out", "--masks", tmp_path / "masks", *words)
        assert result.exit_code == 0 and "1 of 2 images have no mask" in result.stderr, result.output
        assert ("255 counts as the anomaly" in result.stderr) == (name == "painted")
        ap[name] = judged(result)
    assert ap["benchmark"] == ap["painted"] == ap["classes"] == 100.0 > ap["inverse"]
    assert shell(tmp_path / "photos", "--model", named, "--out", tmp_path / "out", "--anomaly", "7").exit_code == 2


def test_void_stays_void_where_a_mask_has_a_one(tmp_path):
    for name, values in (("a", [0, 255]), ("b", [0, 1, 255])):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.png")
    jobs = [Job(tmp_path / f"{n}.jpg", n, tmp_path / f"{n}.png") for n in "ab"]
    assert mask_meaning(jobs) == ({0: 0, 1: 1}, "") and mask_meaning(jobs[:1])[0] == {0: 0, 255: 1}


def test_a_second_output_is_not_trusted_either(tmp_path):
    def other(kind, sizes):
        model = graph()
        model.graph.node.append(helper.make_node("Cast", ["scores"], ["classes"], to=kind))
        model.graph.output.append(helper.make_tensor_value_info("classes", kind, sizes))
        return written(model, tmp_path / "c.onnx")

    saved = load_detector(other(TensorProto.UINT8, ("n", 32, 48)))
    assert saved.both(torch.zeros(1, 3, 32, 48, dtype=torch.uint8))[1].dtype == torch.uint8
    for kind, sizes in ((TensorProto.INT64, ("n", 32, 48)), (TensorProto.UINT8, ("n", 32, 40)), (TensorProto.UINT8, (1, 32, 48))):
        with pytest.raises(ValueError, match="classes"):
            load_detector(other(kind, sizes))
