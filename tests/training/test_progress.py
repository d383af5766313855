"""The progress bar: its label, rate, remaining time and losses, on a terminal and elsewhere."""

import io
import re

import pytest

from genjax.training import progress
from genjax.training.progress import ProgressBar, losses_of


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_says_what_is_done_how_fast_and_how_long_it_takes(clock, capsys):
    with ProgressBar("encoding", 100, 500, "images") as bar:
        clock[0] = 5.0
        bar.update(200)  # too early for a line
        clock[0] = 20.0
        bar.update(300)
        clock[0] = 21.0
        bar.update(500)
    line = "encoding 300/500 images  6.7 images/s  remaining 30 s\n"  # 100 in the last 15 s
    assert capsys.readouterr().err == line


def test_compiling_the_first_step_does_not_count_in_rate_and_remaining_time(clock, capsys):
    with ProgressBar("training", 0, 60, "steps") as bar:
        clock[0] = 30.0
        bar.update(1)
        clock[0] = 50.0
        bar.update(6)
    first, later = capsys.readouterr().err.splitlines()
    assert first.endswith("… steps/s  remaining …")
    assert later.endswith("0.25 steps/s  remaining 216 s")  # 54 steps of 4 s


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"loss": 0.25, "loss/t_0_0.1": 3.0, "norm": 1.0}, "loss 0.2500"),
        (
            {"loss/discriminator": 1.0, "loss/generator": 0.5, "norm": 1.0},
            "loss/discriminator 1.0000  loss/generator 0.5000",
        ),
        ({"norm": 1.0}, ""),
    ],
)
def test_training_ends_with_a_line_that_shows_the_losses(clock, capsys, metrics, shown):
    with ProgressBar("training", 0, 4, "steps") as bar:
        clock[0] = 2.0
        bar.update(4, losses_of(metrics))
    parts = ["training 4/4 steps", "2.0 steps/s", *filter(None, [shown]), "remaining 0 s"]
    assert capsys.readouterr().err == "  ".join(parts) + "\n"


def test_work_within_other_work_takes_its_place_and_not_its_time(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressBar("training", 0, 100, "steps") as training:
        clock[0] = 10.0
        training.update(20)
        with ProgressBar("sampling", 0, 8, "samples") as sampling:
            clock[0] = 60.0
            sampling.update(8)
        clock[0] = 70.0
        training.update(40)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    labels = [label for label in re.findall("training|sampling", text)]
    assert labels[0] == labels[-1] == "training" and "sampling" in labels
    assert "8/8" in text and text.count("2.0 steps/s") >= 2  # 40 steps in 20 s, without sampling's
    assert re.findall(r"(\d+) s left", text)[-1] == "30"


def test_the_losses_of_a_gan_fit_on_a_terminal_of_80_columns(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with ProgressBar("training", 0, 1500, "steps") as bar:
        bar.update(0)
        clock[0] = 10.0
        bar.update(1000, {"loss/discriminator": 1.25, "loss/generator": 0.5})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "training" in text and "1000/1500 100.0 steps/s loss D 1.250 G 0.500 5 s left" in text
