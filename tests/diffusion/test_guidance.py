import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.diffusion import (
    Prediction,
    RectifiedFlow,
    VariancePreservingCosine,
    adaptive,
    adaptive_projected,
    autoguide,
    blend,
    classifier_free,
    classifier_guide,
    clean,
    compose,
    ddim,
    drop_conditioning,
    dynamic_threshold,
    euler,
    guide,
    interval,
    log_likelihood,
    optimal,
    plus_plus,
    posterior_guide,
    rescaled,
    scale_of_weight,
    static_threshold,
    target_rule,
    uniform_grid,
    velocity,
    with_clean,
    zero_init,
    zero_star,
)
from tests import virtual_devices

BATCH, SHAPE, NULL = 3, (4, 2), 7
FLOW = RectifiedFlow()


@pytest.fixture
def calls():
    return []


@pytest.fixture
def denoiser(calls):
    """Make a nonlinear denoiser that depends on all of its arguments, example by example."""

    def denoise(x_t, t, labels):
        calls.append((x_t, t, labels))
        clean = jnp.sin(x_t + t[:, None, None] * labels[:, None, None])
        return Prediction(clean, jnp.cos(x_t) * labels[:, None, None])

    return denoise


@pytest.fixture
def inputs():
    x_t = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, *SHAPE)), jnp.float32)
    return x_t, jnp.array([0.2, 0.5, 0.9]), jnp.array([0, 3, 5])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_both_conventions(denoiser, inputs, scale):
    x_t, t, labels = inputs
    conditional, unconditional = denoiser(x_t, t, labels), denoiser(x_t, t, jnp.full(BATCH, NULL))
    result = guide(denoiser, labels, NULL, scale)(x_t, t)
    w = scale - 1  # for papers that write (1 + w)·c − w·u
    for guided, c, u in zip(result[:2], conditional[:2], unconditional[:2], strict=True):
        np.testing.assert_allclose(guided, u + scale * (c - u), atol=1e-5)
        np.testing.assert_allclose(guided, (1 + w) * c - w * u, atol=1e-5)
    for expected, at in ((unconditional, 0.0), (conditional, 1.0)):
        if scale == at:
            np.testing.assert_allclose(result.clean, expected.clean, atol=1e-6)
            np.testing.assert_allclose(result.noise, expected.noise, atol=1e-6)


def test_one_call_on_twice_the_batch(denoiser, calls, inputs):
    x_t, t, labels = inputs
    labels = labels.astype(jnp.int8)
    guide(denoiser, labels, jnp.int32(NULL), 2.0)(x_t, t)
    ((both_x, both_t, both_labels),) = calls
    np.testing.assert_array_equal(both_x, np.repeat(x_t, 2, axis=0))
    np.testing.assert_array_equal(both_t, np.repeat(t, 2))
    np.testing.assert_array_equal(both_labels, [0, NULL, 3, NULL, 5, NULL])
    assert both_labels.dtype == labels.dtype


def test_conditioning_may_be_a_tree(inputs):
    x_t, t, labels = inputs
    text = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, *SHAPE)), jnp.float32)
    null_text = jnp.full(SHAPE, 0.5)

    def denoise(x_t, t, conditioning):
        clean = conditioning["text"] * conditioning["label"][:, None, None]
        return Prediction(clean, x_t)

    conditioning, null = {"text": text, "label": labels}, {"text": null_text, "label": NULL}
    result = guide(denoise, conditioning, null, 3.0)(x_t, t)
    conditional, unconditional = text * labels[:, None, None], null_text * NULL
    expected = unconditional + 3 * (conditional - unconditional)
    np.testing.assert_allclose(result.clean, expected, rtol=1e-5)
    np.testing.assert_allclose(result.noise, x_t, rtol=1e-5)


# Exact densities: three classes of Gaussians in three dimensions, and their mixture as the null
# label.

CLASSES, DIMENSIONS = 3, 3
GENERATOR = np.random.default_rng(1)
MEANS, DEVIATIONS = GENERATOR.normal(size=(CLASSES, DIMENSIONS)), np.array([0.4, 0.7, 0.9])
LOG_WEIGHTS = np.log([0.2, 0.3, 0.5])


def log_joint(process, x_t, t):
    """Return log p(x_t, class) up to a constant."""
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    variance = alpha**2 * DEVIATIONS**2 + sigma**2  # [batch class]
    square = jnp.sum((x_t[:, None] - alpha[..., None] * MEANS) ** 2, -1)
    return LOG_WEIGHTS - DIMENSIONS / 2 * jnp.log(variance) - square / (2 * variance)


def exact_denoiser(process):
    """Make the denoiser E[x | x_t, class] and E[z | x_t, class]. CLASSES means no class."""

    def denoise(x_t, t, labels):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        variance = alpha**2 * DEVIATIONS**2 + sigma**2
        residual = x_t[:, None] - alpha[..., None] * MEANS  # [batch class dimension]
        clean = MEANS + (alpha * DEVIATIONS**2 / variance)[..., None] * residual
        noise = (sigma / variance)[..., None] * residual
        posterior = jax.nn.softmax(log_joint(process, x_t, t))
        weights = jnp.where(labels[:, None] == CLASSES, posterior, jax.nn.one_hot(labels, CLASSES))
        return Prediction(*(jnp.einsum("bc,bcd->bd", weights, half) for half in (clean, noise)))

    return denoise


LABELS = jnp.array([0, 1, 2, 1])


@pytest.fixture
def points(float64):
    return jnp.asarray(np.random.default_rng(2).normal(size=(4, DIMENSIONS)))


