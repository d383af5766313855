"""Parts with options on the command line."""

import pytest

from experiments.configuration import kinds
from experiments.configuration.options import named


def test_a_sampler_is_named_with_its_options():
    assert named("ddim,eta=0.5", "sampler", kinds.SAMPLER) == {"name": "ddim", "eta": 0.5}
    assert named(None, "sampler", kinds.SAMPLER) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddim,eta=0.5,eta=1.0", "--sampler=ddim,eta=0.5,eta=1.0 names eta twice"),
        ("ddim,eta", "must be a name and options, as in name,option=1.5, but has 'eta'"),
        ("ddim,eta=1=2", "must be a name and options, .* but has 'eta=1=2'"),
        ("ddim,eta=half", "must be a name and options, .* but has 'eta=half'"),
    ],
)
def test_other_forms_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        named(text, "sampler", kinds.SAMPLER)
