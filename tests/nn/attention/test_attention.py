import functools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.test_util import check_grads

from genjax.devices.cost import multiply_adds
from genjax.nn import as_written, attention, attention_choices, forward_mode
from genjax.nn.attention.chunked import CHUNK_BYTES, chunk_length, chunked_attention
from genjax.nn.attention.dispatch import (
    CONTEXT_LENGTH,
    KERNEL_LENGTH,
    PLAIN_BYTES,
    attention_weights,
    choose_attention,
    current_platform,
    plain_attention,
)
from genjax.nn.attention.kernels import cudnn_attention, splash_attention

MODULE = sys.modules["genjax.nn.attention.dispatch"]  # `genjax.nn.attention` is the function
BATCH, QUERIES, KEYS, HEADS, FEATURES = 2, 5, 7, 3, 8


def reference(query, key, value, mask=None, bias=0.0, scale=FEATURES**-0.5):
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    output = np.empty(query.shape)
    for b, q, h in np.ndindex(query.shape[:3]):
        logits = scale * key[b, :, h] @ query[b, q, h]
        logits = logits + np.broadcast_to(bias, (BATCH, HEADS, QUERIES, KEYS))[b, h, q]
        weights = np.exp(logits - logits.max())
        if mask is not None:
            weights = weights * np.broadcast_to(mask, (BATCH, HEADS, QUERIES, KEYS))[b, h, q]
        output[b, q, h] = weights / weights.sum() @ value[b, :, h]
    return output


def small_inputs(dtype=jnp.float32):
    random = np.random.default_rng(0)
    shapes = [(BATCH, length, HEADS, FEATURES) for length in (QUERIES, KEYS, KEYS)]
    return [jnp.asarray(2 * random.standard_normal(shape), dtype) for shape in shapes]


@pytest.fixture(params=[jnp.float32, jnp.bfloat16])
def inputs(request):
    return small_inputs(request.param)


def check(output, inputs, mask=None, **options):
    assert output.dtype == inputs[0].dtype
    # float32 rounds by 6e-8 and bfloat16 by .002 relative, here amplified by logits of about ten.
    tolerance = 5e-6 if output.dtype == jnp.float32 else 0.03
    expected = reference(*inputs, mask, **options)
    assert (
        np.abs(np.asarray(output, np.float64) - expected).max() < tolerance * np.abs(expected).max()
    )


def test_against_float64(inputs):
    check(attention(*inputs), inputs)


@pytest.mark.parametrize(
    "shape", [(1, 1, QUERIES, KEYS), (BATCH, 1, 1, KEYS), (BATCH, HEADS, QUERIES, KEYS)]
)
def test_masks_broadcast(inputs, shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask[..., 2] = True  # every query may look somewhere
    check(attention(*inputs, jnp.asarray(mask)), inputs, mask)


@pytest.mark.parametrize("shape", [(1, HEADS, QUERIES, KEYS), (BATCH, 1, 1, KEYS)])
def test_biases_broadcast_and_the_scale_can_be_given(inputs, shape):
    bias = 3 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    mask = np.arange(KEYS) < KEYS - 2
    mask = mask[None, None, None]
    output = attention(*inputs, jnp.asarray(mask), jnp.asarray(bias), scale=0.5)
    check(output, inputs, mask, bias=bias, scale=0.5)


def test_one_query_is_the_first_of_several(inputs):
    """It has a product of its own, as in decoding token by token."""
    query, *others = inputs
    mask = jnp.asarray(np.random.default_rng(1).random((BATCH, HEADS, QUERIES, KEYS)) < 0.5)
    mask = mask.at[..., 2].set(True)
    alone = attention(query[:, :1], *others, mask[:, :, :1])
    several = np.asarray(attention(*inputs, mask)[:, :1], np.float32)
    assert alone.shape == several.shape and alone.dtype == query.dtype
    rounding = 5e-6 if query.dtype == jnp.float32 else 0.02  # sums in another order
    np.testing.assert_allclose(np.asarray(alone, np.float32), several, atol=rounding, rtol=rounding)


def test_causal_mask_cuts_gradients_of_later_keys():
    random = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(a, jnp.float32) for a in random.standard_normal((3, 1, 4, 1, FEATURES))
    )
    mask = jnp.tril(jnp.ones((4, 4), bool))[None, None]
    gradient = jax.grad(lambda value: attention(query, key, value, mask)[0, 1].sum())(value)
    assert np.all(gradient[0, :2] != 0) and np.all(gradient[0, 2:] == 0)


