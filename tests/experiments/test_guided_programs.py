"""Programs refuse guidance by a null condition that no training has shown."""

import pytest

from experiments import train
from tests.experiments.launching import run
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import small_config
from tests.pipelines.test_null_condition import REFUSED, without_dropout


def test_training_refuses_to_guide_its_samples_by_it(tmp_path):
    with pytest.raises(ValueError, match=f"the guidance scale is 1.25, and config has {REFUSED}"):
        train.prepare(without_dropout(small_config()), tmp_path, None)
    train.prepare(without_dropout(small_config(), guidance_scale=1.0), tmp_path, None)


@pytest.mark.parametrize("program", ["sample", "evaluate"])
def test_programs_refuse_another_guidance_scale(program, tmp_path):
    folder = random_run(tmp_path / "run", without_dropout(small_config(), guidance_scale=1.0))
    result = run(program, f"--workdir={folder}", "--guidance_scale=0")
    assert result.returncode == 1 and REFUSED in result.stderr
