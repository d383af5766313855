import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm, wasserstein_distance

from genjax.adversarial import (
    hinge,
    least_squares,
    non_saturating,
    relativistic,
    saturating,
    value,
    wasserstein,
)
from genjax.adversarial.objectives import generator_slope

P, Q = norm(-0.5, 1.0), norm(0.8, 1.3)  # of real and of generated examples
# Both densities are below 1e-19 at the ends, so sums over the grid are exact to about 1e-12.
GRID = np.linspace(-12, 13, 101)
OBJECTIVES = {
    "saturating": saturating,
    "non_saturating": non_saturating,
    "hinge": hinge,
    "least_squares": least_squares,
    "wasserstein": wasserstein,
    "relativistic": relativistic,
}


def masses(law):
    return law.pdf(GRID) / law.pdf(GRID).sum()


def expected(losses, logits, p, q):
    """Return E[losses(logit of x, logit of y)] for independent x ~ p and y ~ q.

    There is one logit for each place of the grid.
    """
    real, fake = (a.ravel() for a in jnp.meshgrid(logits, logits, indexing="ij"))
    return p @ losses(real, fake).reshape(len(p), len(q)) @ q


def jensen_shannon(p, q, *ends):
    """Return the divergence of two densities by quadrature."""

    def integrand(x):
        a, b = p(x), q(x)
        return (a * np.log(2 * a / (a + b)) + b * np.log(2 * b / (a + b))) / 2

    return quad(integrand, *ends, epsabs=1e-13, limit=200)[0]


def test_best_value_is_jensen_shannon(float64):
    """Theorem 1 of Goodfellow et al., for two normal densities."""
    best = expected(value, P.logpdf(GRID) - Q.logpdf(GRID), masses(P), masses(Q))
    # Both densities are below 1e-9 at the ends, which is the accuracy of quadrature.
    divergence = jensen_shannon(P.pdf, Q.pdf, -8, 9)
    np.testing.assert_allclose(best, -np.log(4) + 2 * divergence, atol=1e-9)


def test_best_value_of_shifted_uniform_densities(float64):
    """U(0, 1) and U(s, 1 + s) differ on a length of 2·s, where each is sure, so JSD = s·ln 2."""
    for tenths in range(11):
        p, q = np.zeros(20), np.zeros(20)
        p[:10], q[tenths : 10 + tenths] = 0.1, 0.1
        logits = np.select([(p > 0) & (q > 0), p > 0], [0.0, 1e3], -1e3)
        np.testing.assert_allclose(
            expected(value, logits, p, q), -np.log(4) + tenths / 10 * 2 * np.log(2), atol=1e-12
        )


BEST_LOGITS = {
    "saturating": lambda p, q: np.log(p / q),
    "non_saturating": lambda p, q: np.log(p / q),
    "relativistic": lambda p, q: (
        np.log(p / q) + 3.0
        # up to a constant, because a pair's odds are the ratio of ratios
    ),
    "least_squares": lambda p, q: p / (p + q),
    "hinge": lambda p, q: np.sign(p - q),
}


@pytest.mark.parametrize("name", BEST_LOGITS)
def test_best_discriminator(float64, name):
    """A change of the logit at any place raises the loss.

    The loss is convex, so a minimum place by place is the minimum.
    """
    inside = np.abs(GRID) < 4  # elsewhere the rise is below rounding
    p, q = (law.pdf(GRID[inside]) / law.pdf(GRID[inside]).sum() for law in (P, Q))
    best = BEST_LOGITS[name](p, q)
    loss = jax.jit(lambda logits: expected(OBJECTIVES[name].discriminator, logits, p, q))
    for change in (0.01, -0.01, 1.0, -1.0):
        assert np.all(jax.vmap(loss)(best + change * np.eye(len(p))) > loss(best) + 1e-13)