def test_large_logits_do_not_overflow():
    query, key = (
        jnp.full((1, 1, 1, FEATURES), 100.0),
        jnp.full((1, 2, 1, FEATURES), 100.0).at[0, 1].set(101),
    )
    value = jnp.array([0.0, 1.0])[None, :, None, None].repeat(FEATURES, -1)
    output = attention(
        query, key, value
    )  # logits of 28,284 and 28,567: their exponentials are infinite
    np.testing.assert_array_equal(output, np.ones((1, 1, 1, FEATURES)))


def test_a_query_that_may_look_nowhere_stays_finite():
    inputs = (jnp.ones((1, 1, 1, FEATURES)),) * 3
    loss = lambda *inputs: attention(*inputs, jnp.zeros((1, 1, 1, 1), bool)).sum()
    for a in jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2))(*inputs)):
        assert np.all(np.isfinite(a))


def test_logits_keep_float32_precision_in_bfloat16():
    """Logits a quarter of a bfloat16 step apart would have equal weights if rounded."""
    query = jnp.ones((1, 1, 1, 64), jnp.bfloat16)
    key = jnp.full((1, 2, 1, 64), 16, jnp.bfloat16).at[0, 1, 0, 0].set(18)  # logits 128 and 128.25
    value = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None].repeat(64, -1)
    output = np.asarray(attention(query, key, value), np.float64)
    np.testing.assert_allclose(
        output, 1 / (1 + np.exp(-0.25)), atol=0.002
    )  # the output's own rounding


def test_forward_and_backward_derivatives_agree():
    random = np.random.default_rng(0)
    inputs, directions = (
        tuple(jnp.asarray(a, jnp.float32) for a in random.standard_normal((3, 1, 6, 2, FEATURES)))
        for _ in range(2)
    )
    output, derivative = jax.jvp(attention, inputs, directions)
    gradients = jax.vjp(attention, *inputs)[1](output)
    expected = sum(jnp.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(jnp.vdot(output, derivative), expected, rtol=1e-4)


def test_the_weights_alone_are_kept_for_their_gradient():
    shape, keys = (BATCH, QUERIES, HEADS, FEATURES), (BATCH, KEYS, HEADS, FEATURES)
    query, key = jax.random.normal(jax.random.key(0), shape), jnp.ones(keys)
    weights = lambda query: attention_weights(jnp.asarray(query), key)
    check_grads(weights, (query,), order=2)
    kept = jax.vjp(lambda key: attention_weights(query, key), key)[1]
    of_logits = [
        leaf for leaf in jax.tree.leaves(kept) if leaf.shape[:3] == (BATCH, HEADS, QUERIES)
    ]
    assert [leaf.shape for leaf in of_logits] == [(BATCH, HEADS, QUERIES, KEYS)]


@pytest.mark.parametrize("chunk", [3, KEYS])
@pytest.mark.parametrize("shape", [(BATCH, 1, 1, KEYS), (BATCH, HEADS, QUERIES, KEYS)])
def test_chunks_against_float64(inputs, chunk, shape):
    random = np.random.default_rng(1)
    mask = random.random(shape) < 0.5
    mask[..., 5] = True  # not in the first chunk
    bias = 3 * random.standard_normal((1, HEADS, QUERIES, KEYS)).astype(np.float32)
    output = chunked_attention(*inputs, jnp.asarray(mask), jnp.asarray(bias), 0.5, chunk=chunk)
    check(output, inputs, mask, bias=bias, scale=0.5)


def value_and_gradients(function, *arguments):
    output, backward = jax.vjp(function, *arguments)
    return output, *backward(
        jnp.cos(jnp.arange(output.size)).reshape(output.shape).astype(output.dtype)
    )


def check_equal(actual, expected):
    # Sums in another order; with bfloat16, weights, outputs and gradients are rounded by .002 each.
    tolerance = 5e-6 if expected[0].dtype == jnp.float32 else 0.02
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() < tolerance * np.abs(b).max()


FORMS = {
    "chunked": functools.partial(chunked_attention, chunk=3),
    "forward_mode": functools.partial(chunked_attention, chunk=3, forward_mode=True),
    "cudnn": lambda q, k, v, m, bias, scale: cudnn_attention(
        q, k, v, m, scale, implementation="xla"
    ),
    "splash": lambda q, k, v, m, bias, scale: splash_attention(q, k, v, m, scale, interpret=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_form_has_the_plain_gradients(inputs, form, masked):
    keys = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1, 1]], bool)
    mask = jnp.asarray(keys)[:, None, None] if masked else None
    function = lambda form: lambda *inputs: form(*inputs, mask, None, 0.5)
    actual = jax.jit(functools.partial(value_and_gradients, function(FORMS[form])))(*inputs)
    check_equal(actual, value_and_gradients(function(plain_attention), *inputs))


