"""What the README says can be run."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import SVC

from genjax import diffusion
from genjax.data import load_dataset, to_float

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_slide_runs_as_shown_and_draws_digits():
    names = {}
    exec(SNIPPETS[0], names)
    assert names["images"].shape == (10, 8, 8, 1)
    train = load_dataset("digits").source[:]
    classifier = SVC(C=10.0).fit(to_float(train["image"]).reshape(-1, 64), train["label"])
    labels = np.arange(100) % 10
    grid = diffusion.uniform_grid(names["process"], 50)
    images = names["sample"](names["params"], jax.random.key(1), jnp.asarray(labels), 2.0, grid)
    right = np.mean(classifier.predict(np.clip(images, -1, 1).reshape(100, 64)) == labels)
    assert right > 0.9  # 0.99 when this was written; 0.1 by chance


def test_a_sampler_written_as_shown_is_ddim():
    names = {}
    exec(SNIPPETS[1], names)
    process, noise = diffusion.VariancePreservingLinear(), jax.random.normal(jax.random.key(0), (4, 3))
    denoiser = lambda x, t: diffusion.Prediction(jnp.tanh(x), x * t[:, None])
    arguments = denoiser, process, noise, diffusion.uniform_grid(process, 5)
    samples = names["my_ddim"](*arguments)
    np.testing.assert_array_equal(samples, diffusion.ddim(*arguments))
    assert np.abs(samples - noise).max() > 0.1


def test_files_and_flags_that_are_named_exist():
    for path in re.findall(r"(?:configs|notebooks)/\w+\.(?:py|ipynb)", README):
        assert (ROOT / path).exists(), path
    for program, line in re.findall(r"-m experiments\.(\w+)(.*)", README):
        source = "".join(
            (ROOT / f"experiments/{name}.py").read_text() for name in (program, "runtime", "sampling_flags")
        )
        for flag in re.findall(r"--(\w+)[= ]", line):
            assert f'"{flag}"' in source, (program, flag)


def test_import_is_quick_and_brings_no_data_library():
    code = """
import jax, sys, time
began = time.perf_counter()
import genjax
assert time.perf_counter() - began < 0.2
import genjax.diffusion, genjax.models.dit, genjax.metrics, genjax.data, genjax.training
heavy = {"tensorflow", "tensorflow_datasets", "grain", "sklearn", "torch", "ml_collections"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
