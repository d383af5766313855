import authors_outputs
import first_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.jit import JiT, JiT_B, JiT_H, JiT_L


# The authors' counts, counted in their code, less the fixed table of positions. They are JiT's
# 131, 459 and 953 million (table 9).
@pytest.mark.parametrize(
    ("module", "side", "expected"),
    [
        (JiT_B(), 256, 131_320_320),
        (JiT_L(), 256, 459_139_808),
        (JiT_H(), 256, 952_842_048),
        (JiT_B(32), 512, 133_387_008),
        (JiT_L(32), 512, 461_796_320),
        (JiT_H(32), 512, 956_383_296),
        (JiT_B(8, class_tokens=8), 256, 131_375_040),  # JiT_B_16 of nkthiebaut/JiT:model_jit.py
    ],
)
def test_parameter_counts(module, side, expected):
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    inputs = struct(1, side, side, 3), struct(1), struct(1, dtype=jnp.int32)
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
    table = (side // module.patch_size) ** 2 * module.width
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected - table
    assert output.shape == (1, side, side, 3)


def parameters(weights, width):
    def dense(name, rows=slice(None)):
        kernel = weights[f"{name}.weight"][rows].T
        bias = weights.get(f"{name}.bias")
        return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias[rows]}

    def scale(name):
        return {"scale": weights[f"{name}.weight"]}

    def block(prefix):
        attention, mlp = f"{prefix}.attn", f"{prefix}.mlp"
        thirds = [slice(i * width, (i + 1) * width) for i in range(3)]
        hidden = len(weights[f"{mlp}.w12.weight"]) // 2
        return {
            "modulation": {"dense": dense(f"{prefix}.adaLN_modulation.1")},
            "attention_norm": scale(f"{prefix}.norm1"),
            "mlp_norm": scale(f"{prefix}.norm2"),
            "query_norm": scale(f"{attention}.q_norm"),
            "key_norm": scale(f"{attention}.k_norm"),
            "query": dense(f"{attention}.qkv", thirds[0]),
            "key": dense(f"{attention}.qkv", thirds[1]),
            "value": dense(f"{attention}.qkv", thirds[2]),
            "projection": dense(f"{attention}.proj"),
            "mlp_gate": dense(f"{mlp}.w12", slice(hidden)),
            "mlp_in": dense(f"{mlp}.w12", slice(hidden, None)),
            "mlp_out": dense(f"{mlp}.w3"),
        }

    # PyTorch's convolution has [features, channel, row, column], a patch (row, column, channel).
    patch = weights["x_embedder.proj1.weight"].transpose(2, 3, 1, 0).reshape(-1, 4)
    embedding = weights["x_embedder.proj2.weight"][:, :, 0, 0].T
    return {
        "patch_projection": {"kernel": patch},
        "patch_embedding": {"kernel": embedding, "bias": weights["x_embedder.proj2.bias"]},
        "time_embedding": {
            "linear_in": dense("t_embedder.mlp.0"),
            "linear_out": dense("t_embedder.mlp.2"),
        },
        "label_embedding": {"embedding": weights["y_embedder.embedding_table.weight"]},
        "class_positions": weights["in_context_posemb"][0],
        "blocks": authors_outputs.stacked(block, ["blocks.0"]),
        "class_blocks": authors_outputs.stacked(block, ["blocks.1", "blocks.2"]),
        "modulation": {"dense": dense("final_layer.adaLN_modulation.1")},
        "norm": scale("final_layer.norm_final"),
        "head": dense("final_layer.linear"),
    }


def test_outputs_are_those_of_the_authors():
    weights, arrays = authors_outputs.load("jit")
    module = JiT(2, 16, 3, 2, num_classes=5, bottleneck=4, class_tokens=3, start=1)
    inputs = arrays["x"], arrays["t"], arrays["labels"]
    output = jax.jit(module.apply)({"params": parameters(weights, 16)}, *inputs)
    # float32 on both sides: some 50 operations, each rounded by about 1e-7.
    scale = np.abs(arrays["output"]).max()
    np.testing.assert_allclose(output, arrays["output"], rtol=0, atol=5e-6 * scale)


def test_first_weights_are_drawn_as_the_authors_draw_them():
    """One matrix of the authors makes queries, keys and values, and one SwiGLU's two parts."""
    module = JiT(4, 32, 4, 2, num_classes=31, bottleneck=16, class_tokens=32, start=2)
    inputs = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros(1, int)
    params = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    block = dict(query=(32, 96), key=(32, 96), value=(32, 96), projection=(32, 32))
    block |= dict(mlp_gate=(32, 170), mlp_in=(32, 170), mlp_out=(85, 32))
    xavier = dict(patch_projection=(48, 16), patch_embedding=(16, 32)) | {
        f"{blocks}/{name}": sizes
        for blocks in ("blocks", "class_blocks")
        for name, sizes in block.items()
    }
    small = ("time_embedding/linear_in/kernel", "time_embedding/linear_out/kernel")
    first_weights.check(params, xavier, (*small, "label_embedding/embedding", "class_positions"))
