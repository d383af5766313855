"""What to read of a codebook: how much of it is used, and how evenly; `alarms` says in words what is bad of it,
or of a variational autoencoder's latents.

The reconstruction's loss does not tell: a network learns to do with the few codes that are left. Nor does the
ELBO: a decoder that is strong enough does without latents.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def codebook_counts(indices: Int[Array, "*batch"], num_codes: int) -> Int[Array, " num_codes"]:
    """How often each code was chosen. Counts of several batches may be added."""
    return jnp.bincount(indices.reshape(-1), length=num_codes)


def usage(counts: Int[Array, " num_codes"]) -> Float[Array, ""]:
    """The share of codes that were chosen at all."""
    return jnp.mean(counts > 0)


def perplexity(counts: Int[Array, " num_codes"]) -> Float[Array, ""]:
    """exp of the entropy of the codes' shares: so many codes, evenly used, would be as uncertain."""
    shares = counts / counts.sum()
    return jnp.exp(
        -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
    )


def codebook_metrics(counts: Int[Array, " num_codes"]) -> dict[str, Float[Array, ""]]:
    """The measures that `alarms` knows, of counts of as many indices as can be had."""
    return {
        "codebook/usage": usage(counts),
        "codebook/perplexity": perplexity(counts),
        "codebook/num_codes": jnp.float32(len(counts)),
        "codebook/num_indices": counts.sum().astype(jnp.float32),
    }


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """What is going wrong by these metrics, a sentence each; none if nothing is.

    It knows the names of `codebook_metrics`, all or none of which are there, and any that is NaN or infinite.
    Usage is held against num_codes·(1 − (1 − 1/num_codes)^num_indices), what as many indices find of codes
    chosen at random evenly; less than half of it is called a collapse, and so is a perplexity of less than a
    tenth of it.

    `active_units` of `num_units` latents depend on the images (`genjax.metrics.active_units`); less than a tenth
    is called a collapse of the posterior to the prior.
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
                f"Codebook collapse: {used:.0f} of {num_codes:.0f} codes are used in {num_indices:.0f} "
                f"places, of evenly chosen ones {expected:.0f} would be."
            )
        if even < 0.1 * expected:
            found.append(
                f"Codebook collapse: a few codes have nearly all places, which are as uncertain as "
                f"{even:.3g} evenly used codes (perplexity) of {num_codes:.0f}."
            )
    if "active_units" in metrics and metrics["active_units"] < 0.1 * metrics["num_units"]:
        active, units = metrics["active_units"], metrics["num_units"]
        found.append(
            f"Posterior collapse: {active:.0f} of {units:.0f} latents depend on the images."
        )
    return found