@pytest.fixture
def t(float64):
    return jnp.array([1.0, 0.8, 0.3, 0.05])


def both(process, x_t, t):
    denoiser = exact_denoiser(process)
    return denoiser(x_t, t, LABELS), denoiser(x_t, t, jnp.full(4, CLASSES))


def adds_up(process, prediction, x_t, t):
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    np.testing.assert_allclose(
        alpha * prediction.clean + sigma * prediction.noise, x_t, rtol=1e-12, atol=1e-12
    )


def test_guided_velocity_of_gaussians_in_closed_form(points):
    """With conditional N(m, a²) and unconditional N(0, 1), the guided velocity is −t·score − x̂.

    Here x̂ = (x_t + t²·score)/(1 − t).
    """
    t = np.array([0.9, 0.6, 0.3, 0.1])
    m, a, scale = 0.7, 0.5, 3.0

    def denoise(x_t, t, labels):  # label 1 is conditional
        mean, deviation = (jnp.where(labels == 1, *pair)[:, None] for pair in ((m, 0.0), (a, 1.0)))
        variance = (1 - t[:, None]) ** 2 * deviation**2 + t[:, None] ** 2
        residual = x_t - (1 - t[:, None]) * mean
        clean = mean + (1 - t[:, None]) * deviation**2 / variance * residual
        return Prediction(clean, t[:, None] / variance * residual)

    x, t_ = np.asarray(points), t[:, None]
    conditional = -(x - (1 - t_) * m) / ((1 - t_) ** 2 * a**2 + t_**2)
    unconditional = -x / ((1 - t_) ** 2 + t_**2)
    score = scale * conditional + (1 - scale) * unconditional
    expected = -t_ * score - (x + t_**2 * score) / (1 - t_)
    guided = guide(denoise, jnp.ones(4, int), 0, scale)(points, jnp.asarray(t))
    np.testing.assert_allclose(guided.velocity(FLOW, jnp.asarray(t)), expected, rtol=1e-12)


