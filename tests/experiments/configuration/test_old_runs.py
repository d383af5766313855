"""Records of older versions, in today's form."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configuration import kinds
from experiments.configuration.old_runs import WITH_GUIDANCE_SCALES, WITHOUT_DROPOUT, upgrade
from genjax.diffusion import EDM, EDMPreconditioning, Shifted
from genjax.diffusion.discrete import Geometric
from genjax.training.workdir import Config


def recorded(process, target):
    return Config(
        space=Config(name="Pixels"),
        process=process,
        target=target,
        weighting=Config(name="uniform"),
    )


def test_a_data_deviation_of_a_process_becomes_its_preconditioning():
    config = recorded(Config(name="EDM", data_deviation=0.7), Config(name="clean"))
    process = kinds.PROCESS.bind(upgrade(config).process, "process")
    assert process == EDM(preconditioning=EDMPreconditioning(data_deviation=0.7))
    shifted = Config(name="Shifted", shift=2.0, base=Config(name="EDM", data_deviation=0.7))
    process = kinds.PROCESS.bind(
        upgrade(recorded(shifted, Config(name="clean"))).process, "process"
    )
    assert process == Shifted(
        base=EDM(preconditioning=EDMPreconditioning(data_deviation=0.7)), shift=2.0
    )


@pytest.mark.parametrize("told, deviation", [({}, 0.5), ({"data_deviation": 0.6}, 0.6)])
def test_the_target_of_an_old_run_stays_what_it_was(told, deviation):
    """Its deviation was 0.5 unless it was given, whatever the process had."""
    old = recorded(Config(name="EDM", data_deviation=0.7), Config(name="edm", **told))
    new = upgrade(old)
    process, t = kinds.PROCESS.bind(new.process, "process"), jnp.array([0.1, 1.0])
    c, d = kinds.TARGET.bind(new.target, "target")(process, t)
    r = np.sqrt(np.asarray(t) ** 2 + deviation**2)
    np.testing.assert_allclose([c, d], [np.asarray(t) / (deviation * r), -deviation / r], rtol=1e-6)
    assert "data_deviation" in old.process  # the record is left alone


@pytest.mark.parametrize("field", ["target", "weighting"])
def test_a_run_whose_deviation_has_changed_is_refused_until_it_says_which(field):
    """Edm of VarianceExploding took 0.5, and takes the 1.0 of the process today."""
    process = Config(name="VarianceExploding")
    for each in (process, Config(name="Shifted", shift=2.0, base=process)):
        config = recorded(each, Config(name="clean"))
        config[field] = Config(name="edm")
        with pytest.raises(
            ValueError, match=rf"config\.{field} is edm of VarianceExploding .* add it"
        ):
            upgrade(config)
        config[field].data_deviation = 0.5
        assert upgrade(config) is config
    config = recorded(process | dict(preconditioning=dict(name="UnitVariance")), Config(name="edm"))
    assert upgrade(config) is config


def test_a_config_of_today_is_returned_as_it_is():
    config = recorded(Config(name="RectifiedFlow"), Config(name="edm"))
    assert upgrade(config) is config


def test_the_first_blocks_of_mmdit_with_a_second_attention_are_named():
    recorded = Config(space=Config(), model=Config(name="mmdit.MMDiT", depth=4, dual_depth=2))
    model = upgrade(recorded).model
    assert model == dict(name="mmdit.MMDiT", depth=4, dual_layers=(0, 1))
    assert upgrade(Config(space=Config(), model=model)).model == model


def test_clips_have_the_shape_of_their_sounds_from_the_data():
    data, condition = Config(sound_shape=(8, 1)), Config(name="SoundingClips", sound_shape=(8, 1))
    new = upgrade(Config(space=Config(), data=data, condition=condition))
    assert new.condition == dict(name="SoundingClips") and new.data == data


@pytest.mark.parametrize("method", ["LADD", "LatentConsistency", "TrajectoryConsistency", "DMD"])
def test_a_guidance_scale_without_effect_is_dropped(method):
    recorded = Config(space=Config(), method=Config(name=method, guidance_scale=1.25))
    new = upgrade(recorded).method
    assert new == (recorded.method if method == "DMD" else dict(name=method))
    kinds.METHOD.bind(new, "method")
    assert recorded.method.guidance_scale == 1.25  # the record is left alone


@pytest.mark.parametrize("method", [*WITHOUT_DROPOUT, "ProgressiveDistillation"])
def test_a_rate_of_dropped_conditions_without_effect_is_0(method):
    new = upgrade(Config(space=Config(), method=Config(name=method), conditioning_dropout=0.1))
    reads = kinds.METHOD.bind(new.method, "method").reads_dropout
    assert reads == (method == "ProgressiveDistillation")
    assert new.conditioning_dropout == (0.1 if reads else 0.0)


@pytest.mark.parametrize(
    "method", ["Shortcut", "ProgressiveDistillation", "DistilledReflow", "Drift", "MeanFlow"]
)
def test_times_without_effect_are_uniform(method):
    times = Config(name="logit_normal", mean=1.0)
    new = upgrade(Config(space=Config(), method=Config(name=method), times=times))
    assert new.times == (times if method == "MeanFlow" else dict(name="uniform"))
    reads = kinds.METHOD.bind(new.method, "method").reads_times
    assert reads == (method == "MeanFlow")


@pytest.mark.parametrize(
    "old, new",
    [
        (dict(name="Halving", stages=3), dict(name="ProgressiveDistillation", stages=3)),
        (
            dict(name="GuidedHalving", least=1.5, largest=3.0),
            dict(
                name="GuidedProgressiveDistillation", min_guidance_scale=1.5, max_guidance_scale=3.0
            ),
        ),
        (
            dict(name="PixelMeanFlow", largest=3.0),
            dict(name="PixelMeanFlow", max_guidance_scale=3.0),
        ),
        (dict(name="Shortcut", largest=3.0), dict(name="Shortcut", largest=3.0)),
    ],
)
def test_a_method_and_its_numbers_have_the_names_of_today(old, new):
    recorded = Config(space=Config(), method=Config(old))
    upgraded = upgrade(recorded).method
    assert upgraded == new and recorded.method == old
    kinds.METHOD.bind(upgraded, "method")


@pytest.mark.parametrize("name", WITH_GUIDANCE_SCALES)
def test_methods_with_a_range_of_guidance_scales_take_its_names_of_today(name):
    new = upgrade(Config(space=Config(), method=Config(name=name, largest=3.0))).method
    assert kinds.METHOD.bind(new, "method").max_guidance_scale == 3.0


def test_the_geometric_schedule_has_the_names_of_the_paper():
    schedule = Config(name="Geometric", least=0.01, most=10.0)
    process = Config(name="Masked", vocabulary_size=4, schedule=schedule)
    new = upgrade(Config(space=Config(), process=process)).process
    expected = Geometric(sigma_min=0.01, sigma_max=10.0)
    assert kinds.DISCRETE_PROCESS.bind(new, "process").schedule == expected
    assert upgrade(Config(space=Config(), process=new)).process == new