@pytest.mark.parametrize("form", ["chunked", "forward_mode"])
@pytest.mark.parametrize("shape", [(1, 1, QUERIES, KEYS), (BATCH, HEADS, 1, KEYS)])
def test_gradients_of_bias_and_masks_of_all_shapes(form, shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask[..., 5] = True
    inputs = small_inputs()
    bias = jnp.asarray(np.random.default_rng(2).standard_normal(shape), jnp.float32)
    function = lambda form: lambda *inputs: form(*inputs[:3], jnp.asarray(mask), inputs[3], None)
    actual = jax.jit(functools.partial(value_and_gradients, function(FORMS[form])))(*inputs, bias)
    check_equal(actual, value_and_gradients(function(plain_attention), *inputs, bias))


def test_the_kernels_blocks_cover_lengths_of_several():
    random = np.random.default_rng(0)
    shapes = [(1, length, 1, 8) for length in (530, 1100, 1100)]  # blocks of 384
    inputs = [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]
    check_equal([jax.jit(FORMS["splash"])(*inputs, None, None, None)], [plain_attention(*inputs)])


@pytest.mark.parametrize("form", FORMS)
def test_a_query_that_may_look_nowhere_stays_finite_in_every_form(form):
    inputs, mask = small_inputs(), jnp.zeros((BATCH, 1, 1, KEYS), bool)
    function = lambda *inputs: FORMS[form](*inputs, mask, None, None)
    actual = jax.jit(functools.partial(value_and_gradients, function))(*inputs)
    for a in actual:
        assert np.all(np.isfinite(np.asarray(a, np.float64)))
    if form == "cudnn":  # which is not asked for the attention to no key
        np.testing.assert_array_equal(
            actual[0], jnp.broadcast_to(inputs[2][:, :1], actual[0].shape)
        )


def test_second_derivatives_of_chunks():
    inputs = [a / 2 for a in small_inputs()]

    def penalty(form, *inputs):
        gradients = jax.grad(lambda *inputs: jnp.sum(form(*inputs) ** 2), argnums=(0, 1, 2))(
            *inputs
        )
        return sum(jnp.sum(g**2) for g in gradients)

    by_all = lambda form: jax.jit(jax.grad(functools.partial(penalty, form), argnums=(0, 1, 2)))(
        *inputs
    )
    check_equal(by_all(functools.partial(chunked_attention, chunk=2)), by_all(plain_attention))


def test_forward_mode_is_told_by_a_context(monkeypatch):
    inputs = small_inputs()
    expected = jax.jvp(plain_attention, inputs, inputs)
    monkeypatch.setattr(MODULE, "PLAIN_BYTES", 0)
    jitted = jax.jit(attention)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(jitted, inputs, inputs)
    with forward_mode(True):
        check_equal(jax.jvp(jitted, inputs, inputs), expected)


def test_small_attention_on_a_cpu_is_the_plain_program():
    program = lambda form: jax.jit(lambda *inputs: form(*inputs)).lower(*small_inputs()).as_text()
    assert program(attention) == program(plain_attention)


def test_chunks_bound_the_memory_of_a_backward_pass():
    shape = jax.ShapeDtypeStruct((1, 2048, 2, 8), jnp.float32)

    def temporary_bytes(form):
        loss = lambda *inputs: jnp.sum(form(*inputs) ** 2)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 2 * 2048**2
    assert temporary_bytes(plain_attention) > logits
    # A chunk has a sixteenth of the logits, of which some five arrays are there at once.
    assert temporary_bytes(functools.partial(chunked_attention, chunk=128)) < logits / 2


def test_length_of_a_chunk():
    assert chunk_length((1, 4096, 16, 64), 1000) == 500  # 512 keys at most, so two chunks
    assert chunk_length((1, 4096, 16, 64), 512) == 512 and 4 * 16 * 4096 * 512 == CHUNK_BYTES
    assert chunk_length((8, 65536, 16, 64), 1024) == 128  # fewer keys are not worth a product
    assert chunk_length((1, 5, 1, 8), 3) == 3


LARGE = (4, 4096, 16, 64)  # 4 GiB of logits
PADDING, CAUSAL = (4, 1, 1, 4096), (1, 1, 4096, 4096)


@pytest.mark.parametrize(
    ("form", "platform", "shape", "dtype", "options"),
    [
        ("plain", "cpu", (8, 512, 8, 64), "float32", {}),
        ("plain", "cpu", (8, 512, 8, 64), "bfloat16", {}),
        ("chunked", "cpu", LARGE, "bfloat16", {}),
        ("plain", "cpu", (1, 4096, 16, 64), "float32", {}),  # PLAIN_BYTES exactly
        ("cudnn", "cuda", LARGE, "bfloat16", {}),
        ("cudnn", "cuda", LARGE, "float16", {}),
        ("cudnn", "cuda", LARGE, "bfloat16", dict(mask_shape=PADDING)),
        ("chunked", "cuda", LARGE, "float32", {}),
        ("chunked", "cuda", LARGE, "bfloat16", dict(mask_shape=CAUSAL)),
        ("chunked", "cuda", LARGE, "bfloat16", dict(bias_shape=CAUSAL)),
        ("chunked", "cuda", LARGE, "bfloat16", dict(forward_mode=True)),
        ("chunked", "cuda", (4, 4096, 16, 256), "bfloat16", {}),
        ("plain", "cuda", (4, 512, 16, 36), "bfloat16", {}),
        ("plain", "cuda", (4, KERNEL_LENGTH - 1, 16, 64), "bfloat16", {}),
        ("chunked", "gpu", LARGE, "bfloat16", {}),
        ("splash", "tpu", LARGE, "bfloat16", {}),
        (
            "splash",
            "tpu",
            (4, KERNEL_LENGTH, 16, 72),
            "bfloat16",
            dict(mask_shape=(1, 1, 1, KERNEL_LENGTH)),
        ),
        ("short", "tpu", (4, KERNEL_LENGTH, 16, 72), "bfloat16", {}),
        ("chunked", "tpu", LARGE, "bfloat16", dict(placed=False)),
        ("chunked", "tpu", LARGE, "float32", {}),
        ("chunked", "tpu", LARGE, "bfloat16", dict(mask_shape=CAUSAL)),
        ("chunked", "tpu", LARGE, "bfloat16", dict(bias_shape=PADDING)),
        ("plain", "tpu", (4, 512, 16, 64), "bfloat16", dict(forward_mode=True)),
        ("all_to_all", "tpu", LARGE, "bfloat16", dict(context=8, mask_shape=CAUSAL)),
        ("ring", "cpu", (4, 4096, 12, 64), "float32", dict(context=8, forward_mode=True)),
        ("plain", "cpu", (4, 8 * CONTEXT_LENGTH - 1, 12, 64), "float32", dict(context=8)),
    ],
)
def test_choices(form, platform, shape, dtype, options):
    assert choose_attention(platform, shape, shape, dtype, **options) == form
    assert PLAIN_BYTES == 2**30


def test_few_keys_are_no_matter_for_kernels_or_exchanges():
    few = (4, 77, 16, 64)
    assert choose_attention("tpu", LARGE, few, "bfloat16") == "plain"
    assert choose_attention("tpu", LARGE, few, "bfloat16", context=8) == "plain"


def test_platforms(monkeypatch):
    mesh = AbstractMesh(
        (1,), ("data",), (AxisType.Auto,), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert current_platform() == "tpu"
    with jax.default_device("cpu"):
        assert current_platform() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, platform in [
        ("7.5", "gpu"),
        ("8.0", "cuda"),
        ("10.0", "cuda"),
        ("gfx942", "gpu"),
    ]:
        monkeypatch.setattr(
            jax, "devices", lambda _, c=capability: [SimpleNamespace(compute_capability=c)]
        )
        assert current_platform() == platform


def lowered(dtype=jnp.bfloat16, platform="tpu", **axes):
    """What attention with its gradients becomes for a platform, under a mesh of its devices."""
    device = AbstractDevice("", 1, platform)
    axes = axes or dict(data=1)
    types = (AxisType.Auto,) * len(axes)
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), types, abstract_device=device)
    length = 2 * KERNEL_LENGTH + 1
    heads = jax.ShapeDtypeStruct((2, length, 2, 16), dtype)
    mask = jax.ShapeDtypeStruct((2, 1, 1, length), bool)
    function = lambda mask, *inputs: value_and_gradients(
        lambda *inputs: attention(*inputs, mask), *inputs
    )
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(function).trace(mask, heads, heads, heads)
        return lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()


