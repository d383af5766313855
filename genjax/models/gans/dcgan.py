"""DCGAN, a convolutional GAN (Radford, Metz & Chintala 2016).

"Unsupervised representation learning with deep convolutional generative adversarial networks",
figure 1 and section 3. Sizes and missing biases follow PyTorch's DCGAN example.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.gans.resnet_gan import Layers
from genjax.nn import Dense

Dtype = Any
small = nn.initializers.normal(0.02)


def batch_norm(name: str, train: bool, dtype: Dtype, param_dtype: Dtype) -> nn.BatchNorm:
    """Return a batch norm whose running statistics decay by 0.9; the scale starts as N(1, .02²)."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        scale_init=lambda *args: 1 + small(*args),
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class Generator(nn.Module):
    """Transposed convolutions from a start×start map to images in [−1, 1].

    The images' side is start·2^doublings. A class is an embedding of z's size, concatenated to z.
    With `train=True` the collection "batch_stats" must be mutable.

    Attributes:
        width: channels at half the images' side; each halving of the side doubles the channels.
        start: side of the first map, 4 in the paper; 7 makes images of 28 pixels with two
            doublings.
        doublings: number of transposed convolutions; 4 make images of 64 pixels.
        num_classes: 0 if unconditional.
    """

    width: int = 64
    start: int = 4
    doublings: int = 4
    latent_size: int = 100
    image_channels: int = 3
    num_classes: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    first_layer: ClassVar[str] = "project"  # the linear layer that takes z

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        if self.num_classes:
            embedding = nn.Embed(
                self.num_classes,
                self.latent_size,
                embedding_init=nn.initializers.normal(1.0),  # the same scale as z
                param_dtype=self.param_dtype,
                name="label_embedding",
            )(labels)
            z = jnp.concatenate([z, embedding], axis=-1)
        options = dict(
            use_bias=False, kernel_init=small, dtype=self.dtype, param_dtype=self.param_dtype
        )
        *hidden, first = [self.width * 2**i for i in range(self.doublings)]
        # The transposed convolution of a single pixel is a matrix product.
        x = Dense(self.start**2 * first, name="project", **options)(z)
        x = x.reshape(-1, self.start, self.start, first)
        for i, features in enumerate([*reversed(hidden), self.image_channels]):
            x = nn.relu(batch_norm(f"norm_{i}", train, self.dtype, self.param_dtype)(x))
            x = nn.ConvTranspose(features, (4, 4), (2, 2), name=f"conv_{i}", **options)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Strided convolutions to a map of side height/2^doublings, and one product with the whole map.

    A class adds the inner product of its embedding with the map's sum (projection discriminator,
    Miyato & Koyama 2018, equation 3). With `spectral_norm`, batch norm is absent, every weight is
    divided by its largest singular value, and convolutions have biases (Miyato et al. 2018). The
    running singular vectors are in "batch_stats" too. With batch norm and `train=True` that
    collection must be mutable.

    Attributes:
        width: channels after the first convolution; each further convolution doubles them.
        doublings: number of convolutions, as in the generator.
        num_classes: 0 if unconditional.
    """

    width: int = 64
    doublings: int = 4
    num_classes: int = 0
    spectral_norm: bool = False
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
        layers = Layers(self.spectral_norm, self.dtype, self.param_dtype)
        update = train and self.is_mutable_collection("batch_stats")
        layer = lambda module, x: layers.call(module, x, update)
        options = dict(use_bias=self.spectral_norm, kernel_init=small, param_dtype=self.param_dtype)
        x = images
        for i in range(self.doublings):
            conv = nn.Conv(
                self.width * 2**i,
                (4, 4),
                (2, 2),
                padding=1,
                dtype=self.dtype,
                name=f"conv_{i}",
                **options,
            )
            x = layer(conv, x)
            if i and not self.spectral_norm:
                x = batch_norm(f"norm_{i}", train, self.dtype, self.param_dtype)(x)
            x = nn.leaky_relu(x, 0.2)
        x = x.astype(jnp.float32)
        logits = layer(Dense(1, name="head", **options), x.reshape(x.shape[0], -1))[:, 0]
        if self.num_classes:
            embed = nn.Embed(
                self.num_classes,
                x.shape[-1],
                embedding_init=small,
                param_dtype=self.param_dtype,
                name="label_embedding",
            )
            logits += jnp.sum(layer(embed, labels) * x.sum((1, 2)), axis=-1)
        return logits
