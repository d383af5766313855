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
from gaussian import S, exact_denoiser, exact_map, exact_velocity, rho

from genjax import adversarial, diffusion
from genjax.diffusion import (
    RectifiedFlow,
    TrigFlow,
    TrigFlowPreconditioning,
    VariancePreservingCosine,
    targets,
    times,
)
from genjax.distillation import adversarial as adversarial_distillation
from genjax.distillation import (
    consistency,
    continuous_consistency,
    distances,
    distribution_matching,
    drifting,
    flow_map_matching,
    flow_maps,
    guidance,
    mean_flow,
    pairs,
    pixel_mean_flow,
    progressive,
    regularized_consistency,
    shortcut,
    straightening,
)

FLOW = RectifiedFlow()
TRIG = TrigFlow(preconditioning=TrigFlowPreconditioning(data_deviation=S))
STEPS, BATCH, GAP = 400, 256, 0.1
squared = distances.squared
uniform = functools.partial(pairs.ordered, times=times.uniform)
with_diagonal = functools.partial(pairs.ordered, times=times.uniform, diagonal=0.5)


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


def near(key, process, count):
    """Pairs of times `GAP` apart."""
    t = jax.random.uniform(key, (count,))
    return t, jnp.maximum(t - GAP, 0.0)


def trained_without_teacher(x, t, s):
    """Where consistency training with pairs GAP apart ends: a regression at every step.

    The best multiple of x_t for c·x_r has Cov(x_t, x_r)/Var(x_t)·c. In the limit of small steps
    this is the exact map to s = 0.
    """
    multiple = jnp.ones_like(t)
    for _ in range(round(1 / GAP)):
        r = jnp.maximum(t - GAP, 0.0)
        covariance = FLOW.alpha(t) * FLOW.alpha(r) * S**2 + FLOW.sigma(t) * FLOW.sigma(r)
        multiple, t = multiple * covariance / rho(FLOW, t) ** 2, r
    return multiple[:, None] * x


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
    "consistency distillation": lambda key, u, x: consistency.consistency_loss(
        key, as_map(u), x, teacher=exact_map(FLOW), **OPTIONS
    )[0],
    "consistency training": lambda key, u, x: consistency.consistency_loss(
        key, as_map(u), x, process=FLOW, pairs=near
    )[0],
    "pixel mean flow": lambda key, clean, x: mean_flow.improved_mean_flow_loss(
        key,
        pixel_mean_flow.average_velocity(clean),
        x,
        pairs=with_diagonal,
        distance=squared,
    )[0],
    "distilled reflow": by_pairs,
}
TO_THE_DATA = jnp.array([1.0, 0.7, 0.4, 0.2]), jnp.zeros(4)
AT = {  # the times at which a method's map is known: all, or jumps to the data alone
    "consistency distillation": TO_THE_DATA,
    "consistency training": TO_THE_DATA,
    "distilled reflow": (jnp.array([1.0]), jnp.array([0.0])),
}
VELOCITIES = {"pixel mean flow": pixel_mean_flow.average_velocity}  # of networks for other targets
SOLUTIONS = {"consistency training": trained_without_teacher}
LONGER = {"consistency training": 1500}


def train(loss, steps=STEPS, network=None):
    """Return the trained network of `loss(key, network, x)`, by default a `Multiple`."""
    network, key = network or Multiple(), jax.random.key(0)
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
    as_velocity = VELOCITIES.get(name, lambda network: network)
    u = as_map(as_velocity(train(LOSSES[name], LONGER.get(name, STEPS))))
    everywhere = jnp.array([0.9, 0.8, 0.7, 0.5, 0.9]), jnp.array([0.1, 0.5, 0.2, 0.2, 0.7])
    t, s = AT.get(name, everywhere)
    x = jnp.ones((len(t), 1))
    exact = SOLUTIONS.get(name, exact_map(FLOW))(x, t, s)
    first = as_map(as_velocity(train(LOSSES[name], steps=1)))
    assert jnp.abs(first(x, t, s) - exact).max() > 0.2
    np.testing.assert_allclose(u(x, t, s), exact, atol=0.04)


