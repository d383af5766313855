"""A tokenizer of maps of several sides that computes nothing: all tokens and inputs are zeros."""

from types import SimpleNamespace

import jax.numpy as jnp

from genjax.models.autoregressive.var import SIDES_256


class StandIn(SimpleNamespace):
    """A namespace that a cache of compiled programs can hash."""

    __hash__ = object.__hash__


def make(sides=SIDES_256, vocabulary=4096, features=32):
    """Return what stands for a `FrozenAutoencoder`; by default of the shape of VAR's tokenizer."""
    count = sum(side**2 for side in sides)
    inputs = lambda tokens: jnp.zeros((len(tokens), count - sides[0] ** 2, features))

    def extend(total, tokens, scale):
        """Return the sum and the inputs of the next scale, None after the last."""
        if scale + 1 == len(sides):
            return total, None
        return total, jnp.zeros((len(tokens), sides[scale + 1] ** 2, features))

    network = StandIn(
        init=lambda key, x: {},
        apply=lambda variables, *args, method: (
            method(network, *args) if callable(method) else getattr(network, method)(*args)
        ),
        decode=lambda latents: latents,
        latent_channels=features,
        quantizer=StandIn(sides=sides, inputs=inputs, extend=extend),
    )
    return StandIn(
        network=network,
        vocabulary=vocabulary,
        variables=dict,
        abstract=lambda data_shape: {"variables": {}},
        encode_codes=lambda variables, x: jnp.zeros((len(x), count), int),
        codes_shape=lambda data_shape: (count,),
    )
