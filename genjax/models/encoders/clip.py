"""CLIP: text and pictures in one space (Radford et al. 2021).

"Learning transferable visual models from natural language supervision".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from genjax.nn import Dense, constrain_tokens, patchify, scanned
from genjax.nn.transformer import Attention, FeedForward, exact_gelu, inline

Dtype = Any
normal = nn.initializers.normal
# Mean and standard deviation of the colours of CLIP's training set, for pixels in [0, 1].
COLOUR_MEAN = (0.48145466, 0.4578275, 0.40821073)
COLOUR_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def quick_gelu(x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """Return x·σ(1.702x), an approximation of GELU (Hendrycks & Gimpel 2016)."""
    return x * nn.sigmoid(1.702 * x)


@struct.dataclass
class Encoded:
    """The outputs of an encoder, in float32.

    Attributes:
        states: the input of each layer and, last, the output of the last layer. `states[-2]` is the
            penultimate layer's output, which Stable Diffusion XL and 3 take.
        last: `states[-1]` after the final norm.
        pooled: `last` of the token that summarizes the input: the end of the text, or the picture's
            class token.
        projected: `pooled` in the space that text and pictures share; None without a projection.
    """

    states: Float[Array, "layers batch length features"]
    last: Float[Array, "batch length features"]
    pooled: Float[Array, "batch features"]
    projected: Float[Array, "batch shared_features"] | None


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a norm and added to its input."""

    num_heads: int
    mlp_features: int
    quick_gelu: bool
    depth: int
    epsilon: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        mask: Bool[Array, "#batch 1 #length length"] | None,
    ) -> tuple[Float[Array, "batch length features"], Float[Array, "batch length features"]]:
        """Return the output, and the input, which `Encoded.states` collects."""
        features = x.shape[-1]
        inward, mlp_inward, outward = (
            normal(n**-0.5) for n in (features, 2 * features, 2 * self.depth * features)
        )
        types = dict(out_init=outward, dtype=self.dtype, param_dtype=self.param_dtype)
        attention_norm, mlp_norm = (
            nn.LayerNorm(self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name=name)
            for name in ("norm_attention", "norm_mlp")
        )
        attention = Attention(self.num_heads, kernel_init=inward, norm=attention_norm, **types)
        after, _ = inline(self, attention)(x, mask=mask)
        activation = quick_gelu if self.quick_gelu else exact_gelu
        mlp = FeedForward(self.mlp_features, mlp_norm, activation, kernel_init=mlp_inward, **types)
        return inline(self, mlp)(after), x


class Tower(nn.Module):
    """The common part of text and image encoder.

    Attributes:
        width: features of a token; divisible by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        mlp_features: features inside a feed-forward layer; four times the width if None.
        shared_features: size of the space of text and pictures; None for no projection.
        quick_gelu: whether to use x·σ(1.702x), as OpenAI's networks do, instead of the exact GELU.
        epsilon: the norms' epsilon.
        unroll: blocks per iteration of the scan.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; norms, softmax and the residual stream are always float32.
    """

    width: int
    depth: int
    num_heads: int
    mlp_features: int | None = None
    shared_features: int | None = None
    quick_gelu: bool = True
    epsilon: float = 1e-5
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def _blocks(self, x, mask):
        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)
        x, inputs = blocks(
            self.num_heads,
            self.mlp_features or 4 * self.width,
            self.quick_gelu,
            self.depth,
            self.epsilon,
            self.dtype,
            self.param_dtype,
            name="blocks",
        )(constrain_tokens(x), mask)
        return jnp.concatenate([inputs, x[None]])

    def _norm(self, name):
        return nn.LayerNorm(
            epsilon=self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )

    def _table(self, name, *shape, deviation):
        return self.param(name, normal(deviation), (*shape, self.width), self.param_dtype)

    def _project(self, pooled):
        if self.shared_features is None:
            return None
        return Dense(
            self.shared_features,
            use_bias=False,
            kernel_init=normal(self.width**-0.5),
            param_dtype=self.param_dtype,
            name="projection",
        )(pooled)


class CLIPText(Tower):
    """A causal transformer over text.

    Attributes (besides `Tower`'s):
        vocabulary_size: number of tokens.
        max_length: largest number of tokens; the published systems pad to it.
        end_token: the token that ends a text, whose first state is pooled. None pools the highest
            token of the text, as the original code does, and as published configurations with
            `eos_token_id` 2 mean.
    """

    vocabulary_size: int = 49_408
    max_length: int = 77
    end_token: int | None = 49_407

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Encoded:
        """Encode tokens.

        Args:
            mask: True at tokens that other tokens may attend to; None for all, as in the published
                systems. No token attends to later ones, so padding after a text changes nothing in
                the text.

        Raises:
            ValueError: there are more tokens than `max_length`.
        """
        batch, length = tokens.shape
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens; this network takes at most {self.max_length}: truncate them"
            )
        embedding = nn.Embed(
            self.vocabulary_size,
            self.width,
            embedding_init=normal(0.02),
            param_dtype=self.param_dtype,
            name="token_embedding",
        )
        x = embedding(tokens).astype(jnp.float32)
        x = x + self._table("position_embedding", self.max_length, deviation=0.01)[:length]
        looks = jnp.tril(jnp.ones((length, length), bool))[None, None]
        if mask is not None:
            looks = looks & mask[:, None, None, :]
        states = self._blocks(x, looks)
        last = self._norm("final_norm")(states[-1])
        ends = jnp.argmax(tokens if self.end_token is None else tokens == self.end_token, axis=1)
        pooled = last[jnp.arange(batch), ends]
        return Encoded(states, last, pooled, self._project(pooled))


