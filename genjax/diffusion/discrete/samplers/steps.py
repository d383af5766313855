"""A sampler of a step: what all samplers of discrete diffusion share."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genjax.diffusion.discrete.processes import DiscreteProcess, Probabilities, Tokens
from genjax.diffusion.discrete.targets import Denoiser
from genjax.diffusion.processes import check_keys
from genjax.diffusion.samplers.tables import check_times

Keys = Key[Array, " batch"]


def draw(keys: Keys, probabilities: Probabilities) -> Tokens:
    """Draw a state at each place, each sample with its own key. Sums need not be 1.

    One step of many gives each of thousands of codes a probability near 1e-7. JAX's noise of
    default precision ends below 16, so such choices would be drawn too seldom. The source is Zheng
    et al. 2025, "Masked diffusion models are secretly time-agnostic masked models".
    """
    exact = functools.partial(jax.random.categorical, mode="high")
    return jax.vmap(exact)(keys, jnp.log(probabilities))


def fold(keys: Keys, number: int | Int[Array, ""]) -> Keys:
    """Return each sample's key for the step of this number."""
    check_keys(keys)
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def num_evaluations(sampler: Callable, length: int, num_steps: int) -> int:
    """Return how often a sampler evaluates the denoiser for samples of `length` tokens.

    It is once a step, unless the sampler has `num_evaluations(length, num_steps, …)`, which takes
    its options.
    """
    bound = functools.partial(sampler)
    count = getattr(bound.func, "num_evaluations", lambda length, num_steps, **_: num_steps)
    return count(length, num_steps, **bound.keywords)


def sampler(step: Callable[..., Probabilities]) -> Callable:
    """Make a sampler of `step(process, log_p, x_t, t, s, …)`, the probabilities of x_s's states.

    The sampler is called as `(denoiser, process, noise, times, *, keys, trajectory=False, …)`,
    where the rest are the step's own options. It returns samples like `noise`, or with `trajectory`
    the states at all times of the grid. Places of `noise` that are already data stay as they are
    under `Masked`, if the step never masks again.

    `times` is a grid, noise end first, such as `diffusion.uniform_grid(process, num_steps)`. The
    samples are data if the grid ends at the clean end. `keys` are one per sample, so a sample does
    not depend on its batch.
    """

    def sample(
        denoiser: Denoiser,
        process: DiscreteProcess,
        noise: Tokens,
        times: Float[Array, " times"],
        *,
        keys: Keys,
        trajectory: bool = False,
        **options: Any,
    ) -> Int[Array, " ..."]:
        check_times(times)

        def advance(x_t, row):
            number, t, s = row
            log_p = denoiser(x_t, jnp.full(len(x_t), t))
            x_s = draw(fold(keys, number), step(process, log_p, x_t, t, s, **options))
            x_s = x_s.astype(x_t.dtype)
            return x_s, x_s if trajectory else None

        rows = (jnp.arange(len(times) - 1), times[:-1], times[1:])
        last, states = jax.lax.scan(advance, noise, rows)
        return jnp.concatenate([noise[None], states]) if trajectory else last

    common = [p for p in inspect.signature(sample).parameters.values() if p.kind != p.VAR_KEYWORD]
    functools.update_wrapper(sample, step)
    own = list(inspect.signature(step).parameters.values())[5:]
    own = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own]
    sample.__signature__ = inspect.Signature(common + own)
    sample.step = step
    return sample