def test_choices_are_recorded_while_programs_are_traced(monkeypatch):
    query, key = (jax.ShapeDtypeStruct((2, length, 2, 16), jnp.bfloat16) for length in (513, 300))
    function = jax.jit(lambda *inputs: attention(*inputs))
    trace = lambda: function.trace(query, key, key)
    trace()
    with attention_choices() as choices:
        trace()  # anew
        with attention_choices() as inner:
            trace()
    trace()  # not heard of
    expected = "plain: 2 × 513 queries, 300 keys, 2 heads of 16"
    assert [str(choice) for choice in choices] == [str(choice) for choice in inner] == [expected]

    # Planned for, on a machine that has none: what each of 4 devices does. In place of the GPU's
    # kernel, chunks are traced.
    for platform, form in {"tpu": "splash", "gpu": "cudnn"}.items():
        with attention_choices() as choices:
            text = lowered(platform=platform, data=2, tensor=2)
        assert choices == {(form, (1, 513, 1, 16), (1, 513, 1, 16))}
        assert ("tpu_custom_call" in text("tpu")) == (form == "splash")
    with attention_choices() as choices:
        lowered(data=2, context=2)
    # the exchange between devices, and what each then does with its head
    assert choices == {
        ("all_to_all", (1, 257, 2, 16), (1, 257, 2, 16)),
        ("splash", (1, 514, 1, 16), (1, 514, 1, 16)),  # filled up, to divide
    }
    # To few keys, each device has its part of the queries, and a kernel if these are enough, or all
    # if they do not divide.
    mesh = AbstractMesh(
        (4,), ("context",), (AxisType.Auto,), abstract_device=AbstractDevice("", 1, "tpu")
    )
    for length, expected in {
        1028: ("short", 257),
        512: ("plain", 128),
        1030: ("short", 1030),
    }.items():
        queries = jax.ShapeDtypeStruct((2, length, 2, 16), jnp.bfloat16)
        with jax.sharding.use_abstract_mesh(mesh), attention_choices() as choices:
            jax.eval_shape(attention, queries, key, key)
        assert [(choice.form, choice.query[1], choice.key[1]) for choice in choices] == [
            (*expected, 300)
        ]


