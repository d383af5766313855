import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from scipy.special import erf

from genjax.devices.mesh import partition_spec
from genjax.nn import attention_choices, scanned, transformer
from genjax.nn.modulation import layer_norm
from genjax.nn.rotary import grid_positions, rotary_positions
from genjax.nn.transformer import (
    Attention,
    Cache,
    FeedForward,
    Heads,
    empty_cache,
    exact_gelu,
    inline,
)

BATCH, LENGTH, FEATURES, HEADS = 2, 6, 16, 4
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape, np.float32)


def variables_of(module, *inputs, **options):
    """Variables without zeros, in which no part of the module is without effect."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs, **options)
    return jax.tree.map(lambda a: 0.5 * normal(*a.shape), shapes)


def rotations_at(positions):
    return rotary_positions(positions, (FEATURES // HEADS,))


@pytest.fixture(scope="module")
def x():
    return normal(BATCH, LENGTH, FEATURES)


def reference_attention(params, x, context, looks, num_heads, num_kv_heads):
    """x + attention by loops in float64; `looks(example, query)` indexes the context."""
    layers = jax.tree.map(np.float64, params)
    layer = lambda name, a: a @ layers[name]["kernel"] + layers[name]["bias"]
    size = x.shape[-1] // num_heads
    attended = np.zeros(x.shape)
    for example, position, head in np.ndindex(*x.shape[:2], num_heads):
        seen = context[example][looks(example, position)]
        key, value = layer("key", seen), layer("value", seen)
        of_query = slice(head * size, (head + 1) * size)
        kv_head = head * num_kv_heads // num_heads
        of_key = slice(kv_head * size, (kv_head + 1) * size)
        logits = key[:, of_key] @ layer("query", x[example, position])[of_query]
        weights = np.exp(logits / np.sqrt(size))
        attended[example, position, of_query] = weights / weights.sum() @ value[:, of_key]
    return x + layer("projection", attended)


@pytest.mark.parametrize("num_kv_heads", [HEADS, 2, 1])
def test_cross_attention_against_loops_in_float64(x, num_kv_heads):
    context, lengths = normal(BATCH, 5, 3), np.array([5, 2])
    mask = jnp.asarray(np.arange(5) < lengths[:, None])[:, None, None]
    module = Attention(HEADS, num_kv_heads)
    variables = variables_of(module, x, context=context, mask=mask)
    output, cache = jax.jit(module.apply)(variables, x, context=context, mask=mask)
    looks = lambda example, _: np.arange(lengths[example])
    expected = reference_attention(variables["params"], x, context, looks, HEADS, num_kv_heads)
    # float32 against float64, logits of a few units that are exponentiated.
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4)
    assert cache is None


@pytest.mark.parametrize("num_kv_heads", [HEADS, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_masked_self_attention_against_loops_in_float64(x, num_kv_heads, causal):
    mask = RANDOM.random((BATCH, 1, LENGTH, LENGTH)) < 0.5
    mask[..., 0] = True
    module = Attention(HEADS, num_kv_heads, causal=causal)
    variables = variables_of(module, x)
    output, _ = jax.jit(module.apply)(variables, x, mask=jnp.asarray(mask))

    def looks(example, query):
        seen = np.flatnonzero(mask[example, 0, query])
        return seen[seen <= query] if causal else seen

    expected = reference_attention(variables["params"], x, x, looks, HEADS, num_kv_heads)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4)


def test_weights_are_recorded_for_every_head_of_the_queries(x):
    module = Attention(HEADS, num_kv_heads=2, causal=True)
    variables = variables_of(module, x)
    apply = jax.jit(lambda x: module.apply(variables, x, mutable=["intermediates"])[1])
    (weights,) = apply(x)["intermediates"]["weights"]
    assert weights.shape == (BATCH, HEADS, LENGTH, LENGTH)
    np.testing.assert_array_equal(np.triu(weights, 1), 0)
    layers = variables["params"]
    query, key = (x @ layers[n]["kernel"] + layers[n]["bias"] for n in ("query", "key"))
    logits = np.einsum("bqf,bkf->bqk", query[..., 4:8], key[..., :4]) / 2  # head 1 has key head 0
    expected = np.tril(np.exp(logits))
    np.testing.assert_allclose(weights[:, 1], expected / expected.sum(-1, keepdims=True), atol=1e-5)


def test_one_fused_layer_is_three_layers(x):
    """Its features are (head, which of the three, feature of the head)."""
    fused, apart = Heads(HEADS, fused=True), Heads(HEADS)
    variables = variables_of(fused, x)
    split = lambda a: np.moveaxis(a.reshape(*a.shape[:-1], HEADS, 3, -1), -2, 0)
    of_three = jax.tree.map(split, variables["params"]["query_key_value"])
    merge = lambda a: a.reshape(*a.shape[:-2], FEATURES)
    names = enumerate(("query", "key", "value"))
    params = {n: {k: merge(a[i]) for k, a in of_three.items()} for i, n in names}
    outputs = jax.jit(fused.apply)(variables, x), jax.jit(apart.apply)({"params": params}, x)
    for output, expected in zip(*outputs, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_tokens_without_positions_may_change_places(x):
    module, order = Attention(HEADS, qk_norm=True, norm=layer_norm()), RANDOM.permutation(LENGTH)
    variables = variables_of(module, x)
    apply = jax.jit(lambda x, rotations=None: module.apply(variables, x, rotations=rotations)[0])
    np.testing.assert_allclose(apply(x[:, order]), apply(x)[:, order], atol=1e-5)
    rotations = rotations_at(grid_positions(LENGTH))
    difference = apply(x[:, order], rotations) - apply(x, rotations)[:, order]
    assert np.abs(difference).max() > 0.1


def test_rotary_positions_matter_by_their_differences_alone(x):
    module = Attention(HEADS, num_kv_heads=2, qk_norm=True, causal=True)
    variables, positions = variables_of(module, x), grid_positions(LENGTH)
    apply = jax.jit(lambda x, rotations: module.apply(variables, x, rotations=rotations)[0])
    expected = apply(x, rotations_at(positions))
    np.testing.assert_allclose(apply(x, rotations_at(positions + 37)), expected, atol=1e-5)
    assert np.abs(apply(x, rotations_at(2 * positions)) - expected).max() > 0.1


ACTIVATIONS = {
    nn.silu: lambda a: a / (1 + np.exp(-a)),
    exact_gelu: lambda a: a * (1 + erf(a / np.sqrt(2))) / 2,
    nn.gelu: lambda a: a / (1 + np.exp(-np.sqrt(8 / np.pi) * (a + 0.044715 * a**3))),
}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_against_the_formula_in_float64(x, activation, gated):
    module = FeedForward(24, activation=activation, gated=gated)
    variables = variables_of(module, x)
    layers = jax.tree.map(np.float64, variables["params"])
    layer = lambda name, a: a @ layers[name]["kernel"] + layers[name]["bias"]
    inner, act = layer("mlp_in", np.float64(x)), ACTIVATIONS[activation]
    inner = act(layer("mlp_gate", np.float64(x))) * inner if gated else act(inner)
    expected = x + layer("mlp_out", inner)
    output = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("vectors", [(), (BATCH,), (BATCH, LENGTH)])
@pytest.mark.parametrize("module", [Attention(HEADS), FeedForward(24)])
def test_modulation_is_around_the_layer(x, module, vectors):
    """x + gate·layer(norm(x)·(1 + scale) + shift), with vectors for all, an example or a token."""
    tokens_out = lambda outputs: outputs[0] if isinstance(outputs, tuple) else outputs
    variables = variables_of(module, x)
    shift, scale, gate = normal(3, *vectors, FEATURES)
    modulated = module.clone(norm=nn.LayerNorm(use_bias=False, use_scale=False))
    output = jax.jit(lambda *a: tokens_out(modulated.apply(variables, *a)))(x, shift, scale, gate)

    of_tokens = lambda a: a[:, None] if len(vectors) == 1 else a
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    h = (x - x.mean(axis=-1, keepdims=True)) / deviation * (1 + of_tokens(scale)) + of_tokens(shift)
    layer = tokens_out(jax.jit(module.apply)(variables, h)) - h
    expected = x + of_tokens(gate) * layer
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class Block(nn.Module):
    """A language model's: RMS norms, grouped keys, rotary positions and SwiGLU."""

    causal: bool = True

    @nn.compact
    def __call__(self, carry, rotations, mask):
        x, cache = carry
        norm = nn.RMSNorm(name="attention_norm")
        attention = Attention(HEADS, 2, qk_norm=True, causal=self.causal, norm=norm)
        mlp = FeedForward(24, nn.RMSNorm(name="mlp_norm"), nn.silu, gated=True)
        x, cache = inline(self, attention)(x, rotations=rotations, mask=mask, cache=cache)
        return (inline(self, mlp)(x), cache), None


