"""How far samples are from the frames that they were given."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.evaluation.context import Context
from experiments.evaluation.given_frames import GivenFrames, shown_frames
from experiments.inputs.clips import CaptionedClips
from genjax.data import InMemory

CLIPS = np.random.default_rng(0).integers(50, 200, (3, 17, 4, 4, 1)).astype(np.uint8)
CAPTIONS = [("a cat", "a pet"), ("a dog",), ("a cow",)]


@pytest.mark.parametrize(
    ("given", "frames", "shown"),
    [((0,), 5, [0]), ((0, 2), 5, [0, 5, 6, 7, 8]), ((-1,), 3, range(9, 17)), ((1, 3), 17, [1, 3])],
)
def test_frames_of_a_clip_that_latent_frames_stand_for(given, frames, shown):
    """The first latent frame stands for one frame, the others for equally many."""
    np.testing.assert_array_equal(shown_frames(given, frames, 17), shown)


def report_of(given):
    """Return the report of samples that are off by 3 in the first frame and by 20 elsewhere."""

    def sample(labels, prompts):
        assert labels.tolist() == [0, 1, 2] and prompts == ("a cat", "a dog", "a cow")
        return CLIPS + np.where(np.arange(17) == 0, 3, 20)[:, None, None, None].astype(np.uint8)

    held_out = SimpleNamespace(source=InMemory({"video": CLIPS}), captions=CAPTIONS)
    data = SimpleNamespace(held_out=lambda: held_out, feature="video")
    condition = CaptionedClips("minilm", 16, 384, 384, 1.0)
    context = Context(data, SimpleNamespace(shape=(5, 2, 2, 3)), condition, 100)
    functions = {"reconstruct": lambda clips: clips - 1}
    sampling = SimpleNamespace(given=given)
    return GivenFrames(context)(
        SimpleNamespace(sampling=sampling, functions=functions, sample=sample)
    )


def test_errors_are_those_of_the_given_frames_alone():
    found = {"given_frames": [0], "given_frames_error": 3.0}
    assert report_of((0,)) == found | {"given_frames_error_reconstruction": 1.0}
    both = report_of((0, 1))["given_frames_error"]
    assert both == pytest.approx(np.sqrt((3**2 + 4 * 20**2) / 5))
    assert report_of(()) == {}


def test_networks_without_clips_are_refused():
    with pytest.raises(ValueError, match="GivenFrames, which needs .*name=CaptionedClips"):
        GivenFrames(Context(None, None, SimpleNamespace(), 10))
