"""MAR: masked autoregression over continuous tokens, drawn by diffusion in a random order.

Li et al. 2024, "Autoregressive image generation without vector quantization". A network maps the
tokens that are not masked to a state for every place. Given the state of a place, a small diffusion
model draws the token there. Training is `mar_loss` with any loss of `genjax.diffusion`, and
sampling is `mar_sample` with any of its samplers:

    loss = functools.partial(hybrid_loss, process=process, target=noise, times=uniform)
    losses = mar_loss(key, states, denoise, x, labels, loss=loss)

Guidance acts in the diffusion of a token, on the states of two conditions:

    def states(x, mask):
        z = network(jnp.repeat(x, 2, axis=0), jnp.repeat(mask, 2, axis=0), pair(labels, null_label))
        return z[0::2], z[1::2]

    def draw(keys, states, share):
        guided = guide(denoiser, *states, linear_guidance_scale(guidance_scale, share))
        return ddpm(guided, process, process.prior(keys, shape), times, keys=keys)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from genjax.autoregression.masked import masked_by_order, random_orders

Tokens = Float[Array, "batch length channels"]
Mask = Bool[Array, "batch length"]


def random_share(
    key: Key[Array, ""], least: float = 0.7, deviation: float = 0.25
) -> Float[Array, ""]:
    """Draw a share of masked tokens from N(1, deviation²) truncated to [least, 1].

    Section 4 has the least share. The distribution is that of the authors' program.
    """
    return 1 + deviation * jax.random.truncated_normal(key, (least - 1) / deviation, 0.0)


def mar_loss(
    key: Key[Array, ""],
    states: Callable[..., PyTree],
    denoise: Callable,
    x: Tokens,
    *conditioning: PyTree,
    loss: Callable,
    repeats: int = 4,
    share: Callable[[Key[Array, ""]], Float[Array, ""]] = random_share,
) -> Float[Array, " batch"]:
    """Return the diffusion loss of an example's masked tokens, averaged over them (equation 1).

    Each example has its own order and its own share of masked tokens. The authors draw one share
    for a batch.

    Args:
        states: `(x, mask, *conditioning)` to the state of every token, `[batch length …]`.
        denoise: the network `(x_t, t, states)` that `loss` trains, with one time per token.
        x: all tokens. `states` must not read the masked ones.
        loss: `genjax.diffusion.simple_loss` or `hybrid_loss` with its process, target and times.
        repeats: how many times and noises are drawn for each token.
        share: draws the share of masked tokens.
    """
    key_order, key_share, key_loss = jax.random.split(key, 3)
    batch, length, _ = x.shape
    shares = jax.vmap(share)(jax.random.split(key_share, batch))
    orders = random_orders(jax.random.split(key_order, batch), length)
    mask = masked_by_order(orders, jnp.ceil(length * shares).astype(jnp.int32))
    repeat = lambda a: jnp.repeat(a, repeats, axis=0)
    z = states(x, mask, *conditioning)
    losses, _ = loss(key_loss, denoise, repeat(x), jax.tree.map(repeat, z), time_axes=2)
    losses = losses.reshape(batch, repeats, length).mean(axis=1)
    return jnp.sum(losses * mask, axis=1) / mask.sum(axis=1)


def mar_sample(
    keys: Key[Array, " batch"],
    states: Callable[[Tokens, Mask], PyTree],
    draw: Callable[[Key[Array, " batch"], PyTree, Float[Array, ""]], Tokens],
    channels: int,
    counts: Int[np.ndarray, "num_steps masked"],
    trajectory: bool = False,
) -> Float[Array, "*steps batch length channels"]:
    """Draw all tokens of each example in a few steps, in a random order for each example.

    Args:
        keys: one per example, for its order and its tokens.
        states: from tokens and their mask to a state, or several, of every place: leaves `[batch
            length …]`.
        draw: from keys and the states of a few places `[batch places …]` to their tokens `[batch
            places channels]`. Its third argument is the share of tokens that are drawn after the
            step, for a guidance scale that grows with this share.
        channels: of a token.
        counts: `masked.masked_counts`. They are not traced, because the largest step sets how many
            places `draw` has.
        trajectory: return the tokens after every step, `[num_steps batch length channels]`. Masked
            tokens are zeros.
    """
    length, batch, counts = counts.shape[1] - 1, len(keys), counts[:, -1]
    before = np.concatenate([[length], counts[:-1]])
    places = int((before - counts).max())
    fold = lambda step: jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    orders = random_orders(fold(0), length)
    # Places beyond the end are read as the last one, and not written.
    padded = jnp.pad(orders, ((0, 0), (0, places)), constant_values=length)

    def reveal(x, row):
        step, before, after = row
        z = states(x, masked_by_order(orders, before))
        chosen = jax.lax.dynamic_slice_in_dim(padded, length - before, places, axis=1)
        take = jax.vmap(lambda a, index: a[jnp.minimum(index, length - 1)])
        tokens = draw(fold(step), jax.tree.map(lambda a: take(a, chosen), z), 1 - after / length)
        written = jnp.where(jnp.arange(places) < before - after, chosen, length)
        put = jax.vmap(lambda a, index, new: a.at[index].set(new, mode="drop"))
        x = put(x, written, tokens)
        return x, x if trajectory else None

    rows = jnp.arange(1, len(counts) + 1), jnp.asarray(before), jnp.asarray(counts)
    x, states = jax.lax.scan(reveal, jnp.zeros((batch, length, channels)), rows)
    return states if trajectory else x
