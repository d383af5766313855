"""Examples are mirrored in training, if a config says so, in tasks that mirror by themselves."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_gan
from experiments.configuration.runs import build
from experiments.inputs.spaces import Pixels
from experiments.tasks.inversion import Inversion
from tests.experiments import autoencoder_run, small_vae
from tests.experiments.tasks import test_autoregression


class Encoded(Exception):
    """The examples that a space was given."""


def gan():
    config = digits_gan.get_config("dcgan")
    config.model.generator.width = config.model.discriminator.width = 8
    return build(config)


def inversion():
    """Return a task without a generator, whose loss encodes examples before it needs one."""
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Inversion))
    first = SimpleNamespace(step=lambda state, loss, *args: loss(None, *args))
    return Inversion(**fields | dict(space=Pixels((8, 8, 1)), optimization=first))


TASKS = {
    "GAN": gan,
    "Autoencoder": lambda: build(autoencoder_run.small_config("kl")),
    "VariationalAutoencoder": lambda: build(small_vae.small_config("elbo")),
    "Autoregression": lambda: build(test_autoregression.small_config()),
    "Inversion": inversion,
}


@pytest.mark.parametrize("name", TASKS)
def test_half_of_the_examples_are_mirrored_if_the_config_says_so(name, monkeypatch):
    task, images = TASKS[name](), jnp.arange(64 * 4, dtype=jnp.uint8).reshape(64, 2, 2, 1)
    batch, state = {"image": images, "label": jnp.zeros(64, int)}, SimpleNamespace(params=0.0)
    frozen = (None,) * (name == "Inversion")

    def encode(space, examples, frozen=None):
        raise Encoded(examples)

    monkeypatch.setattr(type(task.space), "encode", encode)
    for flip in (False, True):
        update = dataclasses.replace(task, flip=flip).update
        with pytest.raises(Encoded) as found:
            update(state, batch, jax.random.key(0), *frozen)
        examples = np.asarray(found.value.args[0])
        is_mirror = np.all(examples == images[:, :, ::-1], axis=(1, 2, 3))
        assert np.all(is_mirror | np.all(examples == images, axis=(1, 2, 3)))
        assert 16 < is_mirror.sum() < 48 if flip else not is_mirror.any()
