"""ADM compared with diffusers' `UNet2DModel`, as its consistency models use it.

Measured: outputs differ by less than 2e-6 of their largest value.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from genjax.models.unets.adm import ADM

CLASSES, WIDTH, LEVELS, BLOCKS = 5, 128, 3, 1


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = UNet2DModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(WIDTH, WIDTH, 2 * WIDTH),
        layers_per_block=BLOCKS,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=64,
        num_class_embeds=CLASSES + 1,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset, deviation = (0.0, np.prod(parameter.shape[1:]) ** -0.5)
            if parameter.ndim == 1:
                offset, deviation = 0.5, 0.3
            parameter.copy_(offset + deviation * torch.randn_like(parameter))
        model.class_embedding.weight[CLASSES] = 0  # our null class
    return model


def array(tensor):
    return tensor.detach().numpy()


def convolution(layer):
    return {"kernel": array(layer.weight).transpose(2, 3, 1, 0), "bias": array(layer.bias)}


def dense(*layers):
    """Return linear layers or 1×1 convolutions, concatenated as one of our layers."""
    weights = [array(layer.weight).reshape(*layer.weight.shape[:2]) for layer in layers]
    return {
        "kernel": np.concatenate(weights).T,
        "bias": np.concatenate([array(layer.bias) for layer in layers]),
    }


def norm(layer):
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def self_attention(layer):
    features = layer.to_q.in_features
    # Our features are ordered by head, then query, key and value, then feature.
    order = np.arange(3 * features).reshape(3, -1, 64).swapaxes(0, 1).ravel()
    joined = dense(layer.to_q, layer.to_k, layer.to_v)
    return {
        "norm": norm(layer.group_norm),
        "query_key_value": {name: a[..., order] for name, a in joined.items()},
        "projection": dense(layer.to_out[0]),
    }


def block(layer, attention=None):
    params = {
        "norm_in": norm(layer.norm1),
        "conv_in": convolution(layer.conv1),
        "modulation": dense(layer.time_emb_proj),
        "norm_out": norm(layer.norm2),
        "conv_out": convolution(layer.conv2),
    }
    if layer.conv_shortcut is not None:
        params["shortcut"] = dense(layer.conv_shortcut)
    if attention is not None:
        params["attention"] = self_attention(attention)
    return params


def level_blocks(name, theirs):
    pairs = itertools.zip_longest(theirs.resnets, getattr(theirs, "attentions", []))
    return {f"{name}_{i}": block(*pair) for i, pair in enumerate(pairs)}


def parameters(theirs):
    params = {
        "linear_in": dense(theirs.time_embedding.linear_1),
        "linear_out": dense(theirs.time_embedding.linear_2),
        "label_embedding": {"kernel": array(theirs.class_embedding.weight)[:CLASSES]},
        "conv_in": convolution(theirs.conv_in),
        **level_blocks("middle", theirs.mid_block),
        "norm_out": norm(theirs.conv_norm_out),
        "conv_out": convolution(theirs.conv_out),
    }
    levels = zip(theirs.down_blocks, theirs.up_blocks[::-1], strict=True)
    for level, (down, up) in enumerate(levels):
        params |= level_blocks(f"encoder_{level}", down) | level_blocks(f"decoder_{level}", up)
        if level < LEVELS - 1:
            params[f"down_{level + 1}"] = block(down.downsamplers[0])
        if level:
            params[f"up_{level - 1}"] = block(up.upsamplers[0])
    return params


def test_outputs_agree(theirs):
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 8, 12, 3), np.float32)
    timesteps, labels = np.array([0, 500, 999]), np.array([0, 3, CLASSES])
    with torch.no_grad():
        inputs = (torch.from_numpy(a) for a in (x.transpose(0, 3, 1, 2), timesteps))
        expected = theirs(*inputs, class_labels=torch.from_numpy(labels)).sample.numpy()
    network = ADM(WIDTH, (1, 1, 2), BLOCKS, (1,), num_classes=CLASSES, out_channels=6)
    time = jnp.asarray(timesteps / network.time_scale, jnp.float32)
    output = jax.jit(network.apply)({"params": parameters(theirs)}, x, time, jnp.asarray(labels))
    expected = expected.transpose(0, 2, 3, 1)
    # float32 throughout: some forty layers, each with a relative error of about 1e-7.
    assert expected.std() > 0.1
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
