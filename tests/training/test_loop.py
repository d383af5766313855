import contextlib
import functools
import itertools
import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Line, batches

from genjax.devices import make_mesh
from genjax.devices.cost import peak_operations
from genjax.devices.mesh import batch_sharding
from genjax.training import Checkpoints, Interrupted, NonFiniteError, Plugin, train
from genjax.training.progress import ProgressBar
from genjax.training.signals import StopSignals
from tests import virtual_devices


def fit(folder, task=None, num_steps=20, plugins=(), data=batches, profile_at=None, **schedule):
    return train(
        task or Line(),
        data,
        num_steps=num_steps,
        seed=1,
        mesh=make_mesh({"data": -1}, 8),
        checkpoints=Checkpoints(folder / "checkpoints"),
        log_path=folder / "metrics.jsonl",
        plugins=plugins,
        profile_at=profile_at,
        **dict(checkpoint_every=5, log_every=4) | schedule,
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_learns_logs_and_saves(tmp_path):
    state = fit(tmp_path, num_steps=200)
    assert int(state.step) == 200
    np.testing.assert_allclose(
        state.slope, 3, atol=0.15
    )  # noise of 0.01 a step, gain 0.1: deviation .023
    assert [row["step"] for row in rows(tmp_path)] == list(range(4, 201, 4))
    assert {"loss", "seconds", "steps_per_second"} <= rows(tmp_path)[0].keys()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "00000190",
        "00000195",
        "00000200",
    ]


def test_batches_that_end_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no batch for step 4 of 20: give batches that"):
        fit(tmp_path, data=lambda start: itertools.islice(batches(start), 3))


def test_logged_losses_are_means_of_the_steps_they_stand_for(tmp_path):
    fit(tmp_path, num_steps=8)
    task, (init_key, key) = Line(), jax.random.split(jax.random.key(1))
    state, losses = task.init(init_key), []
    for _, batch in zip(range(8), batches(0), strict=False):
        state, metrics = task.update(state, batch, jax.random.fold_in(key, state.step))
        losses.append(float(metrics["loss"]))
    # eager and compiled sums differ in the last bits of float32
    np.testing.assert_allclose(
        [row["loss"] for row in rows(tmp_path)], np.reshape(losses, (2, 4)).mean(1), rtol=1e-5
    )


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = fit(tmp_path / "a")
    fit(tmp_path / "b", num_steps=11)
    with open(tmp_path / "b" / "metrics.jsonl", "a") as log:
        log.write('{"step": 12, "los')  # a kill in the middle of a line
    resumed = fit(tmp_path / "b")
    np.testing.assert_array_equal(whole.slope, resumed.slope)
    kept = [(row["step"], row["loss"]) for row in rows(tmp_path / "b")]
    assert [step for step, _ in kept] == [4, 8, 11, 12, 16, 20]
    assert kept[-2:] == [(row["step"], row["loss"]) for row in rows(tmp_path / "a")][-2:]


def test_losses_logged_after_a_stop_within_a_window_are_the_uninterrupted_ones(tmp_path):
    """Checkpoints are every 5 steps, and windows 4: of steps 5 to 8, 9 to 12, 13 to 16."""

    def fail(state, step):
        if step in (6, 17):  # goes on from 5, and from 15
            raise RuntimeError

    for name in "ab":
        (tmp_path / name).mkdir()
    fit(tmp_path / "a")
    for num_steps in (20, 11, 20):  # the second ends within a window
        with contextlib.suppress(RuntimeError):
            fit(
                tmp_path / "b",
                num_steps=num_steps,
                plugins=[Plugin(1, fail)] if num_steps == 20 else [],
            )
    fit(tmp_path / "b")
    losses = {row["step"]: row["loss"] for row in rows(tmp_path / "b")}
    assert losses.pop(11)
    assert list(losses.items()) == [(row["step"], row["loss"]) for row in rows(tmp_path / "a")]


@pytest.mark.parametrize("task", [Line(nan_at=13), Line(break_at=13)], ids=["metric", "parameter"])
def test_not_finite_stops_with_the_step_and_saves_nothing_after(tmp_path, task):
    with pytest.raises(NonFiniteError, match="step 13|step 14") as raised:
        fit(tmp_path, task)
    assert "step 10" in str(raised.value)  # the last good checkpoint
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5, 10]
    assert Checkpoints(tmp_path / "checkpoints").latest() == 10


