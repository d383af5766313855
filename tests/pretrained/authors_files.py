"""Folders of small autoencoders in their authors' form, with the random weights of data/README*."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DATA = Path(__file__).with_name("data")
STEMS = dict(
    LlamaGenTokenizer="llamagen_tokenizer",
    MARAutoencoder="mar_autoencoder",
    VARTokenizer="var_tokenizer",
)
SIZES = dict(
    LlamaGenTokenizer=dict(num_codes=64, features=4, encoder_channels=6, widths=[32, 64]),
    MARAutoencoder=dict(latent_channels=2, widths=[32, 64], blocks=1),
    VARTokenizer=dict(num_codes=13, features=4, sides=[1, 2, 3, 4], widths=[32, 64], blocks=1),
)


def reference(name: str) -> Mapping[str, np.ndarray]:
    """Return the outputs of the authors' code for a class."""
    return np.load(DATA / f"{STEMS[name]}.npz")


def draw(name: str) -> dict[str, np.ndarray]:
    """Return the tensors of a class, drawn in the order of their names."""
    shapes = json.loads((DATA / f"{STEMS[name]}.json").read_text())
    random, tensors = np.random.RandomState(0), {}
    for tensor, shape in sorted(shapes.items()):
        vector = len(shape) == 1
        deviation = 0.3 if vector else np.prod(shape[1:]) ** -0.5
        if (name, tensor) == ("VARTokenizer", "quantize.embedding.weight"):
            deviation = 1.0
        numbers = 0.5 * vector + deviation * random.standard_normal(shape)
        tensors[tensor] = numbers.astype(np.float32)
    if name == "LlamaGenTokenizer":
        tensors["quant_conv.bias"] = reference(name)["quant_conv_bias"]
    if name == "VARTokenizer":
        tensors["quantize.ema_vocab_hit_SV"] = np.zeros((4, 13), np.float32)
    return tensors


def write(folder: Path, name: str, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write and return a folder of these tensors and the configuration of the class."""
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(_class_name=name, **SIZES[name])))
    return folder
