from types import SimpleNamespace

import numpy as np

from experiments.evaluation import context
from experiments.evaluation.context import Model
from genjax.training.workdir import Config


def test_only_equal_requests_share_their_samples(monkeypatch):
    """Two labels of 32 bits and one of 64 have the same bytes."""
    monkeypatch.setattr(context, "sample", lambda task, state, labels, sampling: labels.copy())
    task = SimpleNamespace(functions=lambda *_: {}, describe_sampling=lambda _: {})
    model = Model(task, None, Config(weights="params", seed=0))
    two, one = (model.sample(np.zeros(count, f"int{64 // count}")) for count in (2, 1))
    assert (len(two), len(one)) == (2, 1)
    assert model.sample(np.zeros(1, int)) is one is not model.sample(np.zeros(1, int), seed=1)
