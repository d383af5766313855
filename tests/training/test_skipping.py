"""Which steps explode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Line, State, batches

from genjax.devices import make_mesh
from genjax.training import Checkpoints, Explosions, NonFiniteError, Plugin, train
from genjax.training.log import Mean, Metrics, read_metrics
from genjax.training.skipping import WINDOW, Watched, keep_usual, recent_metrics, watch

EXPLOSIONS = Explosions(("loss", "norm"), 6.0)


def test_limits_are_means_and_deviations_of_what_is_known():
    """By NumPy in double precision, where half of the window, or more, is known."""
    values = np.random.default_rng(0).lognormal(size=(WINDOW, 3)).astype(np.float32)
    values[5, 0], values[7:71, 1], values[7:72, 2] = np.inf, np.nan, np.nan
    known = [np.delete(values[:, 0], 5), np.r_[values[:7, 1], values[71:, 1]]]
    expected = [np.mean(v, dtype=float) + 6 * np.std(v, ddof=1, dtype=float) for v in known]
    found = Explosions(("a", "b", "c"), 6.0).limits(jnp.asarray(values))
    np.testing.assert_allclose(
        found, [*expected, np.inf], rtol=128 * 2**-24
    )  # sums of 128 in float32


@pytest.mark.parametrize("constant", [0.0, 0.1, 3e5])
def test_a_constant_metric_does_not_say_what_is_usual(constant):
    values = jnp.full((WINDOW, 1), constant)
    assert Explosions(("a",), 6.0).limits(values) == jnp.inf
    little = constant + jnp.linspace(-1, 1, WINDOW)[:, None] * max(constant, 1.0) / 1000
    assert Explosions(("a",), 6.0).limits(little) < 1.01 * max(constant, 1.0)


class Exploding(Line):
    """Explode at steps 70, 71 and 150 in the norm and at step 80 in the loss; be NaN at step 90."""

    def update(self, state, batch, key):
        new, metrics = super().update(state, batch, key)
        step, usual = new.step, 1 + 0.1 * jax.random.uniform(jax.random.fold_in(key, 1), (2,))
        norm = jnp.where((step == 70) | (step == 71) | (step == 150), 1e20, usual[0])
        loss = jnp.where(
            step == 80, 2.0, usual[1]
        )  # 2 is 33 deviations of .1 / sqrt(12) above 1.05
        slope = jnp.where(step == 90, jnp.nan, new.slope + norm)
        return State(step, slope), {"loss": loss, "norm": norm}


def fit(folder, num_steps=160, explosions=EXPLOSIONS, max_skipped_steps=5, plugins=()):
    return train(
        Exploding(),
        batches,
        num_steps=num_steps,
        seed=1,
        mesh=make_mesh({"data": -1}, 8),
        checkpoints=Checkpoints(folder / "checkpoints"),
        checkpoint_every=0,
        log_path=folder / "metrics.jsonl",
        log_every=10,
        max_skipped_steps=max_skipped_steps,
        explosions=explosions,
        plugins=plugins,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder), read_metrics(folder / "metrics.jsonl")


def test_steps_that_explode_are_left_out_and_counted(whole):
    """By hand: the state stays, its step goes on. One explosion does not hide the next."""
    state, rows = whole
    task, (init_key, key) = Exploding(), jax.random.split(jax.random.key(1))
    expected, update = task.init(init_key), jax.jit(task.update)
    for step, batch in zip(range(1, 161), batches(0), strict=False):
        new, _ = update(expected, batch, jax.random.fold_in(key, expected.step))
        expected = expected._replace(step=new.step) if step in (70, 71, 80, 90, 150) else new
    assert int(state.step) == 160
    # Other fusions round otherwise, by 2⁻²⁴ of numbers up to 12 in each of 160 steps, of which the
    # pull back to 3 keeps about ten.
    np.testing.assert_allclose(state.slope, expected.slope, rtol=20 * 2**-24)
    skipped = {row["step"]: row["skipped_steps"] for row in rows}
    assert [skipped[step] for step in (60, 70, 80, 90, 140, 150, 160)] == [0, 1, 3, 4, 4, 5, 5]
    assert all(row["norm"] < 1.1 for row in rows)


def test_what_is_usual_survives_a_stop_to_the_last_bit(whole, tmp_path):
    """After steps 79 and 149, after which one more explodes."""
    for num_steps in (79, 149, 160):
        state = fit(tmp_path, num_steps)
    np.testing.assert_array_equal(state.slope, whole[0].slope)
    skipped = [row["skipped_steps"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert skipped[-1] == 5


def test_a_mean_of_nothing_does_not_explode():
    """As a penalty's between its steps. The next value still has its limit."""
    explosions = Explosions(("penalty",), 6.0)
    usual = np.random.default_rng(0).normal(1, 0.1, (WINDOW, 1)).astype(np.float32)
    old = Watched(State(jnp.int32(5), jnp.float32(2)), jnp.asarray(usual), ("penalty",))
    new = State(jnp.int32(6), jnp.float32(3))
    for total, count, slope in ((0.0, 0.0, 3), (4.0, 4.0, 3), (400.0, 4.0, 2)):
        metrics = Metrics.pack({"penalty": Mean(jnp.float32(total), jnp.float32(count))})
        kept, _ = keep_usual(old, new, metrics, explosions)
        assert kept.state.slope == slope


def test_a_metric_that_was_not_watched_before_is_not_measured_by_another():
    """A run goes on with the norm in place of the loss, or beside the loss."""
    mesh, loss = make_mesh({"data": -1}, 8), [float(step) for step in range(WINDOW)]
    for names in (("norm",), ("norm", "loss")):
        watched = watch(
            State(jnp.int32(5), jnp.float32(2)), Explosions(names, 6.0), {"loss": loss}, mesh
        )
        assert np.isnan(watched.recent[:, 0]).all()
    assert recent_metrics(watched)["loss"] == loss and recent_metrics(watched.state) == {}


def test_checkpoints_of_earlier_versions_have_rows_without_names():
    mesh, state = make_mesh({"data": -1}, 8), State(jnp.int32(5), jnp.float32(2))
    rows = np.random.default_rng(0).normal(size=(WINDOW, 2)).astype(np.float32)
    for names in (["loss", "norm"], ["loss"]):
        watched = watch(state, Explosions(names, 6.0), rows.tolist(), mesh)
        if len(names) == 2:
            np.testing.assert_array_equal(watched.recent, rows)
    assert np.isnan(watched.recent).all() and watched.recent.shape == (WINDOW, 1)
    hash(jax.tree.structure(watched))  # a jitted step is kept by it


def test_too_many_explosions_stop_the_run(tmp_path):
    with pytest.raises(
        NonFiniteError, match="step 80 is not finite or explodes, and 2 were skipped"
    ):
        fit(tmp_path, max_skipped_steps=2)


def test_it_may_be_switched_on_and_off_when_a_run_goes_on(tmp_path):
    """Plugins and checkpoints get the plain state."""
    seen = []
    plugin = Plugin(50, lambda state, step: seen.append(type(state)))
    run = functools.partial(fit, tmp_path, plugins=[plugin])
    run(69)
    run(75, explosions=None)
    run(79)
    assert seen == [State] * 4
