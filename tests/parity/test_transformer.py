"""Half-blocks compared with a layer of transformers' Llama, at once and with a cache.

The layer has RMS norms, rotary positions, grouped keys and SwiGLU.

Measured: outputs differ by at most 7e-7 of the largest.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import Attention, FeedForward, empty_cache, inline

BATCH, LENGTH, FEATURES, HEADS, KV_HEADS, INNER, THETA = 2, 7, 24, 6, 2, 40, 500.0
SIZE = FEATURES // HEADS
CAPACITY = 11
CONFIG = LlamaConfig(
    hidden_size=FEATURES,
    intermediate_size=INNER,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    rms_norm_eps=1e-6,
    rope_theta=THETA,
    attn_implementation="eager",
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, rotations, cache=None):
        attention = Attention(
            HEADS, KV_HEADS, use_bias=False, causal=True, norm=nn.RMSNorm(name="attention_norm")
        )
        mlp = FeedForward(INNER, nn.RMSNorm(name="mlp_norm"), nn.silu, gated=True, use_bias=False)
        x, cache = inline(self, attention)(x, rotations=rotations, cache=cache)
        return inline(self, mlp)(x), cache


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(CONFIG, layer_idx=0).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if "norm" in name else 0.5))
            if "norm" in name:
                parameter.add_(1)
    return layer


@pytest.fixture(scope="module")
def variables(theirs):
    tensors = {name: a.detach().numpy() for name, a in theirs.named_parameters()}
    kernel = lambda name: {"kernel": tensors[f"{name}.weight"].T}

    def neighbours(layer):
        """Llama rotates features i and i + n/2 together; `rotate` takes features 2i and 2i + 1."""
        heads = layer["kernel"].reshape(FEATURES, -1, 2, SIZE // 2)
        return {"kernel": heads.swapaxes(2, 3).reshape(FEATURES, -1)}

    params = {
        "attention_norm": {"scale": tensors["input_layernorm.weight"]},
        "mlp_norm": {"scale": tensors["post_attention_layernorm.weight"]},
        "query": neighbours(kernel("self_attn.q_proj")),
        "key": neighbours(kernel("self_attn.k_proj")),
        "value": kernel("self_attn.v_proj"),
        "projection": kernel("self_attn.o_proj"),
        "mlp_gate": kernel("mlp.gate_proj"),
        "mlp_in": kernel("mlp.up_proj"),
        "mlp_out": kernel("mlp.down_proj"),
    }
    return {"params": jax.tree.map(jnp.asarray, params)}


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((BATCH, LENGTH, FEATURES), np.float32)


def run(layer, x, start=0, cache=None):
    """Return Llama's tokens after the layer, which attends to `cache` and to tokens from `start`
    on."""
    positions = torch.arange(start, start + x.shape[1])[None]
    looks = torch.arange(start + x.shape[1])[None] <= positions[0][:, None]
    mask = torch.where(looks, 0.0, torch.finfo(torch.float32).min)[None, None]
    x = torch.tensor(x)
    with torch.no_grad():
        output = layer(
            x,
            attention_mask=mask,
            position_embeddings=LlamaRotaryEmbedding(CONFIG)(x, positions),
            cache=cache,
            use_cache=cache is not None,
        )
    return output.numpy()


def assert_close(ours, theirs):
    # A few layers in float32, each rounded by about 1e-7 relative.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * np.abs(theirs).max())


ROTATIONS = rotary_positions(grid_positions(CAPACITY), (SIZE,), THETA)
apply = jax.jit(Block().apply)


def test_a_block_agrees(theirs, variables, x):
    shapes = jax.eval_shape(Block().init, jax.random.key(0), x, ROTATIONS[:LENGTH])
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    assert_close(apply(variables, x, ROTATIONS[:LENGTH])[0], run(theirs, x))


@pytest.mark.parametrize("chunks", [(4, 1, 1, 1), (3, 4)])
def test_decoding_with_a_cache_agrees(theirs, variables, x, chunks):
    cache, of_theirs, start = empty_cache(BATCH, KV_HEADS, CAPACITY, SIZE), DynamicCache(), 0
    for length in chunks:
        end = start + length
        output, cache = apply(variables, x[:, start:end], ROTATIONS[start:end], cache)
        assert_close(output, run(theirs, x[:, start:end], start, of_theirs))
        start = end
    keys, values = of_theirs.layers[0].keys, of_theirs.layers[0].values
    assert_close(cache.values[:, :, :LENGTH], values.numpy())
    pairs = keys.numpy().reshape(*keys.shape[:3], 2, SIZE // 2).swapaxes(3, 4)
    assert_close(cache.keys[:, :, :LENGTH], pairs.reshape(keys.shape))
