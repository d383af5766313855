"""A small random CLIP of transformers, saved by transformers and loaded here, and back.

Measured: all states, pooled and projected vectors differ by less than 1e-6 of their largest value.
"""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from genjax import pretrained
from genjax.models.encoders.clip import resize_and_crop

from .libraries import assert_opens, with_entries

VOCABULARY, LENGTH, SIZE = 23, 11, 12
END = VOCABULARY - 1
TEXT = dict(
    vocab_size=VOCABULARY,
    max_position_embeddings=LENGTH,
    hidden_size=12,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=2,
    projection_dim=10,
    bos_token_id=0,
    eos_token_id=2,
)
VISION = dict(
    hidden_size=15,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=3,
    projection_dim=10,
    image_size=SIZE,
    patch_size=4,
)
TEXT_MODELS = {
    "L": (CLIPTextModel, {}),
    "L with projection": (CLIPTextModelWithProjection, dict(eos_token_id=END)),
    "bigG": (
        CLIPTextModelWithProjection,
        dict(hidden_act="gelu", eos_token_id=END - 1, num_attention_heads=4, layer_norm_eps=1e-3),
    ),
}
VISION_MODELS = {
    "alone": (CLIPVisionModel, {}),
    "with projection": (CLIPVisionModelWithProjection, dict(hidden_act="gelu", patch_size=3)),
}

# For programs that run only once: this halves the compilation time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def randomise(model):
    """Return a network whose weights keep activations in scale, with active biases and norms."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim:
                offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                deviation = 0.3 if parameter.ndim == 1 else np.prod(parameter.shape[1:]) ** -0.5
                parameter.copy_(offset + deviation * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def tokens():
    """Two texts with tokens END − 1 and END at different places, END − 1 more than once."""
    tokens = np.random.default_rng(0).integers(3, END - 1, (2, LENGTH - 2), np.int32)
    tokens[0, 3] = tokens[1, 6] = END
    tokens[0, [4, 7]] = tokens[1, 2] = END - 1
    return tokens


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)


def pixel_values(images):
    values = ((images + 1) / 2 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    return torch.tensor(values.transpose(0, 3, 1, 2), dtype=torch.float32)


def assert_close(ours, theirs):
    # A few layers in float32, each rounded by about 1e-7 relative.
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape and theirs.std() > 0.02
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def assert_round_trip(folder, module, variables, theirs, inputs):
    again = assert_opens(theirs, module, variables, folder)
    with torch.no_grad():
        for a, b in zip(theirs(**inputs).to_tuple(), again(**inputs).to_tuple(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_agrees(name, tokens, tmp_path):
    kind, entries = TEXT_MODELS[name]
    theirs = randomise(kind(CLIPTextConfig(**TEXT | entries)))
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs")
    mask = np.arange(tokens.shape[1]) < np.array([[4], [7]])
    apply = quick_jit(module.apply)
    for given in (None, mask):
        inputs = dict(input_ids=torch.tensor(tokens))
        inputs |= {} if given is None else dict(attention_mask=torch.tensor(given).int())
        with torch.no_grad():
            expected = theirs(**inputs, output_hidden_states=True)
        ours = apply(variables, tokens, given)
        assert_close(ours.states, torch.stack(expected.hidden_states))
        assert_close(ours.last, expected.last_hidden_state)
        if kind is CLIPTextModel:
            assert_close(ours.pooled, expected.pooler_output)
            assert ours.projected is None
        else:
            assert_close(ours.projected, expected.text_embeds)
    assert_round_trip(
        tmp_path / "ours", module, variables, theirs, dict(input_ids=torch.tensor(tokens))
    )


@pytest.mark.parametrize("name", VISION_MODELS)
def test_vision_agrees(name, images, tmp_path):
    kind, entries = VISION_MODELS[name]
    theirs = randomise(kind(CLIPVisionConfig(**VISION | entries)))
    theirs.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs")
    inputs = dict(pixel_values=pixel_values(images))
    with torch.no_grad():
        expected = theirs(**inputs, output_hidden_states=True)
    ours = quick_jit(module.apply)(variables, images)
    assert_close(ours.states, torch.stack(expected.hidden_states))
    if kind is CLIPVisionModel:
        assert_close(ours.pooled, expected.pooler_output)
        assert ours.projected is None
    else:
        assert_close(ours.projected, expected.image_embeds)
    assert_round_trip(tmp_path / "ours", module, variables, theirs, inputs)


@pytest.fixture(scope="module")
def both():
    """The whole CLIP's number of projected features counts, not those of its parts."""
    torch.manual_seed(0)
    return randomise(
        CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=14))
    )


