"""From latents to discrete codes: learned codebooks, residual codebooks, and fixed codebooks.

Every quantizer is called on latents `[... features]` and returns `Quantized`; `lookup` is the way
back from indices, and `num_codes` says how many there are. All of it is float32, whatever the
network's type. `genjax.autoencoding.diagnostics` measures how many codes are used, and how evenly.
"""

import functools
import math
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.nn.waveform import WaveConv

TINY = float(np.finfo(np.float32).tiny)


@flax.struct.dataclass
class Quantized:
    """The output of a quantizer.

    Attributes:
        latents: the codes, `[... features]` in float32; their gradient goes to the input as if
            nothing had been rounded (the straight-through estimator of Bengio et al. 2013).
        indices: of the codes, `[...]` in int32, of a residual quantizer `[... levels]`.
        losses: scalars to be weighted and added to a training's loss; their names are those in the
            quantizers' descriptions.
    """

    latents: Any
    indices: Any
    losses: dict[str, Any]


def _straight_through(x: Array, codes: Array) -> Array:
    # Exactly the codes: the bracket is 0.
    return jax.lax.stop_gradient(codes) + (x - jax.lax.stop_gradient(x))


def _commitment(x: Array, codes: Array, weight: Array | float = 1.0) -> Float[Array, ""]:
    return jnp.mean(weight * jnp.square(x - jax.lax.stop_gradient(codes)))


def _unit(x: Array) -> Array:
    # A floor rather than a summand: moving averages of a large codebook begin at 1e-5.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-16))


def _entropy(probabilities: Float[Array, "*batch outcomes"]) -> Float[Array, "*batch"]:
    """Return the entropy in nats, with a finite gradient where a probability is 0."""
    return -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, TINY)), axis=-1)


def _prepare(x: Array, features: int) -> Float[Array, "*batch features"]:
    if x.shape[-1] != features:
        raise ValueError(f"this quantizer takes latents of {features} features; got {x.shape[-1]}")
    return x.astype(jnp.float32)


