import authors_outputs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.mean_flow_dit import (
    IMF_B,
    IMF_L,
    IMF_M,
    IMF_XL,
    PMF_B,
    PMF_H,
    PMF_L,
    MeanFlowDiT,
)

SMALL = MeanFlowDiT(2, 16, 3, 2, num_classes=5, head_depth=2)
MODULES = {"imf": SMALL, "pmf": SMALL.clone(bottleneck=128, grid=True)}


# Counted in the authors' code, in training and in evaluation.
@pytest.mark.parametrize(
    ("module", "shape", "training", "evaluation"),
    [
        (IMF_B(), (32, 32, 4), 145_596_960, 88_948_256),
        (IMF_M(), (32, 32, 4), 230_570_016, 173_921_312),
        (IMF_L(), (32, 32, 4), 509_752_352, 409_071_648),
        (IMF_XL(), (32, 32, 4), 711_113_760, 610_433_056),
        (PMF_B(), (256, 256, 3), 175_474_304, 118_234_240),
        (PMF_L(), (256, 256, 3), 511_789_696, 410_320_768),
        (PMF_H(), (256, 256, 3), 1_113_259_520, 954_956_032),
        (PMF_B(32), (512, 512, 3), 179_312_768, 120_300_928),
        (PMF_H(32), (512, 512, 3), 1_119_752_192, 958_497_280),
    ],
)
def test_parameter_counts(module, shape, training, evaluation):
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    number, label = struct(1), struct(1, dtype=jnp.int32)
    inputs = jax.random.key(0), struct(1, *shape), number, label, number, number
    output, variables = jax.eval_shape(module.init_with_output, *inputs)
    assert output.shape == (1, *shape)
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    params = variables["params"]
    assert count(params) == training
    sampling = {name: a for name, a in params.items() if not name.startswith("velocity")}
    if not module.grid:  # iMF's evaluation keeps the layer of the velocity, without its blocks
        sampling |= {name: params[name] for name in ("velocity_norm", "velocity_out")}
    assert count(sampling) == evaluation


def parameters(weights):
    def dense(name):
        kernel, bias = weights[f"{name}/kernel"], weights.get(f"{name}/bias")
        kernel = kernel.reshape(-1, kernel.shape[-1])  # a convolution's patch, as one vector
        return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}

    linear = lambda name: dense(f"{name}/_flax_linear")
    scale = lambda name: {"scale": weights[f"{name}/kernel"]}
    tokens = lambda name: weights[f"{name}_tokens"].reshape(-1, 16)

    def embedding(name):
        layers = f"{name}_embedder/mlp/layers"
        return {"linear_in": linear(f"{layers}_0"), "linear_out": linear(f"{layers}_2")}

    def block(name):
        return {
            "attention_norm": scale(f"{name}/norm1"),
            "mlp_norm": scale(f"{name}/norm2"),
            "attention_scale": weights[f"{name}/attn_scale"],
            "mlp_scale": weights[f"{name}/mlp_scale"],
            "query_norm": scale(f"{name}/attn/q_norm"),
            "key_norm": scale(f"{name}/attn/k_norm"),
            "query": linear(f"{name}/attn/q_proj"),
            "key": linear(f"{name}/attn/k_proj"),
            "value": linear(f"{name}/attn/v_proj"),
            "projection": linear(f"{name}/attn/out_proj"),
            "mlp_gate": linear(f"{name}/mlp/w1"),
            "mlp_in": linear(f"{name}/mlp/w3"),
            "mlp_out": linear(f"{name}/mlp/w2"),
        }

    names = dict(time="h", guidance="omega", interval_start="cfg_t_start", interval_end="cfg_t_end")
    tables = dict(time="time", guidance="omega", interval_start="t_min", interval_end="t_max")
    labels = next(a for name, a in weights.items() if name.startswith("y_embedder"))
    params = {
        "label_embedding": {"embedding": labels.reshape(-1, 16)},
        "label_tokens": tokens("class"),
        "blocks": authors_outputs.stacked(block, ["shared_blocks_0"]),
    }
    params |= {f"{ours}_embedding": embedding(theirs) for ours, theirs in names.items()}
    params |= {f"{ours}_tokens": tokens(theirs) for ours, theirs in tables.items()}
    for ours, theirs in (("average", "u"), ("velocity", "v")):
        blocks = [f"{theirs}_heads_{i}" for i in range(2)]
        params[f"{ours}_blocks"] = authors_outputs.stacked(block, blocks)
        params[f"{ours}_norm"] = scale(f"{theirs}_final_layer/norm")
        params[f"{ours}_out"] = linear(f"{theirs}_final_layer/linear")
    if "pos_embed" not in weights:
        return params | {"patch_embedding": dense("x_embedder/proj")}
    layers = dict(patch_projection="x_embedder/proj1", patch_embedding="x_embedder/proj2")
    return (
        params
        | {"positions": weights["pos_embed"][0]}
        | {ours: dense(theirs) for ours, theirs in layers.items()}
    )


