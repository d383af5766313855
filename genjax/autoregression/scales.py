"""Maps of tokens from coarse to fine, each drawn at once: the sampling of VAR.

Tian et al. 2024, "Visual autoregressive modeling: Scalable image generation via next-scale
prediction", section 3.2. Guidance grows with the scale, and a step is called as in `decoding`:

    extend = lambda *a: quantizer.apply(codes, *a, method="extend")
    step = functools.partial(network.apply, params, method="step")
    step = guide(step, linear_guidance(1.5, num_scales))
    state = network.apply(params, pair(labels, null_label), method="start")
    tokens, total = decode_scales(keys, step, state, extend, zeros, num_scales)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from genjax.autoregression.logits import linear_guidance_scale, sample

Maps = Float[Array, "batch rows columns features"]
Inputs = Float[Array, "batch tokens features"]
Logits = Float[Array, "batch tokens vocabulary"]


def linear_guidance(
    weight: float | Float[Array, ""], num_scales: int
) -> Callable[[int], Float[Array, ""]]:
    """Make the guidance scale 1 + weight·k/(num_scales − 1) of scale k, as in the authors' program.

    A weight below 0 stays the same at every scale. So −1 is unconditional sampling.
    """
    return lambda scale: linear_guidance_scale(1 + weight, scale / max(num_scales - 1, 1))


def decode_scales(
    keys: Key[Array, " batch"],
    step: Callable[[PyTree, Inputs | None, int], tuple[Logits, PyTree]],
    state: PyTree,
    extend: Callable[[Maps, Int[Array, "batch tokens"], int], tuple[Maps, Inputs | None]],
    total: Maps,
    num_scales: int,
    sampler: Callable = sample,
) -> tuple[Int[Array, "batch all_tokens"], Maps]:
    """Sample all maps, each given those before it.

    The compiled program contains the network once for each scale, because maps have different
    sizes.

    Args:
        keys: one per example.
        step: reads the inputs of a scale, None at the first, and returns the logits of its tokens.
        state: of `step`, before the first scale.
        extend: adds the codes of a scale to the sum of the maps, and returns the sum and the inputs
            of the next scale (`MultiScaleQuantizer.extend`).
        total: the sum of no maps: zeros of the last side.
        sampler: draws tokens; `sample` with its options.

    Returns:
        The tokens, scale after scale, and the sum of all maps, which a decoder turns into images.
    """
    inputs, tokens = None, []
    for scale in range(num_scales):
        logits, state = step(state, inputs, scale)
        tokens.append(sampler(jax.vmap(jax.random.fold_in, (0, None))(keys, scale), logits))
        total, inputs = extend(total, tokens[-1], scale)
    return jnp.concatenate(tokens, axis=1), total
