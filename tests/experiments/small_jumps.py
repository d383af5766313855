"""A network of few operations for few-step students."""

import flax.linen as nn
import jax.numpy as jnp

from genjax.nn.jumps import check_numbers


class Jumps(nn.Module):
    """Two dense layers of input and class, and of the numbers that a method gives its network."""

    num_classes: int
    time_scale: float = 1000.0  # unused; a student's must be its teacher's
    takes_end_time: bool = False
    takes_guidance: bool = False
    width: int = 16

    @nn.compact
    def __call__(self, x, t, condition, *, end_time=None, guidance=None):
        check_numbers(self, end_time=end_time, guidance=guidance)
        given = [number for number in (t, end_time, guidance) if number is not None]
        hidden = nn.Dense(self.width)(x.reshape(len(x), -1))
        hidden += nn.Dense(self.width, name="numbers")(jnp.stack(given, axis=-1))
        hidden += nn.Embed(self.num_classes + 1, self.width)(condition)
        return nn.Dense(x[0].size)(jnp.tanh(hidden)).reshape(x.shape)
