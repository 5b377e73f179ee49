"""SGD and Adam, and schedules of their learning rate. Names, defaults and update rules are Keras's."""

from . import schedules
from .optimizer import SGD, Adam, Optimizer, get

__all__ = ["SGD", "Adam", "Optimizer", "get", "schedules"]
