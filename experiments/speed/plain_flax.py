"""Time the default experiment's model and training step, written as a first script in Flax.

    python -m experiments.speed.plain_flax STEPS BATCH_SIZE WIDTH DEPTH NUM_HEADS

The script is a baseline for genjax's speed. It prints the training steps per second after
compilation, on images of 8×8 pixels. It uses Flax's own layers and a Python loop over blocks. Its
update copies the state, and the host waits for each loss.
"""

import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.nn import patchify, sincos_positions, sinusoidal_embedding, unpatchify


class PlainDiT(nn.Module):
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, x, t, labels):
        tokens = nn.Dense(self.width)(patchify(x, 2)) + sincos_positions(4, 4, self.width)
        time = nn.Dense(self.width)(
            nn.silu(nn.Dense(self.width)(sinusoidal_embedding(1000 * t, 256)))
        )
        conditioning = nn.silu(time + nn.Embed(11, self.width)(labels))

        def modulation(parts):
            dense = nn.Dense(parts * self.width, kernel_init=nn.initializers.zeros)
            return jnp.split(dense(conditioning)[:, None], parts, axis=-1)

        norm = lambda h, shift, scale: (
            nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift
        )
        for _ in range(self.depth):
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation(6)
            tokens += gate * nn.MultiHeadDotProductAttention(self.num_heads)(
                norm(tokens, shift, scale)
            )
            hidden = nn.gelu(nn.Dense(4 * self.width)(norm(tokens, mlp_shift, mlp_scale)))
            tokens += mlp_gate * nn.Dense(self.width)(hidden)
        return unpatchify(nn.Dense(4)(norm(tokens, *modulation(2))), 2, 8, 8)


def main() -> None:
    steps, batch_size, *size = map(int, sys.argv[1:])
    network = PlainDiT(*size)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    images = np.random.default_rng(0).uniform(-1, 1, (batch_size, 8, 8, 1)).astype(np.float32)
    labels = np.zeros(batch_size, np.int32)
    params = network.init(jax.random.key(0), images, jnp.ones(batch_size), labels)
    state = params, optimizer.init(params), params

    @jax.jit
    def update(state, images, labels, key):
        params, optimizer_state, ema = state
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t = jax.nn.sigmoid(jax.random.normal(time_key, labels.shape))
        noise = jax.random.normal(noise_key, images.shape)
        x_t = (1 - t)[:, None, None, None] * images + t[:, None, None, None] * noise
        labels = jnp.where(jax.random.bernoulli(dropout_key, 0.5, labels.shape), 10, labels)
        loss_of = lambda p: jnp.mean((network.apply(p, x_t, t, labels) - (noise - images)) ** 2)
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.999 * e + 0.001 * p, ema, params)
        return (params, optimizer_state, ema), loss

    key = jax.random.key(1)
    for step in range(2 * steps):
        if step == steps:
            began = time.perf_counter()
        key, step_key = jax.random.split(key)
        state, loss = update(state, images, labels, step_key)
        float(loss)
    print(steps / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
