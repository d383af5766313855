"""LightningDiT compared with outputs of its authors' PyTorch code.

data/README_lightning_dit.md says how the outputs were made.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax.models.transformers.lightning_dit import LightningDiT
from genjax.pretrained.lightning_dit import load

DATA = Path(__file__).with_name("data")
MODULES = {
    "plain": LightningDiT(1, 16, 2, 2, num_classes=5),
    "qk_norm": LightningDiT(2, 16, 2, 2, num_classes=5, qk_norm=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_outputs_agree(name):
    module, arrays = MODULES[name], np.load(DATA / f"lightning_dit_{name}.npz")
    variables = load(DATA / f"lightning_dit_{name}.safetensors", module, channels=3)
    x = arrays["x"].transpose(0, 2, 3, 1)
    output = jax.jit(module.apply)(variables, x, arrays["t"], arrays["labels"])
    expected = arrays["output"].transpose(0, 2, 3, 1)
    # float32 on both sides: some 30 operations, each rounded by about 1e-7.
    np.testing.assert_allclose(output, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


def test_faults_are_listed_together(tmp_path):
    tensors = load_file(DATA / "lightning_dit_qk_norm.safetensors")
    del tensors["blocks.1.attn.q_norm.weight"]
    # The tensor no longer holds three layers.
    tensors["blocks.0.attn.qkv.weight"] = tensors["blocks.0.attn.qkv.weight"][:-1]
    tensors["pos_embed"] = tensors["pos_embed"] + 1e-3
    tensors["feat_rope.freqs_sin"] = tensors["feat_rope.freqs_cos"]
    save_file(tensors, tmp_path / "file")
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "file", MODULES["qk_norm"], channels=3)
    faults = {" ".join(line.split()[:2]).rstrip(",") for line in str(caught.value).splitlines()[1:]}
    assert faults == {
        "missing: blocks.1.attn.q_norm.weight",
        "unusable: blocks.0.attn.qkv.weight",
        "extra: pos_embed",
        "extra: feat_rope.freqs_sin",
    }


def test_variables_have_the_given_types():
    bfloat16 = lambda expected: jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), expected
    )
    variables = load(
        DATA / "lightning_dit_plain.safetensors", MODULES["plain"], 3, abstract=bfloat16
    )
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