DEPTH, CAPACITY = 3, 9


def network(causal=True, unroll=1):
    """Scanned blocks, through which the cache is carried, with rotations and mask for all."""
    return scanned(Block, DEPTH, unroll)(causal=causal)


def test_layers_of_inlined_half_blocks_are_the_blocks_own(x):
    variables = variables_of(network(), (x, None), rotations_at(grid_positions(LENGTH)), None)
    assert variables["params"].keys() == {
        *("attention_norm", "query", "key", "value", "query_norm", "key_norm", "projection"),
        *("mlp_norm", "mlp_in", "mlp_gate", "mlp_out"),
    }


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [4, 1, 1], [2, 2, 2], [LENGTH]])
@pytest.mark.parametrize("unroll", [1, DEPTH])
def test_decoding_in_chunks_is_the_causal_computation(x, chunks, unroll):
    table = jnp.asarray(rotations_at(grid_positions(CAPACITY)))
    module = network(unroll=unroll)
    variables = variables_of(module, (x, None), table[:LENGTH], None)
    (expected, _), _ = jax.jit(module.apply)(variables, (x, None), table[:LENGTH], None)
    traces = []

    @jax.jit
    def decode(tokens, cache):
        traces.append(tokens.shape[1])
        rotations = jax.lax.dynamic_slice_in_dim(table, cache.length[0], tokens.shape[1])
        return module.apply(variables, (tokens, cache), rotations, None)[0]

    cache = empty_cache(DEPTH, BATCH, 2, CAPACITY, FEATURES // HEADS)
    assert cache.length.shape == (DEPTH,)
    outputs = []
    for chunk in np.split(x, np.cumsum(chunks)[:-1], axis=1):
        output, cache = decode(chunk, cache)
        outputs.append(output)
    # The same sums of float32 in another order, through three layers.
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, rtol=0, atol=1e-4)
    assert sorted(traces) == sorted(set(chunks))  # one program per length of chunk
    np.testing.assert_array_equal(cache.length, LENGTH)
    np.testing.assert_array_equal(cache.keys[..., LENGTH:, :], 0)


