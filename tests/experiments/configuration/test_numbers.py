import pytest

from configs import digits_distillation, digits_flow, digits_gan
from experiments.configuration.numbers import check_numbers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"optimizer.generator.learning_rate": float("nan")},
            "generator.learning_rate is nan; it must be finite",
        ),
        (
            {"optimizer.generator.learning_rate": float("inf")},
            "generator.learning_rate is inf; it must be finite",
        ),
        ({"seed": -1}, "config.seed is -1; it must be at least 0"),
        (
            {"sampling.seed": 2**32},
            "config.sampling.seed is 4294967296; it must be below 4294967296",
        ),
        ({"checkpoint.every": -5}, "config.checkpoint.every is -5; it must be at least 0"),
        ({"checkpoint.keep": 0}, "config.checkpoint.keep is 0; it must be at least 1"),
        ({"profile_at": 0}, "config.profile_at is 0; it must be at least 1"),
        ({"num_steps": 0}, "config.num_steps is 0; it must be at least 1"),
        (
            {"optimizer.generator.learning_rate": -1.0},
            "generator.learning_rate is -1.0; it must be at least 0",
        ),
        ({"optimizer.generator.b2": 1.5}, "b2 is 1.5; it must be at least 0 and below 1"),
        ({"optimizer.generator.weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0"),
        ({"regularizers.r1.every": 0}, "config.regularizers.r1.every is 0; it must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant(changes, words):
    config = digits_gan.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=words):
        check_numbers(config)


@pytest.mark.parametrize("probability", [1.5, -0.1])
def test_probabilities_are_from_zero_to_one(probability):
    config = digits_flow.get_config()
    config.conditioning_dropout = probability
    with pytest.raises(ValueError, match=f"dropout is {probability}; it is a probability"):
        check_numbers(config)


def test_a_likelihood_is_of_one_image_at_least():
    config = digits_flow.get_config()
    config.evaluation.measures.bits = dict(name="ExactBits", num_images=0)
    with pytest.raises(ValueError, match="measures.bits.num_images is 0; it must be at least 1"):
        check_numbers(config)


def test_an_adapter_has_a_rank_of_one_at_least():
    config = digits_flow.get_config()
    config.adapters = dict(source="runs/digits_flow", rank=0)
    with pytest.raises(ValueError, match="config.adapters.rank is 0; it must be at least 1"):
        check_numbers(config)


@pytest.mark.parametrize(
    ("choice", "field"),
    [("DMD", "method.critic_updates"), ("DMD", "method.steps"), ("Reflow", "pairs.count")],
)
def test_a_student_has_at_least_one_of_each(choice, field):
    config = digits_distillation.get_config(choice)
    config.update_from_flattened_dict({field: 0})
    with pytest.raises(ValueError, match=f"config.{field} is 0; it must be at least 1"):
        check_numbers(config)


def test_zero_is_off_for_intervals():
    config = digits_gan.get_config()
    off = dict.fromkeys(("checkpoint.every", "sampling.every", "evaluation.every", "log_every"), 0)
    config.update_from_flattened_dict(off | {"snapshot_every": 0, "seed": 2**32 - 1})
    check_numbers(config)


def test_the_first_step_that_a_profile_may_follow():
    config = digits_flow.get_config()
    check_numbers(config)  # without a profile
    config.profile_at = 1
    check_numbers(config)


def test_the_half_life_of_an_average_is_positive():
    config = digits_flow.get_config()
    config.averages.ema.steps = -5
    with pytest.raises(ValueError, match="config.averages.ema.steps is -5.0; it must be above 0"):
        check_numbers(config)


def test_the_relative_width_of_an_average_is_below_one():
    config = digits_gan.get_config()
    config.averages.wide = dict(name="PowerFunction", width=0.1)
    check_numbers(config)
