"""Layers of causal video networks, which process a whole video or its chunks in turn.

A layer that looks back in time keeps the last frames that it saw in the Flax collection "cache". If
the collection is not mutable, as in training, the layer takes its input for a whole video.
`apply_chunk` makes the collection mutable.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, PyTree, Shaped

Dtype = Any


def continues(module: nn.Module) -> bool:
    """Return whether the input of `module` follows a chunk that `module` saw before."""
    return module.has_variable("cache", "context")


def prepend_context(
    module: nn.Module,
    x: Float[Array, "batch time *places channels"],
    initial: Float[Array, "batch context *places channels"],
) -> Float[Array, "batch context_and_time *places channels"]:
    """Prepend the preceding frames to `x`, and store its last frames for the next chunk.

    At a video's start the preceding frames are `initial`. Later they are the last frames that
    `module` saw.
    """
    before = module.get_variable("cache", "context") if continues(module) else initial
    x = jnp.concatenate([before, x], axis=1)
    if module.is_mutable_collection("cache") and not module.is_initializing():
        module.put_variable("cache", "context", x[:, x.shape[1] - initial.shape[1] :])
    return x


class CausalConv(nn.Module):
    """A convolution over time and space whose output frames depend on no later frame.

    Frames of zeros precede the video, one fewer than the kernel has. A kernel with odd sides keeps
    the height and the width.

    Attributes:
        features: number of output channels.
        kernel_size: numbers of frames, rows and columns.
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
        return convolve_video(x, kernel.astype(self.dtype), padding) + bias.astype(self.dtype)


def convolve_video(
    x: Float[Array, "batch time height width channels"],
    kernel: Float[Array | np.ndarray, "length rows columns channels features"],
    padding: list[tuple[int, int]],
) -> Float[Array, "batch outputs new_height new_width features"]:
    """Convolve over time, without padding, and over space, in the fastest form of each platform.

    XLA's 3-D convolutions are slow on CPUs and TPUs. On CPUs a sum over the kernel's frames takes a
    fifth of the time. On TPUs a sum over its rows needs no copies of a batch of few frames.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_convolve_frames, padding=padding),
        tpu=functools.partial(_convolve_rows, padding=padding),
        default=functools.partial(_convolve, padding=padding),
    )


def _convolve(
    x: Float[Array, "batch time height width channels"],
    kernel: Float[Array, "length rows columns channels features"],
    padding: list[tuple[int, int]],
) -> Float[Array, "batch outputs new_height new_width features"]:
    """Convolve over time, without padding, and over space."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1, 1), [(0, 0), *padding], dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def _convolve_frames(
    x: Float[Array, "batch time height width channels"],
    kernel: Float[Array, "length rows columns channels features"],
    padding: list[tuple[int, int]],
) -> Float[Array, "batch outputs new_height new_width features"]:
    """Compute `_convolve` as a sum of convolutions in space, one for each frame of the kernel."""
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
) -> Float[Array, "batch outputs new_height new_width features"]:
    """Compute `_convolve` as a sum of convolutions, one for each row of the kernel.

    They convolve over time and columns. Their batch consists of the rows of all videos.
    """
    x = jnp.pad(x, [(0, 0), (0, 0), padding[0], (0, 0), (0, 0)])
    batch, height = len(x), x.shape[2] - kernel.shape[1] + 1

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
    module: nn.Module,
    variables: PyTree,
    chunk: Array,
    cache: PyTree = None,
    *,
    method: str | Callable,
) -> tuple[PyTree, PyTree]:
    """Compute `module.method(chunk)` for one chunk of a video.

    Outputs of successive chunks, joined in time, are the output of the whole video. A chunk costs
    the memory of its own frames, however long the video is. `jax.jit` compiles two programs: one
    for the first chunk, and one for all other chunks of the same length:

        step = jax.jit(functools.partial(apply_chunk, module, method="decode"))

    Args:
        cache: the cache that the previous chunk returned, or None for a video's first chunk.

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
    method: str | Callable,
    first: int = 1,
    size: int = 1,
    convert: Callable[[PyTree], PyTree] = lambda output: output,
) -> PyTree[Shaped[Array, "batch outputs ..."]]:
    """Return `module.method(sequence)`, an array or a tree, chunk by chunk in one program.

    The program takes the memory of one chunk, in addition to its output.

    Args:
        sequence: a video, or its latents.
        first: number of frames of the first chunk.
        size: number of frames of each other chunk. It divides the number of frames after the first
            chunk.
        convert: applied to each chunk's output, such as a change to a smaller type.
    """
    head, tail = jnp.split(sequence, [first], axis=1)
    output, cache = apply_chunk(module, variables, head, method=method)
    output = convert(output)
    if not tail.shape[1]:
        return output

    def step(cache: PyTree, chunk: Array) -> tuple[PyTree, PyTree]:
        output, cache = apply_chunk(module, variables, chunk, cache, method=method)
        return cache, convert(output)

    _, outputs = jax.lax.scan(
        step, cache, rearrange(tail, "b (n size) ... -> n b size ...", size=size)
    )

    def join(first: Array, others: Array) -> Array:
        return jnp.concatenate([first, rearrange(others, "n b t ... -> b (n t) ...")], axis=1)

    return jax.tree.map(join, output, outputs)
