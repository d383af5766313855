import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import decode, guide, guided, pair, sample
from genjax.models.autoregressive import llamagen
from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.prefixes import ClassPrefix, TextPrefix
from genjax.nn import Text

BATCH, VOCABULARY, GRID = 3, 7, (2, 3)
LENGTH = math.prod(GRID)
RANDOM = np.random.default_rng(0)
SIZE = dict(vocabulary=VOCABULARY, grid=GRID, width=16, depth=2, num_heads=2)
NETWORKS = {"class": LlamaGen(prefix=ClassPrefix(5), **SIZE)}
NETWORKS["text"] = LlamaGen(prefix=TextPrefix(4), **SIZE)
MASK = np.arange(4) >= np.array([0, 2, 3])[:, None]  # padding comes before the text
CONDITIONS = {
    "class": jnp.asarray([0, 4, 5]),
    "text": Text(
        jnp.asarray(RANDOM.standard_normal((BATCH, 4, 6), np.float32)), mask=jnp.asarray(MASK)
    ),
}
TOKENS = jnp.asarray(RANDOM.integers(0, VOCABULARY, (BATCH, LENGTH)))


def variables_of(name):
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(NETWORKS[name].init, jax.random.key(0), TOKENS, CONDITIONS[name])
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def count(network, condition):
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0), tokens, condition)
    return sum(a.size for a in jax.tree.leaves(variables))


# Counted in the authors' code, autoregressive/models/gpt.py.
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("B", 110_888_448),
        ("L", 342_910_976),
        ("XL", 774_699_520),
        ("XXL", 1_410_972_672),
        ("1B", 1_199_616_000),
        ("3B", 3_096_659_200),
        ("7B", 6_614_589_440),
    ],
)
def test_parameter_counts(size, expected):
    network = getattr(llamagen, f"LlamaGen_{size}")()
    assert count(network, jax.ShapeDtypeStruct((1,), jnp.int32)) == expected


def test_parameter_count_with_text():
    text = Text(jax.ShapeDtypeStruct((1, 120, 2048), jnp.float32))
    assert count(llamagen.LlamaGen_XL(prefix=TextPrefix()), text) == 777_678_080


def test_logits_are_not_rounded_to_the_type_of_products():
    network = NETWORKS["class"].clone(dtype=jnp.bfloat16)
    variables = variables_of("class")
    call = lambda variables: network.apply(variables, TOKENS, CONDITIONS["class"])
    logits, gradients = call(variables), jax.grad(lambda v: call(v).var())(variables)
    assert logits.dtype == jnp.float32
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))
    assert np.all(np.isfinite(gradients["params"]["head"]["kernel"]))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("given", [0, 2])
def test_cached_logits_are_those_of_the_whole_sequence(name, given):
    network, variables = NETWORKS[name], variables_of(name)
    expected = jax.jit(network.apply)(variables, TOKENS, CONDITIONS[name])
    first = TOKENS[:, :given] if given else None
    prefill = jax.jit(functools.partial(network.apply, method="prefill"))
    step = functools.partial(network.apply, variables, method="step")
    step = jax.jit(step, donate_argnums=0)
    logits, state = prefill(variables, CONDITIONS[name], first)
    shapes = jax.tree.map(jnp.shape, state)
    outputs = [logits]
    for position in range(given, LENGTH - 1):
        before = state.layers
        logits, state = step(state, TOKENS[:, position], jnp.asarray(position))
        assert before.keys.is_deleted()  # the new cache is where the old one was
        outputs.append(logits)
    # The same sums of float32 in another order.
    np.testing.assert_allclose(jnp.stack(outputs, 1), expected[:, given:], rtol=0, atol=1e-5)
    assert jax.tree.map(jnp.shape, state) == shapes


def test_decoding_updates_the_cache_where_it_is():
    """The compiled loops over tokens and layers copy neither the cache nor a layer's part whole."""
    network = LlamaGen(VOCABULARY, (8, 16), 16, 3, 2, ClassPrefix(5))
    labels = jnp.zeros(2, jnp.int32)

    def run(variables, keys):
        logits, state = network.apply(variables, labels, method="prefill")
        step = functools.partial(network.apply, variables, method="step")
        return decode(keys, step, logits, state, 8)

    tokens = jnp.zeros((2, 4), jnp.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0), tokens, labels)
    program = jax.jit(run).lower(variables, jax.random.split(jax.random.key(0), 2)).compile()
    copied = re.findall(r"= f32\[(?:3,|1,)2,2,129,8\]\S* copy\(", program.as_text())
    assert len(copied) <= 2  # of keys and values, before the loop


