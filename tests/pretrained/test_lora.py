import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax.models.transformers.flux import Flux
from genjax.nn import Text
from genjax.pretrained.flux import FLUX
from genjax.pretrained.lora import apply_lora, init_lora, load_lora

HEADS = "params/single_blocks/heads/query/kernel"
LAYER = "single_transformer_blocks.{}.attn.to_q"


NETWORK = Flux(num_double_blocks=1, num_single_blocks=3, num_heads=1, rotary_features=(2, 2, 2))


@pytest.fixture(scope="module")
def variables():
    """A small FLUX.1's variables, of width 6, made without initializing the network."""
    example = lambda *shape: jnp.zeros((1, *shape))
    shapes = jax.eval_shape(
        NETWORK.init,
        jax.random.key(0),
        example(2, 2, 3),
        example(),
        Text(example(1, 5), example(4)),
    )
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32), shapes)


def leaf(variables, path):
    return functools.reduce(lambda tree, name: tree[name], path.split("/"), variables)


def factors(layer, rank, inputs, outputs, prefix="transformer.", seed=0):
    random = np.random.default_rng(seed)
    return {
        f"{prefix}{layer}.lora_A.weight": random.standard_normal((rank, inputs), np.float32),
        f"{prefix}{layer}.lora_B.weight": random.standard_normal((outputs, rank), np.float32),
    }


@pytest.fixture
def load(tmp_path, variables):
    def load(tensors, metadata=None, **options):
        path = tmp_path / "adapters.safetensors"
        save_file(tensors, path, metadata)
        return load_lora(path, NETWORK, variables, **options)

    return load


def test_new_adapters_change_nothing_and_all_of_them_learn(variables):
    select = lambda path: "heads" in path
    adapters = init_lora(jax.random.key(0), variables, 2, select)
    kernels = {f"params/double_blocks/{stream}_heads" for stream in ("text", "image")}
    kernels = {
        f"{heads}/{name}/kernel"
        for heads in kernels | {"params/single_blocks/heads"}
        for name in ("query", "key", "value")
    }
    assert adapters.keys() == kernels and adapters[HEADS]["down"].shape == (3, 6, 2)
    assert not np.array_equal(adapters[HEADS]["down"][0], adapters[HEADS]["down"][1])
    jax.tree.map(np.testing.assert_array_equal, apply_lora(variables, adapters), variables)

    def loss(adapters, variables):
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(apply_lora(variables, adapters)))

    gradients = jax.jit(jax.grad(loss))(adapters, variables)
    for path, adapter in adapters.items():
        # This is the kernel's gradient; the product rule gives the gradients of the factors.
        cosines = np.cos(leaf(variables, path))
        expected = np.swapaxes(adapter["down"], -2, -1) @ cosines
        np.testing.assert_allclose(gradients[path]["up"], expected, rtol=1e-4, atol=1e-6)
        assert not np.any(gradients[path]["down"])


def test_deviation_of_new_adapters():
    adapters = init_lora(
        jax.random.key(0), {"a": {"kernel": jnp.zeros((400, 3))}}, 50, lambda path: True
    )
    # the standard error of a deviation of 20,000 values is 1/√40,000 = .5 % of 1/√400
    np.testing.assert_allclose(np.std(adapters["a/kernel"]["down"]), 0.05, rtol=0.02)


def test_scale_and_type(variables):
    adapters = {
        HEADS: dict(down=np.ones((3, 6, 2), np.float32), up=np.full((3, 2, 6), 0.25, np.float32))
    }
    half = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.bfloat16), variables)
    kernel = leaf(apply_lora(half, adapters, 3.0), HEADS)
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, 1.5)
    # 1 + 2⁻⁸·(1 + 2⁻⁹) is rounded up to 1 + 2⁻⁷. A product that was rounded first would be lost.
    one = {"kernel": jnp.ones((1, 1), jnp.bfloat16)}
    small = {"kernel": dict(down=[[2**-8 + 2**-17]], up=[[1.0]])}
    assert apply_lora(one, small)["kernel"] == 1 + 2**-7


def test_layers_ranks_and_alphas(load, variables):
    """The second layer has no adapter, the others have different ranks, and one has an alpha."""
    first, third = factors(LAYER.format(0), 2, 6, 6), factors(LAYER.format(2), 3, 6, 6, seed=1)
    alpha = {f"transformer.{LAYER.format(2)}.alpha": np.asarray(6.0, np.float32)}
    adapted = leaf(apply_lora(variables, load(first | third | alpha), 0.5), HEADS) - leaf(
        variables, HEADS
    )
    (a1, b1), (a3, b3) = first.values(), third.values()
    # float32 sums of three products, and the sum with the kernel
    np.testing.assert_allclose(adapted[0], 0.5 * (b1 @ a1).T, atol=1e-5)
    np.testing.assert_array_equal(adapted[1], 0)
    np.testing.assert_allclose(adapted[2], 0.5 * 2 * (b3 @ a3).T, atol=1e-5)


