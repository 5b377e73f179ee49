"""Objects that are saved as their class's name and their constructor's arguments, and whose changes are counted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound="Configurable")
V = TypeVar("V")

# The number of the last change, anywhere in this process, of such an object's attributes or of what its Noticed dicts hold: as
# long as it is the same, nobody need look for one.
last_change = 0
_changes = itertools.count(1)


def _changed() -> None:
    global last_change
    last_change = next(_changes)


class Noticed(dict[str, V]):
    """A dict each of whose changes is noticed."""


def _noticed(change: Any) -> Any:
    def call(self: Noticed[Any], *arguments: Any, **named: Any) -> Any:
        try:
            return change(self, *arguments, **named)
        finally:
            _changed()

    return call


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(Noticed, _name, _noticed(getattr(dict, _name)))


class Configurable:
    """Rebuilt from its constructor's arguments, each of which is kept as the attribute of its name."""

    # Names that leave a subclass of the user's the plain ones.
    _changes = 0  # how often an attribute has been set, but for those of _progress
    _progress: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in self._progress:
            super().__setattr__("_changes", self._changes + 1)
            _changed()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments by name: numbers, strings, None and sequences of these."""
        import inspect

        names: dict[str, None] = {}
        for cls in reversed(type(self).__mro__):
            for parameter in inspect.signature(
                vars(cls).get("__init__", object.__init__)
            ).parameters.values():
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                    names[parameter.name] = None
        names.pop("self", None)
        return {name: _plain(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls: type[T], config: Mapping[str, Any]) -> T:
        """The object that get_config described."""
        return cls(**config)


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return serialize(value)
    return list(value) if isinstance(value, tuple) else value


def serialize(obj: Configurable) -> dict[str, Any]:
    """{"class_name": ..., "config": ...} of a layer, loss, metric, optimizer or schedule."""
    return {"class_name": type(obj).__name__, "config": obj.get_config()}


def deserialize(entry: Any, known: Mapping[str, type[T]], what: str) -> T:
    """The object of a serialized entry whose class stands in `known`; `what` names its kind in errors."""
    if not isinstance(entry, Mapping) or set(entry) != {"class_name", "config"}:
        raise ValueError(f"{what}: expected a class_name and a config, got {entry!r}")
    name, config = entry["class_name"], entry["config"]
    cls = known.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(
            f"unknown {what} {name!r}; known are {', '.join(known)}; give others as custom_objects"
        )
    if not isinstance(config, Mapping):
        raise ValueError(f"{what} {name}: its config must be a dict, got {config!r}")
    try:
        return cls.from_config(config)
    except TypeError as error:
        raise ValueError(
            f"{what} {name}: config {dict(config)!r} does not fit its constructor: {error}"
        ) from error


def snake_case(name: str) -> str:
    """Keras's name of a class: Conv2D -> conv2d, MaxPooling2D -> max_pooling2d, ReLU -> re_lu."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
