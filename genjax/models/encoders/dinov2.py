"""DINOv2, a vision transformer trained without labels, optionally with registers.

Oquab et al. 2024 ("DINOv2: learning robust visual features without supervision"); Darcet et al.
2024 ("Vision transformers need registers").
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genjax.nn import Dense, constrain_tokens, patchify, scanned
from genjax.nn.resize import bicubic, eight_bit_colours, resize
from genjax.nn.transformer import Attention, FeedForward, exact_gelu, inline

Dtype = Any
small = nn.initializers.normal(0.02)
# Mean and standard deviation of ImageNet's colours, for values in [0, 1].
COLOUR_MEAN = (0.485, 0.456, 0.406)
COLOUR_DEVIATION = (0.229, 0.224, 0.225)


def swiglu(x: Float[Array, "*batch two_features"]) -> Float[Array, "*batch features"]:
    """Return silu(first half of the features)·(second half); one layer makes both halves."""
    gate, h = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * h


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a norm and scaled before its addition."""

    num_heads: int
    mlp_ratio: int
    gated: bool
    epsilon: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length features"]
    ) -> tuple[Float[Array, "batch length features"], None]:
        features = x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.LayerNorm(
            self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name=name
        )
        scale = lambda name: self.param(name, nn.initializers.ones, (features,), self.param_dtype)

        of_attention, of_mlp = norm("attention_norm"), norm("mlp_norm")
        attention = Attention(self.num_heads, norm=of_attention, name="attention", **types)
        x, _ = attention(x, gate=scale("attention_scale"))
        mlp_features, activation = self.mlp_ratio * features, exact_gelu
        if self.gated:  # about as many weights as without gates (Shazeer 2020, "GLU variants")
            mlp_features, activation = 2 * (-(-(mlp_features * 2 // 3) // 8) * 8), swiglu
        types |= dict(kernel_init=small, out_init=small)
        mlp = inline(self, FeedForward(mlp_features, of_mlp, activation, **types))
        return mlp(x, gate=scale("mlp_scale")), None


class Dinov2(nn.Module):
    """Images to normalized states of the class token, `num_registers` registers and all patches.

    Attributes:
        width: features of a token; divisible by `num_heads`.
        depth: number of blocks, scanned with stacked parameters.
        gated: whether the feed-forward layers are SwiGLU, as in the giant.
        num_registers: extra tokens in which the network can store information.
        patch_size: side of a patch, in pixels.
        image_size: side of the images whose patches' positions are parameters; other sizes
            interpolate these positions.
        position_offset: defines the distance of positions in networks without registers, together
            with the side's number of patches. 0.1 in the authors' code, 0 in transformers.
        epsilon: the norms' epsilon.
        unroll: blocks per iteration of the scan.
        remat_policy: name of the blocks' policy (`rematerialized`); None keeps every activation.
        dtype: of matrix products; norms, softmax and the residual stream are always float32.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    gated: bool = False
    num_registers: int = 0
    patch_size: int = 14
    image_size: int = 518
    position_offset: float = 0.0
    epsilon: float = 1e-6
    unroll: int = 1
    remat_policy: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        masked: Bool[Array, "batch patches"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """Encode images.

        Args:
            images: colours minus `COLOUR_MEAN`, divided by `COLOUR_DEVIATION`; see `preprocess`.
            masked: True at patches to hide, as in training.

        Raises:
            ValueError: `patch_size` does not divide a side.
        """
        batch, height, width, _ = images.shape
        grid = height // self.patch_size, width // self.patch_size
        side = self.image_size // self.patch_size
        parameter = lambda name, *shape: self.param(
            name, small, (*shape, self.width), self.param_dtype
        )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        patches = Dense(self.width, kernel_init=small, name="patch_embedding", **types)(
            patchify(images, self.patch_size)
        ).astype(jnp.float32)
        mask_token = parameter("mask_token")
        if masked is not None:
            patches = jnp.where(masked[:, :, None], mask_token, patches)
        table = parameter("positions", 1 + side**2)  # the class token's, then the patches'
        positions = table[1:].reshape(side, side, self.width)
        if grid == (side, side):
            pass
        elif self.num_registers:  # the authors' code for registers has a low-pass filter
            positions = jax.image.resize(positions, (*grid, self.width), "cubic")
        else:
            method = functools.partial(bicubic, offset=self.position_offset)
            positions = resize(positions[None], *grid, method)[0]
        repeat = lambda tokens: jnp.broadcast_to(tokens, (batch, *tokens.shape))
        first = (parameter("class_token") + table[0])[None]
        if self.num_registers:
            first = jnp.concatenate([first, parameter("registers", self.num_registers)])
        x = jnp.concatenate([repeat(first), patches + positions.reshape(-1, self.width)], axis=1)

        blocks = scanned(Block, self.depth, self.unroll, self.remat_policy)(
            self.num_heads, self.mlp_ratio, self.gated, self.epsilon, name="blocks", **types
        )
        x, _ = blocks(constrain_tokens(x.astype(jnp.float32)))
        return nn.LayerNorm(
            self.epsilon, dtype=jnp.float32, param_dtype=self.param_dtype, name="norm"
        )(x)


def preprocess(
    images: Float[Array, "batch height width channels"], size: int = 224
) -> Float[Array, "batch size size 3"]:
    """Preprocess images in [−1, 1], of 1 or 3 channels, for FD-DINOv2 (Stein et al. 2023).

    Images are rounded to 8 bits, like pictures in files. An antialiased bicubic filter resizes them
    to `size`×`size`, whatever their proportions; its result is not rounded, as in Karras et al.
    2024 ("EDM2"). ImageNet's colours normalize the result.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
    colours = (
        jax.image.resize(eight_bit_colours(images), (len(images), size, size, 3), "cubic") / 255
    )
    return (colours - jnp.array(COLOUR_MEAN)) / jnp.array(COLOUR_DEVIATION)


def dinov2_features(
    network: Dinov2, variables: Any, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch features"]:
    """Compute the features of images in [−1, 1] for FD-DINOv2: the class token's last state.

    Published figures come from `dinov2_large` without registers, in float32 and in the authors'
    code. So the authors' offset of positions is set here.
    """
    network = network.clone(position_offset=0.1)
    # Full precision, so that a distance does not depend on the device.
    with jax.default_matmul_precision("highest"):
        return network.apply(variables, preprocess(images))[:, 0]


def _size(depth: int, width: int, num_heads: int, gated: bool = False) -> Callable[..., Dinov2]:
    def build(**options) -> Dinov2:
        return Dinov2(width=width, depth=depth, num_heads=num_heads, gated=gated, **options)

    return build


# Oquab et al. 2024, table 17.
dinov2_small = _size(12, 384, 6)
dinov2_base = _size(12, 768, 12)
dinov2_large = _size(24, 1024, 16)
dinov2_giant = _size(40, 1536, 24, gated=True)
