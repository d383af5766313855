"""Which attention the methods take on accelerators: none that `jax.jvp` cannot differentiate."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from experiments.configuration.runs import build
from genjax.nn import attention_choices
from tests.experiments.distilled_run import BATCH_SIZE, student_config

DISPATCH = importlib.import_module("genjax.nn.attention.dispatch")
WITHOUT_TEACHER = "MeanFlow", "ImprovedMeanFlow", "ContinuousConsistency", "Shortcut"


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("method", WITHOUT_TEACHER)
def test_a_method_takes_the_kernel_unless_it_takes_derivatives(method, platform, monkeypatch):
    """The training step of a network in bfloat16 is traced, for a platform that has kernels.

    Tracing fails where `jax.jvp` has to differentiate a kernel.
    """
    monkeypatch.setattr(DISPATCH, "KERNEL_LENGTH", 4)  # so that four tokens are enough for one
    config = student_config(method)
    config.model.update(dtype="bfloat16", width=32)
    task = build(config)
    kind = {"tpu": "TPU v5", "cuda": "NVIDIA H100"}[platform]
    device = AbstractDevice(kind, 1, platform)
    mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH_SIZE, 8, 8, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.int32),
    }
    with jax.sharding.use_abstract_mesh(mesh), attention_choices() as choices:
        state = jax.eval_shape(task.init, jax.random.key(0))
        choices.clear()  # initialization takes no derivative
        jax.eval_shape(task.update, state, batch, jax.random.key(1))
    kernels = {"tpu": {"short"}, "cuda": {"cudnn"}}[platform]
    forms = {choice.form for choice in choices}
    assert forms == ({"plain"} if task.method.forward_mode else kernels)
