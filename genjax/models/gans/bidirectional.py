"""The further networks of a bidirectional GAN: an encoder, and a discriminator of pairs.

Donahue et al. 2016, "BiGAN"; Donahue & Simonyan 2019, "BigBiGAN". Both networks are small
convolutional ones without batch statistics, for images of a few dozen pixels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genjax.models.gans.resnet_gan import Layers
from genjax.nn import Dense

Dtype = Any
he = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def _plain(module: nn.Module, x: Array) -> Array:
    return module(x)


def _image_features(
    images: Float[Array, "batch height width channels"],
    width: int,
    doublings: int,
    types: dict[str, Dtype],
    layer: Callable = _plain,
) -> Float[Array, "batch features"]:
    """Return the features of `doublings` strided convolutions, as one vector.

    Args:
        layer: `layer(module, x)` applies a layer.
    """
    x = images
    for i in range(doublings):
        conv = nn.Conv(
            width * 2**i, (4, 4), (2, 2), padding=1, kernel_init=he, name=f"conv_{i}", **types
        )
        x = nn.leaky_relu(layer(conv, x), 0.2)
    return x.reshape(x.shape[0], -1)


def _embed(num_classes: int, features: int, labels: Int[Array, " batch"], dtype: Dtype) -> Array:
    """Return an embedding of unit scale; the caller's scope holds it as "label_embedding"."""
    init = nn.initializers.normal(1.0)
    return nn.Embed(
        num_classes, features, embedding_init=init, param_dtype=dtype, name="label_embedding"
    )(labels)


class Encoder(nn.Module):
    """Strided convolutions and two dense layers from images to latents.

    A stochastic encoder has a Gaussian distribution of latents, with a mean and a deviation each.
    With `train=True` it draws from this distribution by the rng stream "noise", and else it returns
    the mean (ALI, section 2; BigBiGAN, section 2). A class is an embedding beside the features.

    Attributes:
        features: of the latents.
        width: channels of the first convolution; each further one doubles them.
        doublings: number of convolutions, each of which halves the sides.
        hidden: features of the dense layer.
        stochastic: whether the latents have a distribution, not a value.
        num_classes: 0 if unconditional.
    """

    features: int
    width: int = 32
    doublings: int = 3
    hidden: int = 256
    stochastic: bool = False
    num_classes: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        condition: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = _image_features(images, self.width, self.doublings, types)
        if self.num_classes:
            embedding = _embed(self.num_classes, self.hidden, condition, self.param_dtype)
            h = jnp.concatenate([h, embedding], axis=-1)
        h = nn.leaky_relu(Dense(self.hidden, kernel_init=he, name="hidden", **types)(h), 0.2)
        mean = Dense(self.features, name="mean", **types)(h).astype(jnp.float32)
        if not self.stochastic:
            return mean
        # Starts near a deviation of 0.1, so that the first pairs are not mere noise.
        deviation = nn.softplus(
            Dense(
                self.features,
                bias_init=nn.initializers.constant(-2.25),
                name="deviation",
                **types,
            )(h).astype(jnp.float32)
        )
        if not train:
            return mean
        return mean + deviation * jax.random.normal(self.make_rng("noise"), mean.shape)


class JointDiscriminator(nn.Module):
    """Scores of pairs of images and latents, `[batch terms]`.

    The pair's score J(F(x), H(z)) is of dense layers on the features F of the image and H of the
    latents. With `unary`, BigBiGAN's scores of x alone and of z alone stand before it. Both are
    linear in F and in H. A class is an embedding beside H's latents. In the score of x it is a
    projection (Miyato & Koyama 2018, equation 3).

    Attributes:
        width: channels of the first convolution; each further one doubles them.
        doublings: number of convolutions, each of which halves the sides.
        hidden: features of H and of J's layers.
        unary: whether x alone and z alone have scores, too.
        spectral_norm: divides each weight by its largest singular value. The running singular
            vectors are in "batch_stats".
        num_classes: 0 if unconditional.
    """

    width: int = 32
    doublings: int = 3
    hidden: int = 256
    unary: bool = False
    spectral_norm: bool = False
    num_classes: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        z: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch terms"]:
        layers = Layers(self.spectral_norm, self.dtype, self.param_dtype)
        update = train and self.is_mutable_collection("batch_stats")
        layer = lambda module, x: layers.call(module, x, update)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda features, name: Dense(features, kernel_init=he, name=name, **types)
        of_x = _image_features(images, self.width, self.doublings, types, layer)
        if self.num_classes:
            embedding = _embed(self.num_classes, self.hidden, labels, self.param_dtype)
            z = jnp.concatenate([z, embedding], axis=-1)
        of_z = nn.leaky_relu(layer(dense(self.hidden, "latents_0"), z), 0.2)
        of_z = nn.leaky_relu(layer(dense(self.hidden, "latents_1"), of_z), 0.2)
        h = jnp.concatenate([of_x, of_z], axis=-1)
        for i in range(2):
            h = nn.leaky_relu(layer(dense(self.hidden, f"joint_{i}"), h), 0.2)
        scores = [layer(dense(1, "score"), h)]
        if self.unary:
            score_of_x = layer(dense(1, "score_of_images"), of_x)
            if self.num_classes:
                projected = layer(dense(self.hidden, "projection"), of_x)
                score_of_x += jnp.mean(embedding * projected, axis=-1, keepdims=True)
            scores = [score_of_x, layer(dense(1, "score_of_latents"), of_z), *scores]
        return jnp.concatenate(scores, axis=-1).astype(jnp.float32)
