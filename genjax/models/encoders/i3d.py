"""I3D, the network of the Fréchet video distance: Inception-v1 inflated to three dimensions.

Carreira & Zisserman 2017, "Quo vadis, action recognition? A new model and the Kinetics dataset".
The layers and their names are those of the public PyTorch weights (Piergiovanni's pytorch-i3d).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Any
# The widths of the modules: 1×1×1; 1×1×1 before 3×3×3, twice; and 1×1×1 after the pooling.
MODULES = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}
# The poolings before modules: windows and strides over time, height and width.
POOLINGS = {
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
SIDE = 224
LEAST_FRAMES = 9  # so that the last maps have two frames, which the last pooling averages


class Unit(nn.Module):
    """A convolution over space and time, normalisation by stored statistics, and a rectifier."""

    features: int
    kernel_size: tuple[int, int, int] = (1, 1, 1)
    stride: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch out_time out_height out_width features"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = nn.Conv(
            self.features, self.kernel_size, self.stride, use_bias=False, name="conv3d", **types
        )
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn", **types)(conv(x))
        return nn.relu(x)


class Module(nn.Module):
    """Four parallel branches whose outputs are concatenated."""

    widths: tuple[int, tuple[int, int], tuple[int, int], int]
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time height width channels"]
    ) -> Float[Array, "batch time height width features"]:
        unit = functools.partial(Unit, dtype=self.dtype, param_dtype=self.param_dtype)
        first, second, third, last = self.widths
        pooled = nn.max_pool(x, (3, 3, 3), padding="SAME")
        branches = [
            unit(first, name="b0")(x),
            unit(second[1], (3, 3, 3), name="b1b")(unit(second[0], name="b1a")(x)),
            unit(third[1], (3, 3, 3), name="b2b")(unit(third[0], name="b2a")(x)),
            unit(last, name="b3b")(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """Videos in [−1, 1] to the logits of classes of each of their last frames.

    Videos have 224×224 pixels and at least 9 frames.

    Attributes:
        num_classes: 400 for Kinetics-400.
        dtype: type of everything except the results.
    """

    num_classes: int = 400
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, videos: Float[Array, "batch time height width 3"]
    ) -> Float[Array, "batch out_time classes"]:
        """Return logits for every pair of consecutive last frames.

        Raises:
            ValueError: the videos are too short or too small.
        """
        time, height, width = videos.shape[1:4]
        if time < LEAST_FRAMES or min(height, width) < SIDE:
            raise ValueError(
                f"videos have shape {videos.shape}; expected [batch time height width 3] with "
                f"{LEAST_FRAMES} or more frames of {SIDE}x{SIDE} pixels: take longer videos, or "
                "enlarge them"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = Unit(64, (7, 7, 7), 2, name="Conv3d_1a_7x7", **types)(videos.astype(self.dtype))
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = Unit(64, name="Conv3d_2b_1x1", **types)(x)
        x = Unit(192, (3, 3, 3), name="Conv3d_2c_3x3", **types)(x)
        for name, widths in MODULES.items():
            if name in POOLINGS:
                x = nn.max_pool(x, *POOLINGS[name], "SAME")
            x = Module(widths, name=name, **types)(x)
        x = nn.avg_pool(x.astype(jnp.float32), (2, 7, 7))
        x = x.mean((2, 3))  # one place, for videos of 224×224
        classify = nn.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="logits"
        )
        return classify(x)


def i3d_features(
    variables: Any, videos: Float[Array, "batch time height width channels"]
) -> Float[Array, "batch classes"]:
    """Compute the features of the Fréchet video distance, of videos in [−1, 1].

    Videos of 1 or 3 channels are resized to 224×224 by bilinear interpolation between centres of
    pixels, as in VideoGPT's program. The authors' own program takes TensorFlow 1's interpolation
    (`genjax.nn.resize.corner_bilinear`). The features are the logits, averaged over time.

    Args:
        variables: the weights (`genjax.pretrained.i3d.load`).

    Raises:
        ValueError: videos have neither 1 nor 3 channels, or fewer than 9 frames.

    Source: Unterthiner et al. 2018, "Towards accurate generative models of video", section 3.
    """
    batch, time, *_, channels = videos.shape
    if channels not in (1, 3):
        raise ValueError(f"videos have {channels} channels; expected 1 or 3: convert them")
    frames = jnp.broadcast_to(videos, (*videos.shape[:-1], 3)).reshape(-1, *videos.shape[2:4], 3)
    frames = jax.image.resize(frames, (batch * time, SIDE, SIDE, 3), "linear", antialias=False)
    num_classes = variables["params"]["logits"]["kernel"].shape[-1]
    # Full precision, so that a distance does not depend on the device.
    with jax.default_matmul_precision("highest"):
        logits = I3D(num_classes).apply(variables, frames.reshape(batch, time, SIDE, SIDE, 3))
    return logits.mean(1)
