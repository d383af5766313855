"""The folder of a config's latents records their origin."""

import json

import pytest

from configs import emoji_latent_flow, text_to_audio
from experiments.launch.encoding import origin_of, write
from genjax.data.sets.latents import ORIGIN, check_origin, write_origin


def test_nested_fields_of_data_are_part_of_the_origin(tmp_path):
    config = text_to_audio.get_config()
    write_origin(tmp_path, origin_of(config))
    assert json.loads((tmp_path / ORIGIN).read_text())["data"]["options"]["sample_rate"] == 44_100
    check_origin(tmp_path, origin_of(config))
    config.data.options.channels = 1
    with pytest.raises(ValueError, match="take another folder"):
        check_origin(tmp_path, origin_of(config))


def test_an_origin_that_another_process_is_writing_is_no_other_file(tmp_path):
    (tmp_path / "origin.1").write_text("{")
    write_origin(tmp_path, {"data": "digits"})
    check_origin(tmp_path, {"data": "digits"})
    (tmp_path / ORIGIN).unlink()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="it holds other files"):
        write_origin(tmp_path, {"data": "digits"})


def test_numbers_that_cannot_be_meant_are_refused():
    config = emoji_latent_flow.get_config()
    config.space.batch_size = 0
    with pytest.raises(SystemExit, match="config.space.batch_size is 0; it must be at least 1"):
        write(config)


def test_origins_without_nested_fields_are_as_before(tmp_path):
    """Folders of latents outlive the version of genjax that wrote them."""
    config = emoji_latent_flow.get_config()
    before = {
        "space": {"run": "runs/emoji_autoencoder", "weights": "ema", "published": None},
        "data": {name: each for name, each in config.data.items() if name != "options"},
    }
    (tmp_path / ORIGIN).write_text(json.dumps(before, indent=2))
    check_origin(tmp_path, origin_of(config))