def test_minimax_game_is_zero_sum(float64):
    """G's loss is minus D's loss, up to the term of real examples."""
    real, fake = jnp.asarray(np.random.default_rng(0).normal(0, 5, (2, 50)))
    total = saturating.discriminator(real, fake) + saturating.generator(real, fake)
    np.testing.assert_allclose(total, -np.log(expit(real)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        value(real, fake), np.log(expit(real)) + np.log(expit(-fake)), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    "name, logit, discriminator, generator",
    [
        ("saturating", 0.0, 2 * np.log(2), -np.log(2)),
        ("non_saturating", 0.0, 2 * np.log(2), np.log(2)),
        ("relativistic", 0.0, np.log(2), np.log(2)),
        ("relativistic", 5.0, np.log(2), np.log(2)),  # this objective sees only differences
        ("hinge", 0.0, 2.0, 0.0),
        ("least_squares", 0.5, 0.25, 0.125),
        ("wasserstein", 0.0, 0.0, 0.0),
    ],
)
def test_equilibrium(float64, name, logit, discriminator, generator):
    """For p = q a constant logit is best, and the losses are these."""
    p, logits, objective = masses(P), np.full(len(GRID), logit), OBJECTIVES[name]
    np.testing.assert_allclose(
        expected(objective.discriminator, logits, p, p), discriminator, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        expected(objective.generator, logits, p, p), generator, rtol=1e-12, atol=1e-12
    )


def test_wasserstein_dual(float64):
    """For equal variances the best critic of slope at most 1 is a line.

    The distance is then that of the means.
    """
    p, q = masses(norm(0.9, 1.1)), masses(norm(-0.5, 1.1))
    gain = lambda critic: -expected(wasserstein.discriminator, critic, p, q)
    np.testing.assert_allclose(gain(GRID), 1.4, rtol=1e-12)
    np.testing.assert_allclose(gain(GRID), wasserstein_distance(GRID, GRID, p, q), rtol=1e-12)
    slopes = np.random.default_rng(0).uniform(-1, 1, (20, len(GRID)))
    for other in np.cumsum(slopes, axis=1) * (GRID[1] - GRID[0]):
        assert gain(other) < 1.4


# The best D as a function of its output, where p and q are the densities of real and generated
# examples.
PROBABILITY = {"non_saturating": expit, "least_squares": lambda y: y}


@pytest.mark.parametrize("name", PROBABILITY)
def test_trained_discriminator_converges(name):
    """A small network learns from fresh samples only.

    Its mean error over the mass of both laws is .002 to .003, and its largest error .03.
    """

    def network(params, x):
        hidden = jnp.tanh(x[:, None] * params["scale"] + params["shift"])
        return hidden @ params["out"] + params["bias"]

    scale_key, shift_key, data_key = jax.random.split(jax.random.key(0), 3)
    params = {
        "scale": jax.random.normal(scale_key, (32,)),
        "shift": jax.random.normal(shift_key, (32,)),
        "out": jnp.zeros(32),
        "bias": jnp.zeros(()),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 500))

    def step(carry, key):
        params, state = carry
        real, fake = jax.random.normal(key, (2, 1024)) * jnp.array([[1.0], [1.3]]) + jnp.array(
            [[-0.5], [0.8]]
        )
        loss = lambda params: (
            OBJECTIVES[name].discriminator(network(params, real), network(params, fake)).mean()
        )
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(data_key, 500))[0][0])
    x = np.linspace(-3, 4, 57)
    p, q = P.pdf(x), Q.pdf(x)
    found = PROBABILITY[name](
        np.asarray(network(train((params, optimizer.init(params))), x), np.float64)
    )
    error = np.abs(found - p / (p + q))
    assert np.ptp(p / (p + q)) > 0.7
    assert (p + q) @ error / (p + q).sum() < 0.01 and error.max() < 0.06


FAR = np.array([-80.0, -40.0, -15.0, -1.0, 0.0, 1.0, 15.0, 40.0, 80.0])
GENERATOR_SLOPES = {  # functions of the logit of the generated example; that of the real one is ½
    "saturating": lambda fake: -expit(fake),
    "non_saturating": lambda fake: -expit(-fake),
    "relativistic": lambda fake: -expit(0.5 - fake),
    "hinge": lambda fake: -np.ones_like(fake),
    "wasserstein": lambda fake: -np.ones_like(fake),
    "least_squares": lambda fake: fake - 1,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_generator_gradients_far_out(name):
    """In float32 they are exact however sure D is: 4.2e-18 at the logit −40 is as exact as 1.

    expm1 and exp are good to 1e-6.
    """
    real, fake = jnp.full(len(FAR), 0.5), jnp.asarray(FAR, jnp.float32)
    gradient = jax.grad(lambda fake: OBJECTIVES[name].generator(real, fake).sum())(fake)
    expected = GENERATOR_SLOPES[name](FAR)
    np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(
        generator_slope(OBJECTIVES[name], real, fake), np.abs(expected), rtol=2e-6, atol=1e-37
    )


def test_a_confident_discriminator_stops_the_saturating_generator_alone():
    """G shifts noise by θ and D(x) = sigmoid(2·x − 20), so dL/dθ is the mean of 2·dL/dlogit."""
    z = np.random.default_rng(0).normal(0, 1, 100)
    gradient = lambda objective: jax.grad(
        lambda theta: objective.generator(jnp.zeros(100), 2 * (theta + z) - 20).mean()
    )(jnp.float32(0))
    np.testing.assert_allclose(gradient(saturating), -2 * np.mean(expit(2 * z - 20)), rtol=1e-5)
    np.testing.assert_allclose(gradient(non_saturating), -2 * np.mean(expit(20 - 2 * z)), rtol=1e-5)
    assert abs(gradient(saturating)) < 1e-5 and abs(gradient(non_saturating)) > 1.99


@pytest.mark.parametrize("name", ["saturating", "non_saturating", "relativistic"])
def test_discriminator_gradients_far_out(name):
    fake = jnp.asarray(FAR, jnp.float32)
    real = -fake
    gradients = jax.grad(
        lambda real, fake: OBJECTIVES[name].discriminator(real, fake).sum(), argnums=(0, 1)
    )(real, fake)
    difference = FAR if name != "relativistic" else 2 * FAR  # fake − real
    for gradient, sign in zip(gradients, (-1, 1), strict=True):
        # float32 has no number below 1e-45, and flushes those below 1e-38 to 0.
        np.testing.assert_allclose(gradient, sign * expit(difference), rtol=2e-6, atol=1e-37)


def test_logits_of_two_shapes_are_no_pairs(unchecked_annotations):
    """Logits [4] and [4, 1] would be 16 pairs, of which 12 are none."""
    losses = [objective.discriminator for objective in OBJECTIVES.values()]
    for loss in (*losses, relativistic.generator, value):
        with pytest.raises(ValueError, match="logits of pairs have one shape"):
            loss(jnp.zeros(4), jnp.zeros((4, 1)))


def test_hinge_ignores_logits_beyond_its_margin():
    real, fake = jnp.array([1.5, 0.5, -2.0]), jnp.array([-1.5, -0.5, 2.0])
    np.testing.assert_allclose(hinge.discriminator(real, fake), [0, 1, 6], rtol=1e-6)
    by_real, by_fake = jax.grad(lambda r, f: hinge.discriminator(r, f).sum(), argnums=(0, 1))(
        real, fake
    )
    np.testing.assert_array_equal(by_real, [0, -1, -1])
    np.testing.assert_array_equal(by_fake, [0, 1, 1])