class VectorQuantizer(nn.Module):
    """The nearest of `num_codes` learnt codes (van den Oord et al. 2017, "VQ-VAE").

    The codebook is a parameter, which the loss "codebook" draws towards the latents. With
    `ema_decay` it is the variable "codes" of the collection "codebook" instead. Each code is then
    the moving average of the latents that chose it (appendix A.1). Calls with `train` update the
    codes if the collection is mutable. Averages are over the whole batch, even if the batch is
    sharded over devices.

        variables = quantizer.init(key, latents)
        options = dict(train=True, mutable=["codebook"], rngs={"restart": key})
        quantized, new_codebook = quantizer.apply(variables, latents, **options)

    The nearest code is the argmin of |c|² − 2·z·c. Its float32 rounding is some 1e-7·(|z|² + |c|²),
    so the chosen code may be farther than the nearest one by this much. This does not matter unless
    latents are far from 0 compared to the distance of their codes. The memory is `num_codes`
    numbers per latent.

    Losses, means over latents and features (of distances in the unit sphere with `normalize`):

    - "commitment": (z − sg(c))², draws latents to their codes.
    - "codebook": (sg(z) − c)², draws codes to their latents; absent with `ema_decay`.
    - "entropy": E[H(p(c|z))] − H(E[p(c|z)]) in nats with p(c|z) ∝ exp(−|z − c|²/temperature), if a
      temperature is given. It makes choices certain and the codebook's use even (Yu et al. 2024,
      "MAGVIT-2", section 3.1).

    Attributes:
        normalize: latents and codes are of unit length (Yu et al. 2022, "ViT-VQGAN", section 3.2).
            A parameter starts at this length too, as in LlamaGen's program. The gradient of a
            shorter code would be larger.
        entropy_temperature: .01 is customary; None for no such loss.
        ema_decay: γ of the moving averages, .99 in the paper; None for a codebook that is a
            parameter.
        restart_threshold: a code whose moving share of the latents falls under this fraction of an
            equal share (1/num_codes) is set to a random latent of the batch (Dhariwal et al. 2020,
            "Jukebox", section 3.1), drawn from the rng stream "restart". 0 for never.
    """

    num_codes: int
    features: int
    normalize: bool = False
    entropy_temperature: float | None = None
    ema_decay: float | None = None
    restart_threshold: float = 0.0
    param_dtype: Any = jnp.float32

    def setup(self):
        if self.restart_threshold and self.ema_decay is None:
            raise ValueError(
                f"restart_threshold={self.restart_threshold} needs moving averages of codes: "
                "give ema_decay"
            )
        shape, bound = (self.num_codes, self.features), 1 / self.num_codes

        def init(key, dtype):
            codes = jax.random.uniform(key, shape, dtype, -bound, bound)
            return _unit(codes) if self.normalize and self.ema_decay is None else codes

        if self.ema_decay is None:
            self.codes = self.param("codes", init, self.param_dtype)
        else:
            self.codes = self.variable(
                "codebook", "codes", lambda: init(self.make_rng("params"), jnp.float32)
            )
            self.shares = self.variable("codebook", "shares", jnp.ones, (self.num_codes,))

    @property
    def codebook(self) -> Float[Array, "num_codes features"]:
        codes = jnp.asarray(self.codes if self.ema_decay is None else self.codes.value, jnp.float32)
        return _unit(codes) if self.normalize else codes

    def lookup(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        return self.codebook[indices]

    def __call__(self, latents: Float[Array, "*batch features"], train: bool = False) -> Quantized:
        x = _prepare(latents, self.features).reshape(-1, self.features)
        if self.normalize:
            x = _unit(x)
        codebook = self.codebook
        # Distances less |z|², which neither the nearest nor the softmax over codes depends on.
        distances = jnp.sum(jnp.square(codebook), axis=-1) - 2 * jnp.matmul(
            x, codebook.T, precision="highest"
        )
        indices = jnp.argmin(distances, axis=-1).astype(jnp.int32)
        codes = codebook[indices]

        losses = {"commitment": _commitment(x, codes)}
        if self.ema_decay is None:
            losses["codebook"] = _commitment(codes, x)
        if self.entropy_temperature is not None:
            probabilities = jax.nn.softmax(-distances / self.entropy_temperature)
            losses["entropy"] = _entropy(probabilities).mean() - _entropy(
                probabilities.mean(axis=0)
            )
        if train:
            self.update(jax.lax.stop_gradient(x), indices)
        return Quantized(
            _straight_through(x, codes).reshape(latents.shape),
            indices.reshape(latents.shape[:-1]),
            losses,
        )

    def update(self, x: Float[Array, "latents features"], indices: Int[Array, " latents"]) -> None:
        """Move the codes to the latents that chose them, if they are moving averages and mutable.

        N ← γ·N + (1 − γ)·n and c ← m/N with m ← γ·m + (1 − γ)·Σz (appendix A.1), as a step of c.

        If a code is no longer chosen, its m and N tend to 0 together and their ratio tends to 0/0,
        but c itself stays. Counts are in units of an equal share of the batch, so their mean is 1
        and the batch size does not matter.
        """
        if self.ema_decay is None or not self.is_mutable_collection("codebook"):
            return
        if self.is_initializing():
            return
        # A product rather than a scattered sum: its order of summation is fixed on every back end.
        chosen = jax.nn.one_hot(indices, self.num_codes) * (self.num_codes / len(x))
        counts = chosen.sum(axis=0)
        sums = jnp.matmul(chosen.T, x, precision="highest")
        codes = self.codes.value
        shares = self.ema_decay * self.shares.value + (1 - self.ema_decay) * counts
        step = (1 - self.ema_decay) * (sums - counts[:, None] * codes)
        codes = codes + step / jnp.maximum(shares, TINY)[:, None]
        if self.restart_threshold:
            dead = shares < self.restart_threshold
            others = x[jax.random.randint(self.make_rng("restart"), (self.num_codes,), 0, len(x))]
            codes = jnp.where(dead[:, None], others, codes)
            shares = jnp.where(dead, 1.0, shares)
        self.codes.value, self.shares.value = codes, shares


class ResidualVectorQuantizer(nn.Module):
    """A vector quantizer of latents, one of its remainder, and so on; the codes are summed.

    Zeghidour et al. 2021, "SoundStream", section III-C; Lee et al. 2022, "RQ-VAE", section 3.1,
    here with a codebook for each level. The first levels of the indices, `lookup(indices[...,
    :2])`, are coarser latents. Losses are those of the levels, summed, as in Lee et al. The other
    attributes are `VectorQuantizer`'s.
    """

    num_levels: int
    num_codes: int
    features: int
    entropy_temperature: float | None = None
    ema_decay: float | None = None
    restart_threshold: float = 0.0
    param_dtype: Any = jnp.float32

    def setup(self):
        self.levels = [
            VectorQuantizer(
                self.num_codes,
                self.features,
                entropy_temperature=self.entropy_temperature,
                ema_decay=self.ema_decay,
                restart_threshold=self.restart_threshold,
                param_dtype=self.param_dtype,
            )
            for _ in range(self.num_levels)
        ]

    def lookup(self, indices: Int[Array, "*batch levels"]) -> Float[Array, "*batch features"]:
        return sum(self.levels[i].lookup(indices[..., i]) for i in range(indices.shape[-1]))

    def __call__(self, latents: Float[Array, "*batch features"], train: bool = False) -> Quantized:
        x = residual = _prepare(latents, self.features)
        levels = []
        for quantizer in self.levels:
            levels.append(quantizer(residual, train))
            residual = residual - jax.lax.stop_gradient(levels[-1].latents)
        codes = sum(level.latents for level in levels)
        losses = jax.tree.map(lambda *losses: sum(losses), *[level.losses for level in levels])
        return Quantized(
            _straight_through(x, codes),
            jnp.stack([level.indices for level in levels], axis=-1),
            losses,
        )


class FactorizedResidualQuantizer(nn.Module):
    """A residual quantizer whose levels look up codes in projections of few features.

    Kumar et al. 2023, "DAC", section 3.2. A level projects the remainder to `width` features, takes
    the code nearest in direction, and projects that code back to `features`. The levels' outputs
    are summed. Gradients pass through both projections and straight through the look-up.

    Losses, means over latents and a code's features, summed over the levels that an example uses:

    - "commitment": (z − sg(c))², draws projected latents to their codes.
    - "codebook": (sg(z) − c)², draws codes to projected latents.

    Attributes:
        width: number of features of a code.
        dropout: with `train`, this share of the batch's examples uses its first levels alone, as
            many as the rng stream "levels" draws. So fewer levels give a lower bitrate, not noise.
        weight_norm: whether the projections have weight norm.
    """

    num_levels: int
    num_codes: int
    features: int
    width: int = 8
    dropout: float = 0.0
    weight_norm: bool = True
    param_dtype: Any = jnp.float32

    def setup(self):
        projection = functools.partial(
            WaveConv, kernel_size=1, weight_norm=self.weight_norm, param_dtype=self.param_dtype
        )
        levels = range(self.num_levels)
        self.projections_in = [projection(self.width) for _ in levels]
        self.projections_out = [projection(self.features) for _ in levels]
        init, shape = nn.initializers.normal(1.0), (self.num_codes, self.width)
        self.codebooks = [self.param(f"codes_{i}", init, shape, self.param_dtype) for i in levels]

    def lookup(self, indices: Int[Array, "*batch levels"]) -> Float[Array, "*batch features"]:
        levels = [
            self.projections_out[i](jnp.asarray(self.codebooks[i], jnp.float32)[indices[..., i]])
            for i in range(indices.shape[-1])
        ]
        return sum(levels)

    def __call__(
        self, latents: Float[Array, "batch *shape features"], train: bool = False
    ) -> Quantized:
        residual = _prepare(latents, self.features)
        used = self._levels_used(len(latents), train)
        total, indices, losses = 0.0, [], {"commitment": 0.0, "codebook": 0.0}
        for i in range(self.num_levels):
            x = self.projections_in[i](residual)
            chosen, codes = self._nearest(i, x)
            output = self.projections_out[i](_straight_through(x, codes))
            takes_part = (i < used).astype(jnp.float32).reshape(-1, *[1] * (latents.ndim - 1))
            total += output * takes_part
            residual = residual - output
            losses["commitment"] += _commitment(x, codes, takes_part)
            losses["codebook"] += _commitment(codes, x, takes_part)
            indices.append(chosen)
        return Quantized(total, jnp.stack(indices, axis=-1), losses)

    def _nearest(self, level: int, x: Float[Array, "*batch width"]) -> tuple[Array, Array]:
        """Return the indices of the codes nearest in direction, and the codes."""
        codebook = jnp.asarray(self.codebooks[level], jnp.float32)
        cosines = jnp.matmul(_unit(x), _unit(codebook).T, precision="highest")
        indices = jnp.argmax(cosines, axis=-1).astype(jnp.int32)
        return indices, codebook[indices]

    def _levels_used(self, batch: int, train: bool) -> Int[Array, " batch"]:
        """Return how many levels each example uses."""
        every = jnp.full((batch,), self.num_levels)
        if not (train and self.dropout) or self.is_initializing():
            return every
        some = jax.random.randint(self.make_rng("levels"), (batch,), 1, self.num_levels + 1)
        return jnp.where(jnp.arange(batch) < int(batch * self.dropout), some, every)


def _check_codes(num_codes: int) -> None:
    if num_codes >= 2**31:
        raise ValueError(
            f"{num_codes} codes have indices beyond int32; take fewer features, or several "
            "quantizers"
        )


class FiniteScalarQuantizer(nn.Module):
    """Each feature bounded by a tanh and rounded to one of its levels (Mentzer et al. 2023, "FSQ").

    Codes have components k/⌊L/2⌋. For an odd L, k is −(L − 1)/2 … (L − 1)/2. For an even L, k is
    −L/2 … L/2 − 1, and the tanh is shifted so that latents of 0 still have code 0. There are no
    parameters and no losses.

    Attributes:
        levels: of each feature, at least 2; (8, 6, 5) are about 2⁸ codes, (8, 8, 8, 6, 5) about
            2¹⁴.
    """

    levels: tuple[int, ...]

    @property
    def features(self) -> int:
        return len(self.levels)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def _halves(self) -> np.ndarray:
        return np.asarray(self.levels) // 2

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]])

    def lookup(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """Return the codes of indices, in which the first feature's level changes fastest."""
        levels = indices[..., None] // self._basis % np.asarray(self.levels)
        return (levels - self._halves).astype(jnp.float32) / self._halves.astype(np.float32)

    def __call__(self, latents: Float[Array, "*batch features"], train: bool = False) -> Quantized:
        _check_codes(self.num_codes)
        if min(self.levels) < 2:
            raise ValueError(f"a feature has 2 levels or more; got levels {self.levels}")
        x = _prepare(latents, self.features)
        levels = np.asarray(self.levels)
        # As in the paper's program (appendix A.1), the reach is a thousandth less than the
        # outermost levels, and the shift is a tangent. The inverse of tanh would keep 0 exactly at
        # 0, but it is not finite for two levels.
        reach = (levels - 1) * (1 - 1e-3) / 2
        offset = np.where(levels % 2, 0.0, 0.5)
        shift = np.tan(offset / reach)
        bounded = jnp.tanh(x + shift.astype(np.float32)) * reach.astype(np.float32) - offset.astype(
            np.float32
        )
        rounded = jnp.round(bounded)
        indices = jnp.sum(
            (rounded.astype(jnp.int32) + self._halves) * self._basis, axis=-1, dtype=jnp.int32
        )
        codes = _straight_through(bounded, rounded) / self._halves.astype(np.float32)
        return Quantized(codes, indices, {})


def _bits_of(indices: Int[Array, "*batch"], num_bits: int) -> Float[Array, "*batch bits"]:
    """Return the bits of indices as ±1, the lowest bit first."""
    return ((indices[..., None] >> np.arange(num_bits)) % 2 * 2 - 1).astype(jnp.float32)


def _signs(
    x: Float[Array, "*batch bits"],
) -> tuple[Float[Array, "*batch bits"], Int[Array, "*batch"]]:
    """Return ±1 of each feature (−1 of 0) and the number that they write, the lowest bit first."""
    positive = x > 0
    indices = jnp.sum(positive * (1 << np.arange(x.shape[-1])), axis=-1, dtype=jnp.int32)
    return jnp.where(positive, 1.0, -1.0), indices


def _entropy_of_bits(logits: Float[Array, "*batch bits"]) -> Float[Array, "*batch"]:
    """Return the entropy of independent bits, Σ H(σ(logit))."""
    return jnp.sum(jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits), axis=-1)


