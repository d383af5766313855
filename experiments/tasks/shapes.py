"""Trace a network on shapes, and say what does not fit before anything is computed."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree


def traced_shape(
    network: nn.Module, field: str, called_with: str, apply: Callable[..., Any], *inputs: PyTree
) -> tuple[int, ...]:
    """Return the shape of what a network makes.

    Args:
        field: the network's field of the config: "model.generator".
        called_with: the inputs in words, for the error.
        apply: called with `inputs`, which are shapes.

    Raises:
        ValueError: the network cannot be applied. If its heads do not divide its width, the error
            says so; otherwise it repeats what the network itself raised.
    """
    try:
        return jax.eval_shape(apply, *inputs).shape
    except Exception as error:  # whatever a network of the user's own raises
        width, num_heads = (getattr(network, name, None) for name in ("width", "num_heads"))
        if width and num_heads and width % num_heads:
            raise ValueError(
                f"config.{field}.num_heads is {num_heads} and config.{field}.width {width}: the "
                "heads must divide the width into equal parts"
            ) from error
        raise ValueError(
            f"config.{field} names {type(network).__name__}, which cannot be applied to "
            f"{called_with}: {type(error).__name__}: {error}"
        ) from error
