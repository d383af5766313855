"""Distribution matching: at every noise level, the student's samples are distributed as the data.

Yin et al. 2024 (DMD, equation 7; DMD2). Teacher: a denoiser of the data, usually guided. A second
network, the fake denoiser, learns the student's samples by `fake_loss` as a diffusion model does.
The fake denoiser has several updates for each update of the student (DMD2, section 4.2: 5). The
student is any generator, and the fake denoiser takes t. No derivative but the gradient is taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genjax.diffusion.losses import simple_loss
from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Prediction, check_prediction
from genjax.diffusion.times import TimeDistribution
from genjax.distillation.draws import draw_times

SMALLEST = 1e-4  # least error of the teacher to divide by; without noise the error is 0
Batch = Float[Array, " batch *shape"]
Times = Float[Array, " batch"]
Denoiser = Callable[[Batch, Times], Prediction]


def score_difference(
    real: Denoiser, fake: Denoiser, process: Process, x_t: Batch, t: Times
) -> tuple[Batch, Prediction]:
    """Return x̂ of the fake denoiser minus x̂ of the real one, and the real one's prediction.

    It is (sigma²/alpha)·(∇log p_fake − ∇log p_real)(x_t), a positive multiple of the gradient of
    the Kullback–Leibler divergence KL(p_fake ‖ p_real) at time t in x_t.
    """
    teacher, student = real(x_t, t), fake(x_t, t)
    check_prediction(teacher)
    check_prediction(student)
    return student.clean - teacher.clean, teacher


def distribution_matching_loss(
    key: Key[Array, ""],
    samples: Batch,
    real: Denoiser,
    fake: Denoiser,
    *,
    process: Process,
    times: TimeDistribution,
    normalize: bool = True,
    noise: Batch | None = None,
) -> tuple[Times, Times]:
    """Compute ½‖x − sg(x − g)‖², whose gradient in the student's samples x is g/dimension.

    g is `score_difference` at a random time, divided by the mean of |x − x̂_real| of the example.
    This is the released code of DMD2. Equations 7 and 8 of DMD (Yin et al. 2024) have one more
    factor alpha, which is 1 for EDM.

    Args:
        samples: of the student; the gradient reaches its parameters through them.
        real, fake: `(x_t, t) -> Prediction`, their conditioning bound.
        times: the distribution of noise levels. The papers leave out the first and the last 2 %.
        normalize: divide as described; without it the expected gradient is that of the divergence,
            weighted by sigma²/alpha² over times.

    Returns:
        The loss and the time t of each example.
    """
    x = jax.lax.stop_gradient(samples)
    x_t, t, _ = draw_times(key, x, process, times, noise)
    g, teacher = score_difference(real, fake, process, x_t, t)
    axes = range(1, x.ndim)
    if normalize:
        error = jnp.mean(jnp.abs(x - teacher.clean), axis=axes, keepdims=True)
        g = g / jnp.maximum(error, SMALLEST)
    loss = jnp.mean(jnp.square(samples - jax.lax.stop_gradient(x - g)), axis=axes) / 2
    return loss, t


def fake_loss(key: Key[Array, ""], apply: Callable, samples: Batch, *conditioning, **options):
    """Compute `diffusion.simple_loss` of the fake network on samples that get no gradient.

    DMD2's weighting for EDM is sigma⁻² + s⁻² on the squared error of x̂, `weightings.edm`'s.
    """
    return simple_loss(key, apply, jax.lax.stop_gradient(samples), *conditioning, **options)


def simulated_inputs(
    key: Key[Array, ""],
    flow_map: Callable[[Batch, Times, Times], Batch],
    process: Process,
    noise: Batch,
    times: Float[Array, " times"],
) -> tuple[Batch, Times]:
    """Return inputs at random times of the sampler's grid, made by the student (DMD2, section 4.5).

    Each example is the state of `flow_maps.consistency` at one of the sampler's times. So the
    student trains on its own samples with noise, as in sampling. No gradient passes. The only input
    of a one-step sampler is noise, so the student is not called.

    Args:
        times: of the sampler, `[steps + 1]`. The last time, where sampling ends, is not drawn.
    """
    step_key, noise_key = jax.random.split(key)
    steps = len(times) - 1
    index = jax.random.randint(step_key, noise.shape[:1], 0, steps)
    fill = lambda t: jnp.full(noise.shape[:1], t)

    def one(carry, row):
        x, taken = carry
        number, t, s = row
        clean = flow_map(x, fill(t), fill(times[-1]))
        fresh = jax.random.normal(jax.random.fold_in(noise_key, number), x.shape, x.dtype)
        x = process.corrupt(clean, fresh, fill(s)).astype(noise.dtype)
        return (x, jnp.where(expand(index == number + 1, x), x, taken)), None

    rows = jnp.arange(steps - 1), times[:-2], times[1:-1]
    (_, taken), _ = jax.lax.scan(one, (noise, noise), rows)
    return jax.lax.stop_gradient(taken), times[index]
