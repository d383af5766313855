import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import entropy

from genjax.autoencoding.diagnostics import (
    alarms,
    codebook_counts,
    codebook_metrics,
    perplexity,
    usage,
)


def test_counts():
    indices = np.random.default_rng(0).integers(7, size=(3, 4, 5))
    indices[indices == 2] = 6  # code 2 is never chosen
    counts = codebook_counts(jnp.asarray(indices), 9)
    np.testing.assert_array_equal(counts, [np.sum(indices == code) for code in range(9)])
    np.testing.assert_allclose(usage(counts), 6 / 9, rtol=1e-6)


def test_perplexity():
    """It is the number of evenly used codes, and otherwise the exponential of SciPy's entropy.

    Unused codes do not change it.
    """
    np.testing.assert_allclose(perplexity(jnp.array([5, 0, 5, 5, 0])), 3, rtol=1e-6)
    np.testing.assert_allclose(perplexity(jnp.array([0, 70, 0])), 1, rtol=1e-6)
    counts = np.random.default_rng(0).integers(100, size=300)
    np.testing.assert_allclose(perplexity(jnp.asarray(counts)), np.exp(entropy(counts)), rtol=1e-5)


def measure(indices, num_codes):
    metrics = jax.jit(lambda indices: codebook_metrics(codebook_counts(indices, num_codes)))(
        indices
    )
    return {name: float(value) for name, value in metrics.items()}


def test_alarms():
    generator = np.random.default_rng(0)
    assert alarms({}) == []
    assert alarms(measure(generator.integers(1024, size=10_000), 1024)) == []
    # 6 % of the codes, but as many as possible.
    assert alarms(measure(generator.integers(2**16, size=4096), 2**16)) == []
    # Uneven, as real data are.
    assert alarms(measure(generator.geometric(1 / 150, size=10_000) % 1024, 1024)) == []

    few = alarms(measure(generator.integers(400, size=10_000), 1024))
    assert few == [
        "Codebook collapse: 400 of 1024 codes are used in 10000 places. "
        "An even choice would use 1024."
    ]
    uneven = np.concatenate([np.arange(1024), generator.integers(10, size=99_000)])
    (sentence,) = alarms(measure(uneven, 1024))
    assert sentence.startswith("Codebook collapse: a few codes") and sentence.endswith(
        "out of 1024 codes."
    )
    assert len(alarms(measure(np.zeros(10_000, int), 1024))) == 2
    assert alarms({"loss": float("nan")}) == ["Not finite: loss is nan."]


def test_thresholds():
    """Half and a tenth of the 9.5 codes that 19 equal draws find among 10 codes."""
    expected = 10 * (1 - 0.9**19)
    for factor, count in ((1.001, 0), (0.999, 2)):
        used = dict(usage=factor * expected / 20, perplexity=factor * expected / 10)
        sizes = dict(num_codes=10.0, num_indices=19.0)
        found = alarms({f"codebook/{name}": value for name, value in (used | sizes).items()})
        assert len(found) == count


def test_alarm_of_a_collapsed_posterior():
    """It is raised below a tenth of the units, and if none of a few units is active."""
    say = lambda active, units: alarms({"active_units": float(active), "num_units": float(units)})
    assert say(4, 50) == ["Posterior collapse: 4 of 50 latents depend on the images."]
    assert say(0, 3) == ["Posterior collapse: 0 of 3 latents depend on the images."]
    assert say(5, 50) == say(1, 3) == say(50, 50) == []
