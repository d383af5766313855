"""StyleGAN3, configurations T and R (Karras et al. 2021).

"Alias-free generative adversarial networks". Images are signals with limited bands. The input is a
set of plane waves, which may be moved and turned. Each layer's filters keep what its sampling rate
can hold. So details move with the image, and do not stick to pixels. The discriminator is
StyleGAN2's (`stylegan2.Discriminator`).
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.models.gans.stylegan2 import Mapping, modulated_convolve, truncate
from genjax.nn import constrain
from genjax.nn.equalized import EqualizedDense
from genjax.nn.filtered import filtered_leaky_relu, low_pass
from genjax.nn.fir import convolve_beyond
from genjax.nn.plane_waves import draw_waves, plane_waves, transform_waves

Dtype = Any
MARGIN = 10  # pixels of features around the image on each side
FILTER_SIZE = 6  # taps of a filter, relative to its change of the sampling rate


class LayerShape(NamedTuple):
    """Sizes and frequencies of the features after a layer (section 3.2 and figure 4).

    Attributes:
        size: side of the features, with their margin.
        channels: number of features.
        rate: samples per side of the image.
        cutoff: highest frequency that is kept, in cycles per side of the image.
        half_width: of the filter's transition band.
    """

    size: int
    channels: int
    rate: int
    cutoff: float
    half_width: float


def layer_shapes(
    resolution: int,
    image_channels: int,
    *,
    num_layers: int,
    num_critical: int,
    channel_base: int,
    channel_max: int,
) -> list[LayerShape]:
    """Return the shapes after each of `num_layers` layers and after the last, `to_rgb`.

    Cutoffs grow geometrically from 2 to half of the resolution, stop bands from 2^2.1 to 2^0.3
    times that.
    """
    last = resolution / 2
    share = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
    cutoffs = 2 * (last / 2) ** share
    stopbands = 2**2.1 * (last * 2**0.3 / 2**2.1) ** share
    rates = np.exp2(np.ceil(np.log2(np.minimum(2 * stopbands, resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + 2 * MARGIN
    sizes[-2:] = resolution
    channels = np.rint(np.minimum(channel_base / 2 / cutoffs, channel_max))
    channels[-1] = image_channels
    rows = zip(sizes, channels, rates, cutoffs, half_widths, strict=True)
    return [LayerShape(int(s), int(c), int(r), float(f), float(h)) for s, c, r, f, h in rows]


class FourierInput(nn.Module):
    """Plane waves of random frequencies and phases, moved and turned as w says (section 3.1).

    Attributes:
        shape: of the features; the frequencies lie within the cutoff.
    """

    shape: LayerShape
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, w: Float[Array, "batch w_features"], transform: Float[Array, "#batch 3 3"] | None
    ) -> Float[Array, "batch size size channels"]:
        """
        Args:
            transform: from places of the new image to those of the old one, in sides of the image,
                as (x, y, 1); None for none.
        """
        size, channels, rate, cutoff, _ = self.shape
        drawn = lambda index: draw_waves(self.make_rng("params"), channels, cutoff)[index]
        frequencies = self.variable("waves", "frequencies", drawn, 0).value
        phases = self.variable("waves", "phases", drawn, 1).value
        kernel = self.param(
            "kernel", nn.initializers.normal(1.0), (channels, channels), self.param_dtype
        )
        learned = EqualizedDense(
            4,
            initial_bias=(1.0, 0.0, 0.0, 0.0),
            initial_scale=0.0,
            param_dtype=self.param_dtype,
            name="affine",
        )(w)
        turned, moved = _matrices(learned)
        parts = (turned, moved) if transform is None else (turned, moved, transform)
        whole = functools.reduce(functools.partial(jnp.matmul, precision="highest"), parts)
        frequencies, phases = transform_waves(frequencies[None], phases[None], whole)
        # A transformation that shrinks the image may give frequencies above the band.
        over = (jnp.linalg.norm(frequencies, axis=-1) - cutoff) / (rate / 2 - cutoff)
        amplitudes = jnp.clip(1 - over, 0, 1)
        waves = plane_waves(frequencies, phases, size, rate)
        return waves * amplitudes[:, None, None] @ (kernel / math.sqrt(channels))


def _matrices(
    learned: Float[Array, "batch 4"],
) -> tuple[Float[Array, "batch 3 3"], Float[Array, "batch 3 3"]]:
    """Return the rotation and the translation of (cos, sin, x, y), of which the first have norm 1.

    Both are from places of the new image to those of the old one.
    """
    learned = learned / jnp.linalg.norm(learned[:, :2], axis=1, keepdims=True)
    cosine, sine, x, y = learned.T
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    rows = lambda *entries: jnp.stack(entries, axis=-1).reshape(-1, 3, 3)
    turned = rows(cosine, -sine, zero, sine, cosine, zero, zero, zero, one)
    return turned, rows(one, zero, -x, zero, one, -y, zero, zero, one)


class Layer(nn.Module):
    """Modulated convolution, bias, and filtered leaky ReLU, from one shape to the next.

    The collection "moving_average" has the mean square of the input, by which it is divided. It is
    updated if `train` is true and the collection is mutable.

    Attributes:
        kernel_size: side of the kernel; of the last layer, `to_rgb`, it is 1.
        radial: whether the filter after the activation lets all directions pass alike.
        to_rgb: whether the layer makes the image: a linear one, without demodulation.
        magnitude_decay: decay per update of the mean square of the input.
    """

    before: LayerShape
    after: LayerShape
    kernel_size: int
    radial: bool
    to_rgb: bool
    magnitude_decay: float
    clamp: float | None
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch in_size in_size channels"],
        w: Float[Array, "batch w_features"],
        train: bool,
    ) -> Float[Array, "batch size size out_channels"]:
        channels = x.shape[-1]
        power = self.variable("moving_average", "power", jnp.ones, ())
        if train and self.is_mutable_collection("moving_average") and not self.is_initializing():
            new = jnp.mean(jax.lax.stop_gradient(x).astype(jnp.float32) ** 2)
            power.value = new + self.magnitude_decay * (power.value - new)
        style = EqualizedDense(
            channels, initial_bias=1.0, param_dtype=self.param_dtype, name="affine"
        )(w)
        shape = (self.kernel_size, self.kernel_size, channels, self.after.channels)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], self.param_dtype)
        if self.to_rgb:
            style = style / math.sqrt(channels)
        else:  # Equation 9 has no effect but on the numbers' range.
            mean_square = lambda a, axes: jnp.mean(a**2, axis=axes, keepdims=True)
            kernel = kernel * jax.lax.rsqrt(mean_square(kernel, (0, 1, 2)))
            style = style * jax.lax.rsqrt(mean_square(style, -1))
        x = modulated_convolve(
            x.astype(self.dtype),
            kernel,
            style,
            convolve=convolve_beyond,
            demodulate=not self.to_rgb,
        )
        x = x * jax.lax.rsqrt(power.value).astype(x.dtype) + bias.astype(x.dtype)
        return filtered_leaky_relu(x, **self.filters())

    def filters(self) -> dict[str, Any]:
        """Return the arguments of `filtered_leaky_relu`.

        Features keep their places: the padding makes up for what filters and kernel take or add
        (section C.3).
        """
        before, after = self.before, self.after
        middle = max(before.rate, after.rate) * (1 if self.to_rgb else 2)
        up, down = middle // before.rate, middle // after.rate
        up_taps, down_taps = (
            FILTER_SIZE * factor if factor > 1 and not self.to_rgb else 1 for factor in (up, down)
        )
        padding = (after.size - 1) * down + 1 - (before.size + self.kernel_size - 1) * up
        padding += up_taps + down_taps - 2
        first = (padding + up) // 2
        return dict(
            up_taps=low_pass(up_taps, before.cutoff, before.half_width, middle),
            down_taps=low_pass(down_taps, after.cutoff, after.half_width, middle, self.radial),
            up=up,
            down=down,
            padding=(first, padding - first),
            slope=1.0 if self.to_rgb else 0.2,
            gain=1.0 if self.to_rgb else math.sqrt(2),
            clamp=self.clamp,
        )


class Generator(nn.Module):
    """Mapping network, plane waves, and layers without aliases.

    There are two collections beside "params". "moving_average" holds the average of w, the centre
    of truncation, and each layer's mean square of its input. They are updated if `train` is true
    and the collection is mutable. "waves" holds the frequencies and phases, which are not trained.

    Attributes:
        resolution: side of the images, a power of two.
        num_classes: 0 for an unconditional generator, which ignores labels.
        num_layers: layers between the waves and the layer that makes the image.
        num_critical: how many of the last of them keep all that their sampling rate can hold.
        channel_base: a layer has channel_base/(2·cutoff) channels, at most `channel_max`.
        kernel_size: side of the kernels.
        radial: whether filters let all directions pass alike, in all but the critical layers.
        average_decay: decay per update of the average of w.
        magnitude_decay: decay per update of the layers' mean squares of their inputs.
        clamp: bound of activations that keeps float16 finite; None for no bound.
        dtype: type of the convolutions in layers of the four highest sampling rates. Everything
            else is always float32.
    """

    resolution: int
    latent_size: int = 512
    w_size: int = 512
    num_classes: int = 0
    image_channels: int = 3
    mapping_layers: int = 2
    num_layers: int = 14
    num_critical: int = 2
    channel_base: int = 32768
    channel_max: int = 512
    kernel_size: int = 3
    radial: bool = False
    average_decay: float = 0.998
    magnitude_decay: float = 0.999
    clamp: float | None = 256.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def num_styles(self) -> int:
        """The number of styles that an image takes."""
        return self.num_layers + 2

    @property
    def takes_transform(self) -> bool:
        """Whether `synthesize` takes a transform of its input."""
        return True

    @property
    def shapes(self) -> list[LayerShape]:
        """Shapes of the features after each layer (`layer_shapes`)."""
        names = ("num_layers", "num_critical", "channel_base", "channel_max")
        options = {name: getattr(self, name) for name in names}
        return layer_shapes(self.resolution, self.image_channels, **options)

    def filters(self, index: int) -> dict[str, Any]:
        """Return a layer's arguments of `filtered_leaky_relu`."""
        before = self.shapes[max(index - 1, 0)]
        return self._layer(index, (before, self.shapes[index]), parent=None).filters()

    def setup(self):
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(
                f"resolution must be a power of two of at least 8; got {self.resolution}"
            )
        shapes = self.shapes
        self.mapping = Mapping(self.w_size, self.mapping_layers, self.num_classes, self.param_dtype)
        self.waves = FourierInput(shapes[0], self.param_dtype)
        before = shapes[:1] + shapes
        self.layers = [self._layer(*each) for each in enumerate(zip(before, shapes, strict=False))]
        self.w_average = self.variable("moving_average", "w_average", jnp.zeros, (self.w_size,))

    def _layer(self, index: int, shapes: tuple[LayerShape, LayerShape], **options: Any) -> Layer:
        _, after = shapes
        to_rgb, critical = (index >= self.num_layers - count for count in (0, self.num_critical))
        return Layer(
            *shapes,
            1 if to_rgb else self.kernel_size,
            self.radial and not critical,
            to_rgb,
            self.magnitude_decay,
            self.clamp,
            self.dtype if 16 * after.rate > self.resolution else jnp.float32,
            self.param_dtype,
            **options,
        )

    def map(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        truncation: float | Float[Array, ""] = 1.0,
        truncation_cutoff: int | Int[Array, ""] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch styles w_features"]:
        """Return w of every style; arguments and errors as of `stylegan2.Generator.map`."""
        if self.num_classes and labels is None:
            raise ValueError(f"a network of {self.num_classes} classes needs labels; got None")
        w = self.mapping(z, labels)
        if train and self.is_mutable_collection("moving_average") and not self.is_initializing():
            mean = jax.lax.stop_gradient(w).mean(axis=0)
            self.w_average.value = mean + self.average_decay * (self.w_average.value - mean)
        w = jnp.repeat(w[:, None], self.num_styles, axis=1)
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
            transform: moves or turns the image: a matrix from places (x, y, 1) of the new image to
                those of the old one, in sides of the image, with (0, 0) in the centre.

        Raises:
            ValueError: there is another number of styles.
        """
        if w.shape[1] != self.num_styles:
            raise ValueError(f"the network takes {self.num_styles} styles; got {w.shape[1]}")
        x = self.waves(w[:, 0], transform)
        for i, layer in enumerate(self.layers):
            x = constrain(layer(x, w[:, i + 1], train), ("data", "fsdp"))
        return x.astype(jnp.float32) / 4  # The authors' scale of the output

    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        return self.synthesize(self.map(z, labels, train=train), train=train)


def stylegan3_t(resolution: int, **options) -> Generator:
    """Return configuration T, whose images move with their input."""
    return Generator(resolution, **options)


def stylegan3_r(resolution: int, **options) -> Generator:
    """Return configuration R, whose images also turn with their input."""
    sizes = dict(channel_base=65536, channel_max=1024, kernel_size=1, radial=True)
    return Generator(resolution, **sizes | options)
