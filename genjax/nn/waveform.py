"""Layers of convolutional networks over waveforms `[batch samples channels]`.

They are the convolutions and activations of DAC (Kumar et al. 2023), Oobleck (Evans et al. 2024,
"Stable Audio") and BigVGAN (Lee et al. 2022).
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Any
# U(−1/√fan_in, 1/√fan_in): PyTorch's default. Residual units of larger kernels would let the
# signal grow by orders of magnitude.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def snake(
    x: Float[Array, "*batch channels"],
    frequency: Float[Array, " channels"],
    amplitude: Float[Array, " channels"],
) -> Float[Array, "*batch channels"]:
    """Return x + sin²(αx)/β (Ziyin et al. 2020, "Snake", equation 3, where β = α)."""
    return x + jnp.square(jnp.sin(frequency * x)) / (amplitude + 1e-9)


class Snake(nn.Module):
    """Apply x + sin²(αx)/α with one α per channel (DAC)."""

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        alpha = self.param("alpha", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        alpha = jnp.asarray(alpha, self.dtype)
        return snake(x.astype(self.dtype), alpha, alpha)


class SnakeBeta(nn.Module):
    """Apply x + sin²(αx)/β with α and β per channel, stored as logarithms (BigVGAN, Oobleck)."""

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        zeros = nn.initializers.zeros
        alpha = self.param("alpha", zeros, x.shape[-1:], self.param_dtype)
        beta = self.param("beta", zeros, x.shape[-1:], self.param_dtype)
        alpha, beta = (jnp.exp(each).astype(self.dtype) for each in (alpha, beta))
        return snake(x.astype(self.dtype), alpha, beta)


class WaveConv(nn.Module):
    """Convolve over time, and over further axes if `kernel_size` has several sides.

    With weight norm, w = g·v/‖v‖ for each output channel (Salimans & Kingma 2016, equation 2). The
    gain g begins as ‖v‖, so weight norm does not change the layer at its start.

    Attributes:
        padding: zeros before and after each axis. If None, the length that a stride of 1 keeps, or
            half a stride (rounded up) for kernels of twice the stride.
    """

    features: int
    kernel_size: Sequence[int] | int = 7
    stride: Sequence[int] | int = 1
    dilation: Sequence[int] | int = 1
    padding: Sequence[int] | int | None = None
    use_bias: bool = True
    weight_norm: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *sizes channels"]
    ) -> Float[Array, " batch *out_sizes_features"]:
        axes = x.ndim - 2
        each = lambda value: (value,) * axes if isinstance(value, int) else tuple(value)
        kernel_size, strides, dilations = map(each, (self.kernel_size, self.stride, self.dilation))
        padding = self.padding
        if padding is None:
            steps = zip(kernel_size, strides, dilations, strict=True)
            padding = [
                math.ceil((dilation * (size - 1) + 1 - s) / 2) for size, s, dilation in steps
            ]
        shape = (*kernel_size, x.shape[-1], self.features)
        kernel = _kernel(self, shape, gain_axis=-1)
        letters = "DHW"[-axes:]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            strides,
            [(size, size) for size in each(padding)],
            rhs_dilation=dilations,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
        return y + _bias(self) if self.use_bias else y


class WaveConvTranspose(nn.Module):
    """Enlarge `[batch samples channels]` by a whole stride, as the transpose of a convolution.

    The result is that of PyTorch's `ConvTranspose1d`. It has (samples − 1)·stride + kernel_size −
    2·padding samples. The kernel `[kernel_size channels features]` keeps PyTorch's order of taps.
    With weight norm each input channel has a gain, as in PyTorch.

    It is computed as a convolution at the low rate, whose outputs are `stride` phases.

    Attributes:
        kernel_size: a multiple of the stride; twice the stride if None.
        padding: samples cut off at either end; half the rest of the kernel, rounded up, if None.

    Raises:
        ValueError: the kernel size is no multiple of the stride.
    """

    features: int
    stride: int
    kernel_size: int | None = None
    padding: int | None = None
    use_bias: bool = True
    weight_norm: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch out_samples features"]:
        stride = self.stride
        kernel_size = self.kernel_size or 2 * stride
        if kernel_size % stride:
            raise ValueError(
                f"kernel_size is {kernel_size} for stride {stride}; give a multiple of the stride"
            )
        taps = kernel_size // stride
        kernel = _kernel(self, (kernel_size, x.shape[-1], self.features), gain_axis=-2)
        # y[stride·t + phase] = Σ over taps of x[t − tap]·kernel[stride·tap + phase]
        phases = kernel.reshape(taps, stride, x.shape[-1], self.features)[::-1]
        phases = jnp.moveaxis(phases, 1, 2).reshape(taps, x.shape[-1], -1)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            phases,
            (1,),
            [(taps - 1, taps - 1)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        y = y.reshape(len(x), -1, self.features)
        padding = self.padding
        if padding is None:
            padding = math.ceil((kernel_size - stride) / 2)
        y = y[:, padding : y.shape[1] - padding]
        return y + _bias(self) if self.use_bias else y


def _kernel(module: nn.Module, shape: tuple[int, ...], gain_axis: int) -> Array:
    """Return the module's kernel, normalized for each channel of `gain_axis` if it has a gain."""
    kernel = module.param("kernel", uniform, shape, module.param_dtype)
    if not module.weight_norm:
        return jnp.asarray(kernel, module.dtype)
    others = tuple(axis for axis in range(len(shape)) if axis != gain_axis % len(shape))
    norm = lambda kernel: jnp.sqrt(jnp.square(kernel).sum(others, keepdims=True))
    gain = module.param("gain", lambda key: norm(kernel).reshape(-1))
    gain = gain.reshape([-1 if axis == gain_axis % len(shape) else 1 for axis in range(len(shape))])
    return jnp.asarray(gain * kernel / norm(kernel), module.dtype)


def _bias(module: nn.Module) -> Array:
    zeros = nn.initializers.zeros
    bias = module.param("bias", zeros, (module.features,), module.param_dtype)
    return jnp.asarray(bias, module.dtype)
