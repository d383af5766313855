"""A narrow variational autoencoder of the digits."""

import jax
import numpy as np

from configs import digits_vae


def small_config(choice):
    """Return a narrow network, without warm-up, schedule and clipping."""
    config = digits_vae.get_config(choice)
    config.model.update(width=8, depth=1, latent_size=4)
    config.bound.num_samples = min(config.bound.num_samples, 3)
    # An `eps` so large that no first step of Adam is ±1 where a gradient is about 0.
    config.optimizer.update(schedule="constant", warmup=0.0, clip_norm=None, eps=0.1)
    config.batch_size, config.num_steps, config.averages.ema.steps = 8, 100, 2.0
    return config


def batch(step):
    """Return a batch of random images."""
    return {"image": np.random.default_rng(step).integers(0, 256, (8, 8, 8, 1), np.uint8)}


def initial(task):
    """Return the first state."""
    return jax.jit(task.init)(jax.random.key(0))
