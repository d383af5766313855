"""LlamaGen's tokenizer compared with outputs of its authors' code (data/README_llamagen.md)."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax.models.autoencoders.vqgan import VQModel
from genjax.nn.quantizers import VectorQuantizer
from genjax.pretrained.vqgan import load_llamagen

DATA = Path(__file__).parent / "data"
MODULE = VQModel(
    VectorQuantizer(64, 4, normalize=True),
    encoder_channels=6,
    widths=(32, 64),
    attention_levels=(1,),
)
# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def tensors():
    shapes = json.loads((DATA / "llamagen_tokenizer.json").read_text())
    random, tensors = np.random.RandomState(0), {}
    for name in sorted(shapes):
        size_of_output = np.prod(shapes[name][1:])
        offset, deviation = (0.5, 0.3) if len(shapes[name]) == 1 else (0, size_of_output**-0.5)
        tensors[name] = (offset + deviation * random.standard_normal(shapes[name])).astype(
            np.float32
        )
    tensors["quant_conv.bias"] = np.load(DATA / "llamagen_tokenizer.npz")["quant_conv_bias"]
    return tensors


def test_agrees_with_the_authors(tensors, tmp_path):
    save_file(tensors, tmp_path / "file.safetensors")
    variables = load_llamagen(tmp_path / "file.safetensors", MODULE)
    reference = np.load(DATA / "llamagen_tokenizer.npz")

    @quick_jit
    def apply(variables, images):
        latents = MODULE.apply(variables, images, method="encode")
        quantized = MODULE.apply(variables, latents, method="quantize")
        return (
            latents,
            quantized,
            MODULE.apply(variables, quantized.indices, method="decode_indices"),
        )

    latents, quantized, reconstruction = apply(variables, reference["images"])
    assert len(np.unique(reference["indices"])) > 15
    np.testing.assert_array_equal(quantized.indices, reference["indices"])
    for ours, name in (
        (latents, "latents"),
        (quantized.latents, "quantized"),
        (reconstruction, "reconstruction"),
    ):
        theirs = reference[name]
        # Some 30 layers in float32, each rounded by about 1e-7 relative.
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=name
        )


def test_faults_are_listed_together(tensors, tmp_path):
    del tensors["encoder.mid.1.q.weight"]
    tensors["decoder.conv_blocks.0.attn.2.proj_out.weight"] = np.ones((64, 64, 3, 3), np.float32)
    tensors["quantize.other"] = np.ones(3, np.float32)
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ValueError) as caught:
        load_llamagen(tmp_path / "file.safetensors", MODULE)
    faults = {" ".join(line.split()[:2]) for line in str(caught.value).splitlines()[1:]}
    assert faults == {
        "missing: encoder.mid.1.q.weight,",
        "unusable: decoder.conv_blocks.0.attn.2.proj_out.weight",
        "extra: quantize.other",
    }
