"""LlamaGen's transformers compared with outputs of their authors' PyTorch code.

data/README_llamagen_networks.md says how the outputs were made.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from genjax.models.autoregressive.llamagen import LlamaGen
from genjax.models.autoregressive.prefixes import ClassPrefix, TextPrefix
from genjax.nn import Text
from genjax.pretrained.llamagen import load, null_text

DATA = Path(__file__).with_name("data")
SIZE = dict(vocabulary=11, grid=(3, 3), width=16, depth=2, num_heads=2)
MODULES = {
    "c2i": LlamaGen(prefix=ClassPrefix(5), **SIZE),
    "t2i": LlamaGen(prefix=TextPrefix(3), **SIZE),
}


@pytest.mark.parametrize("name", MODULES)
def test_outputs_agree(name):
    module, arrays = MODULES[name], np.load(DATA / f"llamagen_{name}.npz")
    variables = load(DATA / f"llamagen_{name}.safetensors", module, text_features=6)
    condition = arrays["condition"]
    if name == "t2i":
        condition = Text(condition, mask=arrays["mask"])
    logits = jax.jit(module.apply)(variables, arrays["tokens"], condition)
    expected = arrays["logits"]
    # float32 on both sides: some 30 operations, each rounded by about 1e-7.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_the_null_text_is_read_from_the_file():
    path = DATA / "llamagen_t2i.safetensors"
    states = null_text(path)
    assert states.shape == (3, 6) and states.std() > 0.1


def test_a_file_of_another_size_is_refused():
    other = LlamaGen(prefix=ClassPrefix(6), **SIZE)
    with pytest.raises(ValueError, match="embedding_table"):
        load(DATA / "llamagen_c2i.safetensors", other)
