"""Variational bounds on log p(x), with q(z|x) = N(mean, exp(log_variance)) and the prior N(0, I).

Kingma & Welling 2014, "Auto-encoding variational Bayes"; Burda et al. 2016, "Importance weighted
autoencoders".
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Latents = Float[Array, " batch *shape channels"]


def sample_posterior(key: Key[Array, ""], mean: Latents, log_variance: Latents) -> Latents:
    """Draw mean + σ·ε, through which gradients flow (Kingma & Welling 2014, section 2.4)."""
    return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def divergence(mean: Latents, log_variance: Latents) -> Latents:
    """Return KL(q ‖ prior) of each latent value, in nats (Kingma & Welling 2014, appendix B)."""
    return (jnp.square(mean) + jnp.expm1(log_variance) - log_variance) / 2


def elbo(
    log_likelihood: Float[Array, " batch"],
    divergences: Latents,
    beta: float | Float[Array, ""] = 1.0,
) -> Float[Array, " batch"]:
    """Return log p(x|z) − beta·KL in nats, `[batch]`.

    With beta = 1 it is a bound on log p(x), in expectation over z ~ q.

    Args:
        log_likelihood: log p(x|z) for one draw of z.
        divergences: the KL of each latent value.
        beta: weight of the KL. A value above 1 gives latents with less information (Higgins et al.
            2017, "beta-VAE", equation 4).

    Raises:
        ValueError: the log-likelihood is not one number for each example.
    """
    if log_likelihood.shape != divergences.shape[:1]:
        raise ValueError(
            f"log_likelihood is one number for each example, {divergences.shape[:1]}; got "
            f"{log_likelihood.shape}: sum over an example's values"
        )
    return log_likelihood - beta * divergences.sum(range(1, divergences.ndim))


def free_bits(divergences: Latents, least: float) -> Float[Array, ""]:
    """Return Σ over channels of max(`least`, the batch's mean KL of the channel), in nats.

    Kingma et al. 2016, "IAF", appendix C.8. The information of a channel below `least` costs
    nothing.

    Args:
        divergences: the KL of each latent value. That of a channel is the sum over the places of an
            example.
        least: the free nats of a channel.
    """
    channels = divergences.reshape(len(divergences), -1, divergences.shape[-1]).sum(1).mean(0)
    return jnp.maximum(channels, least).sum()


def log_weights(
    key: Key[Array, ""],
    log_likelihood: Callable[[Latents], Float[Array, " batch"]],
    mean: Latents,
    log_variance: Latents,
    num_samples: int,
) -> Float[Array, "num_samples batch"]:
    """Return log p(x|z) + log p(z) − log q(z|x) for `num_samples` draws of z from q.

    Args:
        log_likelihood: `z -> [batch]`, log p(x|z) of the batch with one z for each example.
    """
    noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
    z = mean + jnp.exp(log_variance / 2) * noise
    log_ratios = (jnp.square(noise) - jnp.square(z) + log_variance) / 2  # log p(z) − log q(z|x)
    return jax.vmap(log_likelihood)(z) + log_ratios.sum(range(2, z.ndim))


def importance_weighted_bound(
    log_weights: Float[Array, "num_samples batch"],
) -> Float[Array, " batch"]:
    """Return the log of the mean weight, `[batch]` (Burda et al. 2016, equation 8).

    For one sample it is the ELBO. It tends to log p(x) for infinitely many samples.
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))