@pytest.mark.parametrize(
    "layer, variable", [("x_embedder", "patch_embedding"), ("proj_out", "head")]
)
def test_adapters_of_patches_are_reordered_as_the_kernels_are(load, variables, layer, variable):
    """Adapting and converting commute."""
    path = f"params/{variable}/kernel"
    inputs, outputs = leaf(variables, path).shape
    tensors = factors(layer, 2, inputs, outputs)
    a, b = tensors.values()
    adapted = leaf(apply_lora(variables, load(tensors)), path) - leaf(variables, path)
    np.testing.assert_allclose(adapted, FLUX.convert(NETWORK, path, b @ a), atol=1e-5)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", ""])
def test_alpha_of_the_caller_and_names_of_both_libraries(load, prefix):
    adapters = load(factors("context_embedder", 2, 5, 6, prefix), alpha=8.0)
    expected = load(factors("context_embedder", 2, 5, 6))["params/text_embedding/kernel"]
    jax.tree.map(
        np.testing.assert_array_equal,
        adapters["params/text_embedding/kernel"],
        dict(down=expected["down"], up=4 * expected["up"]),
    )


def test_an_alpha_of_zero_switches_a_layer_off(load):
    tensors = factors("context_embedder", 2, 5, 6)
    alpha = {"transformer.context_embedder.alpha": np.asarray(0.0, np.float32)}
    for adapters in (load(tensors | alpha), load(tensors | alpha, alpha=8.0)):
        np.testing.assert_array_equal(adapters["params/text_embedding/kernel"]["up"], 0)


def test_alpha_of_the_header(load):
    settings = {"transformer.r": 2, "transformer.lora_alpha": 1, "transformer.rank_pattern": {}}
    header = {"lora_adapter_metadata": json.dumps(settings)}
    tensors = factors("context_embedder", 2, 5, 6)
    path = "params/text_embedding/kernel"
    np.testing.assert_array_equal(
        load(tensors, header)[path]["up"], 0.5 * load(tensors)[path]["up"]
    )
    header = {"lora_adapter_metadata": json.dumps(settings | {"transformer.use_rslora": True})}
    with pytest.raises(ValueError, match="not supported: {'use_rslora': True}"):
        load(tensors, header)


def test_one_error_lists_all_faults(load):
    tensors = factors("context_embedder", 2, 4, 6) | factors("proj_in", 2, 5, 6)
    lonely = factors(LAYER.format(0), 2, 6, 6)
    tensors |= dict([lonely.popitem()])
    with pytest.raises(ValueError) as caught:
        load(tensors)
    assert str(caught.value).splitlines()[1:] == [
        "misshapen: context_embedder.weight adapted from 4 to 6, kernel 5×6",
        "of no kernel here: proj_in.lora_A.weight (2, 5)",
        "of no kernel here: proj_in.lora_B.weight (6, 2)",
        "of no kernel here: single_transformer_blocks.0.attn.to_q.lora_B.weight (6, 2)",
    ]


def test_a_rank_of_nothing_is_refused():
    kernel = {"params": {"head": {"kernel": jnp.zeros((3, 2))}}}
    with pytest.raises(ValueError, match="a rank is 1 or more; got 0, which adapts nothing"):
        init_lora(jax.random.key(0), kernel, 0, lambda path: True)


def test_missing_variables_are_named(variables):
    with pytest.raises(ValueError, match="no kernel is selected; there are .*params/head/kernel"):
        init_lora(jax.random.key(0), variables, 2, lambda path: False)
    with pytest.raises(ValueError, match="no variables of these adapters: params/other/kernel"):
        apply_lora(
            variables, {"params/other/kernel": dict(down=np.ones((2, 1)), up=np.ones((1, 2)))}
        )


def test_factors_of_different_ranks_and_numbers_that_are_not_finite_are_refused(load):
    """An infinite factor in a stack is refused even if the stack's other layers are finite."""
    tensors = factors("context_embedder", 2, 5, 6) | factors("x_embedder", 3, 12, 6)
    tensors["transformer.context_embedder.lora_B.weight"] = np.ones((6, 3), np.float32)
    tensors["transformer.x_embedder.lora_A.weight"][1, 1] = np.nan
    tensors |= factors(LAYER.format(0), 2, 6, 6) | factors(LAYER.format(1), 2, 6, 6)
    tensors[f"transformer.{LAYER.format(1)}.alpha"] = np.asarray(np.inf, np.float32)
    tensors |= factors("proj_out", 0, 6, 12)
    with pytest.raises(ValueError) as caught:
        load(tensors)
    assert sorted(str(caught.value).splitlines()[1:]) == [
        f"not finite: {LAYER.format(1)}.alpha",
        "not finite: x_embedder.lora_A.weight",
        "ranks differ: context_embedder.lora_A.weight has 2, and lora_B 3",
        "ranks differ: proj_out.lora_A.weight has 0, and lora_B 0",
    ]


@pytest.mark.parametrize(
    "settings", [dict(r=2), dict(r=0, lora_alpha=1), dict(r=2, lora_alpha="1")]
)
def test_settings_without_a_rank_and_an_alpha_are_refused(load, settings):
    header = {"lora_adapter_metadata": json.dumps(settings)}
    with pytest.raises(
        ValueError, match="adapters.safetensors has settings r=.*: give numbers above 0"
    ):
        load(factors("context_embedder", 2, 5, 6), header)
    with pytest.raises(
        ValueError, match="lora_adapter_metadata of .*adapters.safetensors is not valid JSON"
    ):
        load(factors("context_embedder", 2, 5, 6), {"lora_adapter_metadata": "{"})
