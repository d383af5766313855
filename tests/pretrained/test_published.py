"""Every record reads what it writes; tests/parity compares with the libraries themselves."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from genjax import pretrained
from genjax.models.autoencoders.autoencoder_ltx import AutoencoderLTX2, autoencoder_ltx_23
from genjax.models.autoencoders.autoencoder_wan import autoencoder_wan_22
from genjax.models.encoders.gemma3 import Gemma3_1B, Gemma3_12B
from genjax.models.encoders.ltx2_connectors import ltx_2_0_connectors, ltx_2_3_connectors
from genjax.models.transformers.ltx2 import ltx_2_0, ltx_2_3, ltx_2_5
from genjax.pretrained import published
from genjax.pretrained.autoencoder_dc import AUTOENCODER_DC as DC
from genjax.pretrained.autoencoder_kl import AUTOENCODER_KL as KL
from genjax.pretrained.autoencoder_wan import AUTOENCODER_WAN as WAN
from genjax.pretrained.bert import BERT
from genjax.pretrained.clip import PUBLISHED as CLIPS
from genjax.pretrained.configuration import Field, Only, default_of
from genjax.pretrained.layouts import layer_names
from genjax.pretrained.published import DIFFUSERS, Published, class_of, example, record_of, records
from genjax.pretrained.sd3 import SD3

# Configurations that the libraries wrote over the years, for diffusers from version 0.2 to 0.33.
CONFIGS = json.loads((Path(__file__).parent / "data/published_configs.json").read_text())
CLIP = CLIPS[-1]
CASES = [(record, number) for record in records() for number in range(len(record.examples))]


def network(record, number):
    """Return an example's module and random variables, made without initializing the network."""
    config = record.complete(record.examples[number])
    module, random = record.make(config), np.random.default_rng(0)
    draw = lambda leaf: random.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
    return module, jax.tree.map(draw, record.shapes(module, config))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("record", records(), ids=lambda record: record.name)
def test_every_record_has_an_example_of_its_class(record):
    assert record.examples
    for config in map(record.complete, record.examples):
        assert type(record.make(config)) is record.module


@pytest.fixture
def shapes_once(monkeypatch):
    """Trace each network once: shapes depend on the module and its configuration alone."""
    known, shapes = {}, Published.shapes

    def remembered(record, module, config):
        key = module, json.dumps(config, sort_keys=True)
        if key not in known:
            known[key] = shapes(record, module, config)
        return known[key]

    monkeypatch.setattr(Published, "shapes", remembered)


@pytest.mark.usefixtures("shapes_once")
@pytest.mark.parametrize(("record", "number"), CASES, ids=lambda x: getattr(x, "name", x))
def test_what_is_written_is_read_bitwise(record, number, tmp_path):
    module, variables = network(record, number)
    pretrained.save(tmp_path / "first", module, variables)
    config = json.loads((tmp_path / "first/config.json").read_text())
    assert class_of(config) == record_of(module).name
    again, loaded = pretrained.load(tmp_path / "first")
    assert again == module
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), loaded, variables)
    pretrained.save(tmp_path / "second", again, loaded)
    assert files(tmp_path / "second") == files(tmp_path / "first")


def test_a_class_has_one_record_and_a_module_is_written_as_one_class():
    assert max(Counter(record.name for record in records()).values()) == 1
    for record, number in CASES:
        module = record.make(record.complete(record.examples[number]))
        writers = [r for r in records() if r.module is type(module) and r.writes(module)]
        assert writers == [record_of(module)]


class Counting(nn.Module):
    """A network that the package does not know, with an integer variable."""

    width: int

    @nn.compact
    def __call__(self, x):
        self.variable("state", "calls", jnp.zeros, (), jnp.int32)
        return nn.Dense(self.width, name="dense")(x)


RECORD = Published(
    DIFFUSERS,
    "CountingModel",
    Counting,
    entries=dict(size=Field("width", 3), in_channels=2, act_fn=Only("relu", "silu")),
    unused=("sample_size",),
    config=lambda module, variables: dict(in_channels=len(variables["params"]["dense"]["kernel"])),
    inputs=lambda module, config: (example(config["in_channels"]),),
    names=lambda module, tensors: layer_names({"dense": "proj", "calls": "calls"}),
    examples=(dict(size=4),),
)


@pytest.fixture
def counting(monkeypatch):
    """All that a new architecture needs: a network and a record."""
    monkeypatch.setattr(published, "members", lambda package, attribute: (RECORD,))
    records.cache_clear()
    yield network(RECORD, 0)
    records.cache_clear()


def test_a_network_and_a_record_are_all_that_a_new_class_needs(counting, tmp_path):
    pretrained.save(tmp_path, *counting, sample_size=8)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == dict(_class_name="CountingModel", size=4, in_channels=2, sample_size=8)
    module, variables = pretrained.load(tmp_path)
    assert module == Counting(4)
    jax.tree.map(np.testing.assert_array_equal, variables, counting[1])