def test_a_weight_is_a_scale_less_one(points, t):
    c, u = both(FLOW, points, t)
    guided = guide(exact_denoiser(FLOW), LABELS, CLASSES, scale_of_weight(0.7))(points, t)
    np.testing.assert_allclose(guided.clean, 1.7 * c.clean - 0.7 * u.clean, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_a_classifier_guides_as_its_class_does(process, points, scale, t):
    """By Bayes score(x | y) = score(x) + ∇ log p(y | x), so the guidances are equal."""
    log_likelihood = lambda x, t: jax.nn.log_softmax(log_joint(process, x, t))[
        jnp.arange(4), LABELS
    ]
    # Where alpha is 0, a gradient does not give x̂.
    t = t.at[0].set(0.97)
    unconditional = lambda x, t: exact_denoiser(process)(x, t, jnp.full(4, CLASSES))
    result = classifier_guide(unconditional, process, log_likelihood, scale)(points, t)
    expected = guide(exact_denoiser(process), LABELS, CLASSES, scale)(points, t)
    # Rounding grows with sigma²/alpha, up to 2500.
    np.testing.assert_allclose(result.clean, expected.clean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.noise, expected.noise, rtol=1e-12, atol=1e-12)


def test_a_classifier_at_the_noise_end_leaves_the_prediction(points):
    log_likelihood = lambda x, t: jax.nn.log_softmax(log_joint(FLOW, x, t))[jnp.arange(4), LABELS]
    unconditional = lambda x, t: exact_denoiser(FLOW)(x, t, jnp.full(4, CLASSES))
    result = classifier_guide(unconditional, FLOW, log_likelihood, 3.0)(points, jnp.ones(4))
    expected = unconditional(points, jnp.ones(4))
    np.testing.assert_allclose(result.clean, expected.clean, rtol=1e-14)
    # The gradient consists of rounding errors.
    np.testing.assert_allclose(result.noise, expected.noise, rtol=1e-14)


def test_composed_conditions_are_a_product_of_experts(points, calls):
    """With prior N(0, 1) and observations x + N(0, rᵢ²) = yᵢ, each posterior is Gaussian.

    So is the posterior of both observations together.
    """
    y, r = np.array([0.8, -0.3]), np.array([0.5, 0.7])
    # Where there is no noise, the sum of scores is the score of the product.
    t = jnp.full(4, 1e-4)

    def denoise(x_t, t, labels):  # label 2 is the prior
        calls.append(len(x_t))
        precision = 1 + jnp.append(1 / r**2, 0.0)[labels][:, None]
        mean = jnp.append(y / r**2, 0.0)[labels][:, None] / precision
        variance = 1 / precision + t[:, None] ** 2
        noise = t[:, None] * (x_t - mean) / variance
        return Prediction(x_t - t[:, None] * noise, noise)

    guided = compose(denoise, [jnp.zeros(4, int), jnp.ones(4, int)], 2, [1.0, 1.0])(points, t)
    precision = 1 + np.sum(1 / r**2)
    mean = np.sum(y / r**2) / precision
    expected = 1e-4 * precision * (np.asarray(points) - mean)
    np.testing.assert_allclose(guided.noise, expected, rtol=1e-6)  # t²·precision = 7e-8
    assert calls == [12]


def test_composition_of_one_is_guidance_and_scales_weigh(points, t):
    denoiser = exact_denoiser(FLOW)
    one = compose(denoiser, [LABELS], CLASSES, [2.5])(points, t)
    expected = guide(denoiser, LABELS, CLASSES, 2.5)(points, t)
    np.testing.assert_allclose(one.clean, expected.clean, rtol=1e-13)
    others = (LABELS + 1) % CLASSES
    two = compose(denoiser, [LABELS, others], CLASSES, [2.0, interval(-0.5, 0.2, 0.9)])(points, t)
    first, second, u = (
        denoiser(points, t, labels) for labels in (LABELS, others, jnp.full(4, CLASSES))
    )
    weight = np.array([1.0, -0.5, -0.5, 1.0])[:, None]
    expected = u.noise + 2 * (first.noise - u.noise) + weight * (second.noise - u.noise)
    np.testing.assert_allclose(two.noise, expected, rtol=1e-12)


def test_a_negative_prompt_is_another_null(points, t):
    negative = (LABELS + 1) % CLASSES
    c, n = (exact_denoiser(FLOW)(points, t, labels) for labels in (LABELS, negative))
    guided = guide(exact_denoiser(FLOW), LABELS, negative, 2.0)(points, t)
    np.testing.assert_allclose(guided.clean, 2 * c.clean - n.clean, rtol=1e-12)


def test_a_negative_prompt_may_have_another_length(points, t):
    """For tokens with a mask and a pooled vector, the result is that of two calls."""

    def denoise(x_t, t, text):
        weights = text["mask"] / jnp.sum(text["mask"], 1, keepdims=True)
        clean = jnp.sin(x_t + jnp.einsum("bl,bld->bd", weights, text["tokens"]) * text["pooled"])
        return Prediction(clean, jnp.cos(x_t) * text["pooled"], clean)

    random = np.random.default_rng(9)
    tokens, negative = (
        jnp.asarray(random.normal(size=(4, 7, 3))),
        jnp.asarray(random.normal(size=(1, 5, 3))),
    )
    text = {"tokens": tokens, "mask": jnp.ones((4, 7)), "pooled": jnp.ones((4, 3))}
    null = {"tokens": negative, "mask": jnp.ones((1, 5)), "pooled": jnp.full(3, 0.5)}
    c = denoise(points, t, text)
    u = denoise(
        points,
        t,
        {
            "tokens": jnp.tile(negative, (4, 1, 1)),
            "mask": jnp.ones((4, 5)),
            "pooled": jnp.full((4, 3), 0.5),
        },
    )
    guided = guide(denoise, text, null, 3.0)(points, t)
    np.testing.assert_allclose(guided.clean, u.clean + 3 * (c.clean - u.clean), rtol=1e-12)
    np.testing.assert_allclose(guided.noise, u.noise + 3 * (c.noise - u.noise), rtol=1e-12)
    np.testing.assert_array_equal(guided.fraction, c.fraction)


def test_a_null_of_another_width_is_refused():
    text = {"tokens": jnp.ones((4, 7, 3)), "pooled": jnp.ones((4, 3))}
    for wrong in (
        dict(pooled=jnp.ones((1, 2))),
        dict(tokens=jnp.ones((1, 7, 2))),
        dict(tokens=jnp.ones((3, 5, 3))),  # another batch
    ):
        null = text | wrong
        with pytest.raises(ValueError, match="null broadcasts against it; got shapes"):
            guide(exact_denoiser(FLOW), text, null, 3.0)


def test_autoguidance_moves_away_from_the_weaker(points, t):
    strong, weak = both(FLOW, points, t)
    guided = autoguide(lambda x, t: strong, lambda x, t: weak, 2.0)(points, t)
    np.testing.assert_allclose(guided.clean, 2 * strong.clean - weak.clean, rtol=1e-12)
    np.testing.assert_allclose(guided.noise, 2 * strong.noise - weak.noise, rtol=1e-12)


def test_a_blend_has_autoguidance_and_composition_as_instances(points, t):
    """This holds too for weights that are functions of time, per sample, and traced."""
    strong, weak = both(FLOW, points, t)
    others = exact_denoiser(FLOW)(points, t, (LABELS + 1) % CLASSES)
    as_denoiser = lambda prediction: lambda x, t: prediction
    found = blend([as_denoiser(strong), as_denoiser(weak)], [1 - 2.0])(points, t)
    expected = autoguide(as_denoiser(strong), as_denoiser(weak), 2.0)(points, t)
    np.testing.assert_allclose(found.clean, expected.clean, rtol=1e-12)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-12)
    adds_up(FLOW, found, points, t)
    weights = [interval(2.0, 0.2, 0.9), jnp.arange(4.0)]
    found = jax.jit(
        lambda w: blend([*map(as_denoiser, (weak, strong, others))], [weights[0], w])(points, t)
    )(weights[1])
    composed = compose(exact_denoiser(FLOW), [LABELS, (LABELS + 1) % CLASSES], CLASSES, weights)(
        points, t
    )
    np.testing.assert_allclose(found.clean, composed.clean, rtol=1e-12)
    with pytest.raises(
        ValueError, match="one weight for each denoiser except the first.* got 2 for 2 denoisers"
    ):
        blend([as_denoiser(weak)] * 2, [1.0, 2.0])


