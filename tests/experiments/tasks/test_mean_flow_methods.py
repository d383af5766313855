"""Mean flows as methods of a task: what of the config reaches the loss."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.methods.flow_maps import MeanFlow, Shortcut
from experiments.tasks.methods.guided_mean_flow import GuidedMeanFlow
from experiments.tasks.pixel_mean_flow import PixelMeanFlow
from genjax.diffusion import RectifiedFlow, targets
from genjax.diffusion.times import logit_normal

KEY, LABELS = jax.random.key(0), jnp.array([0, 1, 2, 3])
X = jax.random.normal(jax.random.key(1), (4, 2, 2, 1))


def student(network, dropped=(False,) * 4):
    return SimpleNamespace(
        network=network,
        apply=lambda x, t, s, c: network(x, t, c, end_time=s),
        condition=LABELS,
        null=jnp.int32(4),
        condition_with_dropout=LABELS,
        dropped=jnp.array(dropped),
        times=functools.partial(logit_normal, mean=-0.4),
    )


def network(x, t, labels, end_time):
    return 0.5 * x + (t * end_time + 0.1 * labels)[:, None, None, None]


def test_a_scale_of_one_with_mixing_is_guidance():
    """ω = 1 and κ = 1/2, the released settings of B/4, are an effective scale of 2.

    An example whose condition was dropped learns the velocity itself.
    """
    of = lambda student, **fields: MeanFlow(power=0.0, **fields)(KEY, student, X)[0]
    plain, mixed = (of(student(network), mixing=mixing) for mixing in (0.0, 0.5))
    # The goal moves by κ·(u(c) − u(∅)) = 0.5·0.1·(label − 4).
    assert np.all(np.abs(plain - mixed) > 1e-3)
    dropped = of(student(network, (True, False, False, False)), mixing=0.5)
    np.testing.assert_allclose(dropped, np.append(plain[:1], mixed[1:]), rtol=1e-6)


def test_answers_with_images_are_turned_into_velocities():
    """A network of images x_t − max(t, 0.05)·v has the loss of the network of velocities v.

    The key of a loss that is added is none of the three that the loss itself splits from its key.
    """
    keys = []

    class WithRecordedKey(GuidedMeanFlow):
        def extra(self, key, student, x):
            keys.append(key)

    def velocities(x, t, labels, end_time, guidance, interval, velocity):
        own = (
            network(x, t, labels, end_time) + (0.1 * guidance + interval[:, 0])[:, None, None, None]
        )
        return own, 2 * own

    def images(x, t, *args, **told):
        bound = jnp.maximum(t, 0.05)[:, None, None, None]
        return tuple(x - bound * v for v in velocities(x, t, *args, **told))

    losses = [
        method(KEY, student(answers), X)[0]
        for method, answers in (
            (WithRecordedKey(), velocities),
            (PixelMeanFlow(perceptual=0.0), images),
        )
    ]
    # float32: differences of numbers of about 1, divided by t.
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert not np.any(jax.random.split(KEY, 3) == keys[0])


def test_the_shortest_jumps_of_a_shortcut_are_told_what_they_learned():
    """Flow matching trains jumps of 1/128 with s = t, so they are sampled with s = t too."""
    told = []

    def network(x, t, labels, end_time):
        told.append(end_time)
        return 0 * x

    jump = Shortcut(finest=128).flow_map(network, RectifiedFlow(), targets.velocity)
    t = jnp.array([1.0, 0.5, 0.5, 1 / 128])
    s = jnp.array([127 / 128, 63 / 128, 62 / 128, 0.0])
    jump(X, t, s, LABELS)
    np.testing.assert_array_equal(told[0], [1.0, 0.5, 62 / 128, 1 / 128])