def test_integers_stay_integers(counting, tmp_path):
    pretrained.save(tmp_path, *counting)
    for param_dtype, expected in [(jnp.bfloat16, jnp.bfloat16), (None, jnp.float32)]:
        _, variables = pretrained.load(tmp_path, param_dtype=param_dtype)
        types = variables["state"]["calls"].dtype, variables["params"]["dense"]["bias"].dtype
        assert types == (jnp.int32, expected)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(act_fn="gelu"), "act_fn='gelu' is not supported; only 'relu', 'silu'"),
        (dict(depth=2, size=1), r"entries that are not known here: \{'depth': 2\}"),
    ],
)
def test_entries_are_checked_when_they_are_read_and_when_they_are_written(
    counting, entries, message, tmp_path
):
    refused = f"this Counting cannot be saved as CountingModel: .*{message}"
    with pytest.raises(ValueError, match=refused):
        pretrained.save(tmp_path / "new", *counting, **entries)
    assert not (tmp_path / "new").exists()
    pretrained.save(tmp_path, *counting)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    refused = f"{path} cannot be read as CountingModel: .*{message}"
    with pytest.raises(ValueError, match=refused):
        pretrained.load(tmp_path)


# The type of an entry follows from its default or from an example.
OBJECT = dict(a=1)
WRONG = {
    bool: ["true", 1, [True]],
    int: ["4", 4.0, True, -1, [4]],
    float: ["0.5", True, float("nan"), [0.5]],
    str: [3, [3], OBJECT],
    list: ["4", 4, [OBJECT], [None]],
    dict: ["4", 4, [OBJECT]],
    type(None): [[OBJECT], [[["x"]]]],
}
NULLABLE = (  # nullable according to the libraries' annotations
    "out_channels shift_factor latents_mean latents_std vq_embed_dim interpolation_scale "
    "use_additional_conditions caption_channels qk_norm text_config vision_config dense_act_fn "
    "text_config_dict vision_config_dict audio_out_channels"
).split()


def only(entry, value):
    """Return whether an entry is an `Only` that has this value."""
    return isinstance(entry, Only) and value in entry.values


@pytest.fixture
def load_config(tmp_path):
    """Return a function that loads a configuration beside tensors that never fit."""
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")

    def load(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError) as caught:
            pretrained.load(tmp_path)
        return str(caught.value)

    return load


DISTINCT = {(record.module, *record.entries): record for record in records()}.values()


@pytest.mark.parametrize("record", DISTINCT, ids=lambda record: record.name)
def test_a_value_of_a_wrong_type_is_reported_with_entry_and_expected_type(record):
    """The file's name is added for all errors in one place; tests below see it."""
    for name, entry in record.entries.items():
        nullable = name in NULLABLE or default_of(entry) is None or only(entry, None)
        nothing = [] if nullable else [None]
        for value in [*WRONG[type(record.complete(record.examples[0])[name])], *nothing]:
            if not only(entry, value):
                with pytest.raises(ValueError) as caught:
                    record.make(record.complete({**record.examples[0], name: value}))
                message = str(caught.value)
                assert f"{name}={value!r:.60}" in message and "\n" not in message, message
                assert "; expected " in message or "; only " in message, message