def test_posterior_guidance_of_gaussians_is_exact(process, float64):
    """Data are N(m, Σ) and y = A·x + N(0, r²), so the joint law of all three gives E[x | x_t, y].

    The likelihood of x̂ has the variance of x given x_t.
    """
    random = np.random.default_rng(6)
    mean, root, A, r = (
        random.normal(size=3),
        random.normal(size=(3, 3)),
        random.normal(size=(2, 3)),
        0.3,
    )
    covariance = root @ root.T
    y, x_t, t = random.normal(size=2), random.normal(size=(4, 3)), np.array([0.9, 0.6, 0.3, 0.05])
    coefficients = [np.asarray(f(jnp.asarray(t))) for f in (process.alpha, process.sigma)]
    posteriors = jnp.asarray(
        [
            covariance
            - a**2 * covariance @ np.linalg.solve(a**2 * covariance + s**2 * np.eye(3), covariance)
            for a, s in zip(*coefficients, strict=True)
        ]
    )
    denoiser = optimal.gaussian_mixture(
        process,
        jnp.ones(1),
        jnp.asarray(mean)[None],
        optimal.principal_axes(jnp.asarray(covariance)[None]),
    )

    def log_likelihood(clean, t):
        error = y - clean @ A.T
        precisions = jnp.linalg.inv(A @ posteriors @ A.T + r**2 * jnp.eye(2))
        return -jnp.einsum("bi,bij,bj->b", error, precisions, error) / 2

    guided = posterior_guide(denoiser, process, log_likelihood)(jnp.asarray(x_t), jnp.asarray(t))
    for i, (alpha, sigma) in enumerate(zip(*coefficients, strict=True)):
        sees = np.concatenate([alpha * np.eye(3), A])  # x_t and y as functions of x
        noise = np.diag([sigma**2] * 3 + [r**2] * 2)
        known = np.concatenate([x_t[i], y])
        gain = covariance @ sees.T @ np.linalg.inv(sees @ covariance @ sees.T + noise)
        # The law is nearly singular at sigma = .01 and amplifies rounding by 1e5.
        np.testing.assert_allclose(
            guided.clean[i], mean + gain @ (known - sees @ mean), rtol=1e-7, atol=1e-8
        )
    adds_up(process, guided, x_t, jnp.asarray(t))


def test_an_interval_of_scales_by_sample_has_them_in_all_frames():
    scale = interval(jnp.array([2.0, 3.0]), 0.2, 0.8)
    np.testing.assert_array_equal(scale(jnp.array([[0.5, 0.9], [0.9, 0.5]])), [[2, 1], [1, 3]])
    np.testing.assert_array_equal(scale(jnp.array([0.5, 0.9])), [2, 1])
    assert interval(2.0, 0.2, 0.8)(0.5) == 2
    np.testing.assert_array_equal(interval(jnp.array([2.0, 3.0]), 0.2, 0.8)(0.5), [2, 3])


