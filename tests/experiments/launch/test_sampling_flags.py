"""The flags that change how a run is sampled."""

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.launch import sampling_flags


@pytest.fixture(autouse=True)
def parsed():
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        yield
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    ("given", "scale"),
    [({}, None), ({"scale": 1.5}, 1.5), ({"weight": 0.5}, 1.5), ({"weight": -1.0}, 0.0)],
)
def test_a_guidance_weight_w_is_a_scale_of_1_plus_w(given, scale):
    for name, value in given.items():
        setattr(flags.FLAGS, f"guidance_{name}", value)
    assert sampling_flags.sampling_changes()["guidance_scale"] == scale


def test_a_guidance_scale_and_a_weight_together_are_an_error():
    flags.FLAGS.guidance_scale, flags.FLAGS.guidance_weight = 2.0, 1.0
    words = "--guidance_scale=2.0 and --guidance_weight=1.0 both set .*1 \\+ the weight: leave out"
    with pytest.raises(ValueError, match=words):
        sampling_flags.sampling_changes()
