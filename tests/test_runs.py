"""`fastnn train`: what a run leaves and prints, what it refuses, and how it is stopped and gone on with."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys

import fastnn
import numpy as np
import pytest
from fastnn import _backend, cli, datasets, models, plots, runs
from PIL import Image
from run_files import (
    CLASSES,
    FILES,
    apart,
    arguments,
    contents,
    error_of,
    finished,
    images,
    python,
    write_images,
)

__all__ = ["apart", "finished", "images"]  # fixtures

# ---------------------------------------------------------------------- a run and its folder


def test_folder_of_a_run(finished):
    assert sorted(path.name for path in finished.iterdir()) == FILES
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(finished / name) as picture:
                picture.load()
                assert min(picture.size) > 300


def test_history_and_summary(finished):
    with (finished / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["test_accuracy"] == float(rows[-1]["val_accuracy"])
    assert summary["test_loss"] == float(rows[-1]["val_loss"])
    assert summary["test_accuracy"] >= 0.8  # tints are easy: something was learnt
    assert float(rows[0]["loss"]) > summary["train_loss"]
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 3 * 66 / summary["seconds"]  # seconds hold validation, too
    assert (summary["seed"], summary["epochs"], summary["dataset"]) == (0, 3, "cifar10")
    assert summary["class_names"] == list(CLASSES)
    assert {name: summary["per_class"][name]["support"] for name in CLASSES} == dict.fromkeys(CLASSES, 5)
    assert summary["versions"] == {
        "fastnn": fastnn.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": np.__version__,
    }
    assert summary["instruction_set"] == _backend.instruction_set()[0]
    assert summary["settings"] == {
        "dataset": "cifar10",
        "data_sha256": summary["settings"]["data_sha256"],
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.001,
        "augment": False,
        "seed": 0,
        "device": "cpu",
        "precision": "float32",
    }


def test_saved_model_has_the_final_scores(finished, images):
    model = models.load_model(finished / "model.safetensors")
    _, (x, y) = datasets.cifar10.load_data(images)
    scores = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    summary = json.loads((finished / "summary.json").read_text())
    assert scores == {"loss": summary["test_loss"], "accuracy": summary["test_accuracy"]}


def test_what_training_prints(images, tmp_path, capsys):
    assert cli.main(arguments(images, tmp_path / "out")) == 0
    text = capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert "66 training and 15 test images, 3 classes" in text
    assert all(f"Epoch {i}/3 - " in text for i in (1, 2, 3))
    assert (
        f"test accuracy {summary['test_accuracy']:.4f}, loss {summary['test_loss']:.4f} (15 images)" in text
    )
    lines = text.splitlines()
    header = next(
        i for i, line in enumerate(lines) if line.split() == ["precision", "recall", "f1-score", "support"]
    )
    assert [line.split()[0] for line in lines[header + 2 : header + 5]] == list(CLASSES)
    assert "198 images in" in text  # 3 epochs of 66


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bits_again(images, finished, tmp_path, threads):
    assert cli.main(arguments(images, tmp_path / "again", "--threads", str(threads))) == 0
    assert contents(tmp_path / "again") == contents(finished)
    assert json.loads((tmp_path / "again/summary.json").read_text())["threads"] == threads


@pytest.mark.parametrize("other", [["--seed", "1"], ["--augment"], ["--learning-rate", "0.002"]])
def test_other_settings_other_bits(images, finished, tmp_path, other):
    assert cli.main(arguments(images, tmp_path / "other", *other)) == 0
    assert contents(tmp_path / "other")["model.safetensors"] != contents(finished)["model.safetensors"]


def test_default_folder_names_data_and_seed(images, tmp_path):
    assert cli.main(["train", "--data", str(images), "--epochs", "1", "--seed", "7"]) == 0
    assert (tmp_path / "runs/cifar10-seed7/summary.json").exists()


def test_cached_cifar10_is_used(monkeypatch, images, tmp_path, capsys):
    monkeypatch.setenv("FASTNN_HOME", str(images))
    assert cli.main(["train", "--epochs", "1"]) == 0
    assert "data: cifar10" in capsys.readouterr().out


@pytest.fixture
def few_digits(monkeypatch):
    (x, y), (test_x, test_y) = datasets.digits.load_data()
    few = (x[:100], y[:100]), (test_x[:50], test_y[:50])
    monkeypatch.setattr(datasets.digits, "load_data", lambda: few)


@pytest.mark.usefixtures("few_digits")
def test_digits_are_the_fallback(capsys, tmp_path):
    assert cli.main(["train", "--epochs", "1"]) == 0
    text = capsys.readouterr().out
    assert "digits" in text
    assert "fastnn download cifar10" in text
    assert "--data" in text
    assert (tmp_path / "runs/digits-seed0/summary.json").exists()


@pytest.mark.usefixtures("few_digits")
def test_digits_are_shifted_but_never_mirrored(capsys, tmp_path):
    assert cli.main(["train", "--dataset", "digits", "--augment", "--epochs", "1", "--out", "d"]) == 0
    assert "not mirrored" in capsys.readouterr().out
    layers = [type(layer).__name__ for layer in models.load_model(tmp_path / "d/model.safetensors").layers]
    assert "RandomTranslation" in layers
    assert "RandomFlip" not in layers


def test_photographs_are_mirrored_and_shifted(images, tmp_path):
    assert cli.main(["train", "--data", str(images), "--augment", "--epochs", "1", "--out", "p"]) == 0
    layers = [type(layer).__name__ for layer in models.load_model(tmp_path / "p/model.safetensors").layers]
    assert layers[:3] == ["Rescaling", "RandomFlip", "RandomTranslation"]


def test_digits_take_no_path(images, capsys):
    assert "digits" in error_of(capsys, cli.main(["train", "--dataset", "digits", "--data", str(images)]))


# ---------------------------------------------------------------------- refusals


def test_finished_run_is_not_overwritten(finished, images, capsys):
    before = contents(finished, FILES)
    message = error_of(capsys, cli.main(arguments(images, finished)))
    assert str(finished) in message
    assert "--out" in message
    assert contents(finished, FILES) == before


def test_resuming_a_finished_run_leaves_it(finished, images, capsys):
    before = contents(finished, FILES)
    assert cli.main(arguments(images, finished, "--resume")) == 0
    assert cli.main(["train", "--resume", "--out", str(finished)]) == 0
    accuracy = json.loads((finished / "summary.json").read_text())["test_accuracy"]
    assert capsys.readouterr().out.count(f"is finished: test accuracy {accuracy:.4f}") == 2
    assert contents(finished, FILES) == before


@pytest.mark.parametrize(
    ("option", "was", "now"),
    [
        ("--epochs 4", "epochs was 3", "now it is 4"),
        ("--batch-size 16", "batch_size was 8", "now it is 16"),
        ("--learning-rate 0.01", "learning_rate was 0.001", "now it is 0.01"),
        ("--seed 3", "seed was 0", "now it is 3"),
        ("--augment", "augment was False", "now it is True"),
        ("--precision winograd", "precision was float32", "now it is winograd"),
        ("--dataset digits", "dataset was cifar10", "now it is digits"),
    ],
)
def test_resuming_with_other_settings(finished, capsys, option, was, now):
    message = error_of(capsys, cli.main(["train", "--resume", "--out", str(finished), *option.split()]))
    assert was in message
    assert now in message


def test_resuming_names_every_difference(finished, images, capsys):
    message = error_of(
        capsys, cli.main(arguments(images, finished, "--resume", "--seed", "3", "--epochs", "9"))
    )
    assert "epochs was 3, now it is 9; seed was 0, now it is 3" in message


def test_missing_data(capsys, tmp_path):
    message = error_of(capsys, cli.main(["train", "--data", str(tmp_path / "nowhere")]))
    assert "nowhere" in message
    assert not (tmp_path / "runs").exists()


def test_cuda_is_refused_before_anything_is_written(images, capsys, tmp_path, no_cuda):
    message = error_of(capsys, cli.main(["train", "--data", str(images), "--device", "cuda"]))
    assert no_cuda in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "safetensors"])
def test_missing_package_is_named_before_training(images, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = error_of(capsys, cli.main(["train", "--data", str(images)]))
    assert {"sklearn": "scikit-learn"}.get(package, package) in message
    assert 'pip install "fastnn-kernels[train]"' in message


def test_nan_ends_the_run(images, tmp_path, capsys):
    argv = ["train", "--data", str(images), "--learning-rate", "1e30", "--out", "nan"]
    for again in ([], ["--resume"]):
        message = error_of(capsys, cli.main([*argv, *again]))
        assert "loss" in message
        assert "--learning-rate" in message
        assert not (tmp_path / "nan/model.safetensors").exists()
        assert not (tmp_path / "nan/summary.json").exists()


# ---------------------------------------------------------------------- stopped and gone on

# Runs the command with a backup every 3 batches, and kills the process at the `count`-th call of a function.
KILLED = """
import os, signal, sys
from fastnn import cli, plots, runs
runs.BACKUP_IMAGES = 3 * 8
runs.Stopwatch.batches_at_once = lambda self: 1
owner, name, count = {"batch": (runs.Stopwatch, "on_train_batch_end"), "epoch": (runs.Stopwatch, "on_epoch_end"),
                      "rename": (os, "replace"), "picture": (plots, "confusion_matrix")}[sys.argv[1]] + (int(sys.argv[2]),)
