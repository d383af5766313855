"""Text to image, small: prompts are encoded once, reach the network, and are asked for by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, program
from experiments.launch.opening import build
from ml_collections import ConfigDict
from PIL import Image

from configs import emoji_text
from experiments.evaluation.prompts import Pairs
from experiments.inputs import conditions as conditioning
from experiments.inputs.conditions import Prompts
from genjax.data import Batches, load_dataset
from genjax.models.encoders.bert import sentence_embedding
from genjax.nn import Text
from genjax.pretrained.minilm import load_minilm

pytestmark = pytest.mark.slow

CHOICES = ("cross_attention", "joint_attention", "in_context")
SMALL = [
    "--config.num_steps=4",
    "--config.batch_size=8",
    "--config.optimizer.warmup=0",
    "--config.sampling.num_steps=2",
    "--config.sampling.per_class=1",
]


def small(choice="cross_attention", **changes) -> ConfigDict:
    config = emoji_text.get_config(f"{choice},pixels")
    config.model.unroll = 1
    if choice == "in_context":
        config.model.update(num_single_blocks=1, num_heads=2, rotary_features=(4, 4, 8))
    else:
        config.model.update(width=32, depth=2, num_heads=2)
    config.batch_size = 4
    config.text.update(changes)
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("emoji", "train")


def test_batches_hold_the_states_of_their_captions(dataset):
    task = build(small(first_caption=1.0))
    batch = Batches(dataset, 4, 0, transform=task.transform(dataset))[3]
    module, variables, tokenizer = load_minilm()
    ids, mask = tokenizer.encode([dataset.captions[i][0] for i in batch["index"]], 16)
    text = jax.jit(module.apply)(variables, ids, mask)
    np.testing.assert_array_equal(batch["mask"], mask)
    # other batches of the encoder: float32 sums in another order
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(batch["tokens"], np.where(mask[..., None], text.tokens, 0))
    close(batch["pooled"], sentence_embedding(text))
    task.conditioning.transform(dataset)  # nothing is left to encode
    used = {name: 0 for name in dataset.captions[int(batch["index"][0])]}
    task = build(small(first_caption=0.5))
    transform = task.transform(dataset)
    example = {"index": batch["index"][:1].reshape(())}
    embeddings = {name: task.conditioning.embeddings([name])[0] for name in used}
    for seed in range(100):
        pooled = transform(example, np.random.default_rng(seed))["pooled"]
        used[next(name for name in used if np.array_equal(embeddings[name], pooled))] += 1
    assert 30 < used[dataset.captions[int(batch["index"][0])][0]] < 70  # 50 ± 5


def test_no_prompt_is_encoded_twice(dataset, monkeypatch):
    task = build(small())
    task.transform(dataset), task.frozen()
    monkeypatch.setattr(conditioning, "_text_encoder", None)
    task.transform(dataset), task.frozen()


@pytest.mark.parametrize("choice", CHOICES)
def test_the_prompt_and_not_its_padding_reaches_the_network(choice, dataset):
    task = build(small(choice))
    (frozen,) = task.frozen()
    state = jax.jit(task.init)(jax.random.key(0))
    random = np.random.default_rng(0)  # the head and the modulation begin at zero
    params = jax.tree.map(lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), state.params)
    x, t = jnp.asarray(random.standard_normal((1, 32, 32, 3), np.float32)), jnp.array([0.6])
    network = jax.jit(lambda text: task.network.apply({"params": params}, x, t, text))
    apple, heart = (jax.tree.map(lambda a, i=i: jnp.asarray(a[i : i + 1]), frozen["prompts"]) for i in (3, 1))
    padded = apple.replace(tokens=jnp.where(apple.mask[..., None], apple.tokens, 7.0))
    assert not np.array_equal(padded.tokens, apple.tokens)
    np.testing.assert_array_equal(network(padded), network(apple))
    assert np.abs(network(heart) - network(apple)).max() > 0.05
    # by its tokens, and not by the pooled state alone
    tokens = Text(heart.tokens, apple.pooled, heart.mask)
    assert np.abs(network(tokens) - network(apple)).max() > 0.02


def test_conditioning_is_dropped_to_the_empty_prompt(dataset):
    """With every prompt dropped the loss is that of empty prompts, and no other."""
    config = small()
    config.conditioning_dropout = 1.0
    task, key = build(config), jax.random.key(0)
    (frozen,) = task.frozen()
    state = jax.jit(task.init)(key)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.2 * random.standard_normal(a.shape, np.float32), state.params)
    state = state.replace(params=params)
    batch = Batches(dataset, 4, 0, transform=task.transform(dataset))[0]
    update = jax.jit(task.update)
    loss = update(state, batch, key, frozen)[1]["loss"]
    empty = {
        name: np.repeat(getattr(frozen["empty"], name)[None], 4, 0) for name in ("tokens", "pooled", "mask")
    }
    assert update(state, batch | empty, key, frozen)[1]["loss"] == loss
    dropped = update(state, batch, key, frozen | {"empty": jax.tree.map(lambda a: a[3], frozen["prompts"])})
    assert dropped[1]["loss"] != loss


def test_the_scorer_knows_real_pairs():
    """Figures of the closed form on the embedded emoji; chance is .1."""
    config = small()
    pairs = Pairs(config, Prompts.from_config(config))
    assert pairs.real["test"] > 0.65 and pairs.real["train"] > 0.95
    features, names = pairs.features["test"], pairs.names["test"]
    mixed = pairs.accuracy(np.roll(features, 1, axis=0), names)  # each beside another's name
    assert mixed < 0.2
    assert pairs.floor < pairs.distance(pairs.features_of(255 - pairs.images["train"][:384]))


def test_a_run_says_what_it_reached_and_shows_what_is_asked_for(tmp_path, cache):
    flags = [
        f"--config={ROOT}/configs/emoji_text.py:cross_attention,pixels",
        *SMALL,
        f"--workdir={tmp_path}/run",
    ]
    model = ["--config.model.width=32", "--config.model.depth=1", "--config.model.num_heads=2"]
    result = program("train", *flags, *model)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    for name in ("training_accuracy", "held_out_accuracy"):
        # four steps: chance
        assert 0.05 < report[name] < 0.2 and f"{name}_unguided" in report
        assert report[f"{name}_real"] > 0.65
    assert report["fd_vgg16"] > report["fd_vgg16_train"] and report["num_samples"] == 384
    with Image.open(tmp_path / "run/samples.png") as sheet:
        assert sheet.size == (34, 10 * 34)
    prompts = ["--prompt=green apple", "--prompt=blue book", "--count=3"]
    result = program("sample", f"--workdir={tmp_path}/run", *prompts, f"--out={tmp_path}/asked.png")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "asked.png") as sheet:
        assert sheet.size == (3 * 34, 2 * 34)


def photos(folder, counts):
    """Wide, square and high pictures, split into folders, with captions beside them."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        with open(folder / split / "metadata.jsonl", "w") as captions:
            for i in range(count):
                size = [(32, 64), (40, 44), (70, 36)][i % 3]  # Pillow's: width, height
                pixels = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{i}.png")
                captions.write(json.dumps({"file_name": f"{i}.png", "text": f"{split} photo {i}"}) + "\n")


