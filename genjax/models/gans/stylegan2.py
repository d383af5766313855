"""StyleGAN2, configuration F (Karras et al. 2020).

"Analyzing and improving the image quality of StyleGAN". The mapping network and the conditioning
are those of StyleGAN2-ADA (Karras et al. 2020, "Training GANs with limited data").
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.nn import constrain
from genjax.nn.equalized import EqualizedConv, EqualizedDense, scaled_leaky_relu
from genjax.nn.fir import convolve, convolve_downsample, downsample, upsample, upsample_convolve
from genjax.nn.plane_waves import draw_waves, plane_waves, transform_waves

Dtype = Any
ARCHITECTURES = ("skip", "resnet", "original")  # figure 7 (b), (c) and (a)


def _check(resolution: int, architecture: str, num_classes: int, labels: Array | None) -> None:
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two of at least 8; got {resolution}")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}"
        )
    if num_classes and labels is None:
        raise ValueError(f"a network of {num_classes} classes needs labels; got None")


def _normalize(x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-8)


def _activate(x: Array, clamp: float | None) -> Array:
    x = scaled_leaky_relu(x)
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


def modulated_convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side channels out_channels"],
    style: Float[Array, "batch channels"],
    *,
    convolve: Callable[[Array, Array], Array] = convolve,
    demodulate: bool = True,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """Convolve each image with its own kernel, k'_io = d_o·s_i·k_io, by one ordinary convolution.

    The demodulation d_o = 1/√(Σ_i Σ_pixels (s_i·k_io)² + 1e-8) gives the kernel of every output
    channel unit norm (equations 1 and 3). s depends on the input channel alone, d depends on the
    output channel alone, and a convolution is linear: Σ_i (d_o·s_i·k_io) * x_i = d_o·Σ_i k_io *
    (s_i·x_i). So inputs are scaled by s and outputs by d, and all images share the kernel. The
    demodulation is float32 whatever the type of `x`.

    Args:
        kernel: k, shared by all images.
        style: s, the scales of the input channels.
        convolve: the shared convolution, for example one that also resamples.
        demodulate: whether to apply d.
    """
    x = convolve(x * style[:, None, None].astype(x.dtype), kernel.astype(x.dtype))
    if demodulate:
        power = jnp.sum(kernel.astype(jnp.float32) ** 2, axis=(0, 1))
        square = jnp.matmul(style.astype(jnp.float32) ** 2, power, precision="highest")
        x = x * jax.lax.rsqrt(square + 1e-8)[:, None, None].astype(x.dtype)
    return x


def minibatch_deviation(
    x: Float[Array, "batch height width channels"], group_size: int = 4
) -> Float[Array, "batch height width channels_and_deviation"]:
    """Append a channel: the standard deviation within a group of the batch.

    The deviation is averaged over channels and pixels (Karras et al. 2018, section 3). Groups span
    the whole batch: example i is in group i mod (batch/group size). So the result does not depend
    on the sharding of the batch.

    Raises:
        ValueError: the batch is larger than a group and not divisible into groups.
    """
    batch = x.shape[0]
    group_size = min(group_size, batch)
    if batch % group_size:
        raise ValueError(f"a batch of {batch} does not divide into groups of {group_size}")
    groups = x.reshape(group_size, batch // group_size, *x.shape[1:]).astype(jnp.float32)
    # jnp.std would not do: its gradient at equal examples is not finite.
    deviation = jnp.sqrt(jnp.mean((groups - groups.mean(axis=0)) ** 2, axis=0) + 1e-8).mean(
        axis=(1, 2, 3)
    )
    deviation = jnp.tile(deviation, group_size)[:, None, None, None].astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(deviation, (*x.shape[:3], 1))], axis=-1)


def truncate(
    w: Float[Array, "batch styles w_features"],
    average: Float[Array, " w_features"],
    truncation: float | Float[Array, ""],
    cutoff: int | Int[Array, ""] | None,
) -> Float[Array, "batch styles w_features"]:
    """Return w̄ + ψ·(w − w̄) for the first `cutoff` styles, all if None, and w for the others."""
    styles = jnp.arange(w.shape[1])[:, None]
    truncation = jnp.where(styles < (w.shape[1] if cutoff is None else cutoff), truncation, 1.0)
    return truncation * w + (1 - truncation) * average  # exactly w for ψ = 1


class Mapping(nn.Module):
    """Map a latent, a class or both to w, in float32, at a hundredth of the learning rate."""

    features: int
    num_layers: int
    num_classes: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"] | None, labels: Int[Array, " batch"] | None
    ) -> Float[Array, "batch features"]:
        dense = functools.partial(EqualizedDense, self.features, param_dtype=self.param_dtype)
        parts = [] if z is None else [_normalize(z)]
        if self.num_classes:
            parts.append(
                _normalize(dense(name="embedding")(jax.nn.one_hot(labels, self.num_classes)))
            )
        x = jnp.concatenate(parts, axis=-1)
        for i in range(self.num_layers):
            x = scaled_leaky_relu(dense(lr_multiplier=0.01, name=f"dense{i}")(x))
        return x


class StyledConv(nn.Module):
    """Apply modulated convolution, noise, bias and activation (figure 2d)."""

    features: int
    resolution: int
    clamp: float | None
    dtype: Dtype
    param_dtype: Dtype
    convolve: Callable[[Array, Array], Array] = convolve

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch in_height in_width channels"],
        w: Float[Array, "batch w_features"],
        train: bool,
    ) -> Float[Array, "batch height width features"]:
        channels, sides = x.shape[-1], (self.resolution, self.resolution)
        style = EqualizedDense(
            channels, initial_bias=1.0, param_dtype=self.param_dtype, name="affine"
        )(w)
        kernel = self.param(
            "kernel", nn.initializers.normal(1.0), (3, 3, channels, self.features), self.param_dtype
        )
        strength = self.param("noise_strength", nn.initializers.zeros, (), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        constant = self.variable(
            "noise", "noise", lambda: jax.random.normal(self.make_rng("params"), sides)
        )

        x = modulated_convolve(x.astype(self.dtype), kernel, style, convolve=self.convolve)
        noise = (
            jax.random.normal(self.make_rng("noise"), (x.shape[0], *sides))
            if train
            else constant.value
        )
        x = x + (strength * noise)[..., None].astype(x.dtype) + bias.astype(x.dtype)
        return _activate(x, self.clamp)


class ToRGB(nn.Module):
    """Apply a modulated 1×1 convolution without demodulation; the output is float32."""

    image_channels: int
    clamp: float | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], w: Float[Array, "batch w_features"]
    ) -> Float[Array, "batch height width image_channels"]:
        channels = x.shape[-1]
        style = EqualizedDense(
            channels, initial_bias=1.0, param_dtype=self.param_dtype, name="affine"
        )(w)
        shape = (1, 1, channels, self.image_channels)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.image_channels,), self.param_dtype)
        x = modulated_convolve(x, kernel, style / math.sqrt(channels), demodulate=False).astype(
            jnp.float32
        )
        x = x + bias
        return x if self.clamp is None else jnp.clip(x, -self.clamp, self.clamp)


class FourierInput(nn.Module):
    """Plane waves that the grid of the lowest resolution can hold, in place of the constant.

    Karras et al. 2021, "StyleGAN3", configuration B of figure 3. Frequencies and phases are not
    trained. They are in the collection "waves".
    """

    features: int
    resolution: int

    @nn.compact
    def __call__(
        self, transform: Float[Array, "#batch 3 3"]
    ) -> Float[Array, "#batch height width features"]:
        bandwidth = self.resolution / 2  # cycles per image: two samples a cycle
        drawn = lambda index: draw_waves(self.make_rng("params"), self.features, bandwidth)[index]
        waves = [
            self.variable("waves", *each).value[None]
            for each in (("frequencies", drawn, 0), ("phases", drawn, 1))
        ]
        return plane_waves(*transform_waves(*waves, transform), self.resolution, self.resolution)


class SynthesisBlock(nn.Module):
    """The layers of one resolution; the first block gets no features and makes them itself."""

    features: int
    resolution: int
    image_channels: int
    architecture: str
    fourier_input: bool
    last: bool
    clamp: float | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch in_height in_width channels"] | None,
        image: Float[Array, "batch in_height in_width image_channels"] | None,
        w: Float[Array, "batch styles w_features"],
        transform: Float[Array, "#batch 3 3"],
        train: bool,
    ) -> tuple[
        Float[Array, "batch height width features"],
        Float[Array, "batch height width image_channels"] | None,
    ]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = functools.partial(StyledConv, self.features, self.resolution, self.clamp, **types)
        styles = iter(jnp.moveaxis(w, 1, 0))
        if x is None:
            shape = (self.resolution, self.resolution, self.features)
            if self.fourier_input:
                x = FourierInput(self.features, self.resolution, name="input")(transform)
            else:
                normal = nn.initializers.normal(1.0)
                x = self.param("constant", normal, shape, self.param_dtype)
            x = jnp.broadcast_to(x, (w.shape[0], *shape))
            x = conv(name="conv1")(x, next(styles), train)
        else:
            before = x
            x = conv(convolve=upsample_convolve, name="conv0")(x, next(styles), train)
            x = conv(name="conv1")(x, next(styles), train)
            if self.architecture == "resnet":
                skip = EqualizedConv(
                    self.features,
                    1,
                    use_bias=False,
                    convolve=upsample_convolve,
                    name="skip",
                    **types,
                )
                x = (skip(before) + x) * math.sqrt(0.5)
        x = constrain(x, ("data", "fsdp"))
        if self.last or self.architecture == "skip":
            rgb = ToRGB(self.image_channels, self.clamp, self.param_dtype, name="to_rgb")(
                x, next(styles)
            )
            image = rgb if image is None else upsample(image) + rgb
        return x, image


class Synthesis(nn.Module):
    """Turn one w per style into an image. The fields are the generator's."""

    resolution: int
    image_channels: int
    architecture: str
    fourier_input: bool
    channel_base: int
    channel_max: int
    clamp: float | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        w: Float[Array, "batch styles w_features"],
        transform: Float[Array, "#batch 3 3"],
        train: bool,
    ) -> Float[Array, "batch height width image_channels"]:
        x = image = None
        first = 0
        for level in range(2, self.resolution.bit_length()):
            resolution = 2**level
            block = SynthesisBlock(
                min(self.channel_base // resolution, self.channel_max),
                resolution,
                self.image_channels,
                self.architecture,
                self.fourier_input,
                resolution == self.resolution,
                self.clamp,
                self.dtype,
                self.param_dtype,
                name=f"block{resolution}",
            )
            num_convs = 1 if x is None else 2
            # The next resolution's first convolution shares its style with this resolution's image.
            x, image = block(x, image, w[:, first : first + num_convs + 1], transform, train)
            first += num_convs
        return image


class Generator(nn.Module):
    """Mapping network and synthesis network.

    There are two collections beside "params". "moving_average" holds the average of w, the centre
    of truncation. It is updated if `train` is true and the collection is mutable. "noise" holds the
    constant noise images, used if `train` is false. Zero noise images give images without noise. If
    `train` is true, noise and the second latent of style mixing come from the rng stream "noise".

    Attributes:
        resolution: side of the images, a power of two.
        num_classes: 0 for an unconditional generator, which ignores labels.
        channel_base: a layer has channel_base/resolution channels, at most `channel_max`. 32768 is
            configuration F; 16384 is half of it, for 256 px and below.
        architecture: "skip" sums the images of all resolutions; "resnet" has residual blocks;
            "original" has neither.
        fourier_input: start from plane waves in place of a learned constant. They can be moved and
            turned, so equivariance can be measured (StyleGAN3's configuration B).
        style_mixing: probability that a training example takes its finer styles from a second
            latent.
        average_decay: decay per update of the average of w: 0.998 as in StyleGAN3's program, where
            StyleGAN2-ADA's has 0.995.
        clamp: bound of activations that keeps float16 finite; None for no bound. Weights published
            since StyleGAN2-ADA were trained with 256.
        dtype: type of the convolutions. Mapping, styles, demodulation and images are always
            float32.
    """

    resolution: int
    latent_size: int = 512
    w_size: int = 512
    num_classes: int = 0
    image_channels: int = 3
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    architecture: str = "skip"
    fourier_input: bool = False
    style_mixing: float = 0.9
    average_decay: float = 0.998
    clamp: float | None = 256.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def num_styles(self) -> int:
        """The number of styles that an image takes."""
        return 2 * (self.resolution.bit_length() - 1) - 2

    @property
    def takes_transform(self) -> bool:
        """Whether `synthesize` takes a transform of its input."""
        return self.fourier_input

    def setup(self):
        self.mapping = Mapping(self.w_size, self.mapping_layers, self.num_classes, self.param_dtype)
        self.synthesis = Synthesis(
            self.resolution,
            self.image_channels,
            self.architecture,
            self.fourier_input,
            self.channel_base,
            self.channel_max,
            self.clamp,
            self.dtype,
            self.param_dtype,
        )
        self.w_average = self.variable("moving_average", "w_average", jnp.zeros, (self.w_size,))

    def map(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        truncation: float | Float[Array, ""] = 1.0,
        truncation_cutoff: int | Int[Array, ""] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch styles w_features"]:
        """Return w of every style.

        Args:
            truncation: ψ in w̄ + ψ·(w − w̄) (Karras et al. 2019, appendix B). Truncation and cutoff
                may be traced.
            truncation_cutoff: number of styles to truncate, from the coarsest; all if None.

        Raises:
            ValueError: resolution or architecture is not supported, or labels are missing.
        """
        _check(self.resolution, self.architecture, self.num_classes, labels)
        w = self.mapping(z, labels)
        if train and self.is_mutable_collection("moving_average") and not self.is_initializing():
            mean = jax.lax.stop_gradient(w).mean(axis=0)
            self.w_average.value = mean + self.average_decay * (self.w_average.value - mean)
        styles = jnp.arange(self.num_styles)[:, None]
        w = jnp.repeat(w[:, None], self.num_styles, axis=1)
        if train and self.style_mixing:
            latent_key, mixed_key, first_key = jax.random.split(self.make_rng("noise"), 3)
            other = self.mapping(jax.random.normal(latent_key, z.shape, z.dtype), labels)
            mixed = jax.random.bernoulli(mixed_key, self.style_mixing, (z.shape[0], 1, 1))
            first = jax.random.randint(first_key, mixed.shape, 1, self.num_styles)
            w = jnp.where(mixed & (styles >= first), other[:, None], w)
        return truncate(w, self.w_average.value, truncation, truncation_cutoff)

    def synthesize(
        self,
        w: Float[Array, "batch styles w_features"],
        *,
        transform: Float[Array, "#batch 3 3"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Return the image of `num_styles` w's.

        Args:
            transform: moves or turns the input, as in `stylegan3.Generator.synthesize`.

        Raises:
            ValueError: there is another number of styles, or a constant input cannot be moved.
        """
        if w.shape[1] != self.num_styles:
            raise ValueError(
                f"{self.resolution} px take {self.num_styles} styles; got {w.shape[1]}"
            )
        if transform is not None and not self.fourier_input:
            raise ValueError("a transform moves plane waves; set fourier_input=True to have them")
        return self.synthesis(w, jnp.eye(3)[None] if transform is None else transform, train)

    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        return self.synthesize(self.map(z, labels, train=train), train=train)


class DiscriminatorBlock(nn.Module):
    """The layers of one resolution, from features, image or both to features of half the side."""

    features: int
    out_features: int
    architecture: str
    clamp: float | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width features"] | None,
        image: Float[Array, "batch height width channels"] | None,
    ) -> Float[Array, "batch height//2 width//2 out_features"]:
        conv = functools.partial(EqualizedConv, dtype=self.dtype, param_dtype=self.param_dtype)
        if x is None or self.architecture == "skip":
            rgb = _activate(conv(self.features, 1, name="from_rgb")(image), self.clamp)
            x = rgb if x is None else x + rgb
        before = x
        x = _activate(conv(self.features, 3, name="conv0")(x), self.clamp)
        x = conv(self.out_features, 3, convolve=convolve_downsample, name="conv1")(x)
        x = _activate(x, self.clamp)
        if self.architecture == "resnet":
            skip = conv(
                self.out_features, 1, use_bias=False, convolve=convolve_downsample, name="skip"
            )
            x = (skip(before) + x) * math.sqrt(0.5)
        return constrain(x, ("data", "fsdp"))


class Epilogue(nn.Module):
    """Turn 4×4 features into a vector per image, in float32."""

    out_features: int
    architecture: str
    group_size: int
    clamp: float | None
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width features"],
        image: Float[Array, "batch height width channels"] | None,
    ) -> Float[Array, "batch out_features"]:
        features, types = x.shape[-1], dict(param_dtype=self.param_dtype)
        x = x.astype(jnp.float32)
        if self.architecture == "skip":
            x = x + scaled_leaky_relu(EqualizedConv(features, 1, name="from_rgb", **types)(image))
        x = minibatch_deviation(x, self.group_size)
        x = _activate(EqualizedConv(features, 3, name="conv", **types)(x), self.clamp)
        x = scaled_leaky_relu(
            EqualizedDense(features, name="dense", **types)(x.reshape(x.shape[0], -1)),
        )
        return EqualizedDense(self.out_features, name="out", **types)(x)


class Discriminator(nn.Module):
    """A logit per image. It depends on the batch, because the minibatch deviation is an input.

    With classes, the logit is the scalar product of the image's vector and the class's mapped
    vector, divided by √features (StyleGAN2-ADA, after Miyato & Koyama 2018).

    Attributes:
        group_size: images in a group of the minibatch deviation; divides the batch, or exceeds it.
        mapping_layers: layers of the mapping network of classes.
        dtype: type of the convolutions. The 4×4 layers and everything after them are always
            float32.

    The other attributes are the generator's.
    """

    resolution: int
    num_classes: int = 0
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    architecture: str = "resnet"
    group_size: int = 4
    clamp: float | None = 256.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, " batch"]:
        """Return logits in float32. `train` is unused; every discriminator takes it."""
        _check(self.resolution, self.architecture, self.num_classes, labels)
        if images.shape[1:3] != (self.resolution, self.resolution):
            raise ValueError(
                f"images must have {self.resolution} px a side; got {images.shape[1:3]}"
            )
        channels = lambda resolution: min(self.channel_base // resolution, self.channel_max)
        x, image = None, images
        for level in range(self.resolution.bit_length() - 1, 2, -1):
            x = DiscriminatorBlock(
                channels(2**level),
                channels(2 ** (level - 1)),
                self.architecture,
                self.clamp,
                self.dtype,
                self.param_dtype,
                name=f"block{2**level}",
            )(x, image)
            image = downsample(image) if self.architecture == "skip" else None
        out_features = channels(4) if self.num_classes else 1
        x = Epilogue(
            out_features,
            self.architecture,
            self.group_size,
            self.clamp,
            self.param_dtype,
            name="epilogue",
        )(x, image)
        if self.num_classes:
            mapping = Mapping(
                out_features,
                self.mapping_layers,
                self.num_classes,
                self.param_dtype,
                name="mapping",
            )
            return jnp.sum(x * mapping(None, labels), axis=-1) / math.sqrt(out_features)
        return x[:, 0]