@pytest.mark.parametrize(
    "teacher, rule",
    [
        (None, continuous_consistency.tangent),
        (exact_velocity(TRIG), continuous_consistency.tangent),
        (exact_velocity(TRIG), regularized_consistency.tangent),
    ],
    ids=["sCT", "sCD", "rCM"],
)
def test_a_small_network_reaches_the_consistency_function(teacher, rule):
    """The map to the clean end, of the data's and noise's velocity or of a teacher's."""

    def loss(key, network, x):
        return continuous_consistency.continuous_consistency_loss(
            key,
            lambda x, t: network(x, t, 0 * t),
            x,
            process=TRIG,
            times=times.uniform,
            teacher=teacher,
            tangent_rule=rule,
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
        lambda key, network, x: progressive.progressive_distillation_loss(
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


def test_a_small_network_follows_a_teacher_at_every_scale():
    """Guidance distillation: the scale takes the place of s, here 1/scale."""
    velocity = exact_velocity(FLOW)

    def guided(x, t, scale):
        return targets.recover(FLOW, targets.velocity, x, scale[:, None] * velocity(x, t), t)

    network = train(
        lambda key, network, x: guidance.guidance_loss(
            key,
            lambda x, t, scale: network(x, t, scale - 1),
            guided,
            x,
            process=FLOW,
            target=targets.velocity,
            times=times.uniform,
            scales=(1.0, 2.0),
        )[0]
    )
    t, scale = jnp.array([0.2, 0.5, 0.8, 0.9]), jnp.array([1.1, 1.9, 1.5, 1.2])
    x = jnp.ones((4, 1))
    exact = scale[:, None] * velocity(x, t)
    np.testing.assert_allclose(network(x, t, scale - 1), exact, atol=0.06)


class Players(nn.Module):
    """A student and the network it plays with, which sees x and t, or x² and t.

    The student's sample is a multiple of z. It learns at a sixth of the opponent's pace.
    """

    even: bool = False

    def setup(self):
        self.student, self.other, self.bias = Multiple(), Multiple(), Multiple()

    def sample(self, z):
        one = jnp.ones(len(z))
        return 1.5 * z + self.student(z, one, 0 * one) / 6

    def opponent(self, x, t):
        if not self.even:
            return self.other(x, t, t)
        return (self.other(x**2, t, t) + self.bias(jnp.ones_like(x), t, t))[:, 0]

    def __call__(self, x, t, s):
        return self.sample(x), self.opponent(x, t)


def methods(players):
    """The sampler and the opponent, and the opponent without gradients for its parameters."""
    frozen = functools.partial(players.func, jax.lax.stop_gradient(players.args[0]))
    opponent = functools.partial(players, method="opponent")
    return (
        functools.partial(players, method="sample"),
        opponent,
        functools.partial(frozen, method="opponent"),
    )


def by_distributions(key, players, x):
    """DMD: the opponent learns the student's samples, at the same time as the student."""
    sample, opponent, frozen = methods(players)
    noise_key, real_key, fake_key = jax.random.split(key, 3)
    samples = sample(jax.random.normal(noise_key, x.shape))
    fake = diffusion.predict(frozen, FLOW, targets.velocity)
    uniform = dict(process=FLOW, times=times.uniform)
    loss, _ = distribution_matching.distribution_matching_loss(
        real_key, samples, exact_denoiser(FLOW), fake, **uniform
    )
    learned, *_ = distribution_matching.fake_loss(
        fake_key, opponent, samples, target=targets.velocity, **uniform
    )
    return loss + learned


def by_a_game(key, players, x):
    """LADD: the opponent tells noised data from noised samples."""
    sample, opponent, frozen = methods(players)
    noise_key, own_key, other_key = jax.random.split(key, 3)
    samples = sample(jax.random.normal(noise_key, x.shape))
    options = dict(process=FLOW, times=times.uniform, objective=adversarial.non_saturating)
    return adversarial_distillation.generator_loss(
        own_key, frozen, x, samples, **options
    ) + adversarial_distillation.discriminator_loss(other_key, opponent, x, samples, **options)


def by_drifting(key, players, x):
    """Drifting of the samples themselves, without features and without an opponent."""
    sample, *_ = methods(players)
    return drifting.drifting_loss(sample(jax.random.normal(key, x.shape)), x)[None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss, even, steps",
    [(by_distributions, False, 2000), (by_a_game, True, 2000), (by_drifting, False, STEPS)],
)
def test_a_small_generator_reaches_the_deviation_of_the_data(loss, even, steps):
    """A multiple of z by ±S; the first is off by more than 0.2."""
    first, last = (
        abs(train(loss, count, Players(even))(jnp.ones((1, 1)), method="sample")[0, 0])
        for count in (1, steps)
    )
    assert abs(first - S) > 0.2
    np.testing.assert_allclose(last, S, atol=0.06)