def test_products_as_they_are_written(monkeypatch):
    """Two forward, four backward; chunks repeat logits, and multiply outputs by their gradients."""
    monkeypatch.setattr(MODULE, "PLAIN_BYTES", 0)
    heads = jax.ShapeDtypeStruct((2, 64, 3, 8), jnp.float32)
    loss = lambda *inputs: attention(*inputs).sum()
    count = lambda: multiply_adds(jax.value_and_grad(loss, (0, 1, 2)), heads, heads, heads)
    product = 2 * 3 * 64 * 64 * 8
    assert count() == 7 * product + 2 * 64 * 3 * 8
    with as_written(True), attention_choices() as choices:
        assert count() == 6 * product
    assert {choice.form for choice in choices} == {"plain"}


def test_tpus_kernel_is_compiled_ahead_of_time_on_any_machine():
    # Each device has its part of 2 examples and 2 heads; 513 tokens are filled up to two blocks of
    # 384.
    parts = {
        "2x2x768": {},
        "2x768": dict(data=2),
        "2x1x768": dict(tensor=2),
        "1x768": dict(data=2, context=2),
    }
    for part, axes in parts.items():
        text = lowered(**axes)
        calls = [line for line in text("tpu").splitlines() if "@tpu_custom_call" in line]
        assert len(calls) == 3  # forward, and backward for the query and for the others
        assert all(f"tensor<{part}x16xbf16>" in call for call in calls)
        assert "@tpu_custom_call" not in text("cpu")
    assert "@tpu_custom_call" not in lowered(jnp.float32)("tpu")
    with forward_mode(True):
        assert "@tpu_custom_call" not in lowered()("tpu")


