"""Small networks that are trained by each method on data N(0, S²) reach the closed forms.

The network is a multiple of x_t that depends on the times by a hidden layer. The solutions are of
this form. It starts far from them, and 400 steps of Adam with 256 examples leave an error of at
most 0.04, by the noise of the batches.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian import S, exact_denoiser, exact_map, exact_velocity

from genjax import diffusion
from genjax.diffusion import (
    RectifiedFlow,
    TrigFlow,
    TrigFlowPreconditioning,
    VariancePreservingCosine,
    targets,
    times,
)
from genjax.distillation import (
    consistency,
    continuous_consistency,
    distances,
    flow_map_matching,
    flow_maps,
    halving,
    mean_flow,
    pairs,
    shortcut,
    straightening,
)

FLOW = RectifiedFlow()
TRIG = TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=S))
STEPS, BATCH = 400, 256
squared = distances.squared
uniform = functools.partial(pairs.ordered, law=times.uniform)
with_diagonal = functools.partial(pairs.ordered, law=times.uniform, diagonal=0.5)


class Multiple(nn.Module):
    """x times a function of t and s."""

    @nn.compact
    def __call__(self, x, t, s):
        hidden = nn.tanh(nn.Dense(32)(jnp.stack([t, s], -1) * 2 - 1))
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(hidden))) * x


def as_map(u):
    """The map of a network for the average velocity."""
    return flow_maps.flow_map(u, FLOW, targets.velocity)


def self_distilled(loss):
    """The loss of a flow map whose velocity is its own at s = t, which learns from data."""

    def both(key, u, x):
        jump_key, flow_key = jax.random.split(key)
        own = flow_maps.velocity(u, FLOW, targets.velocity)
        flow, _ = mean_flow.mean_flow_loss(
            flow_key, u, x, pairs=functools.partial(uniform, diagonal=1.0), distance=squared
        )
        return loss(jump_key, u, own, x) + flow

    return both


def by_pairs(key, u, x):
    """Distilled reflow of the oracle's own pairs: z and x = S·z."""
    z = jax.random.normal(key, x.shape)
    return straightening.distilled_reflow_loss(as_map(u), S * z, z, process=FLOW)


OPTIONS = dict(process=FLOW, pairs=uniform)
LOSSES = {
    "mean flow": lambda key, u, x: mean_flow.mean_flow_loss(
        key, u, x, pairs=with_diagonal, distance=squared
    )[0],
    "improved mean flow": lambda key, u, x: mean_flow.improved_mean_flow_loss(
        key, u, x, pairs=with_diagonal, distance=squared
    )[0],
    "shortcut": lambda key, u, x: shortcut.shortcut_loss(key, u, x, finest=32, share=0.5)[0],
    "Lagrangian": self_distilled(
        lambda key, u, v, x: flow_map_matching.lagrangian_loss(key, as_map(u), v, x, **OPTIONS)[0]
    ),
    "Eulerian": self_distilled(
        lambda key, u, v, x: flow_map_matching.eulerian_loss(key, as_map(u), v, x, **OPTIONS)[0]
    ),
    "semigroup": self_distilled(
        lambda key, u, v, x: flow_map_matching.semigroup_loss(key, as_map(u), x, **OPTIONS)[0]
    ),
    "trajectory consistency": lambda key, u, x: consistency.consistency_loss(
        key, as_map(u), x, teacher=exact_map(FLOW), anywhere=True, **OPTIONS
    )[0],
    "distilled reflow": by_pairs,
}
AT = {  # the times at which a method's map is known: all, or one jump alone
    "distilled reflow": (jnp.array([1.0]), jnp.array([0.0])),
}


def train(loss, steps=STEPS):
    """Return the trained network of `loss(key, network, x)`."""
    network, key = Multiple(), jax.random.key(0)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    one = jnp.zeros(1)
    params = network.init(key, jnp.zeros((1, 1)), one, one)

    def step(carry, key):
        params, state = carry
        data_key, loss_key = jax.random.split(key)
        x = S * jax.random.normal(data_key, (BATCH, 1))
        mean = lambda params: loss(loss_key, functools.partial(network.apply, params), x).mean()
        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, params, jax.random.split(key, steps))[0][0])
    return functools.partial(network.apply, run((params, optimizer.init(params))))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_small_network_reaches_the_flow_map(name):
    """From x = 1 and times all over the triangle; the first network is off by more than 0.2."""
    u = as_map(train(LOSSES[name]))
    everywhere = jnp.array([0.9, 0.8, 0.7, 0.5, 0.9]), jnp.array([0.1, 0.5, 0.2, 0.2, 0.7])
    t, s = AT.get(name, everywhere)
    x = jnp.ones((len(t), 1))
    exact = exact_map(FLOW)(x, t, s)
    first = as_map(train(LOSSES[name], steps=1))
    assert jnp.abs(first(x, t, s) - exact).max() > 0.2
    np.testing.assert_allclose(u(x, t, s), exact, atol=0.04)


@pytest.mark.parametrize("taught", [False, True])
def test_a_small_network_reaches_the_consistency_function(taught):
    """sCM: the map to the clean end, of the data's and noise's velocity or of a teacher's."""

    def loss(key, network, x):
        return continuous_consistency.continuous_consistency_loss(
            key,
            lambda x, t: network(x, t, 0 * t),
            x,
            process=TRIG,
            times=times.uniform,
            teacher=exact_velocity(TRIG) if taught else None,
            normalize=lambda g: g,
        )[0]

    network = train(loss)
    apply = lambda x, t: network(x, t, 0 * t)
    denoiser = diffusion.predict(apply, TRIG, targets.velocity)
    t = jnp.array([0.3, 0.8, 1.2, 1.5])
    x = jnp.ones((4, 1))
    found = flow_maps.ddim_map(denoiser, TRIG)(x, t, 0 * t)
    np.testing.assert_allclose(found, exact_map(TRIG)(x, t, 0 * t), atol=0.06)


def test_a_small_network_takes_two_steps_of_its_teacher_in_one():
    """Progressive distillation to four steps of v, whose network need not know s."""
    process, steps = VariancePreservingCosine(), 4
    teacher = exact_denoiser(process)
    network = train(
        lambda key, network, x: halving.halving_loss(
            key,
            lambda x, t: network(x, t, 0 * t),
            teacher,
            x,
            process=process,
            target=targets.v,
            num_steps=steps,
        )[0]
    )
    denoiser = diffusion.predict(lambda x, t: network(x, t, 0 * t), process, targets.v)
    noise = jnp.ones((1, 1))
    student = diffusion.ddim(denoiser, process, noise, jnp.linspace(1, 0, steps + 1))
    theirs = diffusion.ddim(teacher, process, noise, jnp.linspace(1, 0, 2 * steps + 1))
    np.testing.assert_allclose(student, theirs, atol=0.03)