@pytest.mark.parametrize(
    ("record", "entries", "message"),
    [
        (
            CLIP,
            dict(text_config=dict(hidden_size="4")),
            "text_config: hidden_size='4' is not supported",
        ),
        (
            CLIP,
            dict(vision_config_dict=dict(patch_size=0)),
            "vision_config: patch_size=0 is not supported",
        ),
        (KL, dict(scaling_factor=0), "ZeroDivisionError: float division by zero"),
        (
            KL,
            dict(latents_std=[1.0] * 3),
            r"latents_std=\[1.0, 1.0, 1.0\] has 3 values; latent_channels=2",
        ),
        (KL, dict(norm_num_groups=3), ".*groups"),
        (WAN, dict(latents_mean=[]), r"latents_mean=\[\] has 0 values; z_dim=2"),
        (
            DC,
            dict(encoder_layers_per_block=[1]),
            r"encoder_layers_per_block=\[1\] has 1 stages; encoder_",
        ),
        (
            DC,
            dict(decoder_act_fns=["relu"]),
            r"decoder_act_fns=\['relu'\] has 1 stages; decoder_block",
        ),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_values_that_make_no_network_are_reported_with_the_file(
    record, entries, message, load_config, tmp_path
):
    given = record.library.header(record.name, "float32") | record.examples[0] | entries
    error = load_config(given)
    assert re.match(f"{tmp_path}/config.json cannot be read as {record.name}: {message}", error), (
        error
    )
    assert "\n" not in error


@pytest.mark.parametrize(
    ("record", "entries"),
    [
        (KL, dict(scaling_factor=1, shift_factor=0)),
        (BERT, dict(layer_norm_eps=1, architectures="BertModel")),
        (SD3, dict(out_channels=None)),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_an_integer_is_a_number_too_and_null_is_where_the_library_allows_it(
    record, entries, load_config
):
    error = load_config(
        record.library.header(record.name, "float32") | record.examples[0] | entries
    )
    assert "cannot be read" not in error or error.endswith("the file lacks pos_embed.pos_embed"), (
        error
    )


def fields_of(module):
    """Return all fields of a module that is no part of another, except for what files tell."""
    others = {"parent", "name", "latent_mean", "latent_deviation"}
    names = {field.name for field in dataclasses.fields(module)} - others
    return {name: getattr(module, name) for name in names}


FIELDS = {  # from the papers or the model cards
    "autoencoder of Wan 2.1, 0.33": dict(image_channels=3, widths=(96, 192, 384, 384)),
    "autoencoder of Stable Diffusion 1, diffusers 0.2": dict(
        latent_deviation=(1 / 0.18215,), groups=32
    ),
    "autoencoder of FLUX.1, 0.30": dict(latent_mean=(0.1159,), use_quant_conv=False),
    "DiT-XL/2, 0.12": dict(width=1152, depth=28, num_classes=1000, base_size=16, out_channels=8),
    "PixArt-alpha, 0.22": dict(width=1152, interpolation_scale=2.0, size_conditioning=True),
    "PixArt-sigma, 0.28": dict(interpolation_scale=2.0, size_conditioning=False),
    "Stable Diffusion 3 medium, 0.29": dict(width=1536, depth=24, qk_norm=False, dual_layers=()),
    "Stable Diffusion 3.5 medium, 0.32": dict(
        depth=24, qk_norm=True, dual_layers=tuple(range(13)), max_size=384
    ),
    "FLUX.1 dev, 0.30": dict(takes_guidance=True, rotary_features=(16, 56, 56), width=3072),
    "FLUX.1 Fill, 0.32": dict(out_channels=16),
    "autoencoder of Wan 2.2 5B, 0.35": {
        field: getattr(autoencoder_wan_22(), field)
        for field in ("widths", "decoder_widths", "patch_size", "latent_mean", "latent_deviation")
    },
    "Wan 2.1 text-to-video 1.3B, 0.33": dict(width=1536, takes_image=False),
    "Wan 2.1 image-to-video 14B, 0.33": dict(width=5120, takes_image=True, out_channels=16),
    # LTX-2's configurations are those of diffusers' script that converts the authors' files.
    "LTX-2.0, 0.42": fields_of(ltx_2_0(out_channels=128, audio_out_channels=128)),
    "LTX-2.3, 0.42": fields_of(ltx_2_3(out_channels=128, audio_out_channels=128)),
    "LTX-2.5, 0.42": fields_of(ltx_2_5(out_channels=128, audio_out_channels=128)),
    "connectors of LTX-2.0, 0.42": fields_of(ltx_2_0_connectors()),
    "connectors of LTX-2.3, 0.42": fields_of(ltx_2_3_connectors()),
    "image encoder of Wan 2.1": dict(width=1280, quick_gelu=False, shared_features=None),
    "UMT5 of Wan 2.1": dict(
        vocabulary_size=256_384, gate="gelu", bias_per_block=True, max_distance=128
    ),
    "BERT base": dict(width=768, depth=12),
    "autoencoder of Stable Audio Open, 0.30": dict(factor=2048, latent_channels=64),
    "transformer of Stable Audio Open, 0.30": dict(width=1536, num_kv_heads=12, text_width=768),
    "projection of Stable Audio Open, 0.30": dict(features=768, most_seconds=512.0),
    "autoencoder of LTX-2.0": fields_of(AutoencoderLTX2()),
    "autoencoder of LTX-2.3": fields_of(autoencoder_ltx_23()),
    "Gemma 3 12B, 4.50": fields_of(Gemma3_12B()),  # both configurations of Gemma are from memory
    "Gemma 3 1B, 4.50": fields_of(Gemma3_1B()),
}


def test_fields_are_of_configurations_that_are_there():
    assert FIELDS.keys() <= CONFIGS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_of_all_years_are_read(name):
    config = CONFIGS[name]
    (record,) = (record for record in records() if record.describes(config))
    complete = record.complete(config)
    module = record.make(complete)
    inputs = record.inputs(module, complete)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(inputs)} == {1}  # a batch of one
    for field, value in FIELDS.get(name, {}).items():
        assert getattr(module, field) == value, field
    with pytest.raises(ValueError, match=r"entries that are not known here: \{'new_entry': 1\}"):
        record.complete(config | dict(new_entry=1))
