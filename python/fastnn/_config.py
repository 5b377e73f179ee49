"""Objects that are saved as their class's name and their constructor's arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound="Configurable")


class Configurable:
    """Rebuilt from its constructor's arguments, each of which is kept as the attribute of its name."""

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
