"""What a run records while it trains; tests of the training program look at whole runs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from configs import emoji_autoencoder
from experiments.launch.experiment import Experiment, Measure
from experiments.launch.recorder import Recorder
from tests.experiments.small_digits import small_config


def test_an_autoencoder_shows_each_held_out_image_once(tmp_path, monkeypatch):
    """A sheet that was interrupted while it was written is written again."""
    config = emoji_autoencoder.get_config("kl")
    config.data.held_out_split = "test[:12]"
    recorder = Recorder(Experiment.from_config(config), tmp_path)
    assert (len(recorder.labels), recorder.per_row) == (10, 10)  # whole rows

    def write_half(path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("experiments.launch.recorder.save_real", write_half)
        recorder.draw_real()
    recorder.draw_real()
    with Image.open(tmp_path / "real.png") as image:
        assert image.size == (10 * 66, 66)


def test_measures_of_a_step_share_its_model_and_tell_an_alarm_once(tmp_path, capsys, monkeypatch):
    """The model is of the state's averaged weights, and the next step has another one."""
    how, seen = dict(weights="params", seed=0), []
    model = lambda experiment, state: SimpleNamespace(state=state, how=how, average=None)
    monkeypatch.setattr(Experiment, "model", model)
    monkeypatch.setattr(Recorder, "weighted", lambda recorder, state: -state)
    monkeypatch.setattr("experiments.launch.recorder.alarms", lambda *_: ["all alike"])
    look = lambda model: seen.append(model) or {"fid": 1.0, "num_samples": 8}
    measures = tuple(Measure(name, 5, look) for name in ("one", "other"))
    experiment = replace(Experiment.from_config(small_config()), measures=measures)
    recorder = Recorder(experiment, tmp_path)
    for step in (5, 10):
        for measure in measures:
            assert recorder.measure(measure, step, step) == {"fid": 1.0}
    assert [each.state for each in seen] == [-5, -5, -10, -10]
    assert seen[0] is seen[1] and seen[2] is seen[3]
    assert capsys.readouterr().out.count("all alike") == 2
    # A run that goes on measures again, and a finished one does not.
    assert recorder.findings.find(10, "other")["fid"] == 1.0
    recorder.begin(None, experiment.config.num_steps)
    assert recorder.findings.find(10, "other")
    recorder.begin(None, 10)
    assert recorder.findings.find(10, "other") is None


def test_a_run_without_measures_tells_at_each_checkpoint_that_it_diverged(tmp_path, capsys):
    config = small_config()
    config.checkpoint.every = 20
    recorder = Recorder(replace(Experiment.from_config(config), measures=()), tmp_path)
    (plugin,) = (each for each in recorder.plugins() if each.name == "alarms")
    losses = [5.0, 1.8, 2.0, 30.0, 40.0, 50.0]
    rows = [{"step": 10 * i, "steps_per_second": 1.0, "loss": x} for i, x in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (40, 60):
        assert plugin.every == 20 and plugin.call(None, step) is None
    assert capsys.readouterr().out.startswith("ALARM at step 60: Diverged: the loss is 50.")


def test_a_best_checkpoint_by_what_no_measure_gives_is_told_of_at_once(tmp_path, capsys):
    """All measures that are made while training must have been made, or they might give it."""
    gives = lambda **figures: lambda model: figures
    measures = (
        Measure("samples", 5, gives(precision=0.5)),
        Measure("codes", 10, gives(psnr=20.0)),
        Measure("last", 0, gives(fid=3.0)),
    )
    model = SimpleNamespace(how=dict(weights="params", seed=0), average=None)

    def printed(best):
        config = small_config()
        config.checkpoint.keep_best = best
        experiment = replace(Experiment.from_config(config), measures=measures)
        recorder = Recorder(experiment, tmp_path)
        for step, indices in ((5, [0]), (10, [0, 1]), (15, [0, 1, 2])):
            recorder._model = step, model
            for index in indices:
                recorder.measure(measures[index], None, step)
        return capsys.readouterr().out

    told = printed("fid")
    assert told.startswith("ALARM at step 10: config.checkpoint.keep_best is 'fid', which no meas")
    assert told.endswith("measures give precision, psnr, steps_per_second\n")
    assert told.count("\n") == 1 and printed("psnr") == ""
