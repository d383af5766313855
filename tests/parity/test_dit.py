"""DiT compared with diffusers', both with the same random weights.

diffusers differs from the published DiT in two places, which are corrected before the comparison.
It spaces the frequencies of the time embedding by 1/(half − 1) (`downscale_freq_shift`). Its norm
before the feed-forward layer has an epsilon of 1e-5. It also keeps the time and label embedding
once per block; DiT shares one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps

from genjax.models.transformers.dit import DiT

SIDE, CHANNELS, OUT_CHANNELS, PATCH_SIZE, HEADS, WIDTH, DEPTH, CLASSES = 8, 3, 6, 2, 4, 32, 2, 10


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=CHANNELS,
        out_channels=OUT_CHANNELS,
        num_layers=DEPTH,
        sample_size=SIDE,
        patch_size=PATCH_SIZE,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).eval()  # no label dropout
    embedding = model.transformer_blocks[0].norm1.emb
    embedding.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    for block in model.transformer_blocks:
        block.norm1.emb = embedding
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn_like(parameter))
    return model


def dense(*layers):
    """Concatenate linear layers as one of ours: PyTorch has `[out, in]`, Flax `[in, out]`."""
    return {
        "kernel": np.concatenate([layer.weight.detach().numpy() for layer in layers]).T,
        "bias": np.concatenate([layer.bias.detach().numpy() for layer in layers]),
    }


def by_head(layer):
    """Reorder features (query/key/value, head, feature) to (head, query/key/value, feature)."""
    swap = lambda a: a.reshape(*a.shape[:-1], 3, HEADS, -1).swapaxes(-3, -2).reshape(a.shape)
    return jax.tree.map(swap, layer)


def block(theirs):
    attention, feed_forward = theirs.attn1, theirs.ff.net
    return {
        "modulation": {"dense": dense(theirs.norm1.linear)},
        "query_key_value": by_head(dense(attention.to_q, attention.to_k, attention.to_v)),
        "projection": dense(attention.to_out[0]),
        "mlp_in": dense(feed_forward[0].proj),
        "mlp_out": dense(feed_forward[2]),
    }


def parameters(theirs):
    embedding = theirs.transformer_blocks[0].norm1.emb
    patches = theirs.pos_embed.proj
    # PyTorch has [width, channel, row, column], our patches have (row, column, channel).
    kernel = patches.weight.detach().numpy()
    return {
        "patch_embedding": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, WIDTH),
            "bias": patches.bias.detach().numpy(),
        },
        "time_in": dense(embedding.timestep_embedder.linear_1),
        "time_out": dense(embedding.timestep_embedder.linear_2),
        "label_embedding": {
            "embedding": embedding.class_embedder.embedding_table.weight.detach().numpy()
        },
        "blocks": jax.tree.map(lambda *a: np.stack(a), *map(block, theirs.transformer_blocks)),
        "modulation": {"dense": dense(theirs.proj_out_1)},
        "head": dense(theirs.proj_out_2),
    }


def test_outputs_agree(theirs):
    random = np.random.default_rng(0)
    x = random.standard_normal((4, SIDE, SIDE, CHANNELS), np.float32)
    # The last label is the null label.
    timesteps, labels = (np.array([0, 1, 500, 999]), np.array([0, 3, 9, CLASSES]))
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            torch.from_numpy(timesteps),
            torch.from_numpy(labels),
        ).sample.numpy()

    network = DiT(
        patch_size=PATCH_SIZE,
        width=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=CLASSES,
        out_channels=OUT_CHANNELS,
    )
    time = jnp.asarray(timesteps / network.time_scale, jnp.float32)
    output = jax.jit(network.apply)({"params": parameters(theirs)}, x, time, jnp.asarray(labels))
    expected = expected.transpose(0, 2, 3, 1)
    # float32 throughout: a relative error of 1e-6 in each product sums to about 1e-5.
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(output, expected, atol=2e-5 * np.abs(expected).max())
