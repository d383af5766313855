"""The default experiment with a network that compiles in a second and learns in a hundred steps."""

import flax.linen as nn
import jax.numpy as jnp

from configs import digits_flow


class MLP(nn.Module):
    """Two dense layers of input, time and class, plus a multiple of the input; zero at first."""

    num_classes: int
    width: int = 128

    @nn.compact
    def __call__(self, x, t, condition):
        zeros, pixels = nn.initializers.zeros, x.reshape(len(x), -1)
        time = nn.Dense(self.width)(jnp.sin(t[:, None] * 2.0 ** jnp.arange(6)))
        told = time + nn.Embed(self.num_classes + 1, self.width)(condition)
        hidden = nn.silu(nn.LayerNorm()(nn.Dense(self.width)(pixels)) + told)
        hidden = nn.silu(nn.Dense(self.width)(hidden))
        multiple = nn.Dense(1, kernel_init=zeros)(nn.silu(told))
        out = nn.Dense(x[0].size, kernel_init=zeros, name="head")(hidden) + multiple * pixels
        return out.reshape(x.shape)


def small_config(**changes):
    """Return the config of `digits_flow` with 150 steps of this network."""
    config = digits_flow.get_config()
    config.num_steps, config.averages.ema.steps = 150, 34.3  # a decay of 0.98
    config.model = dict(name="tests.experiments.small_digits.MLP")
    config.optimizer.update(learning_rate=3e-3, warmup=20.0)
    config.update(changes)
    return config
