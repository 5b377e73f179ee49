"""A training run in a folder: the tutorial's network, trained, judged, drawn, and gone on with after a stop.

A run's folder is begun with settings.json and finished with summary.json; whatever stops it in between, the
same settings in the same folder go on from the last backup to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    __version__,
    _backend,
    callbacks,
    datasets,
    layers,
    losses,
    metrics,
    models,
    ops,
    optimizers,
    plots,
)
from ._random import set_seed
from ._typing import Array

EPOCHS = {"cifar10": 10, "digits": 30}  # by default
NO_CIFAR10 = (
    "CIFAR-10 is neither given nor in the cache: using scikit-learn's handwritten digits instead.\n"
    "To get CIFAR-10 (170 MB): fastnn download cifar10. To use a copy of it: fastnn train --data PATH"
)
BACKUP_IMAGES = 6400  # a backup at least every so many images: seconds of work, at the cost of milliseconds


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes, bit for bit; where the data lie and the threads do not."""

    dataset: str
    data_sha256: str
    epochs: int
    batch_size: int
    learning_rate: float
    augment: bool
    seed: int
    device: str
    precision: str


@dataclass(frozen=True)
class Data:
    """Images (N, 32, 32, 3) and labels (N,), uint8, with the labels' names."""

    dataset: str
    class_names: tuple[str, ...]
    train: tuple[Array, Array]
    test: tuple[Array, Array]

    def sha256(self) -> str:
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for array in (*self.train, *self.test):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def tutorial_model(
    classes: int = 10,
    *,
    flip: bool = False,
    shift: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    precision: str = "float32",
) -> models.Sequential:
    """The network of Keras's CNN tutorial, built and not compiled: images (N, 32, 32, 3), 0..255, to logits (N, classes).

    flip, shift: mirror training images left-right, move them by up to a tenth of their size.
    """
    augmentation: list[layers.Layer] = [layers.RandomFlip("horizontal")] if flip else []
    if shift:
        augmentation.append(layers.RandomTranslation(0.1, 0.1))
    return models.Sequential(
        [
            layers.Rescaling(1 / 255, input_shape=(32, 32, 3)),
            *augmentation,
            layers.Conv2D(32, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(classes),
        ],
        dtype=dtype,
        device=device,
        precision=precision,
    )


def choose_dataset(dataset: str, data: str | None) -> str:
    """The data set that `dataset` ("auto", "cifar10" or "digits") and a path mean: CIFAR-10 where it is there."""
    if dataset == "digits" and data is not None:
        raise ValueError(
            f"digits come with scikit-learn and take no data path, got {data}; drop it, or use cifar10"
        )
    if dataset == "auto":
        return "cifar10" if data is not None or datasets.cifar10.is_cached() else "digits"
    return dataset


def load(dataset: str, data: str | None = None) -> Data:
    """The images of a data set, CIFAR-10's from the path or the cache."""
    names: tuple[str, ...]
    if dataset == "digits":
        names, (train, test) = datasets.digits.CLASS_NAMES, datasets.digits.load_data()
    else:
        names, (train, test) = datasets.cifar10.class_names(data), datasets.cifar10.load_data(data)
    return Data(dataset, names, (train[0], train[1].reshape(-1)), (test[0], test[1].reshape(-1)))


def train(
    *,
    data: str | None = None,
    dataset: str = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    augment: bool | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    out: str | None = None,
    resume: bool = False,
) -> Path:
    """Train into a folder, or with `resume` go on there; what is None has its default, or the resumed run's value.

    Returns the folder. FileExistsError where it holds a run and `resume` is not asked for; ValueError where the
    resumed run has other settings; RuntimeError where the loss becomes NaN or infinite.
    """
    _check_packages()
    stored = read_json(Path(out) / "settings.json") if out else None
    if dataset == "auto" and data is None and stored is not None:
        dataset = stored["dataset"]
    fallback = dataset == "auto"
    dataset = choose_dataset(dataset, data)
    folder = Path(out or f"runs/{dataset}-seed{seed or 0}")
    stored = read_json(folder / "settings.json")
    if stored is not None and not resume:
        if (folder / "summary.json").exists():
            raise FileExistsError(
                f"{folder} holds a finished run: choose another folder with --out, or show its result with --resume"
            )
        raise FileExistsError(
            f"{folder} holds an unfinished run: choose another folder with --out, or go on with: {resume_command(folder)}"
        )
    if stored is None and resume:
        print(f"{folder} holds nothing to resume: beginning there")
    known = stored or {}
    data = data or known.get("data")

    def chosen(name: str, value: Any, default: Any) -> Any:
        return known.get(name, default) if value is None else value

    settings = Settings(
        dataset=dataset,
        data_sha256=known.get("data_sha256", ""),
        epochs=chosen("epochs", epochs, EPOCHS[dataset]),
        batch_size=chosen("batch_size", batch_size, 32),
        learning_rate=chosen("learning_rate", learning_rate, 0.001),
        augment=chosen("augment", augment, False),
        seed=chosen("seed", seed, 0),
        device=chosen("device", device, "cpu"),
        precision=chosen("precision", precision, "float32"),
    )
    _backend.check_device(settings.device)
    _backend.check_precision(settings.precision, settings.device)
    if stored is not None:
        _refuse_other_settings(folder, stored, settings)
        if (summary := read_json(folder / "summary.json")) is not None:
            print(
                f"{folder} is finished: test accuracy {summary['test_accuracy']:.4f}, loss {summary['test_loss']:.4f}"
            )
            return folder

    if fallback and dataset == "digits":
        print(NO_CIFAR10)
    images = load(dataset, data)
    settings = replace(settings, data_sha256=images.sha256())
    if stored is not None:
        _refuse_other_settings(folder, stored, settings)
    where = None if data is None else os.path.abspath(data)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(
        folder / "settings.json", {**asdict(settings), "data": where, "class_names": images.class_names}
    )
    try:
        _train(folder, settings, images)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: {resume_command(folder)}", file=sys.stderr)
        raise
    return folder


def _train(folder: Path, settings: Settings, images: Data) -> None:
    isa, _ = _backend.instruction_set()
    print(
        f"fastnn {__version__}, {isa} kernels, threads: {_backend.get_num_threads()}\n"
        f"data: {settings.dataset}, {len(images.train[0]):,} training and {len(images.test[0]):,} test images, "
        f"{len(images.class_names)} classes\n"
        f"run: {folder}"
    )
    flip = settings.augment and settings.dataset != "digits"
    if settings.augment and not flip:
        print("augmentation: digits are shifted, but not mirrored: a mirrored digit is another sign, or none")
    set_seed(settings.seed)
    model = tutorial_model(
        len(images.class_names),
        flip=flip,
        shift=settings.augment,
        device=settings.device,
        precision=settings.precision,
    )
    model.compile(
        optimizer=optimizers.Adam(learning_rate=settings.learning_rate),
        loss=losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(f"network: {model.count_params():,} parameters")
    stopwatch, watch = Stopwatch(), callbacks.TerminateOnNaN()
    history = model.fit(
        *images.train,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        validation_data=images.test,
        callbacks=[
            watch,
            stopwatch,
            callbacks.CSVLogger(folder / "history.csv"),
            # Kept after the last epoch: from here on a stopped run only repeats what follows.
            callbacks.BackupAndRestore(
                folder, save_freq=max(1, BACKUP_IMAGES // settings.batch_size), delete_checkpoint=False
            ),
        ],
    ).history
    if not all(map(math.isfinite, history["loss"])):
        raise RuntimeError(
            f"{watch.report or 'the loss has become NaN or infinite'} Nothing was saved; try a --learning-rate below "
            f"{settings.learning_rate:g} in another folder (--out)"
        )
    _finish(folder, settings, images, model, history, stopwatch)


def _finish(
    folder: Path,
    settings: Settings,
    images: Data,
    model: models.Sequential,
    history: dict[str, list[float]],
    stopwatch: Stopwatch,
) -> None:
    """Save the model, judge it, draw, and only then write summary.json, by which a run is finished."""
    model.save(folder / "model.safetensors")
    x, labels = images.test
    names = images.class_names
    chances = probabilities(model, x)
    predicted = chances.argmax(axis=1)
    title = f"{settings.dataset}, seed {settings.seed}: test accuracy {history['val_accuracy'][-1]:.2%}"
    plots.learning_curves(history, folder / "learning_curves.png", title=title)
    plots.predictions(x, labels, chances, names, folder / "predictions.png")
    plots.confusion_matrix(
        metrics.confusion_matrix(labels, predicted, names), names, folder / "confusion_matrix.png"
    )
    isa, _ = _backend.instruction_set()
    summary = {
        "test_accuracy": history["val_accuracy"][-1],
        "test_loss": history["val_loss"][-1],
        "seconds": round(stopwatch.seconds, 3),  # of training and validation, all sessions of a resumed run
        "images_per_second": round(stopwatch.images / max(stopwatch.training, 1e-9), 1),  # of training alone
        "train_accuracy": history["accuracy"][-1],
        "train_loss": history["loss"][-1],
        "per_class": metrics.classification_report(labels, predicted, names, output_dict=True),
        "settings": asdict(settings),
        **{name: getattr(settings, name) for name in ("dataset", "epochs", "seed")},
        "class_names": names,
        "threads": _backend.get_num_threads(),
        "instruction_set": isa,
        "versions": {"fastnn": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "platform": platform.platform(),
    }
    _write_json(folder / "summary.json", summary)
    report(labels, predicted, names, summary["test_accuracy"], summary["test_loss"])
    print(
        f"trained on {stopwatch.images:,} images in {stopwatch.seconds:.1f} s (validation included), "
        f"{summary['images_per_second']:,.0f} images/s\n"
        f"in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}"
    )


def report(labels: Array, predicted: Array, names: Sequence[str], accuracy: float, loss: float) -> None:
    """Print test accuracy and loss, and precision, recall and F1 of each class."""
    print(f"\n{metrics.classification_report(labels, predicted, names)}")
    print(f"test accuracy {accuracy:.4f}, loss {loss:.4f} ({len(labels):,} images)")


def probabilities(model: models.Sequential, images: Array) -> Array:
    """Probabilities (N, C) for images (N, H, W, C), of a model that ends in logits or in probabilities."""
    y = model.predict(images, verbose=0)
    return ops.softmax(y) if getattr(model.loss, "from_logits", False) else y


class Stopwatch(callbacks.Callback):
    """Images trained on, seconds of training, and seconds with validation, over all sessions of a resumed run."""

    state_names = ("images", "training", "seconds")

    def __init__(self) -> None:
        self.images, self.training, self.seconds = 0, 0.0, 0.0
        self._last = time.perf_counter()

    def on_train_begin(self, logs: callbacks.Logs) -> None:
        self._tick()
        self.seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: callbacks.Logs) -> None:
        self._tick()
        self._done = self.model.run.batch  # not 0 where a resumed run begins inside the epoch

    def batches_at_once(self) -> int:
        return sys.maxsize

    def on_train_batch_end(self, batch: int, logs: callbacks.Logs) -> None:
        size, begin, self._done = self.params["batch_size"], self._done, batch + 1
        self.images += min(self._done * size, self.params["samples"]) - begin * size
        self.training += self._tick()

    def on_epoch_end(self, epoch: int, logs: callbacks.Logs) -> None:
        self._tick()

    def _tick(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self.seconds += passed
        return passed


def _check_packages() -> None:
    """Say what is missing before the training, not after it."""
    from importlib.util import find_spec

    needed = {"matplotlib": "matplotlib", "safetensors": "safetensors", "sklearn": "scikit-learn"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f'fastnn train needs {", ".join(missing)}: pip install "fastnn-kernels[train]"')


def _refuse_other_settings(folder: Path, stored: dict[str, Any], settings: Settings) -> None:
    here = asdict(settings)
    differing = [
        f"{name} was {stored.get(name)}, now it is {value}"
        for name, value in here.items()
        if stored.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(differing)}. Choose another folder with --out"
        )


def resume_command(folder: Path) -> str:
    return f"fastnn train --resume --out {shlex.quote(str(folder))}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not an object")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Put the whole file in place at once."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
