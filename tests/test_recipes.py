"Recipes: each is built and trained a little; one is killed and gone on with; two processes; files of strangers."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from densegen.course.cli import app
from densegen.course.recipes import RECIPES, Kind, built, data_for, recipe_named
from densegen.course.trained import Training, _schedule, _started, export_trained, load_trained, train_recipe
from densegen.workbench.checkpoint import CheckpointError
from densegen.workbench.training import fit

ROOT = Path(__file__).parents[1]
SMOKE = {"scale": "smoke", "device": "cpu"}
EAGER = '''
import sys
import densegen.workbench.training as training
training.SAVE_EVERY = 0.0  # a checkpoint after each update
from densegen.course.cli import main
sys.argv = ["densegen", *sys.argv[1:]]
main()
'''


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "dense-hybrid"])
def test_small_version_learns_is_measured_and_loads_as_it_is(name, tmp_path):
    metrics = train_recipe(Training(name, tmp_path, steps=2, **SMOKE))
    assert all(0 <= value < 20 for value in metrics.values())
    model = load_trained(tmp_path / "model.safetensors")
    state = model.state_dict()
    for key, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(state[key], tensor)
    assert not model.training and not any("states" in key for key in state), "a replay buffer is no part of the weights"


def test_the_hybrid_is_exported_as_a_detector(tmp_path):
    pytest.importorskip("onnxscript")
    from densegen.dense.detector_file import load_detector

    recipe = recipe_named("dense-hybrid")
    data = data_for(recipe, small=True)
    fit(built(recipe, data.kind, True), data.train, steps=1, batch_size=2, lr=1e-4, checkpoint=tmp_path / "training.ckpt")
    note = {"recipe": "dense-hybrid", "scale": "smoke", "seed": 0, "data": "streets", "licence": "", "model": recipe.small}
    (tmp_path / "config.json").write_text(json.dumps(note | {"kind": data.kind._asdict()}))
    paths = export_trained(tmp_path, "cpu")
    assert [path.name for path in paths] == ["model.safetensors", "README.md", "detector.onnx"]
    x = torch.randint(0, 256, (1, 3, 96, 192), dtype=torch.uint8)
    expected = load_trained(paths[0]).anomaly_score(x)
    torch.testing.assert_close(load_detector(paths[2]).score(x), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("dense-hybrid", "residual-flow")])
def test_the_paper_s_size_can_be_built(name):
    "On meta, where it takes no memory: a setting that a model no longer has would be met after a night in a queue."
    with torch.device("meta"):
        model = built(recipe_named(name), Kind((3, 32, 32)))
    assert sum(p.numel() for p in model.parameters()) > 1e6


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_recipe(Training("glow", whole, **SMOKE))
    words = [sys.executable, "-c", EAGER, "train", "glow", "--scale", "smoke", "--device", "cpu", "--out", str(killed)]
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of two threads round otherwise than one's
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (killed / "training.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists(), "it had ended before it was killed"
    export_trained(killed, "cpu")  # what there is, before it is trained further
    early = load_file(killed / "model.safetensors")
    train_recipe(Training("glow", killed, resume=True, **SMOKE))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert any(not torch.equal(early[key], theirs[key]) for key in theirs)


def test_a_folder_belongs_to_one_training(tmp_path):
    train_recipe(Training("jem", tmp_path, steps=1, **SMOKE))
    with pytest.raises(CheckpointError, match="--resume"):
        train_recipe(Training("jem", tmp_path, steps=1, **SMOKE))
    with pytest.raises(CheckpointError, match="seed 0"):
        train_recipe(Training("jem", tmp_path, steps=1, seed=1, resume=True, **SMOKE))
    assert (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().startswith("class")
    card = (tmp_path / "README.md").read_text()
    assert "CC BY 4.0" in card and "Grathwohl" in card and "seed 0" in card and "error" in card


def test_two_processes_of_torchrun_and_of_slurm_end_alike(tmp_path):
    "The lines of the page on clusters, at scale smoke; each model is trained by two processes with half of the batch."
    page = (ROOT / "nbs" / "cluster.md").read_text()
    torchrun = re.search(r"^torchrun .*$", page, re.M)[0]
    script = re.search(r"^```bash\n(#!/bin/bash\n.*?)^```", page, re.M | re.S)[1]
    env = os.environ | {"PATH": f"{ROOT / 'tests'}:{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for line in (torchrun, script):
        small = line.replace("--precision bf16-mixed", "--scale smoke --device cpu").replace("--nproc_per_node 4", "--nproc_per_node 2")
        found = subprocess.run(["bash", "-c", small], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr[-2000:]
        assert found.stdout.count("weights:") == 1, "only the first process speaks"
    one, two = (load_file(tmp_path / "runs" / name / "model.safetensors") for name in ("glow", "glow-slurm"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_who_started_the_processes_says_how_many(monkeypatch):
    assert _started() == (1, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert _started() == (4, 2)


def test_the_rise_ends_before_the_training():
    assert _schedule(1000, 100, False)(0.5) == 1.0 and _schedule(10, 100, False)(0.05) == pytest.approx(0.5)
    assert _schedule(0, 100, False)(0.0) == 1.0 and _schedule(0, 100, True)(1.0) == pytest.approx(0.0)


HOSTILE = {
    "recipe": "os.system", "data": None, "kind": {"shape": [10**9, 8, 8], "levels": 17, "classes": 10},
    "model": {"levels": 2, "steps": 2, "width": 10**9},
}


@pytest.mark.parametrize("what", [*HOSTILE, "weights", "text"])
def test_a_stranger_s_file_is_refused_in_one_line(what, tmp_path):
    train_recipe(Training("glow", tmp_path / "good", steps=1, **SMOKE))
    file, bad = tmp_path / "good" / "model.safetensors", tmp_path / "bad.safetensors"
    with safe_open(file, "pt") as good:
        note = json.loads(good.metadata()["densegen"])
    tensors = load_file(file)
    if what in HOSTILE:
        note[what] = HOSTILE[what]
    if what == "weights":
        tensors.pop(next(iter(tensors)))
    save_file(tensors, bad, {"densegen": "{" if what == "text" else json.dumps(note)})
    if what == "data":  # it is only told
        load_trained(bad)
        return
    with pytest.raises(ValueError, match="expected weights as `densegen train` writes them"):
        load_trained(bad)


@pytest.mark.parametrize("words", [["galow"], ["glow", "--scale", "cpu"], ["glow", "--strategy", "fsdp"], ["glow", "--data", "minst"],
                                   ["glow", "--device", "abacus"]])
def test_senseless_requests_end_with_two(words, tmp_path):
    smoke = [] if "--scale" in words else ["--scale", "smoke"]
    found = CliRunner().invoke(app, ["train", *words, *smoke, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2 and not (tmp_path / "out" / "config.json").exists()
