"""What to read instead of a GAN's loss curve.

V(G, D) says nothing of quality: both losses stay where they are while samples get better, or all become one. These are
measured instead, and `alarms` says in words what of it is bad.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.adversarial.objectives import Objective


def accuracies(
    objective: Objective, real: Float[Array, " batch"], fake: Float[Array, " batch"]
) -> dict[str, Float[Array, ""]]:
    """The share of real and of generated examples on their side of the objective's boundary."""
    edge = boundary(objective, real, fake)
    return {"accuracy/real": jnp.mean(real > edge), "accuracy/fake": jnp.mean(fake < edge)}


def boundary(
    objective: Objective, real: Float[Array, " batch"], fake: Float[Array, " batch"]
) -> Float[Array, ""]:
    """The logit of no preference: the objective's, or midway between both means where only differences count."""
    if objective.boundary is None:
        return (jnp.mean(real) + jnp.mean(fake)) / 2
    return jnp.asarray(objective.boundary, real.dtype)


def histogram_edges(*logits: np.ndarray, num_bins: int = 40) -> np.ndarray:
    """Return the edges of equal bins that hold the finite ones of these logits.

    One in a thousand of each array's logits may lie beyond either end, so that an outlier does not
    squeeze the others into one bin.
    """
    finite = [each[np.isfinite(each)] for each in logits]
    ends = [np.quantile(each, (0.001, 0.999)) for each in finite if len(each)] or [(0.0, 0.0)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, num_bins + 1)


def histogram(logits: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the share of logits between two `edges`; those beyond count in the outermost bins."""
    return np.histogram(np.clip(logits, edges[0], edges[-1]), edges)[0] / len(logits)


def modes_covered(modes: Int[np.ndarray, " samples"], num_modes: int, least: float = 0.1) -> int:
    """How many modes have at least `least` of the samples that an equal share would be.

    Args:
        modes: of each sample, by a classifier, or the nearest centre; negative where it belongs to none.
    """
    counts = np.bincount(modes[modes >= 0], minlength=num_modes)
    return int(np.sum((counts > 0) & (counts >= least * len(modes) / num_modes)))


def divergence_of_modes(
    modes: Int[np.ndarray, " samples"], reference: Int[np.ndarray, " references"], num_modes: int
) -> float:
    """KL(samples ‖ reference) of the modes' shares in nats; a mode that the reference lacks is taken to occur once.

    Samples of no mode (negative), if there are any, are one more mode. For 1,000 drawn from the reference's own law it is about (modes − 1)/2000.
    """
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
    """The share of samples as near to another sample as only the nearest 1 % of the real are to another of the real.

    About .01 for samples like the real ones, where there are as many; 1 where all samples are one.

    Args:
        references: features of real examples, as many as samples, since neighbours get nearer as they get more.
    """
    from scipy.spatial import KDTree  # neighbours in few or many dimensions alike

    nearest = lambda points: KDTree(points).query(points, k=2)[0][:, 1]
    return float(np.mean(nearest(features) <= np.quantile(nearest(references), 0.01)))


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """What is going wrong by these metrics, a sentence each; none if nothing is.

    It knows these names, and does without those that are not there:

    - `modes_covered` with `num_modes`, `recall`, `duplicate_rate`: mode collapse;
    - `slope/generator` (the mean of `objectives.generator_slope`): a vanishing generator gradient;
    - `accuracy/real` with `accuracy/held_out`: a discriminator that learns the training images by heart;
    - `regularizer/…` with `loss/discriminator` or `loss/generator`, weighted as they are added: an exploding regularizer;
    - any that is NaN or infinite.
    """
    found = []
    for name, value in metrics.items():
        if not math.isfinite(value):
            found.append(f"Not finite: {name} is {value}.")
    covered, modes = metrics.get("modes_covered"), metrics.get("num_modes")
    if covered is not None and modes and covered < 0.9 * modes:
        found.append(f"Mode collapse: samples are of {covered:.0f} of {modes:.0f} modes.")
    if metrics.get("recall", 1) < 0.1:
        found.append(
            f"Mode collapse: samples cover {metrics['recall']:.0%} of the real examples (recall)."
        )
    if metrics.get("duplicate_rate", 0) > 0.1:
        found.append(
            f"Mode collapse: {metrics['duplicate_rate']:.0%} of the samples have a twin among them, of real examples 1 %."
        )
    if metrics.get("slope/generator", 1) < 0.02:
        told = metrics.get("accuracy/fake")
        found.append(
            f"Vanishing generator gradient: the slope of its loss at generated examples is {metrics['slope/generator']:.2g} "
            f"on average{'' if told is None else f', and the discriminator tells {told:.0%} of them'}."
        )
    if metrics.get("accuracy/real", 0) - metrics.get("accuracy/held_out", 1) > 0.3:
        found.append(
            f"Overfitting discriminator: it calls {metrics['accuracy/real']:.0%} of the training images real, and "
            f"{metrics['accuracy/held_out']:.0%} of the held-out ones."
        )
    for name, value in metrics.items():
        if name.startswith("regularizer/"):
            player = "generator" if name == "regularizer/path_length" else "discriminator"
            loss = abs(metrics.get(f"loss/{player}", 0.0))
            if value > 10 * (loss + 1):
                found.append(
                    f"Exploding regularizer: {name.removeprefix('regularizer/')} is {value:.3g} beside a loss of {loss:.3g}."
                )
    return found