original = getattr(owner, name)
def killing(*arguments, **keywords):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **keywords)
setattr(owner, name, killing)
sys.exit(cli.main(sys.argv[3:]))
"""


def test_killed_anywhere_and_resumed_to_the_same_bits(images, finished, tmp_path):
    # 9 batches an epoch. In turn: before any backup; in mid-epoch; at the end of an epoch, after its line in
    # history.csv and before its backup; with a new backup written but not yet in its place; after the last epoch.
    out = tmp_path / "killed"
    for where, count in (("batch", 2), ("batch", 5), ("epoch", 1), ("rename", 4), ("picture", 1)):
        result = python(KILLED, where, count, *arguments(images, out, "--resume"))
        assert result.returncode == -signal.SIGKILL, (where, result.stdout, result.stderr)
        assert not (out / "summary.json").exists()
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert contents(out) == contents(finished)
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("batch", [1, 13])
def test_stopped_and_resumed_to_the_same_bits(images, finished, tmp_path, monkeypatch, capsys, number, batch):
    out, seen = tmp_path / "stopped run", []
    end = runs.Stopwatch.on_train_batch_end

    def stop(self, *arguments):
        end(self, *arguments)
        seen.append(arguments)
        if len(seen) == batch:
            signal.raise_signal(number)

    monkeypatch.setattr(runs.Stopwatch, "on_train_batch_end", stop)
    monkeypatch.setattr(runs.Stopwatch, "batches_at_once", lambda self: 1)
    assert cli.main(arguments(images, out)) == 130
    assert len(seen) == batch  # stopped at once, and the batch was whole
    text = capsys.readouterr().err
    assert f"fastnn train --resume --out '{out}'" in text
    assert (out / "backup.safetensors").exists()

    assert "unfinished" in error_of(capsys, cli.main(arguments(images, out)))
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert len(seen) == 27  # no batch was trained twice
    assert contents(out) == contents(finished)
    assert "198 images in" in capsys.readouterr().out  # the stopwatch went on, too


def test_ctrl_c_from_outside(images, tmp_path):
    command = arguments(images, tmp_path / "out", "--epochs", "100000")
    with subprocess.Popen(
        [sys.executable, "-m", "fastnn", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:  # an epoch's line shows at once, though the output is no terminal
            if line.startswith("Epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: fastnn train --resume" in errors
    assert "Traceback" not in errors


def test_nothing_to_resume_is_a_beginning(images, finished, tmp_path, capsys):
    assert cli.main(arguments(images, tmp_path / "new", "--resume")) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert contents(tmp_path / "new") == contents(finished)


def test_resuming_with_changed_images(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "_train", lambda *_: None)  # begun, not finished
    assert cli.main(arguments(images, tmp_path / "out")) == 0
    other = write_images(tmp_path / "other", seed=1)
    message = error_of(capsys, cli.main(arguments(other, tmp_path / "out", "--resume")))
    assert "data_sha256" in message


def test_pictures_are_whole_or_not_there(images, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(plots, "confusion_matrix", fail)
    assert "disk full" in error_of(capsys, cli.main(arguments(images, tmp_path / "out")))
    assert not (tmp_path / "out/summary.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "--out", "out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
