"""How many steps a budget of time allows."""

import re

import pytest

from experiments import budget
from tests.experiments import small_vae
from tests.experiments.launching import SMALL, run


def test_a_budget_is_a_number_of_steps_and_the_command_that_trains_them():
    result = run("budget", *SMALL, "--seconds=60", "--timed=3")
    assert result.returncode == 0, result.stderr
    measured, command = result.stdout.splitlines()[-2:]
    milliseconds, steps = re.match(r"([\d.]+) ms a step, ([\d,]+) steps in 60 s", measured).groups()
    steps = int(steps.replace(",", ""))
    assert steps == pytest.approx(60_000 / float(milliseconds), rel=0.1)  # one printed decimal
    given = " ".join(map(str, SMALL))
    assert command == (
        f"python -m experiments.train {given} --config.num_steps={steps} --workdir=runs/digits_flow"
    )


def test_compiling_is_not_timed(monkeypatch):
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(ticks))
    assert budget.seconds_per_step(small_vae.small_config("elbo"), 6) == 0.5
