"""What a run records while it trains; tests of the training program look at whole runs."""

from dataclasses import replace
from types import SimpleNamespace

from PIL import Image

from configs import emoji_autoencoder
from experiments.launch.experiment import Experiment, Measure
from experiments.launch.recorder import Recorder
from tests.experiments.small_digits import small_config


def test_an_autoencoder_shows_each_held_out_image_once(tmp_path):
    config = emoji_autoencoder.get_config("kl")
    config.data.held_out_split = "test[:12]"
    recorder = Recorder(Experiment.from_config(config), tmp_path)
    assert (len(recorder.labels), recorder.per_row) == (10, 10)  # whole rows
    recorder.draw_real()
    with Image.open(tmp_path / "real.png") as image:
        assert image.size == (10 * 66, 66)


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
