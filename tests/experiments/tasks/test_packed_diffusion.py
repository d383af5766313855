"""Packed rows train as their clips would one by one."""

import functools
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from configs import moving_digits_video
from experiments.configuration.runs import build
from experiments.inputs.datasets import abstract_batch, training_batches
from experiments.launch import encoding
from experiments.tasks.packed_diffusion import PackedDiffusion
from genjax.data import to_float
from genjax.devices import make_mesh
from genjax.nn import Text, attention_choices
from genjax.training import Checkpoints
from genjax.training.sampling import sample
from tests import virtual_devices
from tests.experiments import small_video
from tests.test_video_configs import small

KEY, PATCH = jax.random.key(1), (1, 8, 8)
# Compiles in less time, for programs that run a few times.
QUICK = {"xla_backend_optimization_level": 0}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


@pytest.fixture(autouse=True)
def nothing_published(monkeypatch):
    small_video.use_block_means(monkeypatch)


def varied(folder, **fields):
    """Return a config of pixels: clips of 5 frames and of one, half of them wide."""
    config = small(moving_digits_video.get_config("packed"), folder)
    config.data.update(name="tests.experiments.small_video.load_varied", image_shape=(5, 16, 16, 1))
    config.data.buckets = dict(multiple=8, max_ratio=4.0, frames=(5, 1))
    config.space = dict(name="Pixels")
    config.packing = dict(length=30, slots=2)
    config.batch_size = 2
    config.model.patch_size = PATCH
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def batches_of(config, task):
    return training_batches(config, task, make_mesh({"data": 1}, config.batch_size))


