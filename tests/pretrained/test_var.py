"""VAR and its tokenizer compared with outputs of their authors' PyTorch code.

data/README_var.md says how the outputs were made.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax import pretrained
from genjax.autoregression import decode_scales, guide, linear_guidance, pair, sample
from genjax.models.autoregressive.var import VAR
from genjax.pretrained.var import load
from tests.pretrained.authors_files import DATA, draw, reference, write

SIDES = (1, 2, 3, 4)
SIZE = dict(vocabulary=13, sides=SIDES, width=16, depth=2, num_heads=2, num_classes=5)
MODULES = {"plain": VAR(**SIZE), "shared": VAR(shared_modulation=True, **SIZE)}
REFERENCE = reference("VARTokenizer")
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("var"), "VARTokenizer", draw("VARTokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    module, variables = pretrained.load(folder)
    return functools.partial(module.apply, variables)


def close(actual, expected, relative=1e-5):
    """float32 on both sides: tens of operations, each rounded by about 1e-7."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_the_tokenizer_agrees(tokenizer):
    @quick_jit
    def apply(images, latents, sums):
        return (
            tokenizer(images, method="encode"),
            tokenizer(latents, method="quantize"),
            tokenizer(sums, method="decode"),
        )

    sums = REFERENCE["sums"]
    encoded, quantized, decoded = apply(REFERENCE["images"], REFERENCE["latents"], sums[-1])
    close(encoded, REFERENCE["encoded"])
    close(decoded, REFERENCE["decoded"], 3e-5)  # through convolutions of 64·9 terms
    np.testing.assert_array_equal(quantized.indices, REFERENCE["indices"])
    close(quantized.latents, sums[-1])
    losses = quantized.losses
    close(0.25 * losses["commitment"] + losses["codebook"], REFERENCE["loss"])


def test_the_tokenizer_is_saved_as_the_authors_do(folder, tmp_path):
    pretrained.save(tmp_path, *pretrained.load(folder))
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, folder))
    del theirs["quantize.ema_vocab_hit_SV"]  # the use of codes in training
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, strict=True, err_msg=name)


def test_sums_of_maps_and_inputs_agree(tokenizer):
    indices = jnp.asarray(REFERENCE["indices"])
    both = lambda module, indices: (
        module.quantizer.sums(indices),
        module.quantizer.inputs(indices),
    )
    sums, inputs = quick_jit(functools.partial(tokenizer, method=both))(indices)
    for ours, theirs in zip(sums, REFERENCE["sums"], strict=True):
        close(ours, theirs)
    close(inputs, REFERENCE["inputs"])


@pytest.mark.parametrize("name", MODULES)
def test_logits_and_guided_greedy_samples_agree(name, tokenizer):
    module, arrays = MODULES[name], np.load(DATA / f"var_{name}.npz")
    variables = load(DATA / f"var_{name}.safetensors", module, features=4)
    logits = jax.jit(module.apply)(variables, REFERENCE["inputs"], arrays["labels"])
    close(logits, arrays["logits"], 2e-5)

    @jax.jit
    def run(keys, labels):
        state = module.apply(variables, pair(labels, 5), method="start")
        step = functools.partial(module.apply, variables, method="step")
        extend = lambda *a: tokenizer(*a, method=lambda m, *a: m.quantizer.extend(*a))
        tokens, total = decode_scales(
            keys,
            guide(step, linear_guidance(1.5, len(SIDES))),
            state,
            extend,
            jnp.zeros((3, 4, 4, 4)),
            len(SIDES),
            functools.partial(sample, temperature=0.0),
        )
        return tokens, tokenizer(total, method="decode")

    tokens, image = run(jax.random.split(jax.random.key(0), 3), arrays["labels"][:3])
    np.testing.assert_array_equal(tokens, arrays["tokens"])
    close((np.clip(image, -1, 1) + 1) / 2, arrays["image"], 3e-5)


def test_faults_are_listed_together(tmp_path):
    tensors = load_file(DATA / "var_plain.safetensors")
    tensors["blocks.0.attn.zero_k_bias"] = tensors["blocks.0.attn.zero_k_bias"] + 1
    tensors["lvl_1L"] = tensors["lvl_1L"] + 1
    del tensors["head.bias"]
    save_file(tensors, tmp_path / "file")
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "file", MODULES["plain"], features=4)
    faults = {" ".join(line.split()[:2]).rstrip(",") for line in str(caught.value).splitlines()[1:]}
    assert faults == {
        "missing: head.bias",
        "extra: blocks.0.attn.zero_k_bias",
        "extra: lvl_1L",
    }
