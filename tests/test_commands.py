"""The command `fastnn`: usage, errors in one line, evaluate, predict, gradcheck, download, info."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import subprocess
import sys
import threading

import fastnn
import numpy as np
import pytest
from fastnn import _backend, cli, datasets, gradcheck, layers, models, ops, runs
from PIL import Image
from run_files import CLASSES, apart, error_of, finished, images, python, write_images

__all__ = ["apart", "finished", "images"]  # fixtures

# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["train", "evaluate", "predict", "gradcheck", "bench", "download", "info"]),
        (
            ["train"],
            [
                *("--data", "--dataset", "--epochs", "--batch-size", "--learning-rate", "--augment"),
                *("--seed", "--device", "--threads", "--out", "--resume"),
            ],
        ),
        (["evaluate"], ["MODEL", "--data", "--threads"]),
        (["predict"], ["MODEL", "IMAGE", "--top"]),
        (["gradcheck"], ["--device"]),
        (["bench"], ["CASE", "--list", "--rounds", "--out", "--device", "--threads"]),
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
        "bench --rounds 0",
        "bench --window 0",
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

    models.Sequential([layers.Dense(2, input_shape=(3,))]).save(tmp_path / "dense.safetensors")
    assert "(3,)" in error_of(capsys, cli.main(["predict", "dense.safetensors", "image.png"]))


def test_probabilities_of_logits_and_of_softmax():

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
        lambda x: x * x,
        lambda dy, x: 2 * x * dy + (np.array([0, 0.5, 0]) if wrong else 0),
        [x],
        name="square",
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


def test_gradcheck_of_cuda_is_refused(capsys, no_cuda):
    assert no_cuda in error_of(capsys, cli.main(["gradcheck", "--device", "cuda"]))


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


def test_info(capsys, no_cuda):
    assert cli.main(["info", *[]]) == 0
    shown = info(capsys.readouterr().out)
    isa, available = _backend.instruction_set()
    assert shown["fastnn"].startswith(fastnn.__version__)
    assert shown["NumPy"] == np.__version__
    assert shown["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert shown["CPU kernels"].startswith(f"{isa} (of {', '.join(available)};")
    assert shown["CPU kernels"].endswith(f"threads: {fastnn.get_num_threads()}")
    assert no_cuda in shown["CUDA kernels"]
    assert "not there" in shown["CIFAR-10"]
    for name in ("matplotlib", "pillow", "pooch", "safetensors", "tqdm"):
        there = importlib.util.find_spec({"pillow": "PIL"}.get(name, name))
        assert shown[name][0].isdigit() if there else shown[name].startswith("not installed: pip install")


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
