"""Averages against explicit weighted sums of a history of parameters, in float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.training.ema import (
    HalfLife,
    PowerFunction,
    power_of_width,
    update_average,
)
from genjax.training.posthoc import Snapshots, inner_products, posthoc_coefficients

STEPS = 1000


@pytest.fixture(scope="module")
def history():
    """Parameters after each of the updates: a random walk that settles."""
    steps = (
        np.random.default_rng(0).standard_normal((STEPS, 16))
        / np.sqrt(np.arange(1, STEPS + 1))[:, None]
    )
    return np.cumsum(steps, axis=0)


def track(rule, history, start):
    """The average after every update, in float64."""
    with jax.enable_x64(True):

        def update(average, inputs):
            average = update_average(average, inputs[1], inputs[0], rule)
            return average, average

        inputs = jnp.arange(len(history)), jnp.asarray(history)
        return np.asarray(jax.lax.scan(update, jnp.asarray(start), inputs)[1])


def power_weights(power, step):
    """Return each update's share until `step`: the profile's integral over the update."""
    return np.diff((np.arange(step + 1) / step) ** (power + 1))


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_power_function_is_the_weighted_sum_of_the_history(history, width):
    averages = track(
        PowerFunction(width), history, start=np.full(16, 1e6)
    )  # which the first update forgets
    for step in (1, 2, 10, STEPS):
        expected = power_weights(power_of_width(width), step) @ history[:step]
        np.testing.assert_allclose(averages[step - 1], expected, rtol=1e-9, atol=1e-9)


def test_half_life_is_the_weighted_sum_of_the_history(history):
    start, half_life = np.ones(16), 50.0
    decays = np.minimum(0.5 ** (1 / half_life), (1 + np.arange(STEPS)) / (10 + np.arange(STEPS)))
    later = np.append(
        np.cumprod(decays[::-1])[::-1][1:], 1.0
    )  # product of the decays after each update
    expected = later * (1 - decays) @ history + np.prod(decays) * start
    np.testing.assert_allclose(track(HalfLife(half_life), history, start)[-1], expected, rtol=1e-10)


def test_half_life_is_what_it_says():
    """Once warmed up, parameters of `steps` steps ago count half."""
    impulse = np.zeros((3000, 1))
    impulse[2000] = 1.0
    averages = track(HalfLife(100.0), impulse, np.zeros(1))[2000:, 0]
    np.testing.assert_allclose(averages[[100, 200]] / averages[0], [0.5, 0.25], rtol=1e-10)


def test_the_default_is_a_decay_of_999():
    old, new = HalfLife(692.8).shares(jnp.int32(10**6))
    assert old == np.float32(0.999)
    np.testing.assert_allclose(new, 1 - 0.5 ** (1 / 692.8), rtol=1e-7)  # 1 − old is 1.4e-5 off


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_an_average_keeps_its_type(types):
    average, params = (jnp.ones(2, dtype) for dtype in types)
    found = update_average(average, params, jnp.int32(5), HalfLife(50.0))
    assert found.dtype == types[0]


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_width_of_the_tracked_profile_is_the_one_asked_for(width):
    """The profile is read off as the average of one-hot parameters."""
    steps = 2000
    rule = PowerFunction(width)
    profile = track(rule, np.eye(steps), np.zeros(steps))[-1]
    time = (np.arange(steps) + 0.5) / steps
    mean = profile @ time
    measured = np.sqrt(profile @ (time - mean) ** 2)
    np.testing.assert_allclose(profile.sum(), 1, rtol=1e-10)
    np.testing.assert_allclose(measured, width, rtol=1e-3)


def test_widths_and_powers_of_the_paper():
    assert power_of_width(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_of_width(0.10) == pytest.approx(6.94, abs=5e-3)
    for power in (0.0, 1.0, 16.97, 1e4):
        width = math.sqrt(power + 1) / ((power + 2) * math.sqrt(power + 3))  # equation 123
        assert power_of_width(width) == pytest.approx(power, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3])
def test_impossible_widths(width):
    with pytest.raises(ValueError, match="above 0 and at most 1/√12 ≈ 0.2887; got"):
        PowerFunction(width)
    with pytest.raises(ValueError, match="positive number of steps; got -1"):
        HalfLife(-1.0)


def test_late_shares_keep_their_digits_in_float32():
    old, new = jax.jit(PowerFunction(0.1).shares)(jnp.int32(10**6 - 1))
    exact = -np.expm1((power_of_width(0.1) + 1) * np.log1p(-1e-6))
    np.testing.assert_allclose(new, exact, rtol=1e-6)


def test_inner_products_against_quadrature():
    t, power = np.array([3.0, 7.0, 7.0]), np.array([0.5, 2.0, 16.97])
    tau = (np.arange(200_000) + 0.5) * 7 / 200_000
    profiles = (power[:, None] + 1) * tau ** power[:, None] / t[:, None] ** (power[:, None] + 1)
    profiles *= tau < t[:, None]
    quadrature = profiles @ profiles.T * 7 / 200_000
    np.testing.assert_allclose(inner_products(t, power, t, power), quadrature, rtol=1e-4)


def reconstruction_error(history, every, width, step=STEPS, tracked=(0.05, 0.1)):
    """Relative to the spread of the parameters: 0 is exact."""
    steps = range(every, step + 1, every)
    stored = {w: track(PowerFunction(w), history, history[0]) for w in tracked}
    sources = [(s, w, stored[w][s - 1]) for s in steps for w in tracked]
    coefficients = posthoc_coefficients(
        [s for s, _, _ in sources], [w for _, w, _ in sources], step, width
    )
    exact = track(PowerFunction(width), history, history[0])[step - 1]
    return np.abs(coefficients @ np.array([a for _, _, a in sources]) - exact).max() / history.std()


@pytest.mark.parametrize("width", [0.06, 0.12, 0.2])
def test_other_widths_are_reconstructed_better_from_denser_snapshots(history, width):
    errors = [reconstruction_error(history, every, width) for every in (250, 100, 25)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 1e-3, errors


@pytest.mark.parametrize(("step", "width"), [(1000, 0.05), (1000, 0.1), (600, 0.1)])
def test_a_stored_average_is_given_back(step, width):
    steps, widths = np.repeat(np.arange(100, 1001, 100), 2), np.tile([0.05, 0.1], 10)
    coefficients = posthoc_coefficients(steps.tolist(), widths.tolist(), step, width)
    itself = (steps == step) & (widths == width)
    np.testing.assert_allclose(coefficients, itself, atol=1e-8)


@pytest.mark.parametrize("width", [0.02, 0.08, 0.25])
def test_parameters_that_stand_still_are_their_own_average(width):
    """A narrow and a wide profile from two snapshots, whose least squares sum to 0.7 and 0.6."""
    steps, widths = [500, 500, 1000, 1000], [0.05, 0.1, 0.05, 0.1]
    coefficients = posthoc_coefficients(steps, widths, 1000, width)
    np.testing.assert_allclose(coefficients.sum(), 1)


def tree(average):
    """A tree of parameters, float32 and bfloat16, with the numbers of one average."""
    return {
        "blocks": {"kernel": jnp.asarray(average[:8].reshape(2, 4), jnp.float32)},
        "head": {"bias": jnp.asarray(average[8:], jnp.bfloat16)},
    }


@pytest.fixture
def snapshots(history, tmp_path):
    """Every 50 steps, of two widths."""
    snapshots = Snapshots(tmp_path / "ema")
    stored = {width: track(PowerFunction(width), history, history[0]) for width in (0.05, 0.1)}
    for step in range(50, STEPS + 1, 50):
        snapshots.save(
            step, {width: tree(averages[step - 1]) for width, averages in stored.items()}
        )
    return snapshots, lambda step: {
        width: tree(averages[step - 1]) for width, averages in stored.items()
    }


@pytest.mark.parametrize("step", [630, 1000])
def test_files_give_the_average_in_the_types_of_the_parameters(history, snapshots, step):
    snapshots, now = snapshots
    found = snapshots.reconstruct(step, now(step), 0.07)
    exact = tree(track(PowerFunction(0.07), history, history[0])[step - 1])
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), exact
    )
    # a thousandth of the walk's spread, and two roundings to bfloat16
    np.testing.assert_allclose(
        found["blocks"]["kernel"], exact["blocks"]["kernel"], atol=1e-3 * history.std()
    )
    np.testing.assert_allclose(
        *(np.float32(a["head"]["bias"]) for a in (found, exact)), rtol=2**-7, atol=2e-2
    )


def test_a_stored_average_comes_back_from_its_file(snapshots):
    snapshots, now = snapshots
    found = snapshots.reconstruct(1000, now(1000), 0.05)["blocks"]["kernel"]
    np.testing.assert_allclose(found, now(1000)[0.05]["blocks"]["kernel"], rtol=1e-6, atol=1e-6)


def test_a_run_that_goes_on_from_a_step_forgets_what_lay_beyond_it(snapshots):
    snapshots, now = snapshots
    (snapshots.directory / "00000600_0.05.tmp").write_bytes(b"cut short")
    snapshots.begin(620)
    assert max(step for step, _, _ in snapshots.stored()) == 600
    assert not list(snapshots.directory.glob("*.tmp"))
    before = snapshots.reconstruct(630, now(630), 0.07)
    snapshots.save(
        700, jax.tree.map(lambda a: a * jnp.nan, now(700))
    )  # of a later step: not to be read
    jax.tree.map(np.testing.assert_array_equal, snapshots.reconstruct(630, now(630), 0.07), before)


def test_steps_of_snapshots_may_have_nine_digits(tmp_path, history):
    snapshots = Snapshots(tmp_path)
    for step in (123456789, 99999999):
        snapshots.save(step, {0.1: tree(history[0])})
    assert [each[:2] for each in snapshots.stored()] == [(99999999, 0.1), (123456789, 0.1)]


def test_a_width_of_numpy_names_the_same_file(tmp_path, history):
    snapshots = Snapshots(tmp_path)
    snapshots.save(50, {np.float64(0.1): tree(history[0])})
    (stored,) = snapshots.stored()
    assert stored == (50, 0.1, tmp_path / "00000050_0.1.npz")


def test_averages_of_other_names_are_refused(snapshots):
    """Their sum with the stored ones would be no average."""
    snapshots, now = snapshots
    inner = {width: {"inside": average} for width, average in now(1000).items()}
    with pytest.raises(ValueError, match="in only one of the averages given and those stored in"):
        snapshots.reconstruct(1000, inner, 0.07)


def test_averages_may_be_arrays_of_numpy(snapshots):
    snapshots, now = snapshots
    found = [
        snapshots.reconstruct(1000, jax.tree.map(cast, now(1000)), 0.07)
        for cast in (np.asarray, jnp.asarray)
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_snapshot_that_a_stop_prevented_is_taken_when_the_run_goes_on(snapshots):
    """A run that stops at step 600 saves its state, and has no time for the snapshot."""
    snapshots, now = snapshots
    files = {path.name: path.read_bytes() for _, _, path in snapshots.stored()}
    snapshots.begin(599)
    snapshots.go_on(620, 50, now(620))  # not due
    assert {path.name for _, _, path in snapshots.stored()} == {
        n for n in files if int(n[:8]) <= 550
    }
    snapshots.go_on(600, 50, now(600))
    expected = {name: content for name, content in files.items() if int(name[:8]) <= 600}
    assert {path.name: path.read_bytes() for _, _, path in snapshots.stored()} == expected
    (snapshots.directory / "00000600_0.1.npz").unlink()  # a kill between the files of one step
    snapshots.go_on(600, 50, now(600))
    assert {path.name: path.read_bytes() for _, _, path in snapshots.stored()} == expected


def test_an_empty_folder_is_no_obstacle(tmp_path, history):
    snapshots = Snapshots(tmp_path / "absent")
    stored = {0.1: tree(history[0])}
    snapshots.go_on(0, 50, stored)
    assert not snapshots.stored()  # an average of no steps has no profile
    jax.tree.map(np.testing.assert_array_equal, snapshots.reconstruct(1, stored, 0.1), stored[0.1])
