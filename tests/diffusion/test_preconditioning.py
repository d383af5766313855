"""EDM's conventions: the example of the docstring trains to the deviation of its data."""

import functools
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.diffusion import EDM, EDMPreconditioning, predict, samplers, targets
from genjax.diffusion.grids import karras_grid
from genjax.diffusion.losses import simple_loss
from genjax.diffusion.targets import network_inputs
from genjax.diffusion.times import log_normal_sigma

CENTRES, WIDTH, STEPS = 2.0, 0.3, 1500
NAMES = dict(
    EDM=EDM,
    EDMPreconditioning=EDMPreconditioning,
    simple_loss=simple_loss,
    log_normal_sigma=log_normal_sigma,
)


def points(key, count):
    """Draw from four Gaussians in the plane, at (±2, ±2)."""
    sign_key, key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (count, 2)).astype(jnp.float32)
    return CENTRES * signs + WIDTH * jax.random.normal(key, (count, 2))


def network(params, x, t):
    h = jnp.concatenate([x, t[:, None]], 1)
    for kernel, bias in params[:-1]:
        h = jax.nn.silu(h @ kernel + bias)
    kernel, bias = params[-1]
    return h @ kernel + bias


def samples_after_training(target):
    """Train by the example of the docstring with a target; return 2,000 samples."""
    block = inspect.cleandoc(EDMPreconditioning.__doc__).split("\n\n")[2]
    example = compile(textwrap.dedent(block), "the docstring's example", "exec")

    def loss(params, key):
        data_key, key = jax.random.split(key)
        apply = functools.partial(network, params)
        names = NAMES | dict(key=key, apply=apply, x=points(data_key, 256), edm=target)
        exec(example, names)
        return names["losses"].mean()

    sizes, keys = (3, 64, 64, 2), jax.random.split(jax.random.key(0), 3)
    params = [
        (jax.random.normal(key, (n, m)) * n**-0.5, jnp.zeros(m))
        for key, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train_and_sample(params):
        carry = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), STEPS))
        process = EDM(preconditioning=EDMPreconditioning(data_deviation=2.0))
        denoiser = predict(functools.partial(network, params), process, target)
        grid, keys = karras_grid(process, 20), jax.random.split(jax.random.key(2), 2000)
        return samplers.edm_heun(denoiser, process, process.prior(keys, (2,)), grid, keys=keys)

    return train_and_sample(params)


def test_the_network_is_fed_unit_variance_and_a_quarter_of_log_sigma():
    """Of data of deviation 2, at times from the whole domain: 20,000 examples give 1 to 3 %."""
    process = EDM(preconditioning=EDMPreconditioning(data_deviation=2.0))
    for sigma in (0.002, 2.0, 80.0):
        z, x = jax.random.normal(jax.random.key(0), (2, 20_000, 1))
        t = jnp.full(20_000, sigma)
        fed, time = network_inputs(process, process.corrupt(2.0 * x, z, t), t)
        np.testing.assert_allclose(jnp.std(fed), 1, rtol=0.03)
        np.testing.assert_allclose(time, np.log(sigma) / 4, rtol=1e-5)


def deviations(samples):
    """Return the deviation of points in the plane, and that around the nearest of the centres."""
    root_mean_square = lambda a: float(jnp.sqrt(jnp.mean(jnp.square(a))))
    return root_mean_square(samples), root_mean_square(jnp.abs(samples) - CENTRES)


def test_the_docstring_s_example_trains_to_the_deviation_of_two_dimensional_data():
    """Within 5 %, and 30 % of the small Gaussians: by a small network after 1,500 steps."""
    whole, narrow = deviations(samples_after_training(targets.edm))
    np.testing.assert_allclose(whole, np.hypot(CENTRES, WIDTH), rtol=0.05)
    np.testing.assert_allclose(narrow, WIDTH, rtol=0.3)


def test_clean_does_not_reach_the_deviation_under_edm_as_the_docstring_says():
    """The network must repeat x_t to within sigma, so its own error is added to the samples."""
    _, narrow = deviations(samples_after_training(targets.clean))
    assert narrow > 1.5 * WIDTH