def test_logits_and_similarities_agree(both, images, tokens, tmp_path):
    with torch.no_grad():
        both.logit_scale.fill_(1.25)
    both.save_pretrained(tmp_path / "theirs")
    module, variables = pretrained.load(tmp_path / "theirs")
    inputs = dict(input_ids=torch.tensor(tokens), pixel_values=pixel_values(images[[0, 1, 1]]))
    with torch.no_grad():
        expected = both(**inputs)
    assert_close(
        quick_jit(module.apply)(variables, images[[0, 1, 1]], tokens), expected.logits_per_image
    )
    similarity = quick_jit(lambda *inputs: module.apply(variables, *inputs, method="similarity"))
    cosines = torch.sum(expected.image_embeds[:2] * expected.text_embeds, dim=-1)
    assert_close(similarity(images, tokens), cosines)
    again = dict(inputs, return_loss=False)
    assert_round_trip(tmp_path / "ours", module, variables, both, again)


def test_older_files(tokens, tmp_path):
    """Published files name the text encoder in its tensors and hold numbers of positions.

    transformers reads the same file.
    """
    theirs = randomise(CLIPTextModel(CLIPTextConfig(**TEXT)))
    theirs.save_pretrained(tmp_path)
    _, expected = pretrained.load(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(LENGTH)[None]
    save_file(tensors, path, metadata={"format": "pt"})
    again = CLIPTextModel.from_pretrained(tmp_path)
    assert all(
        torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items()
    )
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path)[1], expected)
    save_file(
        tensors | {"text_model.embeddings.position_ids": np.ones(LENGTH)},
        path,
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match="extra: text_model.embeddings.position_ids"):
        pretrained.load(tmp_path)


def test_older_configurations(both, tmp_path):
    """An old `text_config_dict` replaces `text_config`; only defaults complete it."""
    both.save_pretrained(tmp_path)
    module, _ = pretrained.load(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["text_config_dict"] = {
        name: value for name, value in TEXT.items() if name != "eos_token_id"
    }
    config["text_config"] = dict(num_beams=1, hidden_size=7, eos_token_id=2, torch_dtype="float16")
    path.write_text(json.dumps(config))
    expected = CLIPConfig.from_pretrained(tmp_path).text_config.eos_token_id
    again, _ = pretrained.load(tmp_path)
    assert again == module.clone(text=module.text.clone(end_token=expected)) and expected == 49_407


@pytest.mark.parametrize("height, width", [(40, 31), (12, 12), (9, 21), (16, 33)])
def test_preparation_of_pictures_agrees(height, width):
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    # Away from the ends, because cubic interpolation overshoots; and transformers rounds to 8 bits.
    image = np.random.default_rng(0).uniform(0.4, 0.6, (height, width, 3)).astype(np.float32)
    expected = processor(torch.tensor(image.transpose(2, 0, 1)), do_rescale=False)["pixel_values"][
        0
    ]
    ours = quick_jit(lambda images: resize_and_crop(images, SIZE))(2 * image[None] - 1)
    np.testing.assert_allclose(pixel_values(np.asarray(ours))[0], expected, rtol=0, atol=3e-6)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"architectures": ["GPT2Model"]}, "describes 'GPT2Model'; known are .*CLIPTextModel, "),
        ({"architectures": None}, "describes None; known are .*CLIPTextModel, "),
        ({"rotary": 2}, r"entries that are not known here: \{'rotary': 2\}"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; only 'quick_gelu', 'gelu'"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id=\[1, 2\] is not supported"),
        ({"num_hidden_layers": 4}, "missing: encoder.layers.3.layer_norm1.bias"),
        ({"num_hidden_layers": 2}, "extra: encoder.layers.2.layer_norm1.bias"),
    ],
)
def test_faults_are_named(entries, message, text_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrained.load(with_entries(text_folder, tmp_path, **entries))
