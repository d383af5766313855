import jax.numpy as jnp
import numpy as np

from genjax.training import Mean, group_norms
from genjax.training.log import Metrics, window_means


def test_norms_of_the_top_level_parts_and_of_all():
    tree = {
        "blocks": {"qkv": {"kernel": jnp.full((2, 2, 2), 3.0)}, "bias": jnp.array([4.0, 4.0])},
        "head": {
            "kernel": jnp.full((2, 2), 300.0, jnp.bfloat16)
        },  # whose square leaves float16's range
    }
    expected = {
        "norm/update/blocks": 104**0.5,
        "norm/update/head": 600,
        "norm/update/total": (104 + 36e4) ** 0.5,
    }
    found = group_norms("norm/update", tree)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        [found[name] for name in expected], list(expected.values()), rtol=1e-6
    )


def test_a_window_s_mean_is_its_total_over_its_count():
    def step(loss, total, count):
        return Metrics.pack({
            "loss": jnp.float32(loss),
            "late": Mean(jnp.float32(total), jnp.float32(count)),
            "never": Mean(jnp.float32(0), jnp.float32(0)),
        })  # fmt: skip

    window = [step(1.0, 6.0, 3), step(2.0, 0.0, 0), step(6.0, 2.0, 1)]
    # unweighted means of the steps' own means would give (2 + 2)/2 and fail on 0/0
    assert window_means(window) == {"loss": 3.0, "late": 2.0}
    assert window_means(window[:1]) == {"loss": 1.0, "late": 2.0}
    assert window_means([step(1.0, 1.0, 1), step(1.0, 9.0, 3)])["late"] == 2.5
    assert window[0]["late"] == 2.0
    # Sums are not rounded to float32, which has no number between 10⁸ and 10⁸ + 8.
    assert window_means([step(1e8, 1.0, 1), step(1.0, 1.0, 1)])["loss"] == (1e8 + 1) / 2
