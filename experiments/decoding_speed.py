"""Time LlamaGen's training step, and its decoding with and without a cache.

    python -m experiments.decoding_speed

The network has LlamaGen's layers at a size for a CPU, and a picture has 32 × 32 tokens. Without a
cache every token takes a pass over the whole sequence, because shapes are static. Decoding is
measured with the same number of tokens and caches of several capacities, and at the start and at
the end of a picture. All are medians of a few calls.
"""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from experiments.launch.runtime import run_program
from genjax.autoregression import decode
from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.prefixes import ClassPrefix

SIDE, TOKENS, REPEATS = 32, 64, 5
SIZE = dict(vocabulary=4096, width=512, depth=8, num_heads=8, prefix=ClassPrefix(1000), unroll=8)


def seconds(program: Callable, *args) -> float:
    """Return the median seconds of a call of a jitted function, after one that compiles."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measure(side: int = SIDE, tokens: int = TOKENS, **size) -> dict[str, float]:
    """Return seconds of a training step of one example, and seconds per token of decoding.

    Args:
        side: of the grid; caches for half, all and twice of it are measured.
        tokens: how many are decoded in a call.
        size: of the network.
    """
    make = lambda side: LlamaGen(grid=(side, side), **size)
    network, labels = make(side), jnp.zeros(1, jnp.int32)
    sequence = jnp.zeros((1, side**2), jnp.int32)
    variables = jax.jit(network.init)(jax.random.key(0), sequence, labels)
    keys, optimizer = jax.random.split(jax.random.key(1), 1), optax.adamw(1e-4)

    @jax.jit
    def train(variables, state):
        def loss(variables):
            logits = network.apply(variables, sequence, labels)
            return optax.softmax_cross_entropy_with_integer_labels(logits, sequence).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables), state, variables)
        return optax.apply_updates(variables, updates), state

    def decoded(side, start):
        """Return seconds per token with a cache, from a place of the sequence on."""
        network = make(side)
        prefill = jax.jit(functools.partial(network.apply, method="prefill"))
        logits, state = prefill(variables, labels, sequence[:, :start] if start else None)

        @jax.jit
        def run(variables, logits, state):
            step = functools.partial(network.apply, variables, method="step")
            return decode(keys, step, logits, state, tokens, start=start)

        return seconds(run, variables, logits, state) / tokens

    rows = {"training step": seconds(train, variables, jax.jit(optimizer.init)(variables))}
    rows["token without a cache"] = seconds(jax.jit(network.apply), variables, sequence, labels)
    for each in (side // 2, side, 2 * side):
        rows[f"token, a cache of {each**2:,}"] = decoded(each, 0)
    rows[f"token, a cache of {side**2:,}, the last {tokens}"] = decoded(side, side**2 - tokens)
    return rows


def main() -> None:
    for name, value in measure(**SIZE).items():
        print(f"{name:40} {1e3 * value:9.2f} ms", flush=True)


if __name__ == "__main__":
    run_program(main)
