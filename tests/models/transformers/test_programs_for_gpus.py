"""What JAX lowers transformers to for GPUs, read before it is compiled, so without a GPU."""

import importlib
import math
import re

import jax
import jax.numpy as jnp
import pytest

from genjax.models.transformers.dit import DiT
from genjax.models.transformers.flux import Flux
from genjax.nn import Text

DISPATCH = importlib.import_module("genjax.nn.attention.dispatch")
BATCH, SIDE, WIDTH = 2, 64, 256  # 32×32 tokens, as many as cuDNN's attention takes
HEAD = 4 * 16  # features of the last layer, which is float32


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def dit():
    network = DiT(patch_size=2, width=WIDTH, depth=2, num_heads=4, num_classes=10, dtype="bfloat16")
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return network, array(BATCH, SIDE, SIDE, 16), array(BATCH), labels


def flux():
    network = Flux(
        num_double_blocks=1,
        num_single_blocks=1,
        num_heads=4,
        rotary_features=(16, 24, 24),
        dtype="bfloat16",
    )
    text = Text(array(BATCH, 128, 64), array(BATCH, 64))
    return network, array(BATCH, SIDE, SIDE, 16), array(BATCH), text


@pytest.fixture(params=[(dit, 1), (flux, 2)], ids=["dit", "flux"])
def gradient(request, monkeypatch):
    """The lowered gradient of a network, line by line, and how often it attends."""
    # JAX asks for cuDNN while it traces, and has none here.
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rotation = importlib.import_module("genjax.nn.attention.normed_rotation")
    for module in (DISPATCH, rotation, importlib.import_module("genjax.nn.dense")):
        monkeypatch.setattr(module, "current_platform", lambda: "cuda")
    make, attentions = request.param
    network, *inputs = make()
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    loss = lambda *args: jnp.sum(network.apply(*args).astype(jnp.float32))
    traced = jax.jit(jax.grad(loss)).trace(variables, *inputs)
    return traced.lower(lowering_platforms=("cuda",)).as_text().splitlines(), attentions


def large(line, dtype=r"\w+"):
    """Whether a line has an array of `dtype` as large as a stream of image tokens."""
    shapes = re.findall(rf"tensor<((?:\d+x)+){dtype}>", line)
    return any(
        math.prod(map(int, shape.split("x")[:-1])) >= BATCH * (SIDE // 2) ** 2 * WIDTH
        for shape in shapes
    )


def test_nothing_is_transposed_around_the_kernel(gradient):
    """JAX transposes what cuDNN returns, which it asks to write so that this copies nothing.

    These are one output and three gradients for each attention.
    """
    lines, attentions = gradient
    kernels = [line for line in lines if "@__cudnn$fmhaSoftmax" in line]
    assert len(kernels) == 2 * attentions
    transposed = []
    for line in lines:
        if "stablehlo.transpose" in line and large(line):
            transposed += re.findall(r"transpose (%\d+)#", line)  # a result of several
            assert re.search(r"transpose %\d+#", line), line
    made = [re.search(r"(%\d+):\d+ = stablehlo.custom_call", line)[1] for line in kernels]
    assert len(transposed) == 4 * attentions and set(transposed) <= set(made)
    in_memory = "".join(line.partition("result_layouts")[2] for line in kernels)
    assert in_memory.count("dense<[3, 1, 2, 0]>") == 4 * attentions


def test_no_product_or_kernel_takes_large_arrays_in_float32(gradient):
    """But for the last layer, which is float32. XLA fuses the casts of norms with their passes."""
    lines, _ = gradient
    apart = re.compile(r"stablehlo\.(dot_general|custom_call|transpose|gather|reverse)\b")
    found = [line for line in lines if apart.search(line) and large(line, "f32")]
    assert [line for line in found if f"x{HEAD}xf32>" not in line] == []