def test_photos_of_many_sizes_train_one_network_that_samples_at_any_size(tmp_path, cache):
    photos(tmp_path / "photos", {"train": 48, "test": 12})
    config = [
        "--config.data.name=folder",
        f"--config.data.directory={tmp_path}/photos",
        "--config.model.width=32",
        "--config.model.depth=1",
        "--config.model.num_heads=2",
        "--config.model.unroll=1",
        "--config.log_every=1",
    ]
    flags = [
        f"--config={ROOT}/configs/emoji_text.py:cross_attention,pixels",
        *SMALL,
        *config,
        f"--workdir={tmp_path}/run",
    ]
    result = program("train", *flags)
    assert result.returncode != 0 and "config.data.buckets" in result.stderr
    flags[0] = f"--config={tmp_path}/photos.py"
    (tmp_path / "photos.py").write_text(
        "from configs import emoji_text\n"
        "def get_config():\n"
        "    config = emoji_text.get_config('cross_attention,pixels')\n"
        "    config.data.buckets = dict(multiple=8, max_ratio=2.0)\n"
        "    return config\n"
    )
    result = program("train", *flags)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["num_samples"] == 12 and 0 <= report["held_out_accuracy"] <= 1
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2, 3, 4]
    wide = [f"--workdir={tmp_path}/run", "--prompt=a", "--count=2", f"--out={tmp_path}/wide.npz"]
    result = program("sample", *wide, "--size=24x40")
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "wide.npz")["images"].shape == (2, 24, 40, 3)
    for size, message in ("24", "HEIGHTxWIDTH"), ("24x41", "does not divide into patches"):
        result = program("sample", *wide, f"--size={size}")
        assert result.returncode != 0 and message in result.stderr


def test_config_errors():
    config = small()
    config.sampling.prompts = ("a cat",)
    with pytest.raises(ValueError, match="num_classes is 10.*config.sampling.prompts are 1"):
        build(config)
    config = small()
    config.model.module = "vgg16"
    with pytest.raises(ValueError, match="config.model.module is 'vgg16'"):
        build(config)
    digits = load_dataset("digits", "train")
    with pytest.raises(ValueError, match="digits has no captions"):
        build(small()).transform(digits)