@pytest.mark.parametrize("low, high", [(0.8, 0.2), (0.5, 0.5), (0.2, np.nan)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(ValueError, match=f"two times, low < high; got low={low}, high={high}"):
        interval(3.0, low, high)
    jax.jit(lambda low: interval(3.0, low, high)(jnp.array(0.5)))(low)  # traced: no values


def test_interval_of_noise_levels(points):
    """Within (0.5, 2] of sigma/alpha the scale is 3, elsewhere 1, for any process."""
    process = VariancePreservingCosine()
    levels = np.array([4.0, 2.0 - 1e-6, 0.6, 0.5 - 1e-6])
    t = process.time_at(jnp.asarray(-2 * np.log(levels)))
    low, high = (process.time_at(-2 * jnp.log(level)) for level in (0.5, 2.0))
    c, u = both(process, points, t)
    guided = guide(exact_denoiser(process), LABELS, CLASSES, interval(3.0, low, high))(points, t)
    scale = np.array([1.0, 3.0, 3.0, 1.0])[:, None]
    np.testing.assert_allclose(guided.noise, u.noise + scale * (c.noise - u.noise), rtol=1e-12)
    # The interval is half open.
    np.testing.assert_array_equal(interval(3.0, 0.25, 0.5)(jnp.array([0.25, 0.5])), [1, 3])


def test_scales_per_sample_and_per_channel(points, t):
    c, u = both(FLOW, points, t)
    for scale, factor in (
        (jnp.arange(4.0), np.arange(4.0)[:, None]),
        (jnp.array([[2.0, 3.0, 1.0]]), np.array([[2.0, 3.0, 1.0]])),
    ):
        guided = guide(exact_denoiser(FLOW), LABELS, CLASSES, scale)(points, t)
        np.testing.assert_allclose(guided.clean, u.clean + factor * (c.clean - u.clean), rtol=1e-12)
        adds_up(FLOW, guided, points, t)


def test_variance_is_that_of_the_conditional(inputs):
    x_t, t, labels = inputs
    denoise = lambda x_t, t, labels: Prediction(x_t, x_t, x_t * labels[:, None, None])
    expected = x_t * labels[:, None, None]
    conditional, other = (
        functools.partial(lambda labels, x_t, t: denoise(x_t, t, labels), each)
        for each in (labels, labels + 1)
    )
    log_likelihood = lambda x, t: jnp.sum(x, (1, 2))
    for guided in (
        blend([conditional, other], [-1.0]),
        autoguide(conditional, other, 2.0),
        classifier_guide(conditional, FLOW, log_likelihood, 2.0),
        posterior_guide(conditional, FLOW, log_likelihood),
        guide(denoise, labels, NULL, 2.0),
        guide(denoise, labels, NULL, 2.0, plus_plus),
        guide(denoise, labels, NULL, 2.0, target_rule(FLOW, velocity, zero_star)),
        compose(denoise, [labels, labels + 1], NULL, [2.0, 1.0]),
        zero_init(guide(denoise, labels, NULL, 2.0), FLOW, 0.5),
        with_clean(guide(denoise, labels, NULL, 2.0), FLOW, dynamic_threshold),
    ):
        np.testing.assert_array_equal(guided(x_t, t).fraction, expected)


# Rules for one quantity.


@pytest.mark.parametrize("target", [clean, velocity])
@pytest.mark.parametrize(
    "rule",
    [
        classifier_free,
        functools.partial(rescaled, phi=0.0),
        functools.partial(adaptive_projected, eta=1.0),
        functools.partial(adaptive_projected, eta=1.0, norm_threshold=1e3),
    ],
)
def test_rules_that_equal_classifier_free_guidance(process, points, target, rule, t):
    expected = guide(exact_denoiser(process), LABELS, CLASSES, 3.0)(points, t)
    guided = guide(
        exact_denoiser(process), LABELS, CLASSES, 3.0, target_rule(process, target, rule)
    )(points, t)
    np.testing.assert_allclose(guided.clean, expected.clean, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(guided.noise, expected.noise, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "rule",
    [
        functools.partial(rescaled, phi=0.7),
        functools.partial(rescaled, phi=0.7, rule=zero_star),
        functools.partial(adaptive_projected, norm_threshold=0.1),
        zero_star,
    ],
)
def test_guided_halves_add_up_and_scale_one_is_conditional(process, points, rule, t):
    rule = target_rule(process, velocity, rule)
    guided = guide(exact_denoiser(process), LABELS, CLASSES, 3.0, rule)(points, t)
    adds_up(process, guided, points, t)
    conditional, _ = both(process, points, t)
    guided = guide(exact_denoiser(process), LABELS, CLASSES, 1.0, rule)(points, t)
    np.testing.assert_allclose(guided.clean, conditional.clean, rtol=1e-11, atol=1e-11)


def test_extrapolation_where_the_target_is_singular(points):
    """At sigma = 0 a rule on x̂ does not determine ẑ."""
    t = jnp.zeros(4)
    rule = target_rule(FLOW, clean, functools.partial(adaptive_projected, norm_threshold=0.1))
    guided = guide(exact_denoiser(FLOW), LABELS, CLASSES, 3.0, rule)(points, t)
    expected = guide(exact_denoiser(FLOW), LABELS, CLASSES, 3.0)(points, t)
    np.testing.assert_array_equal(guided.clean, expected.clean)
    np.testing.assert_array_equal(guided.noise, expected.noise)


def test_zero_init_stands_still(points, t):
    process = VariancePreservingCosine()
    denoiser = lambda x, t: exact_denoiser(process)(x, t, LABELS)
    result = zero_init(denoiser, process, 0.3)(points, t)  # one of the times, at which it moves
    expected = (
        np.asarray(denoiser(points, t).velocity(process, t)) * (np.asarray(t) <= 0.3)[:, None]
    )
    np.testing.assert_allclose(result.velocity(process, t), expected, atol=1e-13)
    adds_up(process, result, points, t)


# Whole samplers, against loops in NumPy.


def loop(process, x, times, step):
    for t, s in zip(np.asarray(times[:-1]), np.asarray(times[1:]), strict=True):
        c, u = (
            tuple(map(np.asarray, p[:2])) for p in both(process, jnp.asarray(x), jnp.full(4, t))
        )
        level = lambda time: (
            float(process.alpha(jnp.asarray(time))),
            float(process.sigma(jnp.asarray(time))),
        )
        x = step(x, c, u, level(t), level(s))
    return x


@pytest.mark.parametrize("process", [FLOW, VariancePreservingCosine()], ids=["flow", "cosine"])
def test_plus_plus_with_ddim(process, points):
    """The loop denoises with guidance and adds the unconditional noise."""
    scale, times = 0.6, uniform_grid(process, 6)

    def step(x, c, u, level, next_level):
        clean = scale * c[0] + (1 - scale) * u[0]
        return next_level[0] * clean + next_level[1] * u[1]

    guided = guide(exact_denoiser(process), LABELS, CLASSES, scale, plus_plus)
    result = ddim(guided, process, points, times)
    np.testing.assert_allclose(
        result, loop(process, np.asarray(points), times, step), rtol=1e-12, atol=1e-12
    )
    plain = ddim(guide(exact_denoiser(process), LABELS, CLASSES, scale), process, points, times)
    assert np.abs(result - plain).max() > 0.01


@pytest.mark.parametrize("bounded", [False, True])
def test_adaptive_projected_guidance_remembers(points, bounded):
    """The momentum passes through a threshold on x̂ too."""
    scale, eta, threshold, beta, times = 4.0, 0.2, 0.3, -0.6, uniform_grid(FLOW, 6)[:-1]
    average = np.zeros((4, DIMENSIONS))

    def step(x, c, u, level, next_level):
        nonlocal average
        average = c[0] - u[0] + beta * average
        length = np.linalg.norm(average, axis=1, keepdims=True)
        difference = average * np.minimum(1, threshold / length)
        along = c[0] / np.linalg.norm(c[0], axis=1, keepdims=True)
        parallel = np.sum(difference * along, 1, keepdims=True) * along
        clean = c[0] + (scale - 1) * (difference - parallel + eta * parallel)
        clean = np.clip(clean, -0.5, 0.5) if bounded else clean
        return next_level[0] * clean + next_level[1] * (x - level[0] * clean) / level[1]

    projected = functools.partial(adaptive_projected, eta=eta, norm_threshold=threshold)
    guided = guide(
        exact_denoiser(FLOW),
        LABELS,
        CLASSES,
        scale,
        target_rule(FLOW, clean, projected, momentum=beta),
    )
    if bounded:
        guided = with_clean(guided, FLOW, functools.partial(static_threshold, bound=0.5))
    result = ddim(guided, FLOW, points, times, memory=jnp.zeros_like(points))
    np.testing.assert_allclose(
        result, loop(FLOW, np.asarray(points), times, step), rtol=1e-12, atol=1e-12
    )
    wrapped = ddim(
        lambda x, t, memory: guided(x, t, memory), FLOW, points, times, memory=0 * points
    )
    np.testing.assert_array_equal(wrapped, result)


@pytest.mark.parametrize(
    "solve",
    [
        lambda denoiser, x: ddim(denoiser, FLOW, x, uniform_grid(FLOW, 4)),
        lambda denoiser, x: adaptive(denoiser, FLOW, x, uniform_grid(FLOW, 4)),
        lambda denoiser, x: log_likelihood(denoiser, FLOW, x),
    ],
    ids=["ddim", "adaptive", "log_likelihood"],
)
def test_momentum_without_a_memory_is_refused(points, solve):
    """It is refused within a lambda too. An ODE solver has no previous evaluation."""
    rule = target_rule(FLOW, clean, adaptive_projected, momentum=-0.5)
    guided = with_clean(
        guide(exact_denoiser(FLOW), LABELS, CLASSES, 3.0, rule), FLOW, static_threshold
    )
    with pytest.raises(
        ValueError, match="momentum was called without a memory: give the sampler memory="
    ):
        solve(lambda x, t: guided(x, t), points)


def test_without_momentum_a_memory_changes_nothing(points):
    times = uniform_grid(FLOW, 5)
    arguments = exact_denoiser(FLOW), LABELS, CLASSES, 3.0
    remembering = guide(*arguments, target_rule(FLOW, velocity, classifier_free, momentum=0.0))
    forgetful = guide(*arguments, target_rule(FLOW, velocity, classifier_free))
    np.testing.assert_allclose(
        euler(remembering, FLOW, points, times, trajectory=True, memory=jnp.zeros_like(points)),
        euler(forgetful, FLOW, points, times, trajectory=True),
        rtol=1e-13,
    )


def test_any_memory_goes_from_evaluation_to_evaluation(points):
    """The memory counts, so the k-th evaluation predicts k."""

    def counting(x_t, t, memory):
        return Prediction(x_t * 0 + memory["count"], x_t * 0), {"count": memory["count"] + 1}

    memory = {"count": jnp.zeros(())}
    states = ddim(counting, FLOW, points, uniform_grid(FLOW, 4), trajectory=True, memory=memory)
    np.testing.assert_allclose(states[1:, 0, 0], np.array([0.25, 0.5, 0.75, 1]) * np.arange(4))


# Thresholds.


def test_thresholds_against_numpy(points):
    generator = np.random.default_rng(4)
    x_hat = generator.normal(size=(3, 8, 8, 2)) * np.array([0.1, 1.0, 3.0])[:, None, None, None]
    result = dynamic_threshold(jnp.asarray(x_hat), 0.9, 1.5)
    for mine, theirs in zip(result, x_hat, strict=True):
        s = max(np.percentile(np.abs(theirs), 90), 1.5)
        np.testing.assert_allclose(mine, np.clip(theirs, -s, s) * 1.5 / s, rtol=1e-13)
    np.testing.assert_array_equal(result[0], x_hat[0])  # small enough
    s = np.percentile(np.abs(x_hat[2]), 99.5)  # by default, as of Saharia et al. 2022
    expected = np.clip(x_hat[2], -s, s) / s
    np.testing.assert_allclose(dynamic_threshold(jnp.asarray(x_hat))[2], expected, rtol=1e-13)
    assert np.abs(result[2]).max() == pytest.approx(1.5, rel=1e-14)
    np.testing.assert_array_equal(
        static_threshold(jnp.asarray(x_hat), 1.5), np.clip(x_hat, -1.5, 1.5)
    )


def test_noise_follows_the_changed_data(process, points, t):
    denoiser = lambda x, t: exact_denoiser(process)(x, t, LABELS)
    result = with_clean(denoiser, process, functools.partial(static_threshold, bound=0.2))(
        points, t
    )
    assert np.abs(result.clean).max() == 0.2
    adds_up(process, result, points, t)


def test_where_there_is_no_noise_the_prediction_of_it_stays(points):
    denoiser = lambda x, t: exact_denoiser(FLOW)(x, t, LABELS)._replace(noise=x + 7)
    result = with_clean(denoiser, FLOW, static_threshold)(points, jnp.zeros(4))
    np.testing.assert_array_equal(result.noise, points + 7)
    # Exact up to rounding, because sigma is 0.
    np.testing.assert_allclose(result.clean, np.clip(points, -1, 1), rtol=1e-14)


# Compiled programs.

DATA_PARALLEL = """
import functools
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from genjax.diffusion import *
from genjax.diffusion import clean
from genjax.devices.collectives import collectives

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
process = RectifiedFlow()
projected = functools.partial(adaptive_projected, norm_threshold=2.0)
rescaled_zero_star = functools.partial(rescaled, phi=0.7, rule=zero_star)

def sample(x, labels, weight):
    denoiser = lambda x, t, labels: Prediction(
        jnp.tanh(x @ weight) + labels[:, None], x * t[:, None]
    )
    log_likelihood = lambda x, t: -jnp.sum(x**2, 1) + t
    plain = lambda x, t: denoiser(x, t, labels)
    momentum = target_rule(process, clean, projected, momentum=-0.5)
    remembering = guide(denoiser, labels, 7, 2.0, momentum)
    zero = target_rule(process, velocity, rescaled_zero_star)
    composed = compose(denoiser, [labels, labels + 1], 7, [2.0, 1.0])
    samples = ddim(remembering, process, x, uniform_grid(process, 3), memory=jnp.zeros_like(x))
    return [samples] + [ddim(guided, process, x, uniform_grid(process, 3)) for guided in (
        guide(denoiser, labels, 7, 2.0),
        guide(denoiser, labels, 7, interval(2.0, 0.2, 0.8), plus_plus),
        zero_init(guide(denoiser, labels, 7, 2.0, zero), process, 0.9),
        with_clean(composed, process, dynamic_threshold),
        classifier_guide(plain, process, log_likelihood, 2.0),
    )]

keys = jax.random.split(jax.random.key(0))
x, weight = jax.random.normal(keys[0], (16, 6)), jax.random.normal(keys[1], (6, 6))
arguments = [x, jnp.arange(16) % 7, weight]
with jax.set_mesh(mesh):
    shardings = [jax.NamedSharding(mesh, P(*axes)) for axes in (["data"], ["data"], [])]
    compiled = jax.jit(sample, in_shardings=shardings).lower(*arguments).compile()
text = compiled.as_text()
assert text.count(" tanh(") == 6, text.count(" tanh(")
assert "f32[4,6]" in text and "f32[32,6]" not in text  # two samples per device, twice
assert not collectives(compiled, mesh), collectives(compiled, mesh)

def ancestral(x, keys):
    denoiser = lambda x, t: Prediction(jnp.tanh(x), x)
    return euler_ancestral(denoiser, process, x, uniform_grid(process, 3), keys=keys)

noises = sample_keys(keys[0], jnp.arange(16))
for function, inputs, placed in (
    (sample, arguments, shardings),
    (ancestral, [x, noises], shardings[:2]),
):
    whole, sharded = jax.jit(function)(*inputs), jax.jit(function, in_shardings=placed)(*inputs)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(sharded), strict=True):
        assert len(b.sharding.device_set) == 8
        assert jnp.allclose(a, b, rtol=1e-5, atol=1e-5), abs(a - b).max()
"""


@pytest.mark.slow
def test_a_sharded_batch_is_sampled_as_one_and_without_a_collective():
    virtual_devices.run(["-W", "error", "-c", DATA_PARALLEL], num_devices=8)


def tanh_denoiser(x_t, t, labels):
    return Prediction(jnp.tanh(x_t) * (1 + labels[:, None]), x_t)


def program(build):
    """Return jitted samples with `build(numbers)`: a denoiser, or one with its first memory."""
    times = uniform_grid(FLOW, 5)

    def sample(numbers, x):
        guided = build(numbers)
        denoiser, memory = guided if isinstance(guided, tuple) else (guided, None)
        return ddim(denoiser, FLOW, x, times, memory=memory)

    return jax.jit(sample)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: guide(tanh_denoiser, LABELS, CLASSES, n[0]),
        lambda n: guide(tanh_denoiser, LABELS, CLASSES, interval(n[0], 0.2, n[1])),
        lambda n: guide(tanh_denoiser, LABELS, CLASSES, n[0], plus_plus),
        lambda n: guide(
            tanh_denoiser,
            LABELS,
            CLASSES,
            3.0,
            target_rule(FLOW, velocity, functools.partial(rescaled, phi=n[1])),
        ),
        lambda n: (
            guide(
                tanh_denoiser,
                LABELS,
                CLASSES,
                n[0],
                target_rule(
                    FLOW,
                    clean,
                    functools.partial(adaptive_projected, eta=n[1], norm_threshold=n[0]),
                    momentum=n[1],
                ),
            ),
            jnp.zeros((4, DIMENSIONS)),
        ),
        lambda n: zero_init(
            guide(tanh_denoiser, LABELS, CLASSES, n[0], target_rule(FLOW, velocity, zero_star)),
            FLOW,
            n[1],
        ),
        lambda n: compose(tanh_denoiser, [LABELS, LABELS + 1], CLASSES, n),
        lambda n: with_clean(
            guide(tanh_denoiser, LABELS, CLASSES, n[0]),
            FLOW,
            functools.partial(dynamic_threshold, quantile=n[1]),
        ),
    ],
)
def test_one_program_with_the_network_once_whatever_the_numbers(build):
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, DIMENSIONS)), jnp.float32)
    generate = program(build)
    first = generate((jnp.float32(3.0), jnp.float32(0.7)), x)
    other = generate((jnp.float32(2.0), jnp.float32(0.3)), x)
    assert generate._cache_size() == 1
    assert np.isfinite(first).all() and np.abs(first - other).max() > 1e-3
    numbers = jnp.float32(3.0), jnp.float32(0.7)
    assert generate.lower(numbers, x).compile().as_text().count(" tanh(") == 1