@pytest.mark.parametrize(("devices", "kernels"), [(1, 1), (8, 0)])
def test_without_a_mesh_a_machine_of_several_tpus_has_no_kernel(monkeypatch, devices, kernels):
    monkeypatch.setattr(MODULE, "current_platform", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    heads = jax.ShapeDtypeStruct((1, KERNEL_LENGTH, 1, 16), jnp.bfloat16)
    text = (
        jax.jit(lambda *inputs: attention(*inputs))
        .trace(heads, heads, heads)
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    assert text.count("@tpu_custom_call") == kernels


def test_gpus_kernel_and_what_stands_in_for_it_elsewhere(monkeypatch):
    # JAX asks for cuDNN while it traces, and has none here.
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(MODULE, "current_platform", lambda: "cuda")
    for axes in ({}, dict(data=2), dict(fsdp=2, tensor=2)):
        text = lowered(platform="gpu", **axes)
        assert (
            text("cuda").count("@__cudnn$fmhaSoftmax(")
            == text("cuda").count("@__cudnn$fmhaSoftmaxBackward(")
            == 1
        )
        assert "cudnn" not in text("cpu")
    random = np.random.default_rng(0)
    inputs = [
        jnp.asarray(a, jnp.bfloat16) for a in random.standard_normal((3, 1, KERNEL_LENGTH, 1, 8))
    ]
    check_equal(
        jax.jit(functools.partial(value_and_gradients, attention))(*inputs),
        value_and_gradients(plain_attention, *inputs),
    )
