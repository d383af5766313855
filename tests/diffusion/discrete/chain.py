"""Three tokens of five levels with a known law, and the denoiser that is exact for it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from genjax.diffusion import discrete
from tests.chi_square import p_value

VOCABULARY, LENGTH = 5, 3
SEQUENCES = np.array(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # [125 3]

# A Markov chain whose tokens depend on their neighbours strongly: the mutual information of two
# neighbours is 0.75 nats. Every sequence has some probability.
_rng = np.random.default_rng(0)
FIRST = _rng.dirichlet(np.full(VOCABULARY, 2.0))
STEP = 0.02 + 0.9 * np.array([_rng.dirichlet(np.full(VOCABULARY, 0.3)) for _ in range(VOCABULARY)])
STEP /= STEP.sum(1, keepdims=True)
LAW = FIRST[SEQUENCES[:, 0]] * STEP[SEQUENCES[:, 0], SEQUENCES[:, 1]]
LAW *= STEP[SEQUENCES[:, 1], SEQUENCES[:, 2]]  # [125], sums to 1
ENTROPY = -np.sum(LAW * np.log(LAW))
OUTCOMES = jnp.asarray(SEQUENCES)


def exact(process, law=LAW):
    """Return the exact denoiser `(x_t, t, [log_law]) -> log p(x | x_t)`, by enumeration.

    With `log_law`, `[batch 125]`, every sample has a law of its own.
    """

    def denoiser(x_t, t, log_law=None):
        log_law = jnp.log(jnp.asarray(law, jnp.result_type(float))) if log_law is None else log_law
        likelihood = jnp.log(jnp.maximum(process.likelihood(x_t, t), 1e-30))  # [batch 3 5]
        places = [likelihood[:, place, OUTCOMES[:, place]] for place in range(LENGTH)]
        joint = jax.nn.softmax(log_law + sum(places))  # [batch 125]
        own = jax.nn.one_hot(OUTCOMES, VOCABULARY)  # [125 3 5]
        marginals = jnp.einsum("bo,olv->blv", joint, own, precision="highest")
        return jnp.log(jnp.maximum(marginals, 1e-30))

    return denoiser


def exact_by_state(process):
    """Return `exact(process)` for samples at one time, looked up among all states x_t.

    Under masks the answer does not depend on time.
    """
    states = np.array(list(itertools.product(range(process.num_states), repeat=LENGTH)))
    masked = type(process) is discrete.Masked

    def denoiser(x_t, t):
        table = exact(process)(jnp.asarray(states), jnp.full(len(states), 0.5 if masked else t[0]))
        place_value = process.num_states ** np.arange(LENGTH)[::-1]
        return table[x_t @ place_value]

    return denoiser


def index(x):
    """Return the place of each sequence among SEQUENCES."""
    return np.ravel_multi_index(np.moveaxis(np.asarray(x), -1, 0), (VOCABULARY,) * x.shape[-1])


def chi_square(samples, law=LAW, against=None):
    """Return the p-value of samples `[n 3]` under a law, as `tests.chi_square.p_value` does."""
    return p_value(np.bincount(index(samples), minlength=len(law)), law, against)
