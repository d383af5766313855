"""The one attention function that every network calls, and which of its forms computes it where."""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.nn.attention.chunked import (
    CHUNK_BYTES,
    LEAST_CHUNK,
    attention_logits,
    chunk_length,
    chunked_attention,
    scaled,
)
from genjax.nn.attention.context_parallel import (
    all_to_all_attention,
    attention_over_mesh,
    ring_attention,
)
from genjax.nn.attention.kernels import cudnn_attention, splash_attention
from genjax.nn.attention.segments import Mask, Segments
from genjax.nn.attention.short import (
    LEAST_MEMORY,
    memory_on_chip,
    query_block,
    short_attention,
)
from genjax.nn.sharding import BATCH_AXES, CONTEXT, TENSOR, free_axes, split_axes

# The most bytes of a device's logits, in float32, for the plain form. A backward pass has about
# four such arrays at once. They take a quarter of the memory of the smallest accelerator that these
# networks are for (16 GiB, TPU v5e).
PLAIN_BYTES = 2**30
# The least queries and keys for a kernel. This is an estimate: a kernel starts once per head and
# example, which takes as long as writing and reading logits of about 128².
KERNEL_LENGTH = 256
# The least queries and keys on each device of the axis "context". With fewer, the products do not
# fill a matrix unit.
CONTEXT_LENGTH = 128

Form = Literal["plain", "chunked", "cudnn", "splash", "short", "ring", "all_to_all"]
OVER_CONTEXT = "ring", "all_to_all"  # forms that give each device of the axis a part of the keys

forward_mode = jax.make_user_context(False)
"""`with forward_mode(True):` around a trace keeps attention to forms that `jax.jvp` differentiates.

Code that takes forward-mode derivatives (exact likelihoods, Hutchinson's estimate, mean flows) or
second ones (R1 and R2 penalties) sets it, because kernels have one derivative, in reverse.
Functions that were jitted without it are traced again.
"""

as_written = jax.make_user_context(False)
"""`with as_written(True):` around a trace takes the plain form of attention, whatever its size.

This is to count operations without those that other forms repeat, not to run the program.
"""

_record = jax.make_user_context(lambda choice: None)


class Choice(NamedTuple):
    """A chosen form of `attention`, and one device's shapes: `[batch length heads features]`."""

    form: Form
    query: tuple[int, ...]
    key: tuple[int, ...]

    def __str__(self) -> str:
        batch, queries, heads, features = self.query
        tokens = f"{batch} × {queries:,} queries, {self.key[1]:,} keys"
        return f"{self.form}: {tokens}, {heads} heads of {features}"


@contextlib.contextmanager
def attention_choices() -> Iterator[set[Choice]]:
    """Collect the choices of `attention` while programs are traced.

        with attention_choices() as choices:
            jax.eval_shape(network.apply, params, x, t, labels)

    Scanned layers are traced once, however many there are. Functions that were jitted before are
    traced again.
    """
    choices: set[Choice] = set()
    with _record(choices.add):
        yield choices


