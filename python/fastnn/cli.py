"""The command `fastnn`: train, evaluate, predict, gradcheck, bench, download, info.

Exit status: 0 done, 1 an error, which stands on stderr in one line (FASTNN_DEBUG=1 adds the traceback), 2 wrong
usage, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import Sequential


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the arguments are the process's own by default. Returns the exit status."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as end:  # after --help, --version, or a wrong usage, which argparse has explained
        return int(end.code or 0)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # figures show as they come, and no name of a file is unprintable
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        with _terminable():
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print("fastnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("FASTNN_DEBUG") == "1":
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError)):
            text = f"{type(error).__name__}: {text} (FASTNN_DEBUG=1 shows where)"
        print(f"fastnn: error: {text}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastnn",
        description="Hand-written neural-network kernels: train, judge and use a small network.",
    )
    from . import __version__

    parser.add_argument("--version", action="version", version=f"fastnn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__.lstrip("_"), help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(
        _train, "train the tutorial's network on CIFAR-10, or on digits where CIFAR-10 is not there"
    )
    _add_data(sub)
    sub.add_argument("--epochs", type=_whole(1), metavar="N", help="default: 10 for CIFAR-10, 30 for digits")
    sub.add_argument("--batch-size", type=_whole(1), metavar="N", help="default: 32")
    sub.add_argument("--learning-rate", type=_positive, metavar="X", help="Adam's; default: 0.001")
    sub.add_argument(
        "--augment", action="store_true", default=None, help="flip and shift training images at random"
    )
    sub.add_argument(
        "--seed", type=_whole(0), metavar="N", help="of initial weights, order, augmentation; default: 0"
    )
    _add_device(sub)
    _add_precision(sub)
    sub.add_argument("--out", metavar="DIR", help="the run's folder; default: runs/DATASET-seedN")
    sub.add_argument(
        "--resume",
        action="store_true",
        help="go on with a stopped run to the same bits; settings that are not given are the run's",
    )

    sub = command(_evaluate, "test a model: loss, accuracy, and precision, recall and F1 of each class")
    _add_model(sub)
    _add_data(sub)
    sub.add_argument("--batch-size", type=_whole(1), default=32, metavar="N", help="default: 32")
    _add_device(sub)
    _add_precision(sub)

    sub = command(_predict, "name what is on images")
    _add_model(sub)
    sub.add_argument(
        "images", nargs="+", metavar="IMAGE", help="an image file of any size; it is scaled to the model's"
    )
    sub.add_argument(
        "--top", type=_whole(1), default=3, metavar="N", help="how many classes to name; default: 3"
    )
    _add_device(sub)
    _add_precision(sub)

    sub = command(_gradcheck, "verify the gradients of every op, layer and loss on this machine")
    _add_device(sub)

    sub = command(_bench, "check kernels, layers' sizes and whole steps against the reference, and time them")
    sub.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help="a case such as conv2d/n32h15w15c32k64r3s3, a pattern such as 'gemm/*', or a suite; default: all",
    )
    sub.add_argument(
        "--list", action="store_true", help="show the cases, the passes of each, and the suites, and leave"
    )
    sub.add_argument("--rounds", type=_whole(1), default=15, metavar="N", help="default: 15")
    sub.add_argument(
        "--window", type=_positive, default=0.04, metavar="S", help="seconds of a round; default: 0.04"
    )
    sub.add_argument("--out", metavar="FILE", help="write the figures, with machine and versions, as JSON")
    _add_device(sub)

    sub = command(_download, "bring a data set into the cache folder")
    sub.add_argument("dataset", choices=["cifar10"], help="CIFAR-10, 170 MB; a broken download is continued")

    command(_info, "show versions, instruction set, threads, and the state of CUDA")
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="PATH", help="CIFAR-10's folder or archive, or a folder of images")
    parser.add_argument(
        "--dataset",
        choices=["auto", "cifar10", "digits"],
        default="auto",
        help="auto: CIFAR-10 if it is there",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run's folder, or its model.safetensors")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument(
        "--threads", type=_whole(1), metavar="N", help="of the CPU kernels; default: all processors"
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=["float32", "winograd", "tf32", "bfloat16"],
        help="of products: winograd (faster convolutions) on a CPU, tf32 and bfloat16 on a GPU; default: float32",
    )


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which batch systems send, is Ctrl-C: whoever handles that one handles both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _use_threads(options: argparse.Namespace) -> None:
    from . import set_num_threads

    if options.threads is not None:
        set_num_threads(options.threads)


def _train(options: argparse.Namespace) -> int:
    from . import runs

    _use_threads(options)
    names = (
        "data",
        "dataset",
        "epochs",
        "batch_size",
        "learning_rate",
        "augment",
        "seed",
        "device",
        "precision",
        "out",
        "resume",
    )
    runs.train(**{name: getattr(options, name) for name in names})
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from . import runs

    _use_threads(options)
    file, known = _model_file(options.model)
    model = _load_model(file, options)
    dataset, path = options.dataset, options.data
    if dataset == "auto" and path is None and known:
        dataset, path = known["dataset"], known.get("data")
    dataset = runs.choose_dataset(dataset, path)
    print(f"data: {dataset}{f' in {path}' if path else ''}")
    images = runs.load(dataset, path)
    names = tuple(known.get("class_names", images.class_names))
    if names != images.class_names or model.output_shape != (None, len(names)):
        raise ValueError(
            f"{file} tells {', '.join(names)} apart ({model.output_shape[-1]} outputs), "
            f"the images show {', '.join(images.class_names)}"
        )
    x, labels = images.test
    scores = model.evaluate(x, labels, batch_size=options.batch_size, verbose=0, return_dict=True)
    predicted = runs.probabilities(model, x).argmax(axis=1)
    runs.report(labels, predicted, names, float((predicted == labels).mean()), scores["loss"])
    return 0


def _predict(options: argparse.Namespace) -> int:
    import numpy as np

    from . import runs

    _use_threads(options)
    file, known = _model_file(options.model)
    model = _load_model(file, options)
    shape = model.input_shape[1:]
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"{file} takes samples of shape {shape}, not images (height, width, 1 or 3)")
    images = np.stack([_read_image(path, shape) for path in options.images])
    for path, chances in zip(options.images, runs.probabilities(model, images), strict=True):
        names = known.get("class_names", [f"class {i}" for i in range(len(chances))])
        best = np.argsort(-chances, kind="stable")[: options.top]
        print(f"{path}: {', '.join(f'{names[i]} {chances[i]:.1%}' for i in best)}")
    return 0


def _gradcheck(options: argparse.Namespace) -> int:
    from . import gradcheck

    _use_threads(options)
    live = sys.stdout.isatty()
    results = gradcheck.run(
        options.device or "cpu",
        progress=lambda name, _: print(f"\r\033[K{name}", end="", flush=True) if live else None,
    )
    print(("\r\033[K" if live else "") + gradcheck.table(results))
    return 0 if all(report.passed for _, report in results) else 1


def _bench(options: argparse.Namespace) -> int:
    from .bench import cases, command

    if options.list:
        for case in cases.select(options.cases or ["all"]):
            print(case, *case.passes)
        print(f"suites: {', '.join(cases.SUITES)}")
        return 0
    return command.run(
        options.cases,
        device=options.device or "cpu",
        threads=options.threads,
        rounds=options.rounds,
        window=options.window,
        out=options.out,
    )


def _download(options: argparse.Namespace) -> int:
    from . import datasets

    print(datasets.cifar10.download())
    return 0


def _info(options: argparse.Namespace) -> int:
    import platform
    from importlib import metadata

    from . import __version__

    def show(title: str, tell: Callable[[], str]) -> None:
        try:
            text = tell()
        except Exception as error:  # whatever is broken here, the rest is still told
            text = f"broken: {' '.join(str(error).split()) or type(error).__name__}"
        print(f"{title:<16}{text}")

    def kernels() -> str:
        from . import _backend

        chosen, available = _backend.instruction_set()
        return (
            f"{chosen} (of {', '.join(available)}; FASTNN_ISA chooses), threads: {_backend.get_num_threads()}"
        )

    def cuda() -> str:
        from . import _backend

        if state := _backend.cuda_state():
            driver = Path("/proc/driver/nvidia/version").exists()
            return f"absent: {state} (NVIDIA driver: {'present' if driver else 'none'})"
        return _backend.cuda_description()

    def data() -> str:
        from . import datasets

        there = "there" if datasets.cifar10.is_cached() else "not there (fastnn download cifar10)"
        return f"{there}, cache folder {datasets.cache_dir()}"

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return 'not installed: pip install "fastnn-kernels[train]"'

    show("fastnn", lambda: f"{__version__} in {Path(__file__).parent}")
    show(
        "Python",
        lambda: f"{platform.python_version()} ({platform.python_implementation()}), {platform.platform()}",
    )
    show("NumPy", lambda: version("numpy"))
    show("CPU kernels", kernels)
    show("CUDA kernels", cuda)
    show("CIFAR-10", data)
    for package in ("matplotlib", "pillow", "pooch", "safetensors", "scikit-learn", "tqdm"):
        show(package, lambda package=package: version(package))  # type: ignore[misc]
    return 0


def _load_model(file: Path, options: argparse.Namespace) -> Sequential:
    from . import models

    return models.load_model(file, device=options.device or "cpu", precision=options.precision or "float32")


def _model_file(path: str) -> tuple[Path, dict[str, Any]]:
    """The model's file, and what stands in the settings.json beside it: the data set and the names of the classes."""
    from . import runs

    given = Path(path)
    file = given / "model.safetensors" if given.is_dir() else given
    if given.is_dir() and not file.exists() and (given / "settings.json").exists():
        raise FileNotFoundError(f"{given} holds no finished run; go on with: {runs.resume_command(given)}")
    return file, runs.read_json(file.parent / "settings.json") or {}


def _read_image(path: str, shape: Sequence[int | None]) -> Any:
    """An image file as uint8 (H, W, C), scaled, and turned as its camera was held."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('reading images needs pillow: pip install "fastnn-kernels[train]"') from error
    import numpy as np

    height, width, channels = (n or 0 for n in shape)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            scaled = upright.resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged image makes Pillow raise errors of many kinds
        raise ValueError(f"{path} cannot be read as an image ({error})") from error
    return np.asarray(scaled).reshape(height, width, channels)


if __name__ == "__main__":
    sys.exit(main())
