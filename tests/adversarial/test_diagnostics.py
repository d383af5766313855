import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from genjax.adversarial import (
    alarms,
    hinge,
    least_squares,
    non_saturating,
    relativistic,
    wasserstein,
)
from genjax.adversarial.diagnostics import (
    accuracies,
    divergence_of_modes,
    duplicate_rate,
    histogram,
    histogram_edges,
    modes_covered,
    overfitting,
)


@pytest.mark.parametrize(
    ("objective", "shift"),
    [
        (non_saturating, 0.0),
        (hinge, 0.0),
        (least_squares, 0.5),
        (wasserstein, 7.0),
        (relativistic, 7.0),
    ],
)
def test_accuracies(objective, shift):
    """A logit on the boundary is on neither side.

    If only differences count, the first pair alone is right, and a class may move its pairs.
    """
    real, fake = jnp.array([3.0, 0.0, -1.0, 2.0]), jnp.array([-1.0, 0.0, 5.0, 6.0])
    if objective.boundary is None:
        shift += jnp.array([-20.0, 0.0, 10.0, 30.0])
    found = accuracies(objective, real + shift, fake + shift)
    np.testing.assert_allclose(
        found["accuracy/real"], 1 / 2 if objective.boundary is not None else 1 / 4
    )
    np.testing.assert_allclose(found["accuracy/fake"], 1 / 4)


def test_overfitting_is_where_held_out_logits_lie():
    """The shift and the scale of logits count for nothing."""
    train, generated = jnp.array([3.0, 5.0]), jnp.array([-2.0, 0.0, -1.0])
    for held_out, expected in ((4.0, 0.0), (-1.0, 1.0), (1.5, 0.5)):
        found = overfitting(10 * train - 7, 10 * jnp.array([held_out]) - 7, 10 * generated - 7)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_histogram():
    logits = np.array([-1e9, -25.0, -20.0, -0.5, 0.0, 0.5, 0.5, 20.0, 300.0, np.inf])
    shares = histogram(logits, np.linspace(-20, 20, 41))
    assert len(shares) == 40
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    expected = np.zeros(40)
    expected[[0, 19, 20, 39]] = 0.3, 0.1, 0.3, 0.3  # bins have width 1 and hold their lower edge
    np.testing.assert_allclose(shares, expected, rtol=1e-12)


def test_a_histogram_reaches_as_far_as_the_logits():
    """Logits of a relativistic loss may lie anywhere: here around 300, a deviation apart."""
    random = np.random.default_rng(0)
    real, fake = 300 + random.standard_normal(1000), 298 + random.standard_normal(1000)
    edges = histogram_edges(real, fake)
    assert 293 < edges[0] < 297 and 301 < edges[-1] < 305
    for logits in (real, fake):
        shares = histogram(logits, edges)
        assert np.sum(shares > 0) > 20  # fixed edges put all into one bin
        assert np.sum((logits < edges[0]) | (logits > edges[-1])) <= 1  # of 1,000
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    far = histogram_edges(np.append(real, 1e6), fake)
    np.testing.assert_allclose(far, edges, atol=1)  # an outlier squeezes nothing
    for same in (np.zeros(5), np.full(5, np.nan)):  # of a discriminator that has failed
        assert np.all(np.diff(histogram_edges(same, same)) > 0)


def test_modes_covered():
    # An equal share of 100 among 5 modes is 20.
    modes = np.repeat([0, 1, 2, 3, -1], [50, 40, 1, 0, 9])
    assert modes_covered(modes, 5) == 2
    assert modes_covered(modes, 5, least=0.05) == 3  # exactly 1 of 20
    assert modes_covered(modes, 5, least=0.0) == 3  # a mode without samples is never covered
    assert modes_covered(np.arange(1000) % 25, 25) == 25
    assert modes_covered(np.full(1000, 7), 25) == 1
    assert modes_covered(np.full(1000, -1), 25) == 0


def test_divergence_of_modes():
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.full(10, 3), 2)
    samples, references = generator.choice(10, 500, p=p), generator.choice(10, 3000, p=q)
    counts, others = (np.bincount(modes, minlength=10) for modes in (samples, references))
    assert others.min() > 0
    np.testing.assert_allclose(
        divergence_of_modes(samples, references, 10), entropy(counts, others)
    )
    of_none = np.append(samples, [-1, -1])
    # Samples without a mode are one more mode.
    with_none = entropy(np.append(counts, 2), np.append(others, 1))
    np.testing.assert_allclose(divergence_of_modes(of_none, references, 10), with_none)
    assert np.isfinite(divergence_of_modes(np.full(5, -1), references, 10))
    np.testing.assert_allclose(divergence_of_modes(references, references, 10), 0, atol=1e-15)
    # All samples are in one of 10 equal modes, or in one that the reference lacks, which counts as
    # 1 in 11.
    tens = np.arange(1000) % 10
    np.testing.assert_allclose(divergence_of_modes(np.zeros(50, int), tens, 10), np.log(10))
    np.testing.assert_allclose(
        divergence_of_modes(np.full(50, 2), np.repeat([0, 1], 5), 3), np.log(11)
    )


def test_no_samples_have_no_divergence():
    with pytest.raises(ValueError, match="give at least one sample"):
        divergence_of_modes(np.zeros(0, int), np.arange(2), 2)


