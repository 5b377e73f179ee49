"""The command line, in process where that shows all there is, in a process of its own where signals and imports matter."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fastnn import cli

TRAIN = ["train", "--dataset", "digits", "--epochs", "2", "--seed", "3"]
FILES = {"history.csv", "summary.json", "model.safetensors", "settings.json", "backup.safetensors"}
PICTURES = {"learning_curves.png", "predictions.png", "confusion_matrix.png"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert cli.main([*TRAIN, "--out", str(folder)]) == 0
    return folder


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "fastnn", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_leaves_its_files(run_folder):
    assert {path.name for path in run_folder.iterdir()} >= FILES | PICTURES
    for picture in PICTURES:
        assert (run_folder / picture).read_bytes().startswith(b"\x89PNG")
    summary = json.loads((run_folder / "summary.json").read_text())
    assert 0.5 < summary["test_accuracy"] <= 1
    assert summary["images_per_second"] > 0
    assert {"test_loss", "seconds"} <= set(summary)
    with (run_folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] in (["0", "1"], ["1", "2"])
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(rows[0])


def test_a_finished_run_is_not_overwritten(run_folder, capsys):
    before = (run_folder / "model.safetensors").read_bytes()
    assert cli.main([*TRAIN, "--out", str(run_folder)]) == 1
    error = capsys.readouterr().err
    assert "holds a finished run" in error
    assert "--out" in error
    assert (run_folder / "model.safetensors").read_bytes() == before


def test_resuming_with_other_settings_names_them(run_folder, capsys):
    arguments = [
        "train",
        "--dataset",
        "digits",
        "--epochs",
        "2",
        "--seed",
        "4",
        "--out",
        str(run_folder),
        "--resume",
    ]
    assert cli.main(arguments) == 1
    assert "seed" in capsys.readouterr().err


def test_threads_do_not_change_a_byte(run_folder, tmp_path):
    process = command(*TRAIN, "--threads", 1, "--out", tmp_path / "one")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    for name in ("model.safetensors", "history.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (run_folder / name).read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_anywhere_and_resumed_gives_the_same_bytes(run_folder, tmp_path, how):
    moments = random.Random(5)
    folder = tmp_path / "cut"
    for _ in range(4):
        process = command(*TRAIN, "--out", folder, *(["--resume"] if folder.exists() else []))
        time.sleep(moments.uniform(0.5, 3.0))
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
        if how == signal.SIGINT and process.returncode:
            assert process.returncode in (130, -signal.SIGINT), error  # the latter before Python has started
    process = command(*TRAIN, "--out", folder, *(["--resume"] if folder.exists() else []))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert (folder / "model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()
    assert (folder / "history.csv").read_bytes() == (run_folder / "history.csv").read_bytes()


def test_evaluate(run_folder, capsys):
    assert cli.main(["evaluate", str(run_folder)]) == 0
    out = capsys.readouterr().out
    accuracy = json.loads((run_folder / "summary.json").read_text())["test_accuracy"]
    assert f"{accuracy:.4f}" in out
    assert all(word in out for word in ("precision", "recall", "f1-score"))


def test_predict(run_folder, tmp_path, capsys):
    from fastnn import datasets
    from PIL import Image

    _, (images, labels) = datasets.digits.load_data()
    paths = []
    for i in range(5):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(images[i]).resize((50, 40)).save(paths[-1])
    assert cli.main(["predict", str(run_folder), *paths]) == 0
    out = capsys.readouterr().out
    assert all(path in out for path in paths)
    assert "%" in out
    assert len(np.unique(labels)) == 10
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    assert cli.main(["predict", str(run_folder), str(tmp_path / "broken.png")]) == 1
    assert "broken.png" in capsys.readouterr().err


def test_info_explains_that_cuda_is_absent(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "NumPy" in out
    assert "threads" in out
    assert "CUDA" in out
    assert "no CUDA backend" in out


def test_info_never_crashes_without_the_native_module(tmp_path):
    code = (
        "import sys; sys.modules['fastnn._cpu'] = None; from fastnn import cli; sys.exit(cli.main(['info']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "_cpu" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--epochs", "0"], 2, "--epochs"),
        (["train", "--learning-rate", "nan"], 2, "--learning-rate"),
        (["train", "--dataset", "imagenet"], 2, "imagenet"),
        (["bake"], 2, "bake"),
        ([], 2, "COMMAND"),
        (["train", "--data", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["train", "--device", "cuda", "--dataset", "digits"], 1, "cuda"),
        (["evaluate", "/nowhere/model.safetensors"], 1, "/nowhere"),
    ],
)
def test_errors_are_one_line(arguments, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert status == 2 or len(error.splitlines()) == 1


def test_help_as_a_module():
    process = command("--help")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert all(name in out for name in ("train", "evaluate", "predict", "gradcheck", "download", "info"))


def test_the_examples_run(tmp_path):
    from pathlib import Path

    examples = Path(__file__).resolve().parent.parent / "examples"
    result = subprocess.run(
        [sys.executable, examples / "worked_example.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    tutorial = (examples / "cifar10_cnn.py").read_text()
    assert "from fastnn import datasets, layers, losses, models" in tutorial
    compile(tutorial, "cifar10_cnn.py", "exec")
