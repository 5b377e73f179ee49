"""The command line: every command, what it prints and leaves, how it refuses, stops and goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading

import fastnn
import numpy as np
import pytest
from fastnn import _backend, cli, datasets, gradcheck, models, ops, plots, runs
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


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["train", "evaluate", "predict", "gradcheck", "download", "info"]),
        (
            ["train"],
            [
                "--data",
                "--dataset",
                "--epochs",
                "--batch-size",
                "--learning-rate",
                "--augment",
                "--seed",
                "--device",
                "--threads",
                "--out",
                "--resume",
            ],
        ),
        (["evaluate"], ["MODEL", "--data", "--threads"]),
        (["predict"], ["MODEL", "IMAGE", "--top"]),
        (["gradcheck"], ["--device"]),
        (["download"], ["cifar10"]),
        (["info"], []),
    ],
)
def test_help(capsys, command, words):
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastnn {fastnn.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "dance",
        "train --epochs 0",
        "train --epochs ten",
        "train --batch-size -1",
        "train --learning-rate 0",
        "train --learning-rate nan",
        "train --learning-rate inf",
        "train --seed -1",
        "train --seed 1.5",
        "train --threads 0",
        "train --dataset mnist",
        "train --device tpu",
        "train surplus",
        "evaluate",
        "predict",
        "predict model",
        "predict model image --top 0",
        "download",
        "download mnist",
        "info now",
    ],
)
def test_wrong_usage(capsys, argv):
    assert cli.main(argv.split()) == 2
    assert "usage: fastnn" in capsys.readouterr().err


def test_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "fastnn", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, f"fastnn {fastnn.__version__}\n")


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


def test_cuda_is_refused_before_anything_is_written(images, capsys, tmp_path):
    message = error_of(capsys, cli.main(["train", "--data", str(images), "--device", "cuda"]))
    assert "no CUDA backend" in message
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


@pytest.mark.parametrize("error", [ValueError("3 is\nnot 4"), OSError("disk full"), KeyError("odd")])
def test_errors_are_one_line(monkeypatch, capsys, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(runs, "train", fail)
    message = error_of(capsys, cli.main(["train"]))
    assert str(error).replace("\n", " ") in message
    monkeypatch.setenv("FASTNN_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["train"])


# ---------------------------------------------------------------------- stopped and gone on

# Runs the command with a backup every 3 batches, and kills the process at the `count`-th call of a function.
KILLED = """
import os, signal, sys
from fastnn import cli, plots, runs
runs.BACKUP_IMAGES = 3 * 8
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