def test_a_parameter_that_breaks_at_a_save_is_not_saved(tmp_path):
    with pytest.raises(NonFiniteError, match="not finite after step 15.*step 10"):
        fit(tmp_path, Line(break_at=15))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5, 10]


STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def send(number):
    return lambda state, step: signal.raise_signal(number)


def assert_stops_with(number, call):
    with pytest.raises(BaseException) as raised:
        call()
    assert isinstance(raised.value, Interrupted) and raised.value.signal_number == number


def test_signals_of_schedulers_and_lost_terminals_stop_too(tmp_path):
    """Also in the last step, and in a plugin, which is cut short."""
    for number in STOPPING:  # without a handler most of them would end this process
        before = signal.signal(number, lambda *_: None)
        workdir = tmp_path / number.name
        workdir.mkdir()
        finished = []

        def plugin(state, step, number=number, finished=finished):
            send(number)(state, step)
            finished.append(step)  # not reached: the handler runs before the next instruction

        for every in (7, 20):
            call = functools.partial(fit, workdir, plugins=[Plugin(every, plugin)])
            assert_stops_with(number, call)
            assert Checkpoints(workdir / "checkpoints").latest() == every and not finished
        signal.signal(number, before)


def test_a_signal_in_the_last_step_is_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ProgressBar, "update", lambda bar, step, loss: step == 20 and send(signal.SIGTERM)(0, 0)
    )
    assert_stops_with(signal.SIGTERM, lambda: fit(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").latest() == 20


def test_a_signal_to_a_run_that_needs_no_step_is_not_forgotten(tmp_path):
    fit(tmp_path, num_steps=5)
    begin = lambda state, step: signal.raise_signal(signal.SIGTERM)
    plugin = Plugin(1, lambda state, step: None, begin)
    assert_stops_with(signal.SIGTERM, lambda: fit(tmp_path, num_steps=5, plugins=[plugin]))


def test_ctrl_c_saves_though_the_reader_of_the_output_is_gone(tmp_path, monkeypatch):
    """As in `| tee log`, where Ctrl-C ends `tee` too."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, os.fdopen(writer, "w"))
    assert_stops_with(
        signal.SIGINT, lambda: fit(tmp_path, plugins=[Plugin(8, send(signal.SIGINT))])
    )
    sys.stdout.close(), sys.stderr.close()  # nothing is left that cannot be written
    assert Checkpoints(tmp_path / "checkpoints").latest() == 8


@pytest.fixture
def heard_hang_up():
    """SIGHUP is not ignored, as it is where tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_lost_terminal_saves(tmp_path, monkeypatch, heard_hang_up):
    """As when a connection breaks: SIGHUP comes, and the progress bar has nowhere to draw."""
    terminal, end = os.openpty()
    monkeypatch.setattr(sys, "stderr", os.fdopen(end, "w"))
    monkeypatch.setattr(sys, "stdout", sys.stderr)
    monkeypatch.setattr("genjax.training.progress.TERMINAL_SECONDS", 0.0)

    def hang_up(state, step):
        os.close(terminal)
        signal.raise_signal(signal.SIGHUP)

    assert_stops_with(signal.SIGHUP, lambda: fit(tmp_path, plugins=[Plugin(8, hang_up)]))
    sys.stderr.close()
    assert Checkpoints(tmp_path / "checkpoints").latest() == 8


def test_a_second_ctrl_c_acts_as_if_nobody_listened_and_nohup_is_respected(tmp_path):
    calls = []
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, lambda *_: calls.append("previous"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert signals.received == signal.SIGTERM and calls == []
        signal.raise_signal(signal.SIGINT)
        assert calls == ["previous"]
    for each, handler in before.items():
        signal.signal(each, handler)


class Breaking(Line):
    """Breaks in the parameters at steps 6 and 7, and in the loss at step 13."""

    def update(self, state, batch, key):
        new, metrics = super().update(state, batch, key)
        slope = jnp.where((new.step == 6) | (new.step == 7), jnp.inf, new.slope)
        return new._replace(slope=slope), metrics | {
            "loss": jnp.where(new.step == 13, jnp.nan, metrics["loss"])
        }


def test_a_few_updates_that_are_not_finite_are_left_out(tmp_path):
    """The state stays, its step goes on, and means are of the other steps, also over a stop."""
    for num_steps in (10, 20):
        state = fit(tmp_path, Breaking(), num_steps=num_steps, max_skipped_steps=3)
    task, (init_key, key) = Breaking(), jax.random.split(jax.random.key(1))
    expected, losses, update = task.init(init_key), {}, jax.jit(task.update)
    for step, batch in zip(range(1, 21), batches(0), strict=False):
        new, metrics = update(expected, batch, jax.random.fold_in(key, expected.step))
        if step in (6, 7, 13):
            expected = expected._replace(step=new.step)
        else:
            expected, losses[step] = new, float(metrics["loss"])
    assert int(state.step) == 20
    # other fusions round otherwise, by 2⁻²⁴ of numbers up to 3 in each of 20 steps
    np.testing.assert_allclose(state.slope, expected.slope, rtol=20 * 2**-24)
    logged = {row["step"]: row for row in rows(tmp_path)}
    mean = lambda steps: np.mean([losses[step] for step in steps])
    np.testing.assert_allclose(logged[8]["loss"], mean((5, 8)), rtol=1e-5)
    np.testing.assert_allclose(logged[16]["loss"], mean((14, 15, 16)), rtol=1e-5)
    assert [logged[step]["skipped_steps"] for step in (4, 8, 12, 16, 20)] == [0, 2, 2, 3, 3]


def test_too_many_updates_that_are_not_finite_stop_the_run(tmp_path):
    """The count goes on where the run does."""
    fit(tmp_path, Breaking(), num_steps=10, max_skipped_steps=2)
    with pytest.raises(
        NonFiniteError,
        match="at step 13 is not finite or explodes, and 2 were skipped.*that of step 10",
    ):
        fit(tmp_path, Breaking(), max_skipped_steps=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_so_and_resumes(tmp_path, capsys, number):
    for name in "ab":
        (tmp_path / name).mkdir()

    def interrupting(start):
        for step, batch in enumerate(batches(start), start + 1):
            if step == 8:
                signal.raise_signal(number)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised:
        fit(tmp_path / "a", data=interrupting)
    assert raised.value.signal_number == number
    assert signal.getsignal(number) == before
    out = capsys.readouterr().out
    assert number.name in out and "saved step 8" in out
    assert ("(Ctrl-C twice stops without)" in out) == (number != signal.SIGINT)
    assert Checkpoints(tmp_path / "a" / "checkpoints").latest() == 8
    np.testing.assert_array_equal(fit(tmp_path / "a").slope, fit(tmp_path / "b").slope)


def test_plugins_run_on_their_own_schedules_and_after_the_last_step(tmp_path):
    seen = {3: [], 7: []}
    plugins = [
        Plugin(every, lambda state, step, every=every: seen[every].append((step, int(state.step))))
        for every in seen
    ]
    plugins.append(Plugin(10, lambda state, step: {"quality": float(step)}))
    fit(tmp_path, plugins=plugins)
    assert seen == {3: [(s, s) for s in (3, 6, 9, 12, 15, 18, 20)], 7: [(7, 7), (14, 14), (20, 20)]}
    assert [row["quality"] for row in rows(tmp_path) if "quality" in row] == [10.0, 20.0]


@pytest.mark.parametrize("cut", [10, 7, 20])
def test_plugins_that_a_stop_prevented_are_called_when_the_run_goes_on(tmp_path, cut):
    """The second is cut short, at a checkpoint, between checkpoints and after the last step."""
    calls = []
    plugins = [
        Plugin(
            every,
            lambda state, step, i=i: calls.append((i, step, int(state.step))) or {f"f{i}": 1.0},
        )
        for i, every in enumerate((5, cut, 1))
    ]
    cutting = Plugin(cut, send(signal.SIGTERM))
    assert_stops_with(
        signal.SIGTERM, lambda: fit(tmp_path, plugins=[plugins[0], cutting, plugins[2]])
    )
    calls.clear()
    for _ in range(2):  # a finished run calls none
        fit(tmp_path, plugins=plugins)
    assert calls[:2] == [(1, cut, cut), (2, cut, cut)] and len(calls) == len(set(calls))
    logged = [
        (name, row["step"]) for row in rows(tmp_path) for name in ("f0", "f1", "f2") if name in row
    ]
    expected = [
        (f"f{i}", step) for i, every in enumerate((5, cut, 1)) for step in range(every, 21, every)
    ]
    assert sorted(logged) == sorted({*expected, ("f1", 20)})
    assert not (tmp_path / "pending.json").exists()


def test_a_stop_by_earlier_code_left_the_places_of_plugins(tmp_path):
    calls = []
    cutting = Plugin(10, send(signal.SIGTERM), name="a")
    assert_stops_with(signal.SIGTERM, lambda: fit(tmp_path, plugins=[cutting]))
    (tmp_path / "pending.json").write_text('{"step": 10, "plugins": [1, 2]}')
    named = lambda name, every=10: Plugin(
        every, lambda state, step: calls.append((name, step)), name=name
    )
    plugins = [named("a"), named("b"), named("no longer due", 20)]
    fit(tmp_path, plugins=plugins)
    assert calls == [("b", 10), ("a", 20), ("b", 20), ("no longer due", 20)]
    calls.clear()
    # As a kill leaves it, after which a run goes on from an earlier step.
    (tmp_path / "pending.json").write_text('{"step": 30, "plugins": ["a"]}')
    fit(tmp_path, plugins=plugins)
    assert calls == []


def test_a_plugin_that_a_stop_prevented_is_known_by_its_name(tmp_path):
    """The run goes on without the first of three, so the others have moved up."""
    calls = []
    first, last = (
        Plugin(10, lambda state, step, name=name: calls.append((name, step)), name=name)
        for name in ("first", "last")
    )
    cutting = Plugin(10, send(signal.SIGTERM), name="cutting")
    assert_stops_with(signal.SIGTERM, lambda: fit(tmp_path, plugins=[first, cutting, last]))
    fit(tmp_path, plugins=[last, first])
    assert calls == [("first", 10), ("last", 10), ("last", 20), ("first", 20)]


def test_intervals_of_zero_are_off(tmp_path):
    """Nothing happens but after the last step, also when the run goes on."""
    seen = []
    off = dict(
        checkpoint_every=0, log_every=0, plugins=[Plugin(0, lambda state, step: seen.append(step))]
    )
    for num_steps in (6, 11):
        fit(tmp_path, num_steps=num_steps, **off)
        assert Checkpoints(tmp_path / "checkpoints").latest() == num_steps
    assert seen == [6, 11] and [row["step"] for row in rows(tmp_path)] == [6, 11]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 11]


def test_plugins_begin_with_the_state_that_the_run_goes_on_from(tmp_path):
    begun = []
    plugin = Plugin(
        10, lambda state, step: None, lambda state, step: begun.append((int(state.step), step))
    )
    for num_steps in (10, 15):
        fit(tmp_path, num_steps=num_steps, plugins=[plugin])
    assert begun == [(0, 0), (10, 10)]


def test_given_weights_are_for_the_start_alone(tmp_path):
    """From 100 each step goes a tenth of the way to 3. A run that goes on keeps what it learned."""
    initialize = lambda state: state._replace(slope=0 * state.slope + 100)
    first = fit(tmp_path, num_steps=5, initialize=initialize)
    np.testing.assert_allclose(first.slope, 3 + 97 * 0.9**5, rtol=0.2)  # batches of eight scatter
    again = fit(tmp_path, num_steps=5, initialize=initialize)
    np.testing.assert_array_equal(again.slope, first.slope)


def test_finished_runs_do_not_train_on(tmp_path):
    first = fit(tmp_path)
    calls = []
    again = fit(tmp_path, plugins=[Plugin(1, lambda state, step: calls.append(step))])
    np.testing.assert_array_equal(first.slope, again.slope)
    assert calls == []


def test_one_compilation(tmp_path):
    traces = []

    class Counting(Line):
        def update(self, *args):
            traces.append(1)
            return super().update(*args)

    fit(tmp_path, Counting())
    assert len(traces) == 1


def test_a_step_is_compiled_once_and_anew_for_batches_of_another_size(tmp_path, caplog):
    def growing(start):
        for step, batch in enumerate(batches(start), start):
            yield batch if step < 6 else {"x": np.repeat(batch["x"], 2, 0)}

    with jax.log_compiles():
        fit(tmp_path, data=growing, num_steps=10)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("XLA compilation of jit(update)" in message for message in messages) == 2


@pytest.mark.parametrize("skipping", [{}, dict(max_skipped_steps=2)])
def test_steps_send_devices_nothing_but_their_batches(tmp_path, monkeypatch, skipping):
    """Also those after which a row is logged and a checkpoint written.

    JAX refuses implicit transfers, also on the CPU, and takes the explicit ones of batches.
    """
    monkeypatch.setattr(
        "genjax.training.loop.place_batch",
        lambda batch, mesh: jax.device_put(batch, batch_sharding(mesh)),
    )
    with contextlib.ExitStack() as stack:

        def guarded(start):
            for step, batch in enumerate(batches(start), start):
                if step == 1:  # the first is compiled
                    stack.enter_context(jax.transfer_guard_host_to_device("disallow"))
                yield batch

        fit(tmp_path, data=guarded, **skipping)


class Pulled(Line):
    """Goes to targets that it reads and does not train."""

    targets, signs = (
        np.array([5.0, -1.0, 0.0, 2.0], np.float32),
        np.array([-1.0, 1.0, 1.0, 1.0], np.float32),
    )

    def frozen(self):
        return {"targets": self.targets}, self.signs

    def update(self, state, batch, key, where, signs):
        goal = signs * where["targets"]
        return state._replace(
            step=state.step + 1, slope=state.slope + 0.5 * (goal - state.slope)
        ), {"loss": jnp.mean((state.slope - goal) ** 2)}


def test_what_is_frozen_reaches_the_update_and_no_checkpoint(tmp_path):
    """Also of a run that goes on, with other frozen arrays than it began with."""
    state = fit(tmp_path, Pulled(), num_steps=30)
    np.testing.assert_allclose(state.slope, [-5, -1, 0, 2], atol=1e-6)  # 2⁻³⁰ of the way is left
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    saved = checkpoints.restore(
        checkpoints.latest(), jax.eval_shape(Line().init, jax.random.key(0))
    )
    np.testing.assert_array_equal(saved.slope, state.slope)
    names = "".join(path.read_text() for path in checkpoints.path(30).glob("_METADATA"))
    assert "slope" in names and "targets" not in names

    class Elsewhere(Pulled):
        signs = -Pulled.signs

    state = fit(tmp_path, Elsewhere(), num_steps=60)
    np.testing.assert_allclose(state.slope, [5, 1, 0, -2], atol=1e-6)
    assert [row["step"] for row in rows(tmp_path)][:7] == [4, 8, 12, 16, 20, 24, 28]


SPLIT = """
import jax, numpy as np
from genjax.devices import make_mesh
from genjax.training import place_frozen

class Task:
    def frozen(self):
        blocks = {"blocks": np.zeros((64, 32, 16)), "small": np.zeros(64)}
        return {"kernel": np.zeros((128, 64))}, blocks

mesh = make_mesh({"data": 2, "fsdp": 4}, 8)
placed = jax.tree.leaves(place_frozen(Task(), mesh))
print(*(a.sharding.spec for a in placed), place_frozen(object(), mesh))
"""


def test_what_is_frozen_is_split_as_a_state_is():
    output = virtual_devices.run(["-c", SPLIT], num_devices=8)
    # the largest side of what is not small, and of scanned layers not the first
    assert output.strip() == "P('fsdp',) P(None, 'fsdp') P() ()"


def test_speed_counts_the_products_and_the_time_spent_waiting(tmp_path, monkeypatch):
    """On a clock that batches (20 ms) and the reading of a step's metrics (5 ms) move on."""
    milliseconds = [0]

    def pass_time(duration):
        milliseconds[0] += duration

    class Products(Line):
        def update(self, state, batch, key):
            state, metrics = super().update(state, batch, key)
            return state, metrics | {"product": jnp.sum(batch["x"] @ jnp.ones((4, 5)))}

    def slow(start):
        for batch in batches(start):
            pass_time(20)
            yield batch

    clock = SimpleNamespace(perf_counter=lambda: milliseconds[0] / 1000, monotonic=time.monotonic)
    monkeypatch.setattr("genjax.training.meter.time", clock)
    monkeypatch.setattr("genjax.training.log.time", clock)
    monkeypatch.setattr(ProgressBar, "update", lambda *arguments: pass_time(5))
    fit(tmp_path, Products(), data=slow)
    # A step's metrics are read when the next batch is there, at once only before a save (every five
    # steps). So of each four steps the first ones waited for five batches, and the last ones for
    # three.
    for row, waits in zip(rows(tmp_path), (5, 4, 4, 4, 3), strict=True):
        seconds = 0.020 * waits + 0.005 * 4
        np.testing.assert_allclose(
            row["steps_per_second"], 4 / seconds, atol=5e-4
        )  # logged rounded
        np.testing.assert_allclose(row["input_wait"], 0.020 * waits / seconds, atol=5e-6)
        np.testing.assert_allclose(row["operations_per_second"], 2 * 8 * 4 * 5 * 4 / seconds)


def test_compiling_and_plugins_count_in_no_rate(tmp_path, monkeypatch):
    """Tracing takes 7 s, a plugin 11 s after 3 s at the beginning, the reading of a step 1 s."""
    seconds = [0.0]

    def pass_time(duration):
        seconds[0] += duration

    class Slow(Line):
        def update(self, state, batch, key):
            pass_time(7)
            return super().update(state, batch, key)

    monkeypatch.setattr(
        "genjax.training.log.time",
        SimpleNamespace(perf_counter=lambda: seconds[0], monotonic=time.monotonic),
    )
    monkeypatch.setattr(ProgressBar, "update", lambda *arguments: pass_time(1))
    plugin = Plugin(6, lambda state, step: pass_time(11), lambda state, step: pass_time(3))
    for num_steps in (8, 12):
        fit(tmp_path, Slow(), num_steps=num_steps, plugins=[plugin])
    assert [
        (row["step"], row["steps_per_second"], row.get("compile_seconds"))
        for row in rows(tmp_path)
    ] == [(4, 1.0, 7.0), (8, 1.0, None), (12, 1.0, 7.0)]  # fmt: skip


def test_the_time_of_a_run_goes_on_after_a_stop_where_nothing_was_logged(tmp_path, monkeypatch):
    """A step takes a second. The run ends in step 13, and goes on from step 10."""
    seconds = [0.0]

    def slow(start):
        for batch in batches(start):
            seconds[0] += 1
            yield batch

    def fail(state, step):
        raise RuntimeError

    clock = SimpleNamespace(perf_counter=lambda: seconds[0], monotonic=time.monotonic)
    monkeypatch.setattr("genjax.training.log.time", clock)
    with contextlib.suppress(RuntimeError):
        fit(tmp_path, data=slow, log_every=0, plugins=[Plugin(13, fail)])
    fit(tmp_path, data=slow, log_every=0)
    assert [(row["step"], row["seconds"]) for row in rows(tmp_path)] == [(20, 20.0)]


def test_a_profile_on_request(tmp_path):
    fit(tmp_path, profile_at=5)
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))


def test_a_profile_ends_with_the_run_and_begins_where_it_was_asked_for(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    fit(tmp_path / "a", num_steps=8, profile_at=6)  # less than five steps before the end
    assert list((tmp_path / "a/profile").rglob("*.trace.json.gz"))
    fit(tmp_path / "b", num_steps=8)
    fit(
        tmp_path / "b", num_steps=12, profile_at=6
    )  # gone on from the middle of what was to be traced
    assert not (tmp_path / "b/profile").exists()


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("cpu", None)],
)
def test_peak_operations_of_known_devices(device_kind, peak):
    assert peak_operations(device_kind) == peak
