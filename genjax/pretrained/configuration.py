"""Configurations as diffusers and transformers write them."""

import json
import os
from typing import Any


def read_config(folder: str | os.PathLike, class_name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a folder, completed by `defaults`.

    Raises:
        ValueError: it is of another class than `class_name`, or has entries that `defaults` has not.
    """
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    if config.get("_class_name") != class_name:
        raise ValueError(f"{path} describes {config.get('_class_name')}; expected {class_name}")
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = {name: config[name] for name in sorted(config.keys() - defaults.keys())}
    if unknown:
        raise ValueError(f"{path} has entries that are not known here: {unknown}")
    return defaults | config


def expect(config: dict[str, Any], name: str, *supported: Any) -> None:
    """
    Raises:
        ValueError: an entry of a configuration is none of those supported.
    """
    if config[name] not in supported:
        raise ValueError(f"{name}={config[name]!r} is not supported; only {', '.join(map(repr, supported))}")