# Mistakes.


@pytest.mark.parametrize(
    "conditioning, null, message",
    [
        (jnp.zeros((4, 3)), jnp.zeros(2), r"got shapes \(4, 3\) and \(2,\)"),
        (jnp.zeros(4), jnp.zeros((1, 4)), r"got shapes \(4,\) and \(1, 4\)"),
        (3, 4, "broadcasts against it"),
        ({"text": jnp.zeros((4, 3))}, {"text": jnp.zeros(4)}, r"\['text'\]"),
        ({"text": jnp.zeros(4)}, {"label": jnp.zeros(4)}, "tree structure of conditioning"),
        (jnp.arange(4), 9.7, "null is float.*: give a null of whole numbers"),
    ],
)
def test_null_that_does_not_fit(conditioning, null, message):
    with pytest.raises(ValueError, match=message):
        guide(tanh_denoiser, conditioning, null, 2.0)
    with pytest.raises(ValueError, match=message):
        compose(tanh_denoiser, [conditioning], null, [2.0])


def test_numbers_of_conditionings_that_do_not_fit():
    with pytest.raises(ValueError, match="got 4 for 3 samples"):
        guide(tanh_denoiser, LABELS, CLASSES, 2.0)(jnp.zeros((3, 2)), jnp.zeros(3))
    with pytest.raises(ValueError, match="got 4 for 1 samples"):  # in two calls
        guide(tanh_denoiser, jnp.ones((4, 7, 3)), jnp.ones((1, 5, 3)), 2.0)(
            jnp.zeros((1, 3)), jnp.zeros(1)
        )
    with pytest.raises(ValueError, match="got 2 for 1"):
        compose(tanh_denoiser, [LABELS], CLASSES, [2.0, 1.0])
    with pytest.raises(ValueError, match="at least one; got 0 for 0"):
        compose(tanh_denoiser, [], CLASSES, [])
    with pytest.raises(ValueError, match="got 0 for 1 denoisers"):
        blend([tanh_denoiser], [])
    with pytest.raises(ValueError, match=r"conditioning is \[batch …\].*; got shapes \(\)"):
        compose(tanh_denoiser, [LABELS, 3], CLASSES, [2.0, 1.0])