def test_signal_handlers_are_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert cli.main(["info"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---------------------------------------------------------------------- evaluate and predict


@pytest.mark.parametrize("data", [True, False])
def test_evaluate(finished, images, capsys, data):
    more = ["--data", str(images)] if data else []  # without it, from where the run had it
    for model in (finished, finished / "model.safetensors"):
        assert cli.main(["evaluate", str(model), "--batch-size", "8", *more]) == 0
        text = capsys.readouterr().out
        summary = json.loads((finished / "summary.json").read_text())
        assert (
            f"test accuracy {summary['test_accuracy']:.4f}, loss {summary['test_loss']:.4f} (15 images)"
            in text
        )
        assert all(f"\n{name:>12} " in text for name in CLASSES)


def test_evaluate_on_other_classes(finished, tmp_path, capsys):
    other = write_images(tmp_path / "other", classes=("cat", "dog", "fly"), train=1, test=1)
    message = error_of(capsys, cli.main(["evaluate", str(finished), "--data", str(other)]))
    assert "blue, green, red" in message
    assert "cat, dog, fly" in message


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_damaged_model(finished, tmp_path, capsys, damage):
    path = tmp_path / "m.safetensors"
    if damage == "torn":
        path.write_bytes((finished / "model.safetensors").read_bytes()[:-7])
    elif damage == "foreign":
        path.write_bytes(b"a picture of a cat")
    assert "m.safetensors" in error_of(capsys, cli.main(["evaluate", str(path)]))
    assert "m.safetensors" in error_of(capsys, cli.main(["predict", str(path), "cat.png"]))


def test_unfinished_run_cannot_be_evaluated(tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{}")
    assert "--resume" in error_of(capsys, cli.main(["evaluate", str(tmp_path)]))


def tinted(label, size, mode="RGB"):
    pixels = np.full((*size, 3), 40, np.uint8)
    pixels[..., label] = 170
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (48, 301)])
@pytest.mark.parametrize("label", range(3))
def test_predict(finished, tmp_path, capsys, size, label):
    tinted(label, size).save(tmp_path / "a b.png")
    assert cli.main(["predict", str(finished), "a b.png", "--top", "2"]) == 0
    path, found = capsys.readouterr().out.strip().split(": ")
    first, second = (entry.split() for entry in found.split(", "))
    # Labels are the sorted names: blue tints channel 0 here, green 1, red 2.
    assert (path, first[0]) == ("a b.png", CLASSES[label])
    assert 100 >= float(first[1].rstrip("%")) >= float(second[1].rstrip("%")) >= 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK"])
def test_predict_every_kind_of_image(finished, tmp_path, capsys, mode):
    tinted(0, (20, 30), mode).save(tmp_path / "image.tiff")
    assert cli.main(["predict", str(finished), "image.tiff", "--top", "9"]) == 0
    entries = capsys.readouterr().out.strip().split(": ")[1].split(", ")
    assert sorted(entry.split()[0] for entry in entries) == list(CLASSES)
    assert sum(float(entry.split()[1].rstrip("%")) for entry in entries) == pytest.approx(100, abs=0.16)


def test_predict_turns_photographs_upright(monkeypatch, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 200  # bright at the top
    picture = Image.fromarray(np.rot90(pixels))
    exif = picture.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right to see it upright"
    picture.save(tmp_path / "photo.png", exif=exif)
    read = cli._read_image("photo.png", (32, 32, 3))
    assert (read == pixels).all()


def test_predict_names_numbers_where_names_are_unknown(finished, tmp_path, capsys):
    (tmp_path / "m.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
    tinted(1, (32, 32)).save(tmp_path / "image.png")
    assert cli.main(["predict", "m.safetensors", "image.png"]) == 0
    assert "image.png: class 1 " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "text", "torn", "folder"])
def test_predict_refuses_what_is_no_image(finished, tmp_path, capsys, kind):
    path = tmp_path / "image.png"
    tinted(1, (200, 200)).save(path)
    data = path.read_bytes()
    if kind == "folder" or kind == "missing":
        path.unlink()
    if kind == "folder":
        path.mkdir()
    if kind == "text":
        path.write_text("no image")
    if kind == "torn":
        path.write_bytes(data[: len(data) // 2])
    assert "image.png" in error_of(capsys, cli.main(["predict", str(finished), "image.png"]))


def test_predict_of_a_model_without_images(tmp_path, capsys):
    from fastnn import layers

    models.Sequential([layers.Dense(2, input_shape=(3,))]).save(tmp_path / "dense.safetensors")
    assert "(3,)" in error_of(capsys, cli.main(["predict", "dense.safetensors", "image.png"]))


def test_probabilities_of_logits_and_of_softmax():
    from fastnn import layers

    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    fastnn.set_seed(1)
    model = models.Sequential([layers.Dense(3, input_shape=(4,))])
    logits = model.predict(x, verbose=0)
    model.compile("sgd", fastnn.losses.SparseCategoricalCrossentropy(from_logits=True))
    np.testing.assert_array_equal(runs.probabilities(model, x), ops.softmax(logits))
    model.add(layers.Activation("softmax"))
    model.compile("sgd", fastnn.losses.SparseCategoricalCrossentropy())
    np.testing.assert_array_equal(runs.probabilities(model, x), ops.softmax(logits))


# ---------------------------------------------------------------------- gradcheck, download, info


@pytest.mark.parametrize("wrong", [False, True])
def test_gradcheck(monkeypatch, capsys, wrong):
    x = np.array([1.0, 2.0, 4.0])
    report = gradcheck.check(
        lambda x: x * x, lambda dy: 2 * x * dy + (np.array([0, 0.5, 0]) if wrong else 0), [x], name="square"
    )
    seen = []

    def run(device, progress):
        seen.append(device)
        progress("square", report)
        return [("square", report)]

    monkeypatch.setattr(gradcheck, "run", run)
    assert cli.main(["gradcheck"]) == int(wrong)
    text = capsys.readouterr().out
    assert seen == ["cpu"]
    assert "square" in text
    assert ("FAILED" in text) == wrong


def test_gradcheck_of_cuda_is_refused(capsys):
    assert "no CUDA backend" in error_of(capsys, cli.main(["gradcheck", "--device", "cuda"]))


def test_download(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(datasets.cifar10, "download", lambda: tmp_path / "archive")
    assert cli.main(["download", "cifar10"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'archive'}\n"

    def fail():
        raise OSError("stopped after 3 of 9 bytes")

    monkeypatch.setattr(datasets.cifar10, "download", fail)
    assert "3 of 9 bytes" in error_of(capsys, cli.main(["download", "cifar10"]))


def info(text):
    return {line[:16].strip(): line[16:] for line in text.splitlines()}


def test_info(capsys):
    assert cli.main(["info", *[]]) == 0
    shown = info(capsys.readouterr().out)
    isa, available = _backend.instruction_set()
    assert shown["fastnn"].startswith(fastnn.__version__)
    assert shown["NumPy"] == np.__version__
    assert shown["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert shown["CPU kernels"].startswith(f"{isa} (of {', '.join(available)};")
    assert shown["CPU kernels"].endswith(f"threads: {fastnn.get_num_threads()}")
    assert "no CUDA backend" in shown["CUDA kernels"]
    assert "not there" in shown["CIFAR-10"]
    assert all(shown[name][0].isdigit() for name in ("matplotlib", "pillow", "pooch", "safetensors", "tqdm"))


@pytest.mark.parametrize(
    ("code", "environment", "told"),
    [
        ("sys.modules['fastnn._cpu'] = None", {}, "fastnn._cpu does not load"),
        ("", {"FASTNN_ISA": "mmx"}, "FASTNN_ISA=mmx"),
    ],
)
def test_info_with_a_broken_native_module(code, environment, told):
    command = f"import sys; {code}\nfrom fastnn.cli import main\nsys.exit(main(sys.argv[1:]))"
    result = python(command, "info", **environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    shown = info(result.stdout)
    assert shown["CPU kernels"].startswith("broken: ")
    assert told in shown["CPU kernels"]
    assert shown["NumPy"] == np.__version__  # the rest is told all the same

    result = python(command, "train", "--dataset", "digits", **environment)
    assert result.returncode == 1
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_info_without_optional_packages(monkeypatch, capsys):
    from importlib import metadata

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    assert cli.main(["info"]) == 0
    assert "not installed" in info(capsys.readouterr().out)["tqdm"]


def test_reader_that_leaves_early():
    code = "import sys; from fastnn.cli import main\nsys.stdin.read(); sys.exit(main(['info']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # nobody reads
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_from_another_thread(capsys):
    status = []
    thread = threading.Thread(target=lambda: status.append(cli.main(["info"])))
    thread.start()
    thread.join()
    assert status == [0]


def test_unprintable_names_are_printed_escaped(finished, tmp_path, monkeypatch):
    tinted(2, (32, 32)).save(tmp_path / "köter.png")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["predict", str(finished), "köter.png"]) == 0
    assert stream.buffer.getvalue().startswith(b"k\\xf6ter.png: red ")


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
