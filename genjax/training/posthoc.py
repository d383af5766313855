"""Averages of any width after training, reconstructed from stored ones.

The source is Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion
models" (EDM2), section 3.2 and appendix C.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, PyTree

from genjax.devices.mesh import variable_path
from genjax.training.ema import power_of_width


def inner_products(
    t: Float[np.ndarray, " a"],
    power: Float[np.ndarray, " a"],
    other_t: Float[np.ndarray, " b"],
    other_power: Float[np.ndarray, " b"],
) -> Float[np.ndarray, "a b"]:
    """Return ∫ p_a(τ) p_b(τ) dτ of profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t].

    With s = min(t_a, t_b) it is (EDM2, equation 151)

        (γ_a + 1)(γ_b + 1)/(γ_a + γ_b + 1) · s^(γ_a + γ_b + 1) / (t_a^(γ_a + 1) t_b^(γ_b + 1)).

    Args:
        t: lengths, in steps.
        power: exponents γ, one per length.
    """
    t, power = t[:, None], power[:, None]
    total = power + other_power + 1
    shorter = np.minimum(t, other_t)
    # As powers of ratios at most 1: t^γ itself leaves float64's range.
    scale = (shorter / t) ** (power + 1) * (shorter / other_t) ** (other_power + 1) / shorter
    return (power + 1) * (other_power + 1) / total * scale


def posthoc_coefficients(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float
) -> Float[np.ndarray, " snapshots"]:
    """Return coefficients of snapshots whose weighted sum is nearest to the profile of `width`.

    They solve the least squares A·x = b over inner products of profiles (EDM2, algorithm 3), in
    float64. They are then scaled to a sum of 1, as in the authors' code (NVlabs/edm2). Few
    snapshots fit a profile badly, and its area too, so their weighted sum would shrink all
    parameters.

    Args:
        steps: when each snapshot was taken.
        widths: σ_rel of the average that it is a snapshot of.
    """
    t, power = np.array(steps, np.float64), np.array([power_of_width(w) for w in widths])
    target = np.array([step], np.float64), np.array([power_of_width(width)])
    products, with_target = inner_products(t, power, t, power), inner_products(t, power, *target)
    coefficients = np.linalg.lstsq(products, with_target[:, 0])[0]
    return coefficients / coefficients.sum()


class Snapshots:
    """Power-function averages kept from all along a run, `directory/<step>_<width>.npz` in float32.

    Checkpoints are rotated; these stay. A file appears by one rename when it is written whole.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)

    def begin(self, step: int) -> None:
        """Delete what a run that goes on from `step` left beyond it, and what a kill cut short."""
        if jax.process_index() == 0:
            beyond = [path for taken, _, path in self.stored() if taken > step]
            for path in [*self.directory.glob("*.tmp"), *beyond]:
                path.unlink()

    def go_on(self, step: int, every: int, averages: dict[float, PyTree]) -> None:
        """Begin at a step, and store its averages if that is due and a stop or a kill prevented it.

        Args:
            every: the interval of snapshots, in steps.
        """
        self.begin(step)
        widths = {width for taken, width, _ in self.stored() if taken == step}
        # A kill may leave some of the widths.
        if step and step % every == 0 and not averages.keys() <= widths:
            self.save(step, averages)

    def save(self, step: int, averages: dict[float, PyTree]) -> None:
        """Store averages by their widths. Every process calls this, and the first one writes.

        Raises:
            OSError: a file could not be written.
        """
        for width, average in averages.items():
            average = _on_host(average)
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                path = self.directory / f"{step:08d}_{float(width)!r}.npz"
                with open(path.with_suffix(".tmp"), "wb") as file:
                    np.savez(file, **{name: a.astype(np.float32) for name, a in average.items()})
                path.with_suffix(".tmp").rename(path)

    def stored(self) -> list[tuple[int, float, Path]]:
        """Return step, width and file of each snapshot, oldest first."""
        names = [(*path.stem.split("_"), path) for path in self.directory.glob("*_*.npz")]
        return sorted((int(step), float(width), path) for step, width, path in names)

    def reconstruct(self, step: int, averages: dict[float, PyTree], width: float) -> PyTree:
        """Return the average of relative width `width` at `step`.

        It is reconstructed from the snapshots before the step and the averages at the step.

        Args:
            averages: those tracked, at `step`, by their widths.

        Raises:
            ValueError: the width is out of range, or the averages are trees of other names than
                those stored.
        """
        sources = [each for each in self.stored() if each[0] < step]
        sources += [(step, w, average) for w, average in averages.items()]
        steps, widths, _ = zip(*sources, strict=True)
        like = next(iter(averages.values()))
        total, names = {}, {variable_path(path) for path, _ in jax.tree.leaves_with_path(like)}
        for x, (_, _, source) in zip(
            posthoc_coefficients(steps, widths, step, width), sources, strict=True
        ):
            with (
                np.load(source)
                if isinstance(source, Path)
                else contextlib.nullcontext(_on_host(source)) as arrays
            ):
                if {*arrays} != names:
                    differing = sorted({*arrays} ^ names)[0]
                    raise ValueError(
                        f"{differing} is in only one of the averages given and those stored in "
                        f"{self.directory}: give trees like the stored ones"
                    )
                for name in names:
                    total[name] = total.get(name, 0.0) + x * np.asarray(arrays[name], np.float64)
        average = lambda path, a: total[variable_path(path)].astype(a.dtype)
        place = lambda path, a: jax.device_put(average(path, a), getattr(a, "sharding", None))
        return jax.tree.map_with_path(place, like)


def _on_host(tree: PyTree) -> dict[str, np.ndarray]:
    """Whole arrays by their places in the tree, wherever their parts are."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return {variable_path(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(tree)}
