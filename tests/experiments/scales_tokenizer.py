"""A tokenizer of maps of several sides that computes nothing: all tokens and inputs are zeros."""

from types import SimpleNamespace

import jax.numpy as jnp

from genjax.models.autoregressive.var import SIDES_256


def make(sides=SIDES_256, vocabulary=4096, features=32):
    """Return what stands for a `FrozenAutoencoder`; by default of the shape of VAR's tokenizer."""
    count = sum(side**2 for side in sides)
    inputs = lambda tokens: jnp.zeros((len(tokens), count - sides[0] ** 2, features))
    network = SimpleNamespace(
        init=lambda key, x: {},
        apply=lambda variables, *args, method: method(network, *args),
        latent_channels=features,
        quantizer=SimpleNamespace(sides=sides, inputs=inputs),
    )
    return SimpleNamespace(
        network=network,
        vocabulary=vocabulary,
        variables=dict,
        abstract=lambda data_shape: {"variables": {}},
        encode_codes=lambda variables, x: jnp.zeros((len(x), count), int),
        codes_shape=lambda data_shape: (count,),
    )