# Dropping conditioning, for training.


@pytest.mark.parametrize("rate", [0, 0.0, 0.1, 0.5, 1])
def test_dropped_at_the_rate(rate):
    labels = jnp.arange(20_000)
    result = np.asarray(drop_conditioning(jax.random.key(0), labels, -1, rate))
    dropped = result == -1
    np.testing.assert_array_equal(result[~dropped], np.asarray(labels)[~dropped])
    # The deviation of a binomial share.
    error = np.sqrt(rate * (1 - rate) / labels.size)
    assert abs(dropped.mean() - rate) <= 4 * error
    assert result.dtype == labels.dtype


def test_whole_examples_are_dropped_and_all_leaves_together():
    conditioning = {
        "label": jnp.arange(1, 65),
        "text": jnp.ones((64, 5, 3)) * jnp.arange(1, 65)[:, None, None],
    }
    null = {"label": 0, "text": -jnp.arange(3.0) - 1}  # broadcast over tokens
    result = drop_conditioning(jax.random.key(0), conditioning, null, 0.5)
    dropped = np.asarray(result["label"]) == 0
    assert 0 < dropped.sum() < 64
    expected = np.where(dropped[:, None, None], null["text"], conditioning["text"])
    np.testing.assert_array_equal(result["text"], expected)


