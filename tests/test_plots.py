"""Pictures: drawn from what they are given, whole files, nothing global touched."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from fastnn import plots
from PIL import Image

NAMES = ("cat", "dog", "bird")
RED = np.array([0xD1, 0x24, 0x2F])  # plots.WRONG


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def close_to(picture, colour):
    return np.abs(picture - colour).max(axis=-1) < 8


def history(epochs=4, **change):
    falling = [1 / (i + 1) for i in range(epochs)]
    rising = [1 - x / 2 for x in falling]
    return {"accuracy": rising, "loss": falling, "val_accuracy": rising, "val_loss": falling, **change}


def samples(n=12, channels=3, dtype=np.uint8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (n, 8, 8, channels)).astype(dtype) / (1 if dtype == np.uint8 else 255)
    labels = np.arange(n) % 3
    return images.astype(dtype), labels, np.eye(3)[labels]


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved, to look into."""
    figures = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("epochs", [1, 2, 12, 13, 50])
def test_learning_curves(tmp_path, drawn, epochs):
    given = history(epochs, val_loss=[2.0] * epochs)
    plots.learning_curves(given, tmp_path / "curves.png", title="of a run")
    panels = {axes.get_title("left"): axes for axes in drawn[0].axes}
    assert set(panels) == {"loss", "accuracy"}
    for name, axes in panels.items():
        lines = [list(line.get_ydata()) for line in axes.lines]
        assert lines == [given[name], given[f"val_{name}"]]
        assert all(list(line.get_xdata()) == list(range(1, epochs + 1)) for line in axes.lines)
        ticks = axes.get_xticks()
        assert 1 <= len(ticks) <= 12
        assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
    assert sorted(texts(panels["loss"])) == ["test 2.000", f"training {given['loss'][-1]:.3f}"]
    assert f"test {given['val_accuracy'][-1]:.1%}" in texts(panels["accuracy"])
    assert close_to(pixels(tmp_path / "curves.png"), np.array([0x1F, 0x6F, 0xEB])).any()


def test_labels_of_curves_that_end_together_stay_apart(tmp_path, drawn):
    plots.learning_curves(history(), tmp_path / "curves.png")
    for axes in drawn[0].axes:
        low, high = sorted(text.xy[1] for text in axes.texts)
        bottom, top = axes.get_ylim()
        assert high - low >= 0.05 * (top - bottom)


def test_learning_curves_without_test_images(tmp_path, drawn):
    plots.learning_curves({"loss": [2.0, 1.0], "learning_rate": [0.1, 0.1]}, tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert texts(axes) == ["training 1.000"]


@pytest.mark.parametrize("empty", [{}, {"loss": []}])
def test_learning_curves_of_nothing(tmp_path, empty):
    with pytest.raises(ValueError, match="no finished epoch"):
        plots.learning_curves(empty, tmp_path / "curves.png")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_predictions_mark_what_is_wrong(tmp_path, drawn, channels, dtype):
    images, labels, chances = samples(12, channels, dtype)
    plots.predictions(images, labels, chances, NAMES, tmp_path / "right.png")
    assert not close_to(pixels(tmp_path / "right.png"), RED).any()
    chances[5] = [0.7, 0.3, 0.0]  # a bird (2) taken for a cat
    plots.predictions(images, labels[:, None], chances, NAMES, tmp_path / "wrong.png")
    assert close_to(pixels(tmp_path / "wrong.png"), RED).any()
    figure = drawn[1]
    assert figure.get_suptitle() == "12 of 12 test images: 11 right, 1 wrong (red)"
    shown = [axes for axes in figure.axes if axes.images]
    assert texts(shown[5]) == ["cat (70%)\ntrue: bird"]
    assert texts(shown[4]) == ["dog (100%)"]
    assert [len(axes.patches) for axes in shown] == [0] * 5 + [1] + [0] * 6


@pytest.mark.parametrize(
    ("n", "count", "expected"), [(1, 40, [0]), (5, 40, range(5)), (101, 5, [0, 25, 50, 75, 100])]
)
def test_predictions_are_spread_over_the_set(tmp_path, drawn, n, count, expected):
    images, labels, chances = samples(n)
    images[:, 0, 0, 0] = np.arange(n)
    plots.predictions(images, labels, chances, NAMES, tmp_path / "p.png", count=count)
    shown = [int(axes.images[0].get_array()[0, 0, 0]) for axes in drawn[0].axes if axes.images]
    assert shown == list(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(11, int)}, "12 images, 11 labels and 12 predictions"),
        ({"labels": np.full(12, 3)}, "labels lie in 3..3, but there are 3 classes"),
        ({"labels": np.full(12, -1)}, "labels lie in -1..-1"),
        ({"probabilities": np.zeros((3, 3))}, "3 predictions"),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, change, message):
    images, labels, chances = samples()
    arguments = {"images": images, "labels": labels, "probabilities": chances, **change}
    with pytest.raises(ValueError, match=message):
        plots.predictions(**arguments, class_names=NAMES, path=tmp_path / "p.png")
    with pytest.raises(ValueError, match="at least 1"):
        plots.predictions(images[:0], labels[:0], chances[:0], NAMES, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_confusion_matrix(tmp_path, drawn):
    counts = np.array([[1200, 0, 3], [40, 60, 0], [0, 0, 7]])
    plots.confusion_matrix(counts, NAMES, tmp_path / "m.png")
    (axes,) = drawn[0].axes
    placed = {(round(text.get_position()[1]), round(text.get_position()[0])): text for text in axes.texts}
    assert {place: text.get_text() for place, text in placed.items()} == {
        (0, 0): "1200",
        (0, 2): "3",
        (1, 0): "40",
        (1, 1): "60",
        (2, 2): "7",
    }
    assert placed[1, 0].get_color() == plots.WRONG  # 40% of the dogs
    assert placed[0, 2].get_color() != plots.WRONG
    assert axes.get_title("left").startswith("96.72% of 1,310 test images right (red")
    np.testing.assert_allclose(axes.images[0].get_array().sum(axis=1), 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)


def test_confusion_matrix_with_a_class_nobody_has(tmp_path, drawn):
    plots.confusion_matrix(np.diag([3, 0, 2]), NAMES, tmp_path / "m.png")
    assert "0" in texts(drawn[0].axes[0])
    assert drawn[0].axes[0].get_title("left") == "100.00% of 5 test images right"


@pytest.mark.parametrize("counts", [np.ones((2, 3)), np.ones((2, 2)), np.zeros((3, 3)), np.ones(9)])
def test_confusion_matrix_that_does_not_fit(tmp_path, counts):
    with pytest.raises(ValueError, match="for 3 classes"):
        plots.confusion_matrix(counts, NAMES, tmp_path / "m.png")


def test_same_input_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        plots.predictions(*samples(), NAMES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_picture_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    path.write_text("the old one")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.confusion_matrix(np.eye(3), NAMES, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
    assert path.read_text() == "the old one"


def test_pyplot_is_never_loaded(tmp_path):
    code = """
import sys
import fastnn.plots
assert "matplotlib" not in sys.modules, "matplotlib is loaded at import"
fastnn.plots.confusion_matrix([[1, 0], [0, 1]], ("a", "b"), sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tmp_path / "m.png")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'matplotlib: pip install "fastnn-kernels\[train\]"'):
        plots.learning_curves(history(), tmp_path / "curves.png")
