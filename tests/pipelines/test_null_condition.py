"""Guidance by a null condition that no training has shown is refused before any compute."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import digits_distillation, emoji_text, emoji_tokens
from experiments.configuration import kinds
from experiments.inputs.conditions import Classes, Unconditional
from experiments.inputs.played_clips import PlayedClips
from genjax.pipelines import Run, runs
from genjax.pipelines.null_condition import check_null_condition
from genjax.training import record_config
from tests.experiments.small_digits import small_config

REFUSED = "conditioning_dropout=0, so the network never learned the null condition"


def without_dropout(config, **sampling):
    config.conditioning_dropout = 0.0
    config.sampling.update(sampling)
    return config


def task(**parts):
    return SimpleNamespace(**{"condition": Classes(10)} | parts)


def test_an_opened_run_refuses_another_guidance_scale(tmp_path, monkeypatch):
    config = without_dropout(small_config(), guidance_scale=1.0)
    record_config(tmp_path, config.to_dict(), ())
    run = Run(tmp_path, build=lambda config: task())
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(runs, "sample", lambda *inputs, **_: np.array([inputs[-1].guidance_scale]))
    assert run.sample(labels=[3]) == 1
    with pytest.raises(ValueError, match=f"guidance scale is 2.0, and config has {REFUSED}"):
        run.sample(labels=[3], guidance_scale=2.0)
    record_config(tmp_path, config.to_dict(), (), init_from="published/weights")
    run = Run(tmp_path, build=lambda config: task())
    run.state = None
    assert run.sample(labels=[3], guidance_scale=2.0) == 2


@pytest.mark.parametrize(
    "config", [emoji_tokens.get_config("maskgit_text"), emoji_text.get_config()]
)
def test_tokens_and_prompts_are_no_exception(config):
    check_null_condition(config, task(), None)
    with pytest.raises(ValueError, match=REFUSED):
        check_null_condition(without_dropout(config), task(), None)


def test_scales_of_several_modalities_count():
    scales = dict(guidance_scale=dict(video=1.0, sound=1.0))
    config = SimpleNamespace(sampling=scales, get=dict(conditioning_dropout=0.0).get)
    check_null_condition(config, task(), None)
    scales["guidance_scale"]["sound"] = 7.0
    with pytest.raises(ValueError, match=REFUSED):
        check_null_condition(config, task(), None)


def test_guidance_that_needs_no_training_of_it_is_allowed():
    """The weights have learned it before, or it is the only condition, so guidance is no change."""
    config = without_dropout(small_config())
    played = PlayedClips(None, num_actions=0, frames=4)
    for condition in (Unconditional(), played):
        check_null_condition(config, task(condition=condition), None)
    check_null_condition(config, task(adapters="of a published network"), None)
    check_null_condition(config, task(), "published/weights")


@pytest.mark.parametrize("choice", ["MeanFlow", "Shortcut", "GuidedMeanFlow", "Drift"])
def test_a_loss_that_guides_by_its_own_answer_needs_it(choice):
    """Drift takes a guidance scale, and compares with samples of other classes."""
    config = digits_distillation.get_config(choice)
    method = kinds.METHOD.bind(config.method, "method")
    check_null_condition(config, task(method=method), None)
    config.conditioning_dropout = 0.0
    if choice == "Drift":
        check_null_condition(config, task(method=method), None)
        return
    with pytest.raises(ValueError, match=f"config.method guides, and config has {REFUSED}"):
        check_null_condition(config, task(method=method), None)
    Run.check_guidance(SimpleNamespace(config=config, task=task(method=method)))


def test_a_teacher_that_guides_needs_it(tmp_path):
    """The student itself needs none."""
    config = digits_distillation.get_config("GuidanceDistillation")
    method = kinds.METHOD.bind(config.method, "method")
    record_config(tmp_path, {}, ())
    run = SimpleNamespace(folder=tmp_path, config=small_config(), task=task())
    student = task(method=method, teacher=SimpleNamespace(folder="runs/teacher", run=run))
    assert config.conditioning_dropout == 0
    check_null_condition(config, student, "runs/teacher")
    run.config.conditioning_dropout = 0.0
    words = f"config.method guides, and the config of the teacher runs/teacher has {REFUSED}"
    with pytest.raises(ValueError, match=words):
        check_null_condition(config, student, "runs/teacher")
