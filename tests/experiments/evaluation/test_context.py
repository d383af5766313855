from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation import context
from experiments.evaluation.context import Context, Model
from experiments.inputs.conditions import Frames
from experiments.inputs.played_clips import PlayedClips
from genjax.training.workdir import Config


def test_only_equal_requests_share_their_samples(monkeypatch):
    """Two labels of 32 bits and one of 64 have the same bytes."""
    monkeypatch.setattr(context, "sample", lambda task, state, labels, sampling: labels.copy())
    task = SimpleNamespace(functions=lambda *_: {}, describe_sampling=lambda _: {})
    model = Model(task, None, Config(weights="params", seed=0))
    two, one = (model.sample(np.zeros(count, f"int{64 // count}")) for count in (2, 1))
    assert (len(two), len(one)) == (2, 1)
    assert model.sample(np.zeros(1, int)) is one is not model.sample(np.zeros(1, int), seed=1)


@pytest.mark.parametrize(
    "condition", [Frames(None, num_rows=4), PlayedClips(None, num_actions=2, frames=8, num_clips=4)]
)
def test_samples_continue_different_held_out_clips(condition):
    """Labels of these conditions are numbers of clips, and they have no classes."""
    drawn = Context(None, None, condition, 6).draw_labels(lambda: None)
    np.testing.assert_array_equal(drawn, [0, 1, 2, 3, 0, 1])
    with pytest.raises(ValueError, match="numbers of held-out clips: take 'balanced'"):
        Context(None, None, condition, 6, "training").draw_labels(lambda: None)
