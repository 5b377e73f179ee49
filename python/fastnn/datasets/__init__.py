"""Data sets as Keras hands them out: ``(x_train, y_train), (x_test, y_test) = datasets.cifar10.load_data()``.

Images are uint8 (N, 32, 32, 3), NHWC, labels uint8 (N, 1). Nothing is downloaded
unless ``download`` is called.
"""

from . import cifar10, digits
from ._files import cache_dir

__all__ = ["cache_dir", "cifar10", "digits"]