def test_conditions_may_have_rates_of_their_own():
    """Each condition is dropped at its rate, independently of the other, with all of its leaves."""
    count, labels = 20_000, jnp.arange(20_000)
    conditioning = {"text": {"tokens": labels, "pooled": labels}, "pose": labels}
    null = {"text": {"tokens": -1, "pooled": -1}, "pose": -1}
    result = drop_conditioning(jax.random.key(0), conditioning, null, {"text": 0.1, "pose": 0.5})
    tokens, pooled, pose = (np.asarray(a) == -1 for a in (*result["text"].values(), result["pose"]))
    np.testing.assert_array_equal(tokens, pooled)
    for dropped, rate in ((tokens, 0.1), (pose, 0.5), (tokens & pose, 0.05)):
        assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / count)


def test_a_list_is_no_guidance_scale(denoiser, unchecked_annotations):
    """It would be a tree, and the answer a list of one prediction for each number."""
    x, labels = jnp.zeros((BATCH, *SHAPE)), jnp.arange(BATCH)
    with pytest.raises(ValueError, match="got .1.0, 2.0, 3.0.: give several numbers as an array"):
        guide(denoiser, labels, NULL, [1.0, 2.0, 3.0])(x, jnp.full(BATCH, 0.5))


def test_labels_of_numpy_are_guided_without_a_warning(denoiser, recwarn, unchecked_annotations):
    x, t = jnp.ones((BATCH, *SHAPE)), jnp.full(BATCH, 0.5)
    ours, expected = (
        guide(denoiser, labels, NULL, 2.0)(x, t).clean
        for labels in (np.arange(BATCH), jnp.arange(BATCH))
    )
    np.testing.assert_array_equal(ours, expected)
    assert not recwarn.list


def test_a_rate_is_no_percentage(unchecked_annotations):
    for rate in (10, -0.1):
        with pytest.raises(ValueError, match=f"share of the examples, from 0 to 1; got {rate}"):
            drop_conditioning(jax.random.key(0), jnp.arange(BATCH), NULL, rate)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: guide(lambda x, t, y: network(x, t), jnp.zeros(BATCH, int), NULL, 2.0),
        lambda network: autoguide(network, network, 2.0),
        lambda network: compose(
            lambda x, t, y: network(x, t), [jnp.zeros(BATCH, int)], NULL, [2.0]
        ),
        lambda network: classifier_guide(network, FLOW, lambda x, t: x.sum((1, 2)), 1.0),
        lambda network: posterior_guide(network, FLOW, lambda x, t: x.sum((1, 2))),
        lambda network: with_clean(network, FLOW, static_threshold),
    ],
)
def test_a_network_in_place_of_a_denoiser_is_named(change, unchecked_annotations):
    network = lambda x, t: x
    with pytest.raises(ValueError, match="returns a Prediction, and this one a .*: make one of a"):
        change(network)(jnp.ones((BATCH, *SHAPE)), jnp.full(BATCH, 0.5))
