"""Measures to read instead of a GAN's loss curve.

V(G, D) says nothing about quality. Both losses may stay constant while samples improve, and also
while all samples become the same. These functions measure other quantities, and `alarms` names
those that are bad.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.adversarial.objectives import Objective

OF_GENERATOR = ("regularizer/path_length", "regularizer/orthogonality")  # penalties of its loss


def accuracies(
    objective: Objective, real: Float[Array, " batch"], fake: Float[Array, " batch"]
) -> dict[str, Float[Array, ""]]:
    """Return the shares of real and of generated examples on the right side of the boundary.

    Args:
        real, fake: logits of pairs, of one class each.
    """
    edge = boundary(objective, real, fake)
    return {"accuracy/real": jnp.mean(real > edge), "accuracy/fake": jnp.mean(fake < edge)}


def boundary(
    objective: Objective, real: Float[Array, " batch"], fake: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """Return the logit that prefers neither real nor generated, for each pair.

    The boundary is that of the objective. If the objective only depends on differences of logits,
    the boundary is midway between the two logits of a pair. One boundary for all pairs would be
    wrong, because such an objective does not change if both logits of all pairs of a class are
    shifted.
    """
    if objective.boundary is None:
        return (real + fake) / 2
    return jnp.full_like(real, objective.boundary)


def overfitting(
    train: Float[Array, " training"],
    held_out: Float[Array, " held_out"],
    generated: Float[Array, " samples"],
) -> Float[Array, ""]:
    """Return r_v, the overfitting of a discriminator by its logits: 0 for none, 1 for complete.

    r_v is the place of the mean logit of held-out images between that of training images (0) and
    that of generated images (1). Source: Karras et al. 2020, "ADA", equation 1.
    """
    return (train.mean() - held_out.mean()) / (train.mean() - generated.mean())


def histogram_edges(*logits: np.ndarray) -> np.ndarray:
    """Return the edges of 40 equal bins that hold the finite ones of these logits.

    At each end, 0.1 % of each array's logits may lie outside, so that an outlier does not squeeze
    the others into one bin.
    """
    finite = [each[np.isfinite(each)] for each in logits]
    ends = [np.quantile(each, (0.001, 0.999)) for each in finite if len(each)] or [(0.0, 0.0)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, 41)


def histogram(logits: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the share of logits between two `edges`. Logits outside count in the outermost
    bins."""
    return np.histogram(np.clip(logits, edges[0], edges[-1]), edges)[0] / len(logits)


def modes_covered(modes: Int[np.ndarray, " samples"], num_modes: int, least: float = 0.1) -> int:
    """Return how many modes have at least `least` times their equal share of the samples.

    Args:
        modes: the mode of each sample, from a classifier or the nearest centre; negative for none.
        num_modes: the number of modes.
    """
    counts = np.bincount(modes[modes >= 0])
    return int(np.sum((counts > 0) & (counts >= least * len(modes) / num_modes)))


def divergence_of_modes(
    modes: Int[np.ndarray, " samples"], reference: Int[np.ndarray, " references"], num_modes: int
) -> float:
    """Return KL(samples ‖ reference) of the shares of modes, in nats.

    A mode that the reference lacks counts once in the reference. Samples without a mode (negative),
    if any, are one more mode. For 1,000 samples from the distribution of the reference, the result
    is about (modes − 1)/2000.

    Args:
        modes, reference: the mode of each example; negative for none.
        num_modes: the number of modes.

    Raises:
        ValueError: there are no samples.
    """
    if not len(modes):
        raise ValueError("the samples' modes are an empty array: give at least one sample")
    first = -1 if np.any(modes < 0) else 0
    p, q = (
        np.bincount(m[m >= first] - first, minlength=num_modes - first).astype(float)
        for m in (modes, reference)
    )
    q = np.maximum(q, 1)
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def duplicate_rate(
    features: Float[np.ndarray, "samples features"],
    references: Float[np.ndarray, "references features"],
) -> float:
    """Return the share of samples that have a near duplicate among the samples.

    A near duplicate is nearer than the 1 % quantile of the distance from a real example to its
    nearest neighbour. The share is about .01 for samples like the real examples, and 1 if all
    samples are the same.

    Args:
        features: of the samples.
        references: of as many real examples. Distances to the nearest neighbour shrink as the count
            grows, so compare equal counts.
    """
    from scipy.spatial import KDTree  # finds neighbours in few and in many dimensions

    nearest = lambda points: KDTree(points).query(points, k=2)[0][:, 1]
    return float(np.mean(nearest(features) <= np.quantile(nearest(references), 0.01)))


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """Return one sentence for each problem that these metrics show.

    The list is empty if there is none. Metrics that are missing are skipped. These names are known:

    - `modes_covered` with `num_modes`, `recall` and `duplicate_rate` show mode collapse.
    - `slope/generator`, the mean of `objectives.generator_slope`, shows a vanishing generator
      gradient.
    - `accuracy/train` with `accuracy/held_out` shows a discriminator that overfits.
    - `weight/adversarial`, an adaptive weight, shows a discriminator that no longer tells
      reconstructions from real examples.
    - `regularizer/…` with `loss/discriminator` or `loss/generator`, weighted as in the loss, shows
      an exploding regularizer.
    - Any metric may be NaN or infinite.
    """
    found = []
    for name, value in metrics.items():
        if not math.isfinite(value):
            found.append(f"Not finite: {name} is {value}.")
    covered, modes = metrics.get("modes_covered"), metrics.get("num_modes")
    if covered is not None and modes and covered < 0.9 * modes:
        found.append(f"Mode collapse: samples cover {covered:.0f} of {modes:.0f} modes.")
    if metrics.get("recall", 1) < 0.1:
        found.append(
            f"Mode collapse: samples cover {metrics['recall']:.0%} of the real examples (recall)."
        )
    if metrics.get("duplicate_rate", 0) > 0.1:
        found.append(
            f"Mode collapse: {metrics['duplicate_rate']:.0%} of the samples have a near duplicate "
            "(real examples: 1 %)."
        )
    if metrics.get("slope/generator", 1) < 0.02:
        recognized = metrics.get("accuracy/fake")
        found.append(
            "Vanishing generator gradient: the mean slope of its loss at generated examples is "
            f"{metrics['slope/generator']:.2g}"
            f"{'' if recognized is None else f'; the discriminator recognizes {recognized:.0%}'}."
        )
    if metrics.get("accuracy/train", 0) - metrics.get("accuracy/held_out", 1) > 0.3:
        found.append(
            "Overfitting discriminator: it calls "
            f"{metrics['accuracy/train']:.0%} of the training images real, but only "
            f"{metrics['accuracy/held_out']:.0%} of the held-out images."
        )
    if metrics.get("weight/adversarial", 0) > 100:
        found.append(
            "Blind discriminator: the adaptive weight of its loss is "
            f"{metrics['weight/adversarial']:,.0f}, so it hardly answers to reconstructions. Try a "
            "smaller weight."
        )
    for name, value in metrics.items():
        if name.startswith("regularizer/"):
            player = "generator" if name in OF_GENERATOR else "discriminator"
            loss = abs(metrics.get(f"loss/{player}", 0.0))
            if value > 10 * (loss + 1):
                found.append(
                    f"Exploding regularizer: {name.removeprefix('regularizer/')} is {value:.3g}, "
                    f"and the loss is {loss:.3g}."
                )
    return found
