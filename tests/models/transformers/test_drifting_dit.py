import authors_outputs
import first_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.drifting_dit import Drifting_B, Drifting_L, DriftingDiT
from genjax.nn import sincos_positions


# Counted in the authors' code.
@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (Drifting_B(), (32, 32, 4), 132_708_880),
        (Drifting_L(), (32, 32, 4), 462_909_456),
        (Drifting_B(16), (256, 256, 3), 133_864_704),
        (Drifting_L(16), (256, 256, 3), 464_450_304),
    ],
)
def test_parameter_counts(module, shape, expected):
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    whole = lambda *shape: struct(*shape, dtype=jnp.int32)
    inputs = struct(1, *shape), whole(1), struct(1), whole(1, 32)
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected
    assert output.shape == (1, *shape)


def parameters(weights):
    def dense(name, columns=slice(None)):
        layer = {key: weights[f"{name}/Dense_0/{key}"] for key in ("kernel", "bias")}
        return jax.tree.map(lambda a: a[..., columns], layer)

    def paired(tree):
        """Reorder features (half, pair) of a head, which turn together, to (pair, half)."""
        order = lambda a: a.reshape(*a.shape[:-1], -1, 2, 4).swapaxes(-1, -2).reshape(a.shape)
        return jax.tree.map(order, tree)

    def block(name):
        qkv, mlp = f"{name}/Attention_0/TorchLinear_0", f"{name}/SwiGLUFFN_0/TorchLinear"
        thirds = [slice(16 * i, 16 * (i + 1)) for i in range(3)]
        scale = lambda name: {"scale": weights[f"{name}/weight"]}
        return {
            "modulation": {"dense": dense(f"{name}/TorchLinear_0")},
            "attention_norm": scale(f"{name}/RMSNorm_0"),
            "mlp_norm": scale(f"{name}/RMSNorm_1"),
            "query_norm": paired(scale(f"{name}/Attention_0/q_norm")),
            "key_norm": paired(scale(f"{name}/Attention_0/k_norm")),
            "query": paired(dense(qkv, thirds[0])),
            "key": paired(dense(qkv, thirds[1])),
            "value": dense(qkv, thirds[2]),
            "projection": dense(f"{name}/Attention_0/TorchLinear_1"),
            "mlp_gate": dense(f"{mlp}_0"),
            "mlp_in": dense(f"{mlp}_1"),
            "mlp_out": dense(f"{mlp}_2"),
        }

    body, final = "LightningDiT_0", "LightningDiT_0/FinalLayer_0"
    codes = [weights[f"noise_embeds_{i}/embedding"] for i in range(3)]
    return {
        "label_embedding": {"embedding": weights["Embed_0/embedding"]},
        "code_embedding": {"embedding": np.concatenate(codes)},
        "guidance_embedding": {
            "linear_in": dense("TimestepEmbedder_0/TorchLinear_0"),
            "linear_out": dense("TimestepEmbedder_0/TorchLinear_1"),
        },
        "guidance_norm": {"scale": weights["RMSNorm_0/weight"]},
        "patch_embedding": dense(f"{body}/TorchLinear_0"),
        "positions": weights[f"{body}/pos_embed"][0],
        "class_embedding": dense(f"{body}/TorchLinear_1"),
        "class_positions": weights[f"{body}/cls_embed"][0],
        "blocks": authors_outputs.stacked(block, [f"{body}/blocks_{i}" for i in range(2)]),
        "modulation": {"dense": dense(f"{final}/TorchLinear_0")},
        "norm": {"scale": weights[f"{final}/RMSNorm_0/weight"]},
        "head": dense(f"{final}/TorchLinear_1"),
    }


def test_outputs_are_those_of_the_authors():
    weights, arrays = authors_outputs.load("drifting_dit")
    sizes = dict(class_tokens=2, num_codes=3, code_classes=6)
    # 64 features of SwiGLU, as the authors round 42 up to a multiple of 32.
    module = DriftingDiT(2, 16, 2, 2, num_classes=5, mlp_ratio=6.0, **sizes)
    inputs = [arrays[name] for name in ("noise", "labels", "guidance", "codes")]
    output = jax.jit(module.apply)({"params": parameters(weights)}, *inputs)
    expected = arrays["output"]
    # float32 on both sides: some 50 operations, each rounded by about 1e-7.
    np.testing.assert_allclose(output, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_first_weights_are_drawn_as_the_authors_draw_them():
    """One matrix of the authors makes queries, keys and values. SwiGLU's parts are two."""
    module = DriftingDiT(2, 32, 2, 2, num_classes=32, class_tokens=32, num_codes=2, code_classes=16)
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, int), jnp.ones(1), jnp.zeros((1, 2), int)
    params = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    np.testing.assert_array_equal(params.pop("positions"), sincos_positions(4, 4, 32))
    block = dict(query=(32, 96), key=(32, 96), value=(32, 96), projection=(32, 32))
    block |= dict(mlp_gate=(32, 85), mlp_in=(32, 85), mlp_out=(85, 32))
    xavier = dict(patch_embedding=(16, 32), class_embedding=(32, 32))
    xavier |= {f"blocks/{name}": sizes for name, sizes in block.items()}
    small = [f"guidance_embedding/linear_{side}/kernel" for side in ("in", "out")]
    small += [f"{name}_embedding/embedding" for name in ("label", "code")]
    first_weights.check(params, xavier, [*small, "class_positions"])
