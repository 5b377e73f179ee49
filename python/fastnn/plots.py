"""Pictures of a training run: learning curves, a grid of predictions, the confusion matrix.

Each function takes arrays and a path and writes one PNG file. Figures are drawn on their own canvas, never
through pyplot, so nothing global changes and no display is needed. Needs matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._typing import Array

TRAIN, TEST = "#7a869a", "#1f6feb"  # grey for what was trained on, blue for what counts
RIGHT, WRONG = "#3d4754", "#d1242f"
OFTEN = 0.1  # the share of a class that is worth a second look where it is taken for another


def learning_curves(
    history: Mapping[str, Sequence[float]], path: str | os.PathLike[str], *, title: str = "Learning curves"
) -> None:
    """Draw loss and accuracy against the epoch, of the training and (where present) the test images.

    history: as `History.history`, lists of equal length under loss, accuracy, val_loss, val_accuracy. Every
    metric gets a panel of its own; `val_` and plain values share one. Raises ValueError if it is empty.
    """
    names = [name for name in history if not name.startswith("val_") and name != "learning_rate"]
    if not names or not len(history[names[0]]):
        raise ValueError("learning_curves: the history holds no finished epoch")
    figure = _figure(5.2 * len(names), 4.2)
    figure.suptitle(title, fontsize=13)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        last: list[tuple[float, str, str]] = []
        epochs = len(history[name])
        for key, label, colour in ((name, "training", TRAIN), (f"val_{name}", "test", TEST)):
            values = np.asarray(history.get(key, ()), dtype=float)
            if values.size:
                line = {"color": colour, "linewidth": 2, "marker": "o", "markersize": 3.5, "clip_on": False}
                axes.plot(np.arange(1, epochs + 1), values, **line)
                last.append((float(values[-1]), label, colour))
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_xlim(min(0.5, 1 - 0.04 * epochs), epochs)
        step = -(-epochs // 12)
        axes.set_xticks(np.arange(step, epochs + 1, step))
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if "accuracy" in name:
            axes.yaxis.set_major_formatter(_percent())
        if name == "loss":
            axes.set_ylim(bottom=0)
        _end_labels(axes, epochs, last, ".1%" if "accuracy" in name else ".3f")
    _save(figure, path)


def predictions(
    images: Array,
    labels: Array,
    probabilities: Array,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    count: int = 40,
    columns: int = 8,
) -> None:
    """Draw `count` images, evenly spaced over the set, with predicted class and probability, wrong ones red.

    images (N, H, W, 1 or 3), uint8 in 0..255 or floats in 0..1; labels (N,) integers; probabilities (N, C).
    """
    labels, predicted = _labels(labels, class_names), probabilities.argmax(axis=-1)
    if not len(images) == len(labels) == len(predicted) or not len(labels):
        raise ValueError(
            f"predictions: {len(images)} images, {len(labels)} labels and {len(predicted)} predictions;"
            " expected the same number of each, at least 1"
        )
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(count, len(labels))).astype(int))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    right = int((predicted[chosen] == labels[chosen]).sum())
    figure = _figure(max(1.35 * columns, 4.5), 1.75 * rows + 0.6)
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03)
    wrong = len(chosen) - right
    figure.suptitle(
        f"{len(chosen)} of {len(labels):,} test images: {right} right"
        + (f", {wrong} wrong (red)" if wrong else "")
    )
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes in grid:
        axes.set_axis_off()
    for axes, i in zip(grid, chosen, strict=False):
        truth, guess = labels[i], predicted[i]
        image = images[i, :, :, 0] if images.shape[-1] == 1 else images[i]
        axes.imshow(image, cmap="gray", interpolation="bilinear")
        text = f"{class_names[guess]} ({probabilities[i, guess]:.0%})"
        if guess != truth:
            text += f"\ntrue: {class_names[truth]}"
            height, width = image.shape[:2]
            frame = {"fill": False, "edgecolor": WRONG, "linewidth": 3, "clip_on": False}
            axes.add_patch(_rectangle((-0.5, -0.5), width, height, **frame))
        # Below the image, so that a second line has room and the rows stay aligned.
        colour = RIGHT if guess == truth else WRONG
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", color=colour, fontsize=9)
    _save(figure, path)


def confusion_matrix(counts: Array, class_names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw how many images of each true class (rows) were predicted as each class (columns).

    counts: (C, C) integers, as `metrics.confusion_matrix` gives them. Shading is by row, so that classes of
    unequal size compare.
    """
    counts, classes = np.asarray(counts), len(class_names)
    if counts.shape != (classes, classes) or not counts.sum():
        raise ValueError(
            f"confusion_matrix: counts of shape {counts.shape} with sum {counts.sum()} for {classes} classes; "
            f"expected ({classes}, {classes}) and at least one image"
        )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    size = 2.2 + 0.56 * classes
    figure = _figure(size, size)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(classes):
        for j in range(classes):
            colour = "white" if share[i, j] > 0.5 else WRONG if i != j and share[i, j] >= OFTEN else "#3d4754"
            weight = "bold" if i == j else "normal"
            if counts[i, j] or i == j:
                axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color=colour, weight=weight)
    ticks = np.arange(classes)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, class_names, **(slanted if max(map(len, class_names)) > 3 else {}))
    axes.set_yticks(ticks, class_names)
    axes.set_xticks(ticks[1:] - 0.5, minor=True)
    axes.set_yticks(ticks[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e7eb", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    images = counts.sum()
    title = f"{np.trace(counts) / images:.2%} of {images:,} test images right"
    if ((share >= OFTEN) & ~np.eye(classes, dtype=bool)).any():
        title += f" (red: {OFTEN:.0%} of a class or more taken for another)"
    axes.set_title(title, loc="left", fontsize=11)
    _save(figure, path)


def _end_labels(axes: Any, epochs: int, last: list[tuple[float, str, str]], number: str) -> None:
    """Name each curve at its last point, moved apart where two end together: no legend to look up."""
    low, high = axes.get_ylim()
    gap = 0.06 * (high - low)
    places = sorted(last)
    if len(places) == 2 and (short := gap - (places[1][0] - places[0][0])) > 0:
        heights = [places[0][0] - short / 2, places[1][0] + short / 2]
    else:
        heights = [value for value, _, _ in places]
    for height, (value, label, colour) in zip(heights, places, strict=True):
        text = f"{label} {value:{number}}"
        # The offset is in points, the place in data: it stays beside the point at any size.
        axes.annotate(
            text,
            (epochs, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def _labels(labels: Array, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    flat = np.asarray(labels).reshape(-1).astype(np.int64)
    if flat.size and not 0 <= flat.min() <= flat.max() < len(class_names):
        raise ValueError(
            f"labels lie in {flat.min()}..{flat.max()}, but there are {len(class_names)} classes"
        )
    return flat


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "fastnn-kernels[train]"') from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _rectangle(*args: Any, **keywords: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(*args, **keywords)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.tmp")  # a picture is whole or not there
    try:
        figure.savefig(unfinished, dpi=130, format="png")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
