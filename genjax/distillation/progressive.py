"""Progressive distillation: one step of the student does two steps of the teacher.

Salimans & Ho 2022, algorithm 2. Teacher: a denoiser, sampled by DDIM. The student is an ordinary
network, which takes t alone, and becomes the next teacher. With a guided teacher the student also
takes the guidance scale (Meng et al. 2023, algorithm 2). No derivative is taken.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int, Key

from genjax.diffusion.losses import data_and_noise
from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import (
    Prediction,
    Target,
    check_output,
    check_prediction,
    combine,
    network_inputs,
)
from genjax.distillation.distances import squared

Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]


def two_step_target(
    teacher: Callable[..., Prediction],
    process: Process,
    x_t: Batch,
    t: Times,
    middle: Times,
    s: Times,
    *conditioning,
) -> Prediction:
    """Return x̂ and ẑ of which one DDIM step from t to s ends where the teacher's two steps end.

    x̂ = (x_s − (sigma_s/sigma_t)·x_t)/(alpha_s − (sigma_s/sigma_t)·alpha_t) (Salimans & Ho 2022,
    appendix G), and ẑ follows from x_t.
    """
    first = teacher(x_t, t, *conditioning)
    check_prediction(first)
    x_middle = process.corrupt(first.clean, first.noise, middle)
    second = teacher(x_middle, middle, *conditioning)
    x_s = process.corrupt(second.clean, second.noise, s)
    alpha, sigma, alpha_s, sigma_s = (
        expand(a, x_t)
        for a in (process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s))
    )
    determinant = alpha_s * sigma - sigma_s * alpha
    return Prediction(
        clean=(sigma * x_s - sigma_s * x_t) / determinant,
        noise=(alpha_s * x_t - alpha * x_s) / determinant,
    )


def progressive_distillation_loss(
    key: Key[Array, ""],
    apply: Callable,
    teacher: Callable[..., Prediction],
    x: Batch,
    *conditioning,
    process: Process,
    target: Target,
    num_steps: int | Int[Array, ""],
    weighting: Callable | None = None,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute w(t)·‖f(x_t, t) − y‖², y the target for two of the teacher's steps.

    The times t are those of a uniform grid of `num_steps` steps, without the last. At the noise end
    the target must determine the data, as clean and v do.

    Args:
        apply: the student with its parameters bound, called as in `diffusion.predict`.
        num_steps: of the student; it may be traced. The teacher takes twice as many.
        weighting: of `diffusion.weightings`. The paper's is `truncated_snr` for the error of x̂.

    Returns:
        The loss and the time t of each example.
    """
    time_key, noise_key = jax.random.split(key)
    x, z = data_and_noise(noise_key, x, noise)
    place = jax.random.randint(time_key, x.shape[:1], 1, num_steps + 1)
    start, end = process.clean_end, process.domain[1]
    at = lambda place: start + (end - start) * place / num_steps
    t, middle, s = at(place), at(place - 0.5), at(place - 1)
    x_t = process.corrupt(x, z, t)
    goal = two_step_target(teacher, process, x_t, t, middle, s, *conditioning)
    y = jax.lax.stop_gradient(combine(process, target, goal.clean, goal.noise, t))
    output = apply(*network_inputs(process, x_t, t), *conditioning)
    check_output(output, x)
    loss = squared(output - y)
    return loss if weighting is None else weighting(process, target, t) * loss, t