def test_a_token_reads_only_the_first_part_of_a_cache_that_is_mostly_empty(x, monkeypatch):
    """Parts of 2, 4, 8 and all places: what is not a number beyond a part is not read."""
    monkeypatch.setattr(transformer, "FIRST_PART", 2)
    module, rotations = network(), jnp.asarray(rotations_at(grid_positions(CAPACITY)))
    variables = variables_of(module, (x, None), rotations[:LENGTH], None)
    (expected, _), _ = jax.jit(module.apply)(variables, (x, None), rotations[:LENGTH], None)
    decode = jax.jit(lambda *a: module.apply(variables, *a)[0])
    cache, outputs = empty_cache(DEPTH, BATCH, 2, CAPACITY, FEATURES // HEADS), []
    for place in range(LENGTH):
        part = next(size for size in (2, 4, 8) if size > place)
        unread = lambda a, part=part: a.at[..., part:, :].set(jnp.nan)
        cache = cache._replace(keys=unread(cache.keys), values=unread(cache.values))
        token = x[:, place : place + 1], cache
        output, cache = decode(token, rotations[place : place + 1], None)
        outputs.append(output)
        cache = cache._replace(keys=jnp.nan_to_num(cache.keys), values=jnp.nan_to_num(cache.values))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, rtol=0, atol=1e-4)