def _mean_law_of_words(logits: Float[Array, "latents bits"]) -> Float[Array, " codes"]:
    """Return the mean over latents of the distribution of all words of independent bits, exactly.

    A latent's distribution is the outer product of the distributions of its first half and its
    second half. So the mean is one matrix product of tables of 2^(bits/2) numbers per latent, never
    2^bits.
    """

    def distribution(logits):
        words = _bits_of(jnp.arange(2 ** logits.shape[-1]), logits.shape[-1])
        return jax.nn.softmax(jnp.matmul(logits, words.T, precision="highest") / 2)

    half = logits.shape[-1] // 2
    total = jnp.matmul(
        distribution(logits[:, half:]).T, distribution(logits[:, :half]), precision="highest"
    )
    return total.reshape(-1) / len(logits)


class LookupFreeQuantizer(nn.Module):
    """The sign of each feature: codes are {−1, 1}^features.

    Yu et al. 2024, "MAGVIT-2", section 3.1.

    Losses: "commitment" is the mean of (z − sg(c))². "entropy" is E[H(p(c|z))] − H(E[p(c|z)]) in
    nats with p(c|z) ∝ exp(−|z − c|²/temperature). This distribution is a product over bits, each 1
    with probability σ(4·z/temperature), so the first term is a sum over bits. The second term is
    the entropy of the batch's mean distribution of all 2^features codes. It is exact too, and takes
    2^(features/2) numbers per latent.

    Attributes:
        features: also the number of bits; num_codes is 2^features.
    """

    features: int
    entropy_temperature: float = 0.01

    @property
    def num_codes(self) -> int:
        return 2**self.features

    def lookup(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        return _bits_of(indices, self.features)

    def __call__(self, latents: Float[Array, "*batch features"], train: bool = False) -> Quantized:
        _check_codes(self.num_codes)
        x = _prepare(latents, self.features)
        codes, indices = _signs(x)
        logits = (4 / self.entropy_temperature * x).reshape(-1, self.features)
        entropy = _entropy_of_bits(logits).mean() - _entropy(_mean_law_of_words(logits))
        losses = {"commitment": _commitment(x, codes), "entropy": entropy}
        return Quantized(_straight_through(x, codes), indices, losses)


class BinarySphericalQuantizer(nn.Module):
    """Latents of unit length to the signs of their features, of unit length too.

    Zhao et al. 2024, "BSQ".

    Losses: "commitment" is the mean of (u − sg(c))² with u = z/|z|, which is bounded. "entropy" is
    that of `LookupFreeQuantizer`, with its second term replaced by the sum of the entropies of the
    bits. The sum is an upper bound, since bits of the batch need not be independent, and it is
    cheap for any number of bits. The authors' program sums the entropies of groups of 9 bits, a
    tighter bound.

    Attributes:
        features: also the number of bits; num_codes is 2^features.
        entropy_temperature: p(c|u) ∝ exp(−|u − c|²/temperature), which is ∝ exp(2·c·u/temperature).
    """

    features: int
    entropy_temperature: float = 0.01

    @property
    def num_codes(self) -> int:
        return 2**self.features

    def lookup(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        return _bits_of(indices, self.features) / math.sqrt(self.features)

    def __call__(self, latents: Float[Array, "*batch features"], train: bool = False) -> Quantized:
        _check_codes(self.num_codes)
        x = _unit(_prepare(latents, self.features))
        signs, indices = _signs(x)
        codes = signs / math.sqrt(self.features)
        logits = (4 / self.entropy_temperature / math.sqrt(self.features) * x).reshape(
            -1, self.features
        )
        # Both halves of each bit's mean: 1 − p would round to 0 long before.
        bits = jnp.stack(
            [jax.nn.sigmoid(logits).mean(axis=0), jax.nn.sigmoid(-logits).mean(axis=0)], axis=-1
        )
        entropy = _entropy_of_bits(logits).mean() - _entropy(bits).sum()
        losses = {"commitment": _commitment(x, codes), "entropy": entropy}
        return Quantized(_straight_through(x, codes), indices, losses)
