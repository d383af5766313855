"""Measures of a codebook's use, and `alarms` for codebooks and variational latents.

The reconstruction loss does not show a codebook collapse, because a network learns to work with the
few codes that remain. The ELBO does not show a posterior collapse, because a strong decoder works
without latents.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def codebook_counts(indices: Int[Array, "*batch"], num_codes: int) -> Int[Array, " num_codes"]:
    """Return how often each code was chosen. Counts of several batches may be added."""
    return jnp.bincount(indices.reshape(-1), length=num_codes)


def usage(counts: Int[Array, " num_codes"]) -> Float[Array, ""]:
    """Return the share of codes that were chosen at least once."""
    return jnp.mean(counts > 0)


def perplexity(counts: Int[Array, " num_codes"]) -> Float[Array, ""]:
    """Return exp of the entropy of the codes' shares.

    It is the number of evenly used codes with this entropy.
    """
    shares = counts / counts.sum()
    return jnp.exp(-jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1))))


def codebook_metrics(counts: Int[Array, " num_codes"]) -> dict[str, Float[Array, ""]]:
    """Return the metrics that `alarms` knows, from the counts of as many indices as available."""
    return {
        "codebook/usage": usage(counts),
        "codebook/perplexity": perplexity(counts),
        "codebook/num_codes": jnp.float32(len(counts)),
        "codebook/num_indices": counts.sum().astype(jnp.float32),
    }


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """Return one sentence for each problem that these metrics show; an empty list if there is none.

    Known are the metrics of `codebook_metrics`, of which all or none must be given. A random choice
    of num_indices codes, each equally likely, would find num_codes·(1 − (1 −
    1/num_codes)^num_indices) codes. A usage below half of this number is a codebook collapse. So is
    a perplexity below a tenth of it.

    `active_units` of `num_units` latents depend on the images (`genjax.metrics.active_units`). Less
    than a tenth is a collapse of the posterior to the prior. Any metric may be NaN or infinite.
    """
    found = [
        f"Not finite: {name} is {value}."
        for name, value in metrics.items()
        if not math.isfinite(value)
    ]
    if "codebook/usage" in metrics:
        num_codes, num_indices = metrics["codebook/num_codes"], metrics["codebook/num_indices"]
        used, even = metrics["codebook/usage"] * num_codes, metrics["codebook/perplexity"]
        expected = num_codes * (1 - (1 - 1 / num_codes) ** num_indices)
        if used < 0.5 * expected:
            found.append(
                f"Codebook collapse: {used:.0f} of {num_codes:.0f} codes are used in "
                f"{num_indices:.0f} places. An even choice would use {expected:.0f}."
            )
        if even < 0.1 * expected:
            found.append(
                "Codebook collapse: a few codes have nearly all places. Their perplexity is "
                f"{even:.3g}, out of {num_codes:.0f} codes."
            )
    if "active_units" in metrics and metrics["active_units"] < 0.1 * metrics["num_units"]:
        active, units = metrics["active_units"], metrics["num_units"]
        found.append(
            f"Posterior collapse: {active:.0f} of {units:.0f} latents depend on the images."
        )
    return found
