"""Which folders are systems; tests/parity compares pictures with those of diffusers."""

import json

import pytest

from genjax import pipelines


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json does not exist; one part alone"):
        pipelines.load(tmp_path)


@pytest.mark.parametrize("load", [pipelines.load, pipelines.load_encoder])
def test_an_unknown_system_is_named_and_the_known_ones_listed(load, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LattePipeline"}))
    known = "DiTPipeline, FluxPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline"
    with pytest.raises(ValueError, match=f"describes 'LattePipeline'; known are {known}$"):
        load(tmp_path)


def test_labels_are_what_a_network_of_classes_is_told(tmp_path):
    """A system without text encoders; nothing but the index is read."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    labels = pipelines.load_encoder(tmp_path)([3, 17])
    assert labels.tolist() == [3, 17] and labels.dtype == "int32"
