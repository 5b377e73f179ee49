"""Layers: pure functions of input and weights, each with its backward pass; names and defaults are Keras's."""

from .augmentation import RandomFlip, RandomTranslation
from .base import Input, Layer
from .convolution import Conv2D
from .core import Activation, Dense, Dropout, Flatten, ReLU, Rescaling
from .normalization import BatchNormalization
from .pooling import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D

__all__ = [
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "Input",
    "Layer",
    "MaxPooling2D",
    "RandomFlip",
    "RandomTranslation",
    "ReLU",
    "Rescaling",
]