@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_those_of_the_authors(name):
    weights, arrays = authors_outputs.load(f"mean_flow_dit_{name}")
    apply = jax.jit(MODULES[name].apply, static_argnames="velocity")
    told = {key: arrays[key] for key in ("end_time", "guidance", "interval")}
    inputs = arrays["x"], arrays["t"], arrays["labels"]
    params = parameters(weights)
    outputs = apply({"params": params}, *inputs, **told, velocity=True)
    t = arrays["t"][:, None, None, None]
    for output, expected in zip(outputs, (arrays["average"], arrays["velocity"]), strict=True):
        if name == "pmf":
            output = (arrays["x"] - output) / np.maximum(t, 0.05)
        # float32 on both sides: some 50 operations, each rounded by about 1e-7.
        np.testing.assert_allclose(output, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    sampling = {key: a for key, a in params.items() if not key.startswith("velocity")}
    alone = apply({"params": sampling}, *inputs, **told)
    np.testing.assert_allclose(alone, outputs[0], rtol=0, atol=1e-5)


def test_the_interval_that_a_call_does_not_give_is_the_networks():
    weights, arrays = authors_outputs.load("mean_flow_dit_imf")
    apply = jax.jit(SMALL.clone(interval=(0.25, 0.75)).apply)
    told = {key: arrays[key] for key in ("end_time", "guidance")}
    inputs = {"params": parameters(weights)}, arrays["x"], arrays["t"], arrays["labels"]
    own = apply(*inputs, **told)
    given = lambda *ends: apply(*inputs, **told, interval=np.tile(np.float32(ends), (4, 1)))
    np.testing.assert_allclose(given(0.25, 0.75), own, rtol=0, atol=1e-6)
    for other in ((0.0, 0.75), (0.25, 1.0)):
        # An end moves 2 of 36 tokens a little.
        assert np.abs(given(*other) - own).max() > 1e-4, other


def test_a_number_is_told_if_and_only_if_the_network_takes_it():
    x, t, labels = jnp.ones((2, 4, 4, 3)), jnp.ones(2), jnp.zeros(2, int)
    init = lambda module, **told: jax.eval_shape(
        lambda: module.init(jax.random.key(0), x, t, labels, **told)
    )
    with pytest.raises(ValueError, match="takes_guidance=True, and guidance is None: give it"):
        init(SMALL, end_time=t)
    for interval in ((0.6, 0.4), (0.2, 1.5)):
        with pytest.raises(ValueError, match=r"give two times in \[0, 1\]"):
            init(SMALL.clone(interval=interval), end_time=t, guidance=t)
    plain = SMALL.clone(takes_guidance=False, takes_end_time=False)
    with pytest.raises(ValueError, match="takes_end_time=False, and end_time is given: do not"):
        init(plain, end_time=t)
    assert not {"guidance_tokens", "interval_start_tokens"} & init(plain)["params"].keys()
