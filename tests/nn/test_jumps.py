"""Networks that are told more than the time: counts, and outputs that stay as they were."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.dit import DiT, DiT_B, DiT_L, DiT_M, DiT_XL
from genjax.models.transformers.flux import Flux
from genjax.models.transformers.jit import JiT
from genjax.models.transformers.lightning_dit import LightningDiT
from genjax.models.transformers.mmdit import MMDiT
from genjax.models.transformers.pixart import PixArt
from genjax.nn import Text
from genjax.nn.jumps import jump_conditioning

BLOCKS = dict(patch_size=2, width=16, depth=2, num_heads=2)
SIZES = dict(num_classes=5, **BLOCKS)
X, T, LABELS = jnp.ones((3, 4, 4, 2)), jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 3, 5])
TEXT = Text(jnp.ones((3, 5, 6)), jnp.ones((3, 7)), jnp.arange(5) < jnp.array([[5], [2], [1]]))
END, GUIDANCE = T / 2, jnp.array([1.0, 2.0, 4.0])
count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "build, patch_size, expected",
    [
        (DiT_B, 4, 131_165_248),
        (DiT_B, 2, 131_091_472),
        (DiT_M, 2, 308_019_216),
        (DiT_L, 2, 459_137_040),
        (DiT_XL, 2, 676_440_592),
    ],
)
def test_mean_flows_networks_have_the_published_counts(build, patch_size, expected):
    """Gsunshine/meanflow's: DiT that is also told the length of the jump."""
    x, t = (
        jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
    )
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    network = build(patch_size=patch_size, takes_end_time=True)
    init = lambda x, t, label, end: network.init(jax.random.key(0), x, t, label, end_time=end)
    assert count(jax.eval_shape(init, x, t, label, t)) == expected


@pytest.mark.parametrize(
    ("teacher", "condition"),
    [
        (DiT(**SIZES), LABELS),
        (LightningDiT(**SIZES), LABELS),
        (JiT(class_tokens=2, start=1, **SIZES), LABELS),
        (PixArt(base_size=2, **BLOCKS), TEXT),
        (MMDiT(**BLOCKS), TEXT),
        (Flux(1, 1, 2, (2, 2, 4)), TEXT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_student_starts_as_its_teacher(teacher, condition):
    """With the teacher's parameters, the student's first output is bitwise the teacher's.

    With other values of its new parameters, the student's output differs.
    """
    student = teacher.clone(takes_end_time=True, takes_guidance=True)
    told = dict(end_time=END, guidance=GUIDANCE)
    key = jax.random.key(0)
    random = np.random.default_rng(0)
    noisy = functools.partial(
        jax.tree.map, lambda a: 0.2 * random.standard_normal(a.shape, np.float32)
    )
    variables = noisy(jax.eval_shape(teacher.init, key, X, T, condition))
    init = lambda: student.init(key, X, T, condition, **told)["params"]
    names = jax.eval_shape(init).keys() - variables["params"].keys()
    assert names == {"end_time_embedding", "guidance_embedding"}
    new = jax.jit(lambda: {name: params for name, params in init().items() if name in names})()
    started = {"params": variables["params"] | new}
    output = jax.jit(student.apply)
    first = output(started, X, T, condition, **told)
    np.testing.assert_array_equal(first, jax.jit(teacher.apply)(variables, X, T, condition))
    moved = {"params": variables["params"] | noisy(new)}
    base = output(moved, X, T, condition, **told)
    for name in told:
        other = output(moved, X, T, condition, **told | {name: told[name] + 0.3})
        assert jnp.abs(other - base).max() > 1e-3, name


class Told(nn.Module):
    """What a network of 8 features adds to its conditioning."""

    width: int = 8
    time_scale: float = 10.0
    param_dtype: type = jnp.float32
    takes_end_time: bool = True
    takes_guidance: bool = True

    @nn.compact
    def __call__(self, t, end_time, guidance):
        return jump_conditioning(self, t, end_time, guidance)


def test_a_jump_is_known_by_its_length_and_a_thousand_times_the_guidance():
    """Two layers on sinusoids of (t − s)·time_scale and of 1000·guidance, in float64."""
    shapes = jax.eval_shape(Told().init, jax.random.key(0), T, END, GUIDANCE)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: 0.1 * random.standard_normal(a.shape), shapes)

    def embedded(name, number):
        params = variables["params"][f"{name}_embedding"]
        layer = lambda part, x: x @ params[part]["kernel"] + params[part]["bias"]
        angles = np.float64(number)[:, None] * 10_000.0 ** (-np.arange(128) / 128)
        h = layer("linear_in", np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
        return layer("linear_out", h / (1 + np.exp(-h)))

    expected = embedded("end_time", 10 * (T - END)) + embedded("guidance", 1000 * GUIDANCE)
    found = jax.jit(Told().apply)(jax.tree.map(np.float32, variables), T, END, GUIDANCE)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # angles of up to 4,000 in float32


def test_what_a_network_does_not_take_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="takes_end_time=False, and end_time is given: do not"):
        jax.eval_shape(lambda: DiT(**SIZES).init(key, X, T, LABELS, end_time=END))
    with pytest.raises(ValueError, match="takes_guidance=True, and guidance is None: give it"):
        jax.eval_shape(lambda: DiT(**SIZES, takes_guidance=True).init(key, X, T, LABELS))
