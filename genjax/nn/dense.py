"""The linear layer, and what it computes for attention."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from genjax.nn.attention.dispatch import current_platform, forward_mode
from genjax.nn.rounded import rounded_product
from genjax.nn.sharding import TENSOR, context_size, free_axes, gathered, over_parts

in_token_loop = jax.make_user_context(False)
"""`with in_token_loop(True):` around a trace says that it is one pass of a loop over tokens.

On CPUs XLA slices the matrices of stacked layers anew in each pass, which copies them and takes
longer than the products with a few rows. A barrier after the slices lets XLA move them out of the
loop. A product with one row would use one core, so it is the sum of two products. Eight layers of
512 features then take 4.3 ms on two cores, and 5.9 ms otherwise.
"""


def _promote(
    x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None, *, dtype: DTypeLike | None
) -> tuple:
    """Return Flax's `promote_dtype` of x and bias; `_product` rounds the kernel."""
    x, _, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype)
    return x, jnp.asarray(kernel), bias


def _product(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """Return `jax.lax.dot_general` with all of a kernel that is split over devices."""
    dot = lambda x, kernel: jax.lax.dot_general(x, kernel, *args, **options)
    if _rounds(x) and options.get("precision") is None:
        dot = rounded_product
    if in_token_loop.value and current_platform() == "cpu":
        kernel = jax.lax.optimization_barrier(kernel)
        if x.ndim == 2 and x.shape[0] == 1 and x.size % 2 == 0:
            dot = functools.partial(_sum_of_halves, options.get("preferred_element_type"))
    product = lambda x, kernel: dot(x, gathered(kernel.astype(x.dtype)))
    return over_parts(product)(x, kernel)


def _rounds(x: Array) -> bool:
    """Return whether x is multiplied by `rounded_product`: on CPUs, if JAX's option asks for it."""
    asked = jax.config.jax_default_matmul_precision == "bfloat16" and not forward_mode.value
    return asked and current_platform() == "cpu" and x.ndim == 2 and x.dtype == jnp.float32


def _sum_of_halves(dtype: DTypeLike | None, x: Array, kernel: Array) -> Array:
    """Return x·kernel in `dtype` as the sum of two products, which run at once."""
    halves = kernel.reshape(2, -1, kernel.shape[-1])
    products = jnp.einsum("hi,hio->ho", x.reshape(2, -1), halves, preferred_element_type=dtype)
    return products.sum(0, keepdims=True)


float32_product = functools.partial(_product, preferred_element_type=jnp.float32)
"""`Dense.dot_general` for logits: products in bfloat16 whose sum is not rounded to bfloat16.

A rounded logit of 10 is wrong by up to 0.03, and guidance multiplies this by its scale.
"""


def unfused(x: Array) -> Array:
    """Return `x`, which XLA on TPUs computes in a pass of its own and writes to memory.

    For what goes into or comes out of a product of thousands of features. With a norm or a gated
    sum in its pass, such a product takes 15 to 50 % longer by the compiler's schedule. This is more
    than a pass over memory.
    """
    return jax.lax.optimization_barrier(x) if current_platform() == "tpu" else x


class Dense(nn.Dense):
    """`flax.linen.Dense`, whose output rematerialisation may keep as "product".

    On XLA's CPU back end it is one matrix product over all tokens. There the backward pass of a
    product with a three-dimensional operand transposes its operands, and takes 2.5 times as long.
    On TPUs the dimensions stay apart. XLA does not fuse a vector per example with a product over
    all tokens. A norm, a modulation or a gate would then be one more pass over memory. Tokens that
    are split over devices stay apart too, because split examples and split tokens together are not
    the parts of one dimension.
    """

    promote_dtype: Callable = _promote
    dot_general: Callable = _product

    def __call__(self, x: Float[Array, "*batch in_features"]) -> Float[Array, "*batch features"]:
        return _of_rows(super().__call__, x)


def output_layer(features: int, param_dtype: DTypeLike, name: str = "head") -> Dense:
    """Return the last layer of a network whose output is 0 at first; it computes in float32."""
    types = dict(dtype=jnp.float32, param_dtype=param_dtype)
    return Dense(features, kernel_init=nn.initializers.zeros, name=name, **types)


def _of_rows(product: Callable[[Array], Array], x: Array) -> Array:
    """Return a product of x's last dimension, named, with the other dimensions in the fast form."""
    if context_size() > 1 or current_platform() != "cpu":
        return checkpoint_name(product(x), "product")
    rows = checkpoint_name(product(x.reshape(-1, x.shape[-1])), "product")
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


class QueryKeyValue(Dense):
    """Queries, keys and values of tokens from one matrix, whose three parts are multiplied apart.

    Columns are in the order of `heads_of`: (head, which of the three, feature of the head). It
    takes less time to reorder the matrix than to reorder the products, which have more rows.
    """

    num_heads: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"]
    ) -> tuple[Float[Array, "batch length heads head_features"], ...]:
        axes = free_axes(jax.sharding.get_abstract_mesh())
        if axes.get(TENSOR, 1) > 1 or self.num_heads % axes.get("fsdp", 1):
            # Over tensor, the gradient by x is summed over devices once for each product. Over
            # fsdp, columns that are split within heads would be sent once more to be put in order.
            return tuple(heads_of(super().__call__(x), self.num_heads))
        weights = [
            self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        ]
        if self.use_bias:
            weights.append(self.param("bias", self.bias_init, (self.features,), self.param_dtype))
        of_heads = lambda a: a.reshape(*a.shape[:-1], self.num_heads, 3, -1)
        outputs = []
        for i in range(3):
            part = lambda a, i=i: of_heads(a)[..., i, :].reshape(*a.shape[:-1], -1)
            affine = over_parts(functools.partial(_affine, self.dtype, part))
            product = _of_rows(functools.partial(affine, *map(jnp.asarray, weights)), x)
            outputs.append(product.reshape(*x.shape[:2], self.num_heads, -1))
        return tuple(outputs)


def _affine(
    dtype: DTypeLike, part: Callable[[Array], Array], kernel: Array, *arrays: Array
) -> Array:
    """Return x·kernel + bias for a part of the weights, or x·kernel if `arrays` are x alone.

    Weights are rounded here. If they were rounded before they are parted, the TPU's compiler would
    transpose each gradient by queries, keys and values before its product with x.
    """
    *bias, x = arrays
    kernel, *bias = (part(a).astype(dtype) for a in (kernel, *bias))
    x = x.astype(dtype)
    product = rounded_product if _rounds(x) else jnp.matmul
    return sum(bias, product(x, gathered(kernel)))


def heads_of(
    qkv: Float[Array, "batch length three_times_features"], num_heads: int
) -> Float[Array, "3 batch length heads head_features"]:
    """Return queries, keys and values from the output of one layer for all three.

    The layer's features are (head, which of the three, feature of the head), so a device's part of
    the layer consists of some of the heads.
    """
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], num_heads, 3, -1), 3, 0)
