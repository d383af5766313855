"""Layers of causal video networks: they run over a whole video, or over its chunks one after the other.

A layer that looks back in time keeps the last frames that it saw in the Flax collection "cache". Where that
collection is not mutable, as in training, the layer sees a whole video; `apply_chunk` makes it mutable.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PyTree

Dtype = Any


def continues(module: nn.Module) -> bool:
    """Whether what `module` is given follows a chunk that it saw before."""
    return module.has_variable("cache", "context")


def prepend_context(
    module: nn.Module,
    x: Float[Array, "batch time height width channels"],
    initial: Float[Array, "batch context height width channels"],
) -> Float[Array, "batch context_and_time height width channels"]:
    """`x` after the frames that precede it: `initial` at a video's start, else the last that `module` saw."""
    before = module.get_variable("cache", "context") if continues(module) else initial
    x = jnp.concatenate([before, x], axis=1)
    if module.is_mutable_collection("cache") and not module.is_initializing():
        module.put_variable("cache", "context", x[:, x.shape[1] - initial.shape[1] :])
    return x


class CausalConv(nn.Module):
    """A convolution over time and space whose output at a frame depends on that frame and earlier ones alone.

    In time the video is preceded by frames of zeros, as many as the kernel is long less one; in space, where
    the kernel's sides are odd, it keeps its size.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3, 3)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width features"]:
        length, *sides = self.kernel_size
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x = x.astype(self.dtype)
        x = prepend_context(
            self, x, jnp.zeros_like(x, shape=(x.shape[0], length - 1, *x.shape[2:]))
        )
        padding = [(side // 2, side // 2) for side in sides]
        # XLA's compilers for CPUs and TPUs are slow in three dimensions. On CPUs a sum over frames takes a
        # fifth of the time; on TPUs a sum over rows needs no copies of a batch of few frames.
        x = jax.lax.platform_dependent(
            x,
            kernel.astype(self.dtype),
            cpu=functools.partial(_convolve_frames, padding=padding),
            tpu=functools.partial(_convolve_rows, padding=padding),
            default=functools.partial(_convolve, padding=padding),
        )
        return x + bias.astype(self.dtype)


def _convolve(
    x: Float[Array, "batch time height width channels"],
    kernel: Float[Array, "length rows columns channels features"],
    padding: list[tuple[int, int]],
) -> Float[Array, "batch outputs height width features"]:
    """A convolution over time, without padding, and space."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1, 1), [(0, 0), *padding], dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def _convolve_frames(
    x: Float[Array, "batch time height width channels"],
    kernel: Float[Array, "length rows columns channels features"],
    padding: list[tuple[int, int]],
) -> Float[Array, "batch outputs height width features"]:
    """`_convolve` as a sum over the kernel's frames of convolutions in space."""
    batch, time, *shape = x.shape
    outputs = time - len(kernel) + 1

    def convolve(start: int) -> Array:
        frames = x[:, start : start + outputs].reshape(batch * outputs, *shape)
        return jax.lax.conv_general_dilated(
            frames, kernel[start], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    y = sum(convolve(start) for start in range(len(kernel)))
    return y.reshape(batch, outputs, *y.shape[1:])


def _convolve_rows(
    x: Float[Array, "batch time height width channels"],
    kernel: Float[Array, "length rows columns channels features"],
    padding: list[tuple[int, int]],
) -> Float[Array, "batch outputs height width features"]:
    """`_convolve` as a sum over the kernel's rows of convolutions in time and columns, whose batch is all rows."""
    batch, _, height = x.shape[:3]
    x = jnp.pad(x, [(0, 0), (0, 0), padding[0], (0, 0), (0, 0)])

    def convolve(row: int) -> Array:
        return jax.lax.conv_general_dilated(
            rearrange(x[:, :, row : row + height], "b t h w c -> t (b h) w c"),
            kernel[:, row],
            (1, 1),
            [(0, 0), padding[1]],
            dimension_numbers=("TNWC", "TWIO", "TNWC"),
        )

    return rearrange(
        sum(map(convolve, range(kernel.shape[1]))), "t (b h) w c -> b t h w c", b=batch
    )


def apply_chunk(
    module: nn.Module, variables: PyTree, chunk: Array, cache: PyTree = None, *, method: str
) -> tuple[PyTree, PyTree]:
    """`module.method(chunk)` for a chunk of a video, whose predecessors left `cache`.

    Outputs of successive chunks, joined in time, are the output of the whole video; a chunk costs the memory
    of its own frames, however long the video is. Under `jax.jit` there are two programs, one for a first
    chunk and one for all others of the same length:

        step = jax.jit(functools.partial(apply_chunk, module, method="decode"))

    Args:
        cache: None for a video's first chunk.

    Returns:
        The method's output, and the cache for the next chunk.
    """
    collections = variables if cache is None else {**variables, "cache": cache}
    output, updates = module.apply(collections, chunk, method=method, mutable=["cache"])
    return output, updates["cache"]


def apply_chunks(
    module: nn.Module,
    variables: PyTree,
    sequence: Float[Array, "batch time ..."],
    *,
    method: str,
    first: int = 1,
    size: int = 1,
) -> Float[Array, "batch outputs ..."]:
    """Return `module.method(sequence)`, computed chunk by chunk in one program with the memory of a chunk.

    Args:
        sequence: a video, or its latents.
        first, size: frames of the first chunk and of each other one. Of frames after the first chunk, `size`
            leaves no rest.
    """
    head, tail = jnp.split(sequence, [first], axis=1)
    output, cache = apply_chunk(module, variables, head, method=method)
    if not tail.shape[1]:
        return output

    def step(cache: PyTree, chunk: Array) -> tuple[PyTree, Array]:
        output, cache = apply_chunk(module, variables, chunk, cache, method=method)
        return cache, output

    _, outputs = jax.lax.scan(
        step, cache, rearrange(tail, "b (n size) ... -> n b size ...", size=size)
    )
    return jnp.concatenate([output, rearrange(outputs, "n b t ... -> b (n t) ...")], axis=1)
