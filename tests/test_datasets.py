"""Data sets: every layout gives the same arrays."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import (
    BIN,
    IMAGES,
    LABELS,
    PY,
    WRITERS,
    N,
    assert_is_the_data,
    batch_files,
    make_small_and_apart,
    random,
    write_folder,
    write_tar,
    write_zip,
)
from fastnn import datasets
from fastnn.datasets import _download, cifar10, digits


@pytest.fixture(autouse=True)
def small_and_apart(monkeypatch, tmp_path):
    make_small_and_apart(monkeypatch, tmp_path)


# CIFAR-10's own layouts


@pytest.mark.parametrize("layout", WRITERS)
def test_folder_of_every_layout(tmp_path, layout):
    assert_is_the_data(cifar10.load_data(write_folder(tmp_path / "data", layout)))


@pytest.mark.parametrize("layout", ["binary", "python2"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archive_of_every_kind(tmp_path, kind, layout):
    path = tmp_path / "named.anything"  # told by what it holds
    if kind == "zip":
        write_zip(path, layout)
    else:
        write_tar(path, mode="w:gz" if kind == "tar.gz" else "w", layout=layout)
    assert_is_the_data(cifar10.load_data(str(path)))
    assert sorted(tmp_path.iterdir()) == [path]  # nothing was unpacked


def test_order_of_an_archive_does_not_matter(tmp_path):
    files = dict(reversed(batch_files("python2").items()))
    assert_is_the_data(cifar10.load_data(write_tar(tmp_path / "a.tar", files=files)))


@pytest.mark.parametrize("inside", [BIN, PY, "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"])
def test_parent_folder_and_cache(tmp_path, monkeypatch, inside):
    layout = "python2" if "py" in inside else "binary"
    assert not cifar10.is_cached()
    if inside.endswith(".gz"):
        write_tar(tmp_path / "cache" / inside, mode="w:gz", layout=layout)
    else:
        write_folder(tmp_path / "cache" / inside, layout)
    assert cifar10.is_cached()
    assert_is_the_data(cifar10.load_data())
    assert_is_the_data(cifar10.load_data(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_is_the_data(cifar10.load_data("~/cache"))
    assert cifar10.class_names() == cifar10.CLASS_NAMES


def test_the_official_numbers(monkeypatch):
    monkeypatch.undo()
    assert cifar10.RECORDS == 10_000
    assert cifar10.SIZE == 170_498_071
    assert len(cifar10.SHA256) == 64
    assert len(cifar10.CLASS_NAMES) == 10


def test_cache_dir(monkeypatch):
    monkeypatch.setenv("FASTNN_HOME", "/a/b")
    assert datasets.cache_dir() == Path("/a/b")
    monkeypatch.delenv("FASTNN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert datasets.cache_dir() == Path("/xdg/fastnn")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert datasets.cache_dir() == Path("/home/someone/.cache/fastnn")


@pytest.mark.parametrize("path", [None, "missing", "empty"])
def test_no_data_says_what_was_looked_for(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin.*train/<class>.*fastnn download cifar10"):
        cifar10.load_data(path and tmp_path / path)
    assert not (tmp_path / "cache").exists()


# Folders of images


def save_images(folder, classes, suffix=".png"):
    """IMAGES with LABELS as names of classes; files numbered as in the batches."""
    image_module = pytest.importorskip("PIL.Image")
    for i, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        where = folder / ("train" if i < 5 * N else "test")
        for name in classes:
            (where / name).mkdir(parents=True, exist_ok=True)
        image_module.fromarray(pixels).save(where / classes[label] / f"{i:05}{suffix}")
    return folder


OTHER_CLASSES = tuple("zyxwvutsrq")


@pytest.mark.parametrize("classes", [cifar10.CLASS_NAMES, OTHER_CLASSES])
@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_image_folder(tmp_path, classes, suffix):
    save_images(tmp_path, classes, suffix)
    (tmp_path / "train" / classes[0] / "notes.txt").write_text("left alone")
    (tmp_path / "train" / ".hidden").mkdir()
    train, test = cifar10.load_data(tmp_path)
    if classes is OTHER_CLASSES:
        assert cifar10.class_names(tmp_path) == tuple(sorted(classes))
        train, test = ((x, 9 - y) for x, y in (train, test))
    else:
        assert cifar10.class_names(tmp_path) == classes
    assert_is_the_data((train, test))


def test_jpeg_folder_is_close(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    smooth = np.broadcast_to(np.arange(0, 256, 8, np.uint8)[:, None, None], (32, 32, 3))
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        image_module.fromarray(smooth).save(tmp_path / split / "cat" / "a.jpg", quality=95)
    (x, y), _ = cifar10.load_data(tmp_path)
    assert x.shape == (1, 32, 32, 3)
    assert y.tolist() == [[0]]
    assert np.abs(x[0].astype(int) - smooth).max() <= 8


def test_grey_and_palette_images_become_colour(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    grey = image_module.fromarray(IMAGES[0, :, :, 0])
    for split, image in (("train", grey), ("test", grey.convert("P"))):
        (tmp_path / split / "cat").mkdir(parents=True)
        image.save(tmp_path / split / "cat" / "a.png")
    for x, _ in cifar10.load_data(tmp_path):
        np.testing.assert_array_equal(x[0], np.repeat(IMAGES[0, :, :, :1], 3, axis=-1))


def test_image_that_does_not_fit(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    file = save_images(tmp_path, cifar10.CLASS_NAMES) / "test" / "cat" / "x.png"
    for image, message in (
        (image_module.new("RGB", (33, 32)), "x.png has 33x32 pixels"),
        (image_module.new("I;16", (32, 32)), "x.png has 32x32 pixels of mode I;16"),
    ):
        image.save(file)
        with pytest.raises(ValueError, match=message):
            cifar10.load_data(tmp_path)
    # A header that claims 8000x8000 pixels: refused for that, none of them is decoded.
    header = b"IHDR" + struct.pack(">2I5B", 8000, 8000, 8, 2, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\1IDAT"
    )
    with pytest.raises(ValueError, match=r"x\.png has 8000x8000 pixels"):
        cifar10.load_data(tmp_path)
    whole = (tmp_path / "train" / cifar10.CLASS_NAMES[LABELS[0]] / "00000.png").read_bytes()
    for content in (b"", b"GIF89a", whole[:100], whole[:-500]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.png cannot be read"):
            cifar10.load_data(tmp_path)


def test_classes_that_do_not_fit(tmp_path):
    save_images(tmp_path, cifar10.CLASS_NAMES)
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"class folders \['cow'\] are in only one"):
        cifar10.load_data(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match="has 11 class folders; 1 to 10"):
        cifar10.load_data(tmp_path)


@pytest.mark.parametrize("classes", [[], ["cat"]])
def test_image_folder_without_images(tmp_path, classes):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in classes:
            (tmp_path / split / name).mkdir()
    with pytest.raises(ValueError, match=r"has 0 class folders|has no \.png, \.jpg or \.jpeg images"):
        cifar10.load_data(tmp_path)


# Digits


def test_digits():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    (x_train, y_train), (x_test, y_test) = digits.load_data()
    assert x_train.shape == (1437, 32, 32, 3)
    assert x_test.shape == (360, 32, 32, 3)
    assert y_train.shape == (1437, 1)
    assert y_test.shape == (360, 1)
    for array in (x_train, y_train, x_test, y_test):
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
    assert x_train.min() == 0
    assert x_train.max() == 255
    source = sklearn_datasets.load_digits()
    counts = np.bincount(source.target)
    assert np.all(np.abs(np.bincount(y_test[:, 0]) - counts / 5) <= 1)  # equal shares of each class
    # Together the two parts are the whole, no image lost and none in both.
    both = np.concatenate([x_train, x_test])[..., 0]
    whole = digits.enlarge(source.images.astype(int))
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole)
    np.testing.assert_array_equal(np.bincount(np.concatenate([y_train, y_test])[:, 0]), counts)
    assert digits.load_data()[1][0].tobytes() == x_test.tobytes()
    assert len(digits.CLASS_NAMES) == 10


def test_digits_are_enlarged_bilinearly():
    images = random.integers(0, 17, (5, 8, 8))
    at, centres = (np.arange(32) + 0.5) / 4 - 0.5, np.arange(8)

    def along(image):  # np.interp holds the ends, as the edge pixels are repeated
        return np.array([np.interp(at, centres, line) for line in image])

    expected = np.array([along(along(image).T).T for image in images]) * 255 / 16
    np.testing.assert_allclose(digits.enlarge(images), expected, rtol=0, atol=0.5 + 1e-9)
    assert np.all(digits.enlarge(np.full((1, 8, 8), 16)) == 255)


@pytest.mark.parametrize(
    ("module", "package", "use"),
    [
        ("sklearn.datasets", "scikit-learn", digits.load_data),
        ("PIL.Image", "pillow", cifar10.load_data),
        ("pooch", "pooch", cifar10.download),
        ("tqdm", "tqdm", lambda: _download._complete("http://127.0.0.1:1", Path("nowhere"), 1, False)),
    ],
)
def test_missing_package_is_named(tmp_path, monkeypatch, module, package, use):
    for split in ("train", "test"):
        (tmp_path / "cache" / split / "cat").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{package} .*pip install "fastnn-kernels\[train\]"'):
        use()
