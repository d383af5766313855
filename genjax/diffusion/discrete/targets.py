"""Targets: what a network's output says, and log p(x | x_t) of it.

A target is a function `(process, output, x_t, t) -> log p(x | x_t)`, `[batch … V]` for each place's
token x given all of x_t. The output is `[batch … V]` too. Tokens x that cannot have become x_t have
probability 0, which is `LOG_ZERO` in logarithms. So under `Masked`, tokens that are not masked are
known, whatever the network says (Sahoo et al. 2024, MDLM: "subs" parameterization).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.diffusion.discrete.processes import (
    LOG_ZERO,
    DiscreteProcess,
    Probabilities,
    Tokens,
)
from genjax.diffusion.processes import expand

Times = Float[Array, " *times"]
Target = Callable[[DiscreteProcess, Probabilities, Tokens, Times], Probabilities]
Denoiser = Callable[..., Probabilities]


def _log(probabilities):
    """Return the logarithm, `LOG_ZERO` of 0."""
    positive = probabilities > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, probabilities, 1)), LOG_ZERO)


def clean(process: DiscreteProcess, output: Probabilities, x_t: Tokens, t: Times) -> Probabilities:
    """Take the output for logits of p(x | x_t) (Austin et al. 2021, D3PM, section 3.3)."""
    possible = process.likelihood(x_t, t) > 0
    return jax.nn.log_softmax(jnp.where(possible, output, LOG_ZERO))


def leave_one_out(
    process: DiscreteProcess, output: Probabilities, x_t: Tokens, t: Times
) -> Probabilities:
    """Take the output for logits of each token given all other tokens of x_t.

    Bayes' rule adds what x_t says about its own token: log q(x_t | x). Under `Masked` this is
    `clean`. Under `Uniform` it is the usual parameterization, in which x̂ stands for x in the
    posterior (Schiff et al. 2025, UDLM).
    """
    return jax.nn.log_softmax(output + _log(process.likelihood(x_t, t)))


def score(process: DiscreteProcess, output: Probabilities, x_t: Tokens, t: Times) -> Probabilities:
    """Take the output for logarithms of `DiscreteProcess.scores` of the tokens (Lou et al. 2024).

    The score of x_t itself is 1. The scores of an imperfect network may contradict all data; where
    p(x | x_t) would be below 0, it is 0.
    """
    own = x_t[..., None] == jnp.arange(process.vocabulary_size)
    scores = jnp.exp(jnp.where(own, 0, output))
    noise = process.noise_distribution[: process.vocabulary_size] * jnp.sum(
        scores, -1, keepdims=True
    )
    ratios = scores - expand(process.sigma(t), scores) * noise
    return jax.nn.log_softmax(_log(ratios) + _log(process.likelihood(x_t, t)))


def predict(apply: Callable, process: DiscreteProcess, target: Target) -> Denoiser:
    """Make a denoiser of a network trained for `target`.

    The denoiser is called as `(x_t, t, *conditioning)` and returns log p(x | x_t).

    Args:
        apply: `apply(x_t, t, *conditioning) -> output`, the network with its parameters bound. x_t
            are states, t is `[batch]`, or has the shape of x_t for one time per token.

    The denoiser raises ValueError unless the output has one logit for each of the V tokens.
    """

    def denoiser(x_t, t, *conditioning):
        output = apply(x_t, t, *conditioning)
        expected = (*x_t.shape, process.vocabulary_size)
        if output.shape != expected:
            raise ValueError(
                f"the network returns shape {output.shape}; it must return one value for each of "
                f"{process.vocabulary_size} tokens, and none for a mask: {expected}"
            )
        return target(process, output.astype(jnp.promote_types(output.dtype, jnp.float32)), x_t, t)

    return denoiser