def perturbed(task):
    """Return parameters with which the output is not zero."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0)).params
    return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), shapes)


def alone(batch, *of_tokens):
    """Yield each clip of a batch: its row, its slot, and its videos of arrays of patches."""
    for row, segments in enumerate(np.asarray(batch["segments"])):
        for slot in range(segments.max() + 1):
            own = segments == slot
            grid = np.asarray(batch["positions"])[row, own].max(0) + 1
            sizes = dict(zip("thwpqr", (*grid.tolist(), *PATCH), strict=True))
            pattern = "(t h w) (p q r) c -> 1 (t p) (h q) (w r) c"
            yield row, slot, [rearrange(a[row, own], pattern, **sizes) for a in of_tokens]


OTHERS = {
    "process.name": "VariancePreservingCosine",
    "target.name": "clean",
    "weighting.name": "sigmoid",
    "loss.direction_weight": 0.5,
}


def test_the_loss_is_that_of_the_clips_one_by_one(tmp_path, monkeypatch):
    """Weighted by their tokens, with the same noise and times. The gradient is the same too.

    Neither depends on what stands in the rows' tails. Attention is plain, and in chunks.
    """
    config = varied(tmp_path, conditioning_dropout=0.0, **OTHERS)
    task, random = build(config), np.random.default_rng(1)
    batch, params = batches_of(config, task)[0], perturbed(task)
    noise = random.standard_normal(batch["video"].shape, np.float32)
    u = random.random((2, 2), np.float32)
    objective, (frozen,) = task.objective, task.frozen()

    def packed(params, batch, noise):
        loss = functools.partial(objective.loss, noise=noise)
        fixed = replace(objective, loss=loss, variates=lambda key, shape: jnp.asarray(u))
        return replace(task, objective=fixed)._loss(params, batch, KEY, None, frozen)[0]

    def one_by_one(params):
        apply, total, count = functools.partial(task.network.apply, {"params": params}), 0, 0
        texts = [jnp.asarray(batch[name]) for name in ("tokens", "pooled", "mask")]
        for row, slot, (x, z) in alone(batch, to_float(batch["video"]), jnp.asarray(noise)):
            text = Text(*(a[row, slot][None] for a in texts))
            options = dict(variates=lambda key, shape, place=(row, slot): jnp.full(shape, u[place]))
            (each,), _ = objective.losses(KEY, apply, jnp.asarray(x), text, noise=z, **options)
            total, count = total + x.size * each, count + x.size
        return total / count

    expected = quick_jit(jax.value_and_grad(one_by_one))(params)
    # Sums of float32 in another order. The gradient by the bias of keys is 0 but for rounding.
    largest = max(np.abs(a).max() for a in jax.tree.leaves(expected))
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5 * largest)
    tail = (batch["segments"] < 0)[..., None, None]
    other = batch | {"video": np.where(tail, np.uint8(255), batch["video"])}
    assert tail.any() and len({x.shape for *_, (x,) in alone(batch, batch["video"])}) > 1
    for form in ("plain", "chunked"):
        with attention_choices() as choices:
            derivative = quick_jit(jax.value_and_grad(packed))
            found = derivative(params, batch, noise)
        assert form in {choice.form for choice in choices}
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        jax.tree.map(same, found, expected)
        changed = derivative(params, other, np.where(tail, np.float32(9), noise))
        jax.tree.map(np.testing.assert_array_equal, changed, found)
        monkeypatch.setattr(sys.modules["genjax.nn.attention.dispatch"], "PLAIN_BYTES", 0)


def test_clips_draw_times_and_conditions_of_their_own(tmp_path):
    """The network is a stand-in that shows what it is given."""
    config = varied(tmp_path, conditioning_dropout=0.5, batch_size=6)
    seen = {}

    class Shown(PackedDiffusion):
        def _apply(self, params, frozen):
            def network(x_t, t, text, segments, positions, method):
                seen.update(t=t, tokens=text.tokens, x_t=x_t)
                return jnp.zeros_like(x_t)

            return network

    task = Shown(**vars(build(config)))
    batch = jax.tree.map(jnp.asarray, batches_of(config, task)[0])
    _, (_, counts) = task._loss({}, batch, KEY, None, *task.frozen())
    real = batch["segments"] >= 0
    assert float(counts.sum()) == real.sum()
    times = [
        {float(t) for t in np.asarray(seen["t"])[row, batch["segments"][row] == slot]}
        for row, slot, _ in alone(batch)
    ]
    assert all(len(each) == 1 for each in times) and len(set().union(*times)) == len(times)
    kept = [
        bool(np.all(seen["tokens"][row, slot] == batch["tokens"][row, slot]))
        for row, slot, _ in alone(batch)
    ]
    assert 0 < sum(kept) < len(kept)
    patches = np.asarray(seen["x_t"])[real]
    assert len(np.unique(patches)) > 0.999 * patches.size  # each pixel has noise of its own


@pytest.mark.slow
def test_latents_train_resume_bitwise_and_are_sampled_whole(tmp_path):
    config = small(moving_digits_video.get_config("packed"), tmp_path, f"{tmp_path}/latents")
    encoding.write(config)
    config.packing = dict(length=32, slots=8, frames=(5, 3, 1))  # a frame has 4 patches
    task = build(config)
    batches, (frozen,) = batches_of(config, task), task.frozen()
    shapes = abstract_batch(config, task)
    assert {name: (a.shape, a.dtype) for name, a in shapes.items()} == {
        name: (a.shape, a.dtype) for name, a in batches[0].items() if name != "index"
    }
    update = quick_jit(task.update)
    middle, metrics = update(quick_jit(task.init)(jax.random.key(0)), batches[0], KEY, frozen)
    assert metrics["real_tokens"] == (batches[0]["segments"] >= 0).mean() > 0.8
    end, _ = update(middle, batches[1], KEY, frozen)
    assert update._cache_size() == 1
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, middle)
        checkpoints.wait()
        resumed = jax.device_get(checkpoints.restore(1, jax.eval_shape(task.init, KEY)))
    again, _ = update(resumed, batches_of(config, task)[1], KEY, frozen)
    jax.tree.map(np.testing.assert_array_equal, again, end)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), end.averages["ema"], middle.params)
    assert max(jax.tree.leaves(moved)) > 0
    samples = sample(task, end, np.arange(2), config.sampling)
    assert samples.shape == (2, 17, 16, 16, 1)


class Whole(nn.Module):
    """A network of whole clips alone."""

    width: int
    depth: int
    num_heads: int
    unroll: int
    patch_size: tuple[int, int, int]
    absolute_positions: bool

    @nn.compact
    def __call__(self, x_t, t, condition):
        return x_t


SPLIT = """
import sys
import jax
from experiments.configuration.runs import build
from genjax.devices import make_mesh
from genjax.devices.mesh import place_batch
from genjax.training import init_state, place_frozen
from genjax.training.loop import compile_update
from tests.experiments.tasks import test_packed_diffusion as tests
config = tests.varied(sys.argv[1])
task, key = build(config), jax.random.key(0)
for axes in ({"data": 1}, {"data": 2}):
    mesh = make_mesh(axes, 2, jax.devices()[: axes["data"]])
    state, frozen = init_state(task, key, mesh), place_frozen(task, mesh)
    with jax.set_mesh(mesh):
        update = compile_update(task, state, mesh, frozen)
        for step in range(2):
            batch = place_batch(tests.training_batches(config, task, mesh)[step], mesh)
            state, metrics = update(state, batch, key, *frozen)
    print(metrics["loss"], metrics["norm/gradient/total"])
"""


@pytest.mark.slow
def test_rows_split_over_devices_have_the_loss_and_gradient_of_one_device(tmp_path):
    """The rows have different numbers of tokens; sums of float32 are in another order."""
    lines = virtual_devices.run(["-c", SPLIT, tmp_path], 2).splitlines()
    one, two = ([float(number) for number in line.split()] for line in lines)
    np.testing.assert_allclose(two, one, rtol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model.name": "tests.experiments.tasks.test_packed_diffusion.Whole"},
            "takes no packed rows",
        ),
        ({"loss.name": "given_frames_loss"}, "without time_axes"),
        ({"loss.time_axes": 2}, "without time_axes"),
        ({"data.flip": True}, "config.data.flip to False"),
        ({"accumulation_steps": 2}, "set it to 1"),
        ({"space": {"name": "Latents", "published": "block_means"}}, "encoded before"),
        ({"packing": {"length": 30}}, "dict.length=…, slots=…."),
        ({"packing.length": 9}, "a clip of 20 patches does not fit in a row of 9"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_compute(fields, message, tmp_path):
    config = varied(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        batches_of(config, build(config))
