"""What the tests of the command line share: a few small images, a whole run on them, and the fixtures around each test."""

from __future__ import annotations

import os
import subprocess
import sys

import fastnn
import numpy as np
import pytest
from fastnn import cli
from PIL import Image

CLASSES = ("blue", "green", "red")
FILES = [
    "backup.safetensors",
    "confusion_matrix.png",
    "history.csv",
    "learning_curves.png",
    "model.safetensors",
    "predictions.png",
    "settings.json",
    "summary.json",
]
SAME = ("model.safetensors", "history.csv", "settings.json")  # files without times in them


def write_images(folder, classes=CLASSES, train=22, test=5, seed=0):
    """Noise tinted by class: train/<class>/*.png and test/<class>/*.png, few and easily told apart."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), np.uint8)
                pixels[..., label % 3] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{i * len(classes) + label:04d}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """An empty cache and an empty working folder, and the number of threads as it was."""
    monkeypatch.setenv("FASTNN_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTNN_DEBUG", raising=False)
    if path := os.environ.get("PYTHONPATH"):  # for the processes that are started here, elsewhere
        monkeypatch.setenv("PYTHONPATH", os.path.abspath(path))
    monkeypatch.chdir(tmp_path)
    threads = fastnn.get_num_threads()
    yield
    fastnn.set_num_threads(threads)


def arguments(images, out, *more):
    return ["train", "--data", str(images), "--out", str(out), "--epochs", "3", "--batch-size", "8", *more]


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The folder of a whole run, made by `arguments`."""
    out = tmp_path_factory.mktemp("run") / "a run"
    assert cli.main(arguments(images, out)) == 0
    return out


def contents(folder, names=SAME):
    return {name: (folder / name).read_bytes() for name in names}


def error_of(capsys, status, expected=1):
    """The one line on stderr that goes with this exit status."""
    captured = capsys.readouterr()
    assert status == expected, captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("fastnn: error: ")
    return lines[0]


def python(code, *argv, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
