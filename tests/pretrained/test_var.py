"""VAR and its tokenizer compared with outputs of their authors' PyTorch code.

data/README_var.md says how the outputs were made.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genjax.autoregression import decode_scales, growing, guide, pair, sample
from genjax.models.autoencoders.vqgan import VQModel
from genjax.models.autoregressive.var import VAR
from genjax.nn.multiscale import MultiScaleQuantizer
from genjax.pretrained.var import load
from genjax.pretrained.vqgan import load_var

DATA = Path(__file__).with_name("data")
SIDES = (1, 2, 3, 4)
SIZE = dict(vocabulary=13, sides=SIDES, width=16, depth=2, num_heads=2, num_classes=5)
MODULES = {"plain": VAR(**SIZE), "shared": VAR(shared_modulation=True, **SIZE)}
TOKENIZER = VQModel(
    MultiScaleQuantizer(13, 4, SIDES),
    encoder_channels=4,
    widths=(32, 64),
    blocks=1,
    attention_levels=(1,),
    quant_side=3,
)
REFERENCE = np.load(DATA / "var_tokenizer.npz")
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Read the tokenizer's variables, which are made as README_var.md says."""
    shapes = json.loads((DATA / "var_tokenizer.json").read_text())
    random, tensors = np.random.RandomState(0), {}
    for name in sorted(shapes):
        vector, codes = len(shapes[name]) == 1, name == "quantize.embedding.weight"
        deviation = 1 if codes else 0.3 if vector else np.prod(shapes[name][1:]) ** -0.5
        numbers = 0.5 * vector + deviation * random.standard_normal(shapes[name])
        tensors[name] = numbers.astype(np.float32)
    tensors["quantize.ema_vocab_hit_SV"] = np.zeros((4, 13), np.float32)
    path = tmp_path_factory.mktemp("var") / "file.safetensors"
    save_file(tensors, path)
    return load_var(path, TOKENIZER)


def close(actual, expected, relative=1e-5):
    """float32 on both sides: tens of operations, each rounded by about 1e-7."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_the_tokenizer_agrees(tokenizer):
    @quick_jit
    def apply(variables, images, latents, sums):
        run = functools.partial(TOKENIZER.apply, variables)
        return (
            run(images, method="encode"),
            run(latents, method="quantize"),
            run(sums, method="decode"),
        )

    sums = REFERENCE["sums"]
    encoded, quantized, decoded = apply(
        tokenizer, REFERENCE["images"], REFERENCE["latents"], sums[-1]
    )
    close(encoded, REFERENCE["encoded"])
    close(decoded, REFERENCE["decoded"], 3e-5)  # through convolutions of 64·9 terms
    np.testing.assert_array_equal(quantized.indices, REFERENCE["indices"])
    close(quantized.latents, sums[-1])
    losses = quantized.losses
    close(0.25 * losses["commitment"] + losses["codebook"], REFERENCE["loss"])


def test_sums_of_maps_and_inputs_agree(tokenizer):
    indices = jnp.asarray(REFERENCE["indices"])
    apply = lambda method: TOKENIZER.apply(
        tokenizer, indices, method=lambda m, a: getattr(m.quantizer, method)(a)
    )
    for ours, theirs in zip(apply("sums"), REFERENCE["sums"], strict=True):
        close(ours, theirs)
    close(apply("inputs"), REFERENCE["inputs"])


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
        extend = lambda *a: TOKENIZER.apply(
            tokenizer, *a, method=lambda m, *a: m.quantizer.extend(*a)
        )
        return decode_scales(
            keys,
            guide(step, growing(1.5, len(SIDES))),
            state,
            extend,
            jnp.zeros((3, 4, 4, 4)),
            len(SIDES),
            functools.partial(sample, temperature=0.0),
        )

    tokens, total = run(jax.random.split(jax.random.key(0), 3), arrays["labels"][:3])
    np.testing.assert_array_equal(tokens, arrays["tokens"])
    image = TOKENIZER.apply(tokenizer, total, method="decode")
    close((jnp.clip(image, -1, 1) + 1) / 2, arrays["image"], 3e-5)


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