def test_decoding_frame_by_frame_is_the_block_causal_computation(x):
    """Tokens of a frame attend to each other and to earlier frames, as in diffusion forcing."""
    frame = np.arange(LENGTH) // 2
    mask = jnp.asarray(frame[:, None] >= frame)[None, None]
    table = jnp.asarray(rotations_at(grid_positions(CAPACITY)))
    module = network(causal=False)
    variables = variables_of(module, (x, None), table[:LENGTH], None)
    (expected, _), _ = jax.jit(module.apply)(variables, (x, None), table[:LENGTH], mask)
    decode = jax.jit(module.apply)
    cache, outputs = empty_cache(DEPTH, BATCH, 2, CAPACITY, FEATURES // HEADS), []
    for start in range(0, LENGTH, 2):
        rotations = table[start : start + 2]
        (output, cache), _ = decode(variables, (x[:, start : start + 2], cache), rotations, None)
        outputs.append(output)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, rtol=0, atol=1e-4)


def test_a_mask_over_the_cache_hides_its_tokens(x):
    """A mask over the places of the cache: the first token is hidden from all later ones."""
    module = Attention(HEADS, causal=True)
    variables = variables_of(module, x)
    cache = empty_cache(BATCH, HEADS, CAPACITY, FEATURES // HEADS)
    decode = jax.jit(lambda x, cache, mask: module.apply(variables, x, mask=mask, cache=cache))
    mask = jnp.arange(CAPACITY)[None, None, None] > 0
    _, cache = decode(x[:, :1], cache, jnp.ones_like(mask))
    output, _ = decode(x[:, 1:], cache, mask)
    expected, _ = jax.jit(module.apply)(variables, x[:, 1:])
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_a_cache_of_bfloat16_stays_bfloat16(x):
    module = Attention(HEADS, causal=True, dtype=jnp.bfloat16)
    variables = variables_of(module, x)
    cache = empty_cache(BATCH, HEADS, CAPACITY, FEATURES // HEADS, dtype=jnp.bfloat16)
    apply = lambda x, cache: module.apply(variables, x, cache=cache)
    output, after = jax.eval_shape(apply, x, cache)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), cache
    )
    assert isinstance(after, Cache) and output.dtype == jnp.float32  # as the tokens that were given


def test_attention_is_by_the_one_function_without_copied_keys():
    module = Attention(HEADS, num_kv_heads=2, dtype=jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((BATCH, 512, FEATURES), jnp.float32)
    with attention_choices() as choices:
        jax.eval_shape(module.init, jax.random.key(0), tokens)
    (choice,) = choices
    assert choice.query == (BATCH, 1024, 2, 4) and choice.key == (BATCH, 512, 2, 4)


def test_every_kernel_is_split_over_tensor(x):
    """By outputs and then by inputs (Shoeybi et al. 2019, section 3)."""
    mesh = AbstractMesh((2,), ("tensor",), axis_types=(AxisType.Auto,))
    rotations = rotations_at(grid_positions(LENGTH))
    variables = variables_of(network(), (x, None), rotations, None)
    specs = {
        name: partition_spec(f"blocks/{name}/kernel", layer["kernel"].shape, mesh)
        for name, layer in variables["params"].items()
        if "kernel" in layer
    }
    columns = ("query", "key", "value", "mlp_in", "mlp_gate")
    assert specs == {name: PartitionSpec(None, None, "tensor") for name in columns} | {
        name: PartitionSpec(None, "tensor") for name in ("projection", "mlp_out")
    }


def test_one_norm_over_all_heads_keeps_their_ratios(x):
    plain, normed = Heads(HEADS), Heads(HEADS, width_norm=True)
    variables = jax.eval_shape(normed.init, jax.random.key(0), x)["params"]
    variables = jax.tree.map(lambda a: 1 + 0.5 * normal(*a.shape), variables)
    scales = [variables[name]["scale"] for name in ("query_norm", "key_norm")]
    assert {scale.shape for scale in scales} == {(FEATURES,)}
    *expected, value = jax.jit(plain.apply)({"params": variables}, x)
    *outputs, same = jax.jit(normed.apply)({"params": variables}, x)
    np.testing.assert_array_equal(same, value)
    for output, raw, scale in zip(outputs, expected, scales, strict=True):
        raw = np.asarray(raw, np.float64).reshape(BATCH, LENGTH, FEATURES)
        raw = scale * raw / np.sqrt(np.square(raw).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(output.reshape(raw.shape), raw, rtol=1e-5, atol=1e-6)
