"""The program that samples."""

import numpy as np
import pytest
from PIL import Image

from genjax.pipelines import Run
from genjax.training.pictures import read_rows
from tests.experiments.launching import arrays_of, run
from tests.experiments.random_runs import random_run
from tests.experiments.small_digits import small_config


def test_sample_takes_classes_count_steps_scale_and_seed(small_run, tmp_path):
    def sample(*flags, out):
        result = run("sample", f"--workdir={small_run[0]}", f"--out={tmp_path / out}", *flags)
        assert result.returncode == 0, result.stderr
        return result

    sample(
        "--classes=3,7", "--count=4", "--seed=5", "--num_steps=2", "--guidance_scale=2", out="a.npz"
    )
    a = arrays_of(tmp_path / "a.npz")
    assert a["images"].shape == (8, 8, 8, 1) and a["images"].dtype == np.uint8
    np.testing.assert_array_equal(a["labels"], [3] * 4 + [7] * 4)
    # sample i depends on its own index, class and seed: not on how many there are
    sample(
        "--classes=3", "--count=2", "--seed=5", "--num_steps=2", "--guidance_weight=1", out="b.npz"
    )
    difference = arrays_of(tmp_path / "b.npz")["images"].astype(int) - a["images"][:2]
    assert np.abs(difference).max() <= 1  # another batch size may round a float differently
    result = sample("--count=3", "--step=30", "--weights=params", out="c.png")
    assert "step 30" in result.stdout and "weights params" in result.stdout
    with Image.open(tmp_path / "c.png") as image:
        assert image.height == 10 * 66 and image.width > 3 * 66
        assert read_rows(image) == list("0123456789")


@pytest.mark.parametrize(
    "labels", [[30], [-1], np.array(3), np.array(["ten"]), np.array([0.5]), []], ids=str
)
def test_a_run_refuses_labels_that_it_does_not_have(small_run, labels):
    """JAX would take the embedding of no class in place of that of class 30."""
    with pytest.raises(ValueError, match="must be (a list of whole )?numbers from 0 to 9"):
        Run(small_run[0]).sample(labels=labels)


def test_classes_of_a_run_without_classes_are_refused(tmp_path):
    config = small_config()
    config.condition = dict(name="Unconditional")
    folder = random_run(tmp_path / "run", config)
    for count in ([], ["--count=2"]):
        result = run("sample", f"--workdir={folder}", "--classes=0", *count)
        assert result.returncode == 1, result.stdout
        assert result.stderr.startswith("error: --classes=0, but this run has no classes to choose")


def test_sample_says_what_is_wrong(small_run, tmp_path):
    cases = [
        ([f"--workdir={tmp_path}"], "holds no run"),
        (
            [f"--workdir={small_run[0]}", "--classes=3,12"],
            "error: --classes=3,12 must be numbers from 0 to 9\n",
        ),
        (
            [f"--workdir={small_run[0]}", "--step=33"],
            "no checkpoint 33; the steps there are [20, 30, 40]",
        ),
        (
            [f"--workdir={small_run[0]}", "--out=x.jpg"],
            "must end in .png, .npz, .wav, .mp4 or .webm",
        ),
        ([f"--workdir={small_run[0]}", "--sampler=hun"], "error: --sampler is 'hun'; did you mean"),
        ([f"--workdir={small_run[0]}", "--grid=karas_grid"], "error: --grid is 'karas_grid'; did"),
        (
            [f"--workdir={small_run[0]}", "--sampler=ddim,eat=1.0"],
            "ddim does not take; it takes memory, eta; did you mean 'eta'?\n",
        ),
        (
            [f"--workdir={small_run[0]}", "--prompt=seven"],
            "error: --prompt is given, and digits_flow knows no prompts (config.condition.name is "
            "'Classes'): leave it out, and choose by --classes\n",
        ),
    ]
    for flags, words in cases:
        result = run("sample", *flags)
        assert result.returncode == 1 and words in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
