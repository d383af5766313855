"""Autoencoders in their authors' files, compared with outputs of the authors' code.

data/README_llamagen.md and data/README_mar.md say how the outputs were made. test_var.py has those
of VAR's tokenizer.
"""

import functools

import jax
import numpy as np
import pytest

from genjax import pretrained
from genjax.pretrained.authors_autoencoders import PUBLISHED
from tests.pretrained.authors_files import draw, reference, write

# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def close(ours, theirs):
    """Some 30 layers in float32, each rounded by about 1e-7 relative."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


COUNTS = dict(
    LlamaGenTokenizer=71_883_403,  # FoundationVision/LlamaGen
    MARAutoencoder=66_456_019,  # LTH14/mar:models/vae.py
    VARTokenizer=108_948_355,  # FoundationVision/VAR:models/vqvae.py
)


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda record: record.name)
def test_a_configuration_of_the_class_alone_has_the_published_size(record):
    config = record.complete({})
    module = record.make(config)
    sizes = [a.size for a in jax.tree.leaves(record.shapes(module, config))]
    assert sum(sizes) == COUNTS[record.name] and module.factor == 16


def test_llamagens_tokenizer_agrees(tmp_path):
    folder = write(tmp_path, "LlamaGenTokenizer", draw("LlamaGenTokenizer"))
    module, variables = pretrained.load(folder)
    arrays = reference("LlamaGenTokenizer")

    @quick_jit
    def apply(variables, images):
        latents = module.apply(variables, images, method="encode")
        quantized = module.apply(variables, latents, method="quantize")
        decoded = module.apply(variables, quantized.indices, method="decode_indices")
        return latents, quantized, decoded

    latents, quantized, reconstruction = apply(variables, arrays["images"])
    assert len(np.unique(arrays["indices"])) > 15
    np.testing.assert_array_equal(quantized.indices, arrays["indices"])
    close(latents, arrays["latents"])
    close(quantized.latents, arrays["quantized"])
    close(reconstruction, arrays["reconstruction"])


def test_mars_autoencoder_agrees(tmp_path):
    tensors = draw("MARAutoencoder") | {"loss.logvar": np.zeros((), np.float32)}
    module, variables = pretrained.load(write(tmp_path, "MARAutoencoder", tensors))
    assert module.latent_deviation == (1 / 0.2325,)
    arrays = reference("MARAutoencoder")
    apply = lambda method: quick_jit(functools.partial(module.apply, method=method))
    mean, log_variance = apply("encode")(variables, arrays["images"])
    close(mean, arrays["mean"])
    close(log_variance, arrays["log_variance"])
    close(apply("decode")(variables, arrays["mean"]), arrays["decoded"])


def test_faults_are_listed_together(tmp_path):
    tensors = draw("LlamaGenTokenizer")
    del tensors["encoder.mid.1.q.weight"]
    tensors["decoder.conv_blocks.0.attn.2.proj_out.weight"] = np.ones((64, 64, 3, 3), np.float32)
    tensors["quantize.other"] = np.ones(3, np.float32)
    folder = write(tmp_path, "LlamaGenTokenizer", tensors)
    with pytest.raises(ValueError) as caught:
        pretrained.load(folder)
    faults = {" ".join(line.split()[:2]) for line in str(caught.value).splitlines()[1:]}
    assert faults == {
        "missing: encoder.mid.1.q.weight,",
        "unusable: decoder.conv_blocks.0.attn.2.proj_out.weight",
        "extra: quantize.other",
    }
