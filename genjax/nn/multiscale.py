"""The quantizer of VAR: maps of codes from coarse to fine, whose enlarged codes are summed."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.nn.quantizers import Quantized, VectorQuantizer
from genjax.nn.resize import area, bicubic, resize

Maps = Float[Array, "batch rows columns features"]


class MultiScaleQuantizer(nn.Module):
    """Maps of codes at several sides; each map quantizes the rest that the coarser maps leave over.

    Tian et al. 2024, "Visual autoregressive modeling", section 3.2, algorithms 1 and 2. At scale k
    the rest is averaged to side k, and each place takes its nearest code. The codes are then
    enlarged to the last side and refined by a convolution. The sum of all these maps is the
    quantized map.

    Indices are `[batch tokens]`: those of scale 0 row by row, then of scale 1, and so on.

    Losses, means over scales, places and features: "commitment" is (z − sg(f̂_k))² and "codebook"
    (sg(z) − f̂_k)², with f̂_k the sum of the first k maps. The authors weight the first by .25.

    Attributes:
        num_codes: size of the codebook that all scales share.
        sides: of the square maps; the last is the latents'.
        num_refinements: number of convolutions; scales that are near to each other share one.
        refinement: the share of the convolution's output, beside 1 − refinement of its input.
        ema_decay, restart_threshold: as of `VectorQuantizer`; the latents of a code are what the
            coarser maps leave over at all scales. The authors' codebook is a parameter. Small
            trainings use a few of its codes.
    """

    num_codes: int
    features: int
    sides: Sequence[int]
    num_refinements: int = 4
    refinement: float = 0.5
    ema_decay: float | None = None
    restart_threshold: float = 0.0
    param_dtype: Any = jnp.float32

    @property
    def length(self) -> int:
        """The number of tokens of all scales."""
        return sum(side**2 for side in self.sides)

    def setup(self):
        self.vectors = VectorQuantizer(
            self.num_codes,
            self.features,
            ema_decay=self.ema_decay,
            restart_threshold=self.restart_threshold,
            param_dtype=self.param_dtype,
        )
        nn.share_scope(self, self.vectors)  # its codes are variables of this module
        self.convolutions = [
            nn.Conv(self.features, (3, 3), dtype=jnp.float32, param_dtype=self.param_dtype)
            for _ in range(self.num_refinements)
        ]

    def __call__(self, latents: Maps, train: bool = False) -> Quantized:
        """Quantize latents; with `train`, moving averages of codes are updated.

        Raises:
            ValueError: the latents have another side or number of features.
        """
        expected = (self.sides[-1], self.sides[-1], self.features)
        if latents.shape[1:] != expected:
            raise ValueError(f"this quantizer takes latents {expected}; got {latents.shape[1:]}")
        x = latents.astype(jnp.float32)
        total, rests, indices, losses = jnp.zeros_like(x), [], [], []
        for scale in range(len(self.sides)):
            rests.append(self.shrunk(jax.lax.stop_gradient(x - total), scale))
            indices.append(self._nearest(rests[-1]))
            total = total + self.enlarged(indices[-1], scale)
            apart = lambda a, b: jnp.mean(jnp.square(a - jax.lax.stop_gradient(b)))
            losses.append({"commitment": apart(x, total), "codebook": apart(total, x)})
        losses = jax.tree.map(lambda *a: sum(a) / len(a), *losses)
        rests, indices = (jnp.concatenate(parts, axis=1) for parts in (rests, indices))
        if train:
            self.vectors.update(rests.reshape(-1, self.features), indices.reshape(-1))
        quantized = jax.lax.stop_gradient(total) + (x - jax.lax.stop_gradient(x))
        return Quantized(quantized, indices, losses)

    def lookup(self, indices: Int[Array, "batch tokens"]) -> Maps:
        """Return the sum of the maps of all scales, or of the first ones."""
        return self.sums(indices)[-1]

    def sums(self, indices: Int[Array, "batch tokens"]) -> list[Maps]:
        """Return the sums of the first map, of the first two, and so on, for the given tokens."""
        sums, start = [], 0
        for scale, side in enumerate(self.sides):
            if start == indices.shape[1]:
                break
            new = self.enlarged(indices[:, start : start + side**2], scale)
            sums.append(sums[-1] + new if sums else new)
            start += side**2
        return sums

    def inputs(self, indices: Int[Array, "batch tokens"]) -> Float[Array, "batch _ features"]:
        """Return what a transformer reads to predict each scale after the first, in their order.

        At scale k this is the sum of the maps before it, averaged to side k.
        """
        first = indices[:, : self.length - self.sides[-1] ** 2]
        maps = [self.shrunk(a, k + 1) for k, a in enumerate(self.sums(first))]
        return jnp.concatenate(maps, axis=1)

    def extend(
        self, total: Maps, indices: Int[Array, "batch tokens"], scale: int
    ) -> tuple[Maps, Float[Array, "batch _ features"] | None]:
        """Add the map of a scale to the sum; return it, and the `inputs` of the next scale."""
        total = total + self.enlarged(indices, scale)
        last = scale + 1 == len(self.sides)
        return total, None if last else self.shrunk(total, scale + 1)

    def shrunk(self, maps: Maps, scale: int) -> Float[Array, "batch tokens features"]:
        """Average maps of the last side to the side of a scale, and list their places."""
        side = self.sides[scale]
        if side != maps.shape[1]:
            maps = resize(maps, side, side, area)
        return maps.reshape(len(maps), side**2, -1)

    def enlarged(self, indices: Int[Array, "batch tokens"], scale: int) -> Maps:
        """Return the codes of a scale, enlarged to the last side and refined."""
        side, last = self.sides[scale], self.sides[-1]
        x = self.vectors.lookup(indices).reshape(-1, side, side, self.features)
        if side != last:
            x = resize(x, last, last, bicubic)
        refined = self.convolutions[self._refinement_of(scale)](x)
        return (1 - self.refinement) * x + self.refinement * refined

    def _refinement_of(self, scale: int) -> int:
        """Return which convolution a scale has: the one whose place in [0, 1] is the nearest.

        The authors' program places four convolutions wider than any other number.
        """
        margin = 1 / (3 if self.num_refinements == 4 else 2) / self.num_refinements
        places = np.linspace(margin, 1 - margin, self.num_refinements)
        return int(np.argmin(np.abs(places - scale / max(len(self.sides) - 1, 1))))

    def _nearest(self, x: Float[Array, "batch tokens features"]) -> Int[Array, "batch tokens"]:
        codes = self.vectors.codebook
        products = jnp.matmul(x, codes.T, precision="highest")
        distances = jnp.sum(jnp.square(codes), axis=-1) - 2 * products
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)
