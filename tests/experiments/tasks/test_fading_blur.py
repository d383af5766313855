"""The blur of what a discriminator sees in the task of GANs: where it acts, and when it ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_gan, digits_gan_inverse, ffhq_gan
from experiments.configuration.runs import build
from genjax.adversarial import FadingBlur, blur

QUICK = {"xla_backend_optimization_level": 0}
BATCH_SIZE = 4


def small_task():
    """A game whose networks stay as they are; the blur of 2 pixels ends after 16 images."""
    config = digits_gan.get_config("dcgan")
    config.unlock()
    config.batch_size, config.objective = BATCH_SIZE, "non_saturating"
    config.regularizers = dict(r1=dict(weight=1.0))
    config.blur = dict(sigma=2.0, images=16)
    config.condition = dict(name="Unconditional")
    for player in ("generator", "discriminator"):
        config.model[player].width = 8
        config.optimizer[player].learning_rate = 0.0
    return build(config)


def test_the_discriminator_sees_less_and_less_blur_in_one_program():
    """Logits of real images and R1 are those of D(blur(x)), for every σ of the schedule.

    Running statistics take in real images first, then generated ones.
    """
    task, traces = small_task(), []

    def traced(*args):
        traces.append(args)
        return task.update(*args)

    update = jax.jit(traced, compiler_options=QUICK)
    images = jax.random.uniform(jax.random.key(2), (BATCH_SIZE, 8, 8, 1), minval=-1.0)
    started = jax.jit(task.init)(jax.random.key(0))
    variables = started.discriminator.variables

    @jax.jit
    def expected(sigma):
        options = dict(train=True, mutable=["batch_stats"])
        judge = lambda x, variables=variables: task.discriminator.apply(
            variables, blur(x, sigma, 6), **options
        )
        slopes = jax.grad(lambda x: judge(x)[0].sum())(images)
        keys = [jax.random.split(key, 1)[0] for key in jax.random.split(jax.random.key(1))]
        made = [
            task._generate(started.generator, jax.random.split(key, 3)[0], None, 4) for key in keys
        ]
        real, kept = judge(images)
        kept = judge(made[0][0], {**variables, **kept})[1], made[1][1]
        return {"logit/real": real.mean(), "regularizer/r1": jnp.sum(slopes**2) / 4}, kept

    for step, sigma in ((0, 2.0), (1, 1.5), (2, 1.0), (4, 0.0), (9, 0.0)):
        state = started.replace(step=jnp.int32(step))  # all that a resumed run has of the schedule
        after, metrics = update(state, {"image": images}, jax.random.key(1))
        values, kept = expected(sigma)
        assert float(metrics["augmentation/blur"]) == sigma
        for name, value in values.items():
            np.testing.assert_allclose(jnp.divide(*metrics[name]), value, rtol=2e-5)
        for found, each in zip((after.discriminator, after.generator), kept, strict=True):
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
            jax.tree.map(close, found.kept, each)
    assert len(traces) == 1
    assert abs(expected(2.0)[0]["logit/real"] - expected(0.0)[0]["logit/real"]) > 1e-3


def test_a_published_config_and_a_mistake():
    fields = ffhq_gan.get_config("stylegan3_r").blur
    assert FadingBlur(**fields) == FadingBlur(sigma=10.0, images=200_000)
    assert not ffhq_gan.get_config("stylegan3_t").blur
    config = digits_gan_inverse.get_config("bigan")
    config.unlock()
    config.blur = dict(sigma=1.0, images=100)
    with pytest.raises(ValueError, match="config.blur is set, and a bidirectional GAN takes none"):
        build(config)