def test_the_loop_over_tokens_does_not_slice_the_layers_weights():
    """XLA slices the matrices of stacked layers once, before the loop."""
    network = LlamaGen(VOCABULARY, (8, 16), 16, 3, 2, ClassPrefix(5), unroll=3)
    labels, tokens = jnp.zeros(2, jnp.int32), jnp.zeros((2, 4), jnp.int32)

    def run(variables, state, tokens):
        step = functools.partial(network.apply, variables, method="step")
        return jax.lax.fori_loop(0, 8, lambda i, state: step(state, tokens, i)[1], state)

    variables = jax.eval_shape(network.init, jax.random.key(0), tokens, labels)
    _, state = jax.eval_shape(functools.partial(network.apply, method="prefill"), variables, labels)
    text = jax.jit(run).lower(variables, state, labels).compile().as_text()
    computations = dict(re.findall(r"^(?:ENTRY )?(%\S+) \(.*?$(.*?)^}", text, re.M | re.S))
    (body,) = re.findall(r"while\(.*body=(%[^,\s]+)", text)
    matrix = r"= f32\[(?:16,256|256,16|16,16)\]\S* "
    assert re.search(matrix + "get-tuple-element", computations[body])
    assert not re.search(matrix + "(?!get-tuple-element)", computations[body])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_token_depends_on_all_before_it_and_on_no_other(name):
    """By gradients of each token's logits by the embeddings of the tokens at all places."""
    network, variables = NETWORKS[name], variables_of(name)
    tokens = jnp.arange(LENGTH)[None]  # a token for each place
    condition = jax.tree.map(lambda a: a[:1], CONDITIONS[name])

    def logits(embedding):
        params = variables["params"] | {"token_embedding": {"embedding": embedding}}
        return (network.apply({"params": params}, tokens, condition) ** 2).sum((0, 2))

    jacobian = jax.jit(jax.jacrev(logits))(variables["params"]["token_embedding"]["embedding"])
    depends = np.abs(jacobian).max(-1)[:, :LENGTH] > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((LENGTH, LENGTH), bool), -1))


def test_padding_of_a_text_is_hidden():
    network, variables, text = NETWORKS["text"], variables_of("text"), CONDITIONS["text"]
    apply = jax.jit(network.apply)
    other = text.replace(tokens=np.where(MASK[..., None], text.tokens, 9.0))
    expected = apply(variables, TOKENS, text)
    np.testing.assert_allclose(apply(variables, TOKENS, other), expected, atol=1e-5)
    whole = apply(variables, TOKENS, other.replace(mask=jnp.ones_like(text.mask)))
    assert np.abs(whole - expected)[1:].max() > 0.1


def test_the_first_loss_is_that_of_uniform_logits():
    network = LlamaGen(vocabulary=16_384, grid=(2, 2), width=8, depth=1, num_heads=1)
    tokens, labels = jnp.arange(4)[None], jnp.zeros(1, int)
    logits = jax.jit(lambda key: network.apply(network.init(key, tokens, labels), tokens, labels))(
        jax.random.key(0)
    )
    loss = -jax.nn.log_softmax(logits)[0, jnp.arange(4), tokens[0]]
    np.testing.assert_allclose(loss, 9.70406, rtol=1e-6)  # ln 16384


def test_guided_greedy_decoding_is_that_of_two_uncached_networks():
    """û + 3(ĉ − û) of whole sequences, the most likely token appended each time."""
    network, variables, labels = NETWORKS["class"], variables_of("class"), CONDITIONS["class"]
    apply = jax.jit(network.apply)

    @jax.jit
    def run(keys, labels, guidance_scale):
        first, state = network.apply(variables, pair(labels, 5), method="prefill")
        step = guide(functools.partial(network.apply, variables, method="step"), guidance_scale)
        law = functools.partial(sample, temperature=0.0)
        return decode(keys, step, guided(first, guidance_scale), state, LENGTH, law)

    tokens = run(jax.random.split(jax.random.key(0), BATCH), labels, 3.0)
    expected = jnp.zeros((BATCH, LENGTH), jnp.int32)
    for place in range(LENGTH):
        c, u = (apply(variables, expected, a)[:, place] for a in (labels, jnp.full(BATCH, 5)))
        expected = expected.at[:, place].set(jnp.argmax(u + 3 * (c - u), axis=-1))
    np.testing.assert_array_equal(tokens, expected)


def test_what_does_not_fit_is_refused():
    init = lambda name, *a: jax.eval_shape(NETWORKS[name].init, jax.random.key(0), *a)
    with pytest.raises(ValueError, match="a grid of 2×3 has 6 tokens; got 7"):
        init("class", jnp.zeros((1, 7), int), jnp.zeros(1, int))
    prefill = functools.partial(NETWORKS["class"].init_with_output, method="prefill")
    with pytest.raises(ValueError, match="6 tokens are given of a grid that has 6; give fewer"):
        jax.eval_shape(prefill, jax.random.key(0), jnp.zeros(BATCH, int), TOKENS)
    with pytest.raises(ValueError, match="takes 4 states of a text; got 0"):
        init("text", TOKENS, Text(jnp.zeros((BATCH, 0, 6))))