def test_divergence_of_the_same_law():
    """It is (modes − 1)/2000 for 1,000 samples, because 2n·KL is about χ² of modes − 1 degrees.

    The mean over 200 trials is within four errors.
    """
    generator = np.random.default_rng(0)
    reference = np.arange(100_000) % 25
    found = [
        divergence_of_modes(generator.integers(25, size=1000), reference, 25) for _ in range(200)
    ]
    # Terms of O(n⁻²) are allowed too.
    assert abs(np.mean(found) - 24 / 2000) < 4 * np.sqrt(2 * 24) / 2000 / np.sqrt(200) + 2e-4


def test_duplicate_rate():
    generator = np.random.default_rng(0)
    real, like_real = generator.normal(size=(2, 4000, 8))
    # The binomial error is .0016 of .01 in each of the two. Neighbours come in pairs, which adds a
    # factor √2.
    assert abs(duplicate_rate(like_real, real) - 0.01) < 4 * 0.0016 * 2
    assert duplicate_rate(np.ones((4000, 8)), real) == 1
    collapsed = like_real[np.arange(4000) % 100] + 1e-4 * generator.normal(size=(4000, 8))
    assert duplicate_rate(collapsed, real) == 1
    # One near duplicate is enough.
    assert duplicate_rate(np.repeat(like_real[:2000], 2, axis=0), real) == 1
    half = np.concatenate([like_real[:2000], np.repeat(like_real[:1], 2000, axis=0)])
    assert abs(duplicate_rate(half, real) - 0.5) < 0.02
    # The same holds if some real examples are in the data twice, with nearest neighbours at 0.
    twins = np.concatenate([real[:3900], real[:100]])
    assert duplicate_rate(np.ones((4000, 8)), twins) == 1


HEALTHY = {
    "modes_covered": 25.0,
    "num_modes": 25.0,
    "recall": 0.6,
    "duplicate_rate": 0.012,
    "slope/generator": 0.5,
    "accuracy/train": 0.7,
    "accuracy/fake": 0.7,
    "accuracy/held_out": 0.65,
    "loss/discriminator": 1.2,
    "loss/generator": 0.8,
    "regularizer/r1": 0.3,
    "regularizer/path_length": 0.2,
    "regularizer/orthogonality": 0.1,
    "fid": 31.0,
}


def test_no_alarm_for_healthy_or_missing_metrics():
    assert alarms(HEALTHY) == []
    assert alarms({}) == []
    for name in HEALTHY:
        assert alarms({name: HEALTHY[name]}) == []
        assert alarms({other: value for other, value in HEALTHY.items() if other != name}) == []


CASES = [
    ({"fid": float("nan")}, "Not finite: fid is nan."),
    ({"loss/generator": float("inf")}, "Not finite: loss/generator is inf."),
    ({"modes_covered": 3.0}, "Mode collapse: samples cover 3 of 25 modes."),
    ({"recall": 0.04}, "Mode collapse: samples cover 4% of the real examples"),
    ({"duplicate_rate": 0.35}, "Mode collapse: 35% of the samples have a near duplicate"),
    (
        {"slope/generator": 1e-5, "accuracy/fake": 1.0},
        "Vanishing generator gradient: the mean slope of its loss at generated "
        "examples is 1e-05; the discriminator recognizes 100%.",
    ),
    (
        {"accuracy/train": 0.98, "accuracy/held_out": 0.4},
        "Overfitting discriminator: it calls 98% of the training images real, but only "
        "40% of the held-out images.",
    ),
    (
        {"weight/adversarial": 1498.0},
        "Blind discriminator: the adaptive weight of its loss is 1,498",
    ),
    ({"regularizer/r1": 40.0}, "Exploding regularizer: r1 is 40, and the loss is 1.2."),
    (
        {"regularizer/path_length": 40.0},
        "Exploding regularizer: path_length is 40, and the loss is 0.8.",
    ),
    (
        {"regularizer/orthogonality": 40.0},
        "Exploding regularizer: orthogonality is 40, and the loss is 0.8.",
    ),
]


@pytest.mark.parametrize("bad, sentence", CASES, ids=[", ".join(bad) for bad, _ in CASES])
def test_each_alarm_in_its_case_alone(bad, sentence):
    (found,) = alarms(HEALTHY | bad)
    assert found.startswith(sentence) and found.endswith(".")


def test_alarms_together_and_with_missing_metrics():
    everything = HEALTHY
    for bad, _ in CASES[2:]:
        everything = everything | bad
    assert [sentence.split(":")[0] for sentence in alarms(everything)] == [
        *["Mode collapse"] * 3,
        "Vanishing generator gradient",
        "Overfitting discriminator",
        "Blind discriminator",
        *["Exploding regularizer"] * 3,
    ]
    assert alarms({"modes_covered": 3.0}) == [] and alarms({"accuracy/train": 1.0}) == []
    (vanishing,) = alarms({"slope/generator": 0.001})
    assert vanishing.endswith("examples is 0.001.")  # and nothing about missing metrics
    (exploding,) = alarms({"regularizer/r1": 40.0})
    assert exploding == "Exploding regularizer: r1 is 40, and the loss is 0."


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("modes_covered", 22.5, 22.4),
        ("recall", 0.1, 0.099),
        ("duplicate_rate", 0.1, 0.101),
        ("slope/generator", 0.02, 0.0199),
        ("accuracy/held_out", 0.401, 0.399),
        ("weight/adversarial", 100.0, 100.1),
        ("regularizer/r1", 22.0, 22.1),  # ten times the sum of the loss 1.2 and 1
        ("regularizer/path_length", 18.0, 18.1),
    ],
)
def test_thresholds(name, good, bad):
    assert alarms(HEALTHY | {name: good}) == []
    assert len(alarms(HEALTHY | {name: bad})) == 1