def attention_weights(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    mask: Mask = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """Return softmax(scale·q·kᵀ + bias) in float32, the weight of each key; as in `attention`."""
    return _softmax(attention_logits(scaled(query, scale), key, mask, bias))


@jax.custom_jvp
def _softmax(logits):
    """Return the softmax w over the last axis, whose derivative is w·(change − Σ w·change).

    JAX differentiates the exponentials, their sum and the quotient. For 640 tokens in 6 heads of
    64, the gradient of attention takes a CPU's core 61 ms with JAX's derivative and 34 ms with this
    one.
    """
    return jax.nn.softmax(logits)


@_softmax.defjvp
def _softmax_tangent(primals, tangents):
    (logits,), (change,) = primals, tangents
    weights = _softmax(logits)
    return weights, weights * (change - jnp.sum(weights * change, axis=-1, keepdims=True))


def plain_attention(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Mask = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch queries heads features"]:
    """Compute `attention` as its equation is written, with all weights in memory."""
    weights = attention_weights(query, key, mask, bias, scale).astype(value.dtype)
    if query.shape[1] == 1:  # as in `attention_logits`
        return jnp.einsum("bhk,bhkf->bhf", weights[:, :, 0], value.swapaxes(1, 2))[:, None]
    return jnp.einsum("bhqk,bkhf->bqhf", weights, value)


def choose_attention(
    platform: str,
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    mask_shape: tuple[int, ...] | None = None,
    bias_shape: tuple[int, ...] | None = None,
    forward_mode: bool = False,
    context: int = 1,
    placed: bool = True,
    memory: int = LEAST_MEMORY,
    segments: bool = False,
) -> Form:
    """Return the form that computes `attention`.

    Args:
        platform: as `current_platform` returns it.
        query_shape: [batch queries heads features], the batch and heads of one device, the whole
            length.
        key_shape: [batch keys heads features], of the same device.
        forward_mode: forward-mode or second derivatives are taken. No kernel has them. The plain
            form would keep each layer's weights and their tangents for the backward pass, so
            logits of more than one chunk are computed in chunks.
        context: over how many devices sequences are split.
        placed: a mesh is in use, or there is only one device. Otherwise XLA splits a program as its
            arguments are split, and XLA cannot split a TPU's kernel.
        memory: bytes on a TPU's chip for kernels.
        segments: the mask is one of `Segments` without times, which TPUs' kernel takes.
    """
    batch, queries, heads, features = query_shape
    keys = key_shape[1]
    shorter = min(queries, keys)
    if context > 1 and shorter >= CONTEXT_LENGTH * context:
        return "ring" if heads % context else "all_to_all"
    queries = _share(queries, context)
    shorter = min(queries, keys)
    of_keys_alone = mask_shape is None or mask_shape[1:3] == (1, 1)
    of_kernel = of_keys_alone or (segments and platform == "tpu")
    if of_kernel and bias_shape is None and not forward_mode and shorter >= KERNEL_LENGTH:
        dtype = jnp.dtype(dtype).name
        if (
            platform == "cuda"
            and dtype in ("bfloat16", "float16")
            and features % 8 == 0
            and features <= 128
        ):
            return "cudnn"
        if platform == "tpu" and dtype == "bfloat16" and placed:
            block = query_block(queries, keys, heads, features, memory)
            return "splash" if block is None or mask_shape is not None else "short"
    largest = min(CHUNK_BYTES, PLAIN_BYTES) if forward_mode else PLAIN_BYTES
    return "chunked" if 4 * batch * heads * queries * keys > largest else "plain"


def current_platform() -> str:
    """Return where the program that is traced now will run: "cpu", "tpu", "cuda" or "gpu".

    It is the platform of the mesh in use (`jax.set_mesh`), or else JAX's default. The mesh of a
    program that is compiled ahead of time need not be one of this machine. "cuda" is a GPU with
    flash attention in cuDNN: NVIDIA's Ampere (2020) and later. On a machine without a GPU, a GPU
    that is planned for counts as one of these.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device
    platform = getattr(device, "platform", device) or jax.default_backend()
    if platform not in ("gpu", "cuda", "rocm"):
        return platform
    if jax.default_backend() != "gpu":
        return "cuda"
    # AMD's capabilities are gfx90a and such.
    generation, _, _ = jax.devices(platform)[0].compute_capability.partition(".")
    return "cuda" if generation.isdecimal() and int(generation) >= 8 else "gpu"


def _choose_on_mesh(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Mask,
    bias: Float[Array, "#batch #heads #queries keys"] | None,
    mesh: jax.sharding.AbstractMesh,
) -> Choice:
    """Return the form of `attention` on a mesh, and one device's shapes."""
    context = free_axes(mesh).get(CONTEXT, 1)
    shape, key_shape = _on_device(query.shape, mesh), _on_device(key.shape, mesh)
    platform = current_platform()
    chosen = (
        "plain"
        if as_written.value
        else choose_attention(
            platform,
            shape,
            key_shape,
            jnp.result_type(query, key, value),
            None if mask is None else mask.shape,
            None if bias is None else bias.shape,
            forward_mode.value,
            context,
            placed=not mesh.empty or jax.device_count() == 1,
            memory=memory_on_chip() if platform == "tpu" else LEAST_MEMORY,
            segments=isinstance(mask, Segments) and mask.key_times is None,
        )
    )
    batch, queries, *features = shape
    if chosen not in OVER_CONTEXT:
        return Choice(chosen, (batch, _share(queries, context), *features), key_shape)
    part = lambda shape: (shape[0], -(-shape[1] // context), *shape[2:])
    return Choice(chosen, part(shape), part(key_shape))


def attention(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Mask = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch queries heads features"]:
    """Return softmax(scale·q·kᵀ + bias)·v, with the softmax in float32 whatever the inputs' type.

    Vaswani et al. 2017, equation 1. `mask` is True where a query may attend. If a query may attend
    nowhere, its output is finite and means nothing. `Segments` are a mask in memory linear in the
    length. `scale` is 1/√features if None.

    `choose_attention` chooses the form by the platform, the shapes on each device of the mesh in
    use, and whether `forward_mode` is on. All forms have reverse-mode derivatives. `jax.jvp` and
    second derivatives need `forward_mode`, except in the form "plain". A CPU takes the form "plain"
    unless its logits exceed `PLAIN_BYTES`. Layers that round (`genjax.nn.rounded`) need it too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    choice = _choose_on_mesh(query, key, value, mask, bias, mesh)
    _record.value(choice)
    chunked = functools.partial(chunked_attention, forward_mode=forward_mode.value)
    # Kernels hold little, and plans trace this form in their place.
    in_blocks = functools.partial(chunked, chunk=LEAST_CHUNK)
    forms = dict(
        plain=plain_attention,
        chunked=functools.partial(chunked, chunk=chunk_length(choice.query, key.shape[1])),
        cudnn=functools.partial(_kernel_or, in_blocks, cuda=cudnn_attention),
        splash=functools.partial(_kernel_or, in_blocks, tpu=splash_attention),
        short=functools.partial(_kernel_or, in_blocks, tpu=_short_attention),
        ring=functools.partial(ring_attention, forward_mode=forward_mode.value),
        all_to_all=functools.partial(all_to_all_attention, attention=attention),
    )
    form, arguments = forms[choice.form], (query, key, value, mask, bias, scale)
    free = free_axes(mesh)
    # XLA splits batch and heads of its own operations well, but kernels not at all.
    if not free or (free.get(CONTEXT, 1) == 1 and choice.form in ("plain", "chunked")):
        return form(*arguments)
    return attention_over_mesh(form, *arguments, split_keys=choice.form in OVER_CONTEXT)


def _kernel_or(default, query, key, value, mask, bias, scale, **kernel):
    """Run the kernel, or the default where the program is compiled for another platform after all.

    Inputs put on the CPU beside a GPU are such a case.
    """
    if "cuda" in kernel and jax.default_backend() != "gpu":  # JAX asks for cuDNN while it traces
        kernel = {}
    forms = {platform: functools.partial(form, scale=scale) for platform, form in kernel.items()}
    default = functools.partial(default, scale=scale)
    return jax.lax.platform_dependent(query, key, value, mask, default=default, **forms)


def _short_attention(query, key, value, mask, scale):
    """Call `short_attention`, which is chosen only where there is no mask."""
    block = query_block(query.shape[1], key.shape[1], *query.shape[2:], memory_on_chip())
    return short_attention(query, key, value, scale, block=block)


def _share(queries: int, context: int) -> int:
    """Return the number of a device's queries if the device has all keys."""
    return queries // context if queries % context == 0 else queries


def _on_device(shape: tuple[int, ...], mesh: jax.sharding.AbstractMesh) -> tuple[int, ...]:
    """Return one device's part of a shape [batch length heads features], all of its length."""
    batch, length, heads, features = shape
    parts = lambda names, size: math.prod(
        mesh.shape[name] for name in split_axes(mesh, names, size)
    )
    return batch // parts(BATCH_AXES, batch), length, heads // parts((TENSOR,), heads), features
