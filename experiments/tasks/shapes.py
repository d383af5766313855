"""Trace a network on shapes, and report what does not fit before anything is computed."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree


@functools.cache
def first_output(network: nn.Module) -> Callable[..., Any]:
    """Return the function of keys and inputs that makes a network's variables and its output.

    Equal networks share the function. JAX keeps traces by function, so a network is traced once
    for its inputs' shapes, however many tasks have it.
    """
    return lambda *args, **options: network.init_with_output(*args, **options)[0]


def check_one_grid(config: Any) -> None:
    """Check that all examples have one grid of tokens.

    Latents and codes on disk have, whatever images they were encoded from.

    Raises:
        ValueError: a batch may have images of another shape, such as a portrait whose rows would be
            read as those of a landscape.
    """
    if config.data.get("buckets") and not config.space.get("directory"):
        raise ValueError(
            f"config.data.buckets make images of several shapes, and a {config.task} takes tokens "
            "of one grid: leave them out, or take config.data.resize"
        )


def traced_shape(
    network: nn.Module,
    field: str,
    called_with: str,
    apply: Callable[..., Any],
    *inputs: PyTree,
    **options: PyTree,
) -> tuple[int, ...]:
    """Return the shape of what a network makes.

    Args:
        field: the network's field of the config: "model.generator".
        called_with: the inputs in words, for the error.
        apply: called with `inputs` and `options`, which are shapes.

    Raises:
        ValueError: the network cannot be applied. If its heads do not divide its width, the error
            says so; otherwise it repeats what the network itself raised.
    """
    try:
        return jax.eval_shape(apply, *inputs, **options).shape
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