class CLIPVision(Tower):
    """A transformer over the patches of pictures and a class token.

    Attributes (besides `Tower`'s):
        patch_size: side of a patch, in pixels.
        image_size: side of a picture, in pixels; `resize_and_crop` makes such pictures.
    """

    patch_size: int = 32
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]) -> Encoded:
        """Encode images in [−1, 1].

        Raises:
            ValueError: the images have another size than `image_size`.
        """
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"images have shape {images.shape}; this network takes "
                f"{self.image_size}×{self.image_size} pixels: use resize_and_crop"
            )
        images = ((images.astype(jnp.float32) + 1) / 2 - jnp.array(COLOUR_MEAN)) / jnp.array(
            COLOUR_DEVIATION
        )
        x = Dense(
            self.width,
            use_bias=False,
            kernel_init=normal(self.width**-0.5),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="patch_embedding",
        )(patchify(images, self.patch_size))
        batch, patches, _ = x.shape
        first = self._table("class_embedding", deviation=self.width**-0.5)
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, self.width)), x], axis=1).astype(
            jnp.float32
        )
        x = x + self._table("position_embedding", 1 + patches, deviation=self.width**-0.5)
        states = self._blocks(self._norm("pre_norm")(x), None)
        last = self._norm("post_norm")(states[-1])
        return Encoded(states, last, last[:, 0], self._project(last[:, 0]))


class CLIP(nn.Module):
    """A text encoder and an image encoder with equal `shared_features`."""

    text: CLIPText
    vision: CLIPVision

    def setup(self):
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(np.log(1 / 0.07)), (), self.text.param_dtype
        )

    def embed_text(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch shared_features"]:
        """Return the texts' vectors in the shared space, of length 1."""
        return _unit(self.text(tokens, mask).projected)

    def embed_images(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch shared_features"]:
        """Return the pictures' vectors in the shared space, of length 1."""
        return _unit(self.vision(images).projected)

    def similarity(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Float[Array, " batch"]:
        """Return the cosine of each picture with its own text, which a CLIP score averages.

        The CLIPScore of Hessel et al. 2021 (equation 1) is 2.5·max(cosine, 0); other reports have
        100·max(cosine, 0).
        """
        return jnp.sum(self.embed_images(images) * self.embed_text(tokens, mask), axis=-1)

    def __call__(
        self,
        images: Float[Array, "images height width 3"],
        tokens: Int[Array, "texts length"],
        mask: Bool[Array, "texts length"] | None = None,
    ) -> Float[Array, "images texts"]:
        """Return the logits of each picture for every text: cosines times the learned scale."""
        cosines = self.embed_images(images) @ self.embed_text(tokens, mask).T
        return jnp.exp(self.logit_scale.astype(jnp.float32)) * cosines


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def resize_and_crop(
    images: Float[Array, "batch height width channels"], size: int = 224
) -> Float[Array, "batch {size} {size} channels"]:
    """Resize the shorter side of pictures in [−1, 1] to `size`, and center-crop, as CLIP does.

    The interpolation is cubic (Keys, a = −½) and widened where it shrinks, like Pillow's. Values
    are clipped to [−1, 1]. They are not rounded to 8 bits as in Pillow, so that the result is
    differentiable. `CLIPVision` itself normalizes the colours.
    """
    batch, height, width, channels = images.shape
    shorter = min(height, width)
    height, width = (int(size * side / shorter) for side in (height, width))
    images = jax.image.resize(images, (batch, height, width, channels), "cubic")
    top, left = (height - size) // 2, (width - size) // 2
    return jnp.clip(images[:, top : top + size, left : left + size], -1, 1)


# The text encoders of Stable Diffusion and FLUX.
def CLIPText_L(**options) -> CLIPText:
    """Return the text encoder of OpenAI's CLIP L/14."""
    return CLIPText(width=768, depth=12, num_heads=12, **options)


def CLIPText_bigG(**options) -> CLIPText:
    """Return the text encoder of OpenCLIP's bigG (Ilharco et al. 2021)."""
    return CLIPText(
        width=1280, depth=32, num_heads=20, shared_features=1280, quick_gelu=False, **options
    )


def _size(
    shared_features: int,
    width: int,
    heads: int,
    vision_width: int,
    vision_depth: int,
    vision_heads: int,
    patch_size: int,
):
    def build(**options) -> CLIP:
        return CLIP(
            CLIPText(width, 12, heads, shared_features=shared_features, **options),
            CLIPVision(
                vision_width,
                vision_depth,
                vision_heads,
                shared_features=shared_features,
                patch_size=patch_size,
                **options,
            ),
        )

    return build


# Radford et al. 2021, tables 19 and 20.
CLIP_B_32 = _size(512, 512, 8, 768, 12, 12, 32)
CLIP_B_16 = _size(512, 512, 8, 768, 12, 12, 16)
CLIP_L_14 = _size(768, 768, 12, 1024, 24, 16, 14)
