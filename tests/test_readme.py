"""What the README shows runs, and does what the README says."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.svm import SVC

from genjax import diffusion, pipelines, pretrained
from genjax.data import load_dataset, to_float
from genjax.models.transformers.flux import Flux
from genjax.nn import Text
from tests.docs.pages import blocks

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WEIGHTS = ROOT / "docs/guides/published_weights.md"


def snippet(page: Path, word: str, language: str = "python") -> str:
    """Return the first block of Python of a page that has a word in it."""
    return next(block.text for block in blocks(page, language) if word in block.text)


HUNDRED_DIGITS = """
assert images.shape == (10, 8, 8, 1)
labels, grid = jnp.arange(100) % 10, diffusion.uniform_grid(process, 50)
jnp.save("images.npy", sample(params, jax.random.key(1), labels, 2.0, grid))
"""


@pytest.mark.slow
def test_the_slide_runs_as_shown_and_draws_digits(tmp_path, monkeypatch):
    """In a process of its own, with XLA's optimizations, which other tests do without."""
    monkeypatch.delenv("XLA_FLAGS")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", snippet(README, "simple_loss") + HUNDRED_DIGITS]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    shown = np.array(Image.open(tmp_path / "digits.png"))
    assert len(np.unique(shown)) > 20  # ten digits in grey levels
    images = np.load(tmp_path / "images.npy")
    train = load_dataset("digits").source[:]
    classifier = SVC(C=10.0).fit(to_float(train["image"]).reshape(-1, 64), train["label"])
    labels = np.arange(100) % 10
    right = np.mean(classifier.predict(np.clip(images, -1, 1).reshape(100, 64)) == labels)
    assert right > 0.9  # 0.99 when this was written; 0.1 by chance


def test_a_sampler_written_as_shown_is_ddim():
    names = {}
    exec(snippet(README, "my_ddim"), names)
    process, noise = (
        diffusion.VariancePreservingLinear(),
        jax.random.normal(jax.random.key(0), (4, 3)),
    )
    denoiser = lambda x, t: diffusion.Prediction(jnp.tanh(x), x * t[:, None])
    arguments = denoiser, process, noise, diffusion.uniform_grid(process, 5)
    samples = names["my_ddim"](*arguments)
    np.testing.assert_array_equal(samples, diffusion.ddim(*arguments))
    assert np.abs(samples - noise).max() > 0.1


def test_published_networks_are_loaded_and_saved_as_shown(tmp_path, monkeypatch):
    """The network for real, though small; whole systems are in tests/parity."""
    monkeypatch.chdir(tmp_path)
    network = Flux(num_double_blocks=1, num_single_blocks=1, num_heads=2, rotary_features=(4, 2, 2))
    text = Text(jnp.zeros((1, 3, 8)), jnp.zeros((1, 8)))
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), text
    )
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: generator.standard_normal(a.shape, np.float32), shapes)
    pretrained.save("FLUX.1-dev/transformer", network, variables)
    system = create_autospec(pipelines.Pipeline, instance=True)
    system.return_value = np.zeros((4, 8, 8, 3), np.uint8)
    monkeypatch.setattr(pipelines, "load", create_autospec(pipelines.load, return_value=system))
    names = {}
    exec(snippet(WEIGHTS, "corgis.png"), names)
    exec(snippet(WEIGHTS, "pretrained.save", "py"), names)
    system.assert_called_once()
    assert Path("corgis.png").exists()
    again, loaded = pretrained.load("mine")
    assert again == network
    # What is read in bfloat16 has been rounded to it: 8 bits of precision.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), loaded, variables)


def test_import_is_quick_and_brings_no_slow_library():
    code = """
import jax, sys, time
began = time.perf_counter()
import genjax
assert time.perf_counter() - began < 0.2
import genjax.diffusion, genjax.models.transformers.dit
import genjax.metrics, genjax.data, genjax.training
heavy = {"tensorflow", "tensorflow_datasets", "grain", "sklearn", "torch", "ml_collections"}
heavy |= {"diffrax", "scipy.fft", "scipy.ndimage", "scipy.signal", "scipy.special", "scipy.stats"}
heavy &= set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
