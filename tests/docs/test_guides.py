"""Run the guides' pages as written, from top to bottom; commands train for a few steps only."""

import importlib
import re

import numpy as np
import pytest
from PIL import Image

from configs import digits_flow
from experiments.evaluation import prompts
from experiments.inputs.datasets import Data
from genjax.models.autoregressive import llamagen, var
from tests.docs.pages import ROOT, blocks, checkout, commands
from tests.experiments import stand_in
from tests.experiments.launching import run
from tests.pretrained import authors_files
from tests.pretrained.test_llamagen_networks import MODULES as LLAMAGENS
from tests.pretrained.test_var import MODULES as VARS

GUIDES = ("own_images", "own_network", "own_data", "own_algorithm", "edm", "fine_tuning")
SHORT = [
    "--config.num_steps=2",
    "--config.batch_size=8",
    "--config.log_every=1",
    "--config.checkpoint.every=2",
    "--config.sampling.every=2",
    "--config.sampling.per_class=2",
    "--config.evaluation.num_samples=20",
]
SHORT_OF = {
    "gan": [
        "--config.snapshot_every=2",
        "--config.evaluation.every=2",
        "--config.model.generator.width=8",
        "--config.model.discriminator.width=8",
    ],
    "autoencoder": [
        "--config.model.widths=(8, 8, 8)",
        *[f"--config.optimizer.{player}.warmup=0" for player in ("autoencoder", "discriminator")],
    ],
    "flow": ["--config.optimizer.warmup=0", "--config.sampling.num_steps=2"],
}
SMALL_DIT = [
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.model.num_heads=2",
]
FOLDERS = dict(
    LlamaGenTokenizer="llamagen_tokenizer",
    VARTokenizer="var_tokenizer",
    MARAutoencoder="mar_autoencoder",
)
# These need published weights or an accelerator, or repeat what another command shows.
NOT_RUN = ("SYSTEM/", "imagenet", "text_to_image", "my_flow_64")


def shortened(command: list[str]) -> list[str]:
    """Return a command with flags that make it take seconds."""
    if command[0] == "sample":
        return [*command, "--count=1"]
    if command[0] != "train":
        return command
    config = next(each for each in command if each.startswith("--config="))
    family = next((name for name in ("gan", "autoencoder") if name in config), "flow")
    own_network = any(each.startswith("--config.model.name") for each in command)
    adapted = any(each.startswith("--config.adapters") for each in command)
    small = SMALL_DIT if family == "flow" and not own_network and not adapted else []
    return [*command, *SHORT, *SHORT_OF[family], *small]


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_runs_as_written(guide, tmp_path, monkeypatch):
    """A stand-in for VGG16 scores prompts. `tests/experiments/test_text_to_image.py` has VGG16."""
    monkeypatch.setattr(prompts, "_maps", stand_in.maps)
    page, names = ROOT / f"docs/guides/{guide}.md", {}
    with checkout(page, tmp_path):
        for block in blocks(page, "python", "sh"):
            if block.language == "python":
                exec(compile(block.text, page.name, "exec"), names)
                continue
            for command in commands(block.text):
                if not any(name in " ".join(command) for name in NOT_RUN):
                    result = run(*shortened(command))
                    assert result.returncode == 0, (command, result.stderr)
    if guide in CHECKS:
        CHECKS[guide](names)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_the_readme_trains_on_own_images(tmp_path):
    """A folder of 90 images of mixed sizes, without classes."""
    readme = ROOT / "README.md"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 48, 40, 3)).astype(np.uint8)
    block = next(each for each in blocks(readme, "sh") if "runs/mine" in each.text)
    with checkout(readme, tmp_path):
        (tmp_path / "pictures").mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image[: 24 + i % 16]).save(tmp_path / f"pictures/{i}.png")
        for command in commands(block.text):
            result = run(*shortened(command))
            assert result.returncode == 0, (command, result.stderr)
        assert np.array(Image.open(tmp_path / "mine.png")).ndim == 3


@pytest.mark.slow
def test_authors_checkpoints_are_read_and_sampled(tmp_path, monkeypatch):
    """Small networks and files of tests/pretrained/data stand for those of the page."""
    monkeypatch.chdir(tmp_path)
    for name, folder in FOLDERS.items():
        (tmp_path / folder).mkdir()
        authors_files.write(tmp_path / folder, name, authors_files.draw(name))
    for name, file in dict(llamagen_b="llamagen_c2i", var_d16="var_plain").items():
        (tmp_path / f"{name}.safetensors").symlink_to(authors_files.DATA / f"{file}.safetensors")
    monkeypatch.setattr(llamagen, "LlamaGen_B", lambda: LLAMAGENS["c2i"])
    monkeypatch.setattr(var, "VAR_d16", lambda: VARS["plain"])
    page, names = ROOT / "docs/guides/published_weights.md", {}
    text = page.read_text()
    assert all(f'"{name}"}}\' > {folder}/config.json' in text for name, folder in FOLDERS.items())
    for block in blocks(page, "python")[1:]:  # the first one takes whole systems
        exec(compile(block.text, page.name, "exec"), names)
    assert names["llamagen_images"].shape == (2, 6, 6, 3)
    assert names["var_images"].shape == (2, 8, 8, 3)
    for images in (names["llamagen_images"], names["var_images"]):
        assert np.isfinite(images).all() and np.std(images) > 0.01


def test_readers_that_a_guide_names_exist():
    text = (ROOT / "docs/guides/published_weights.md").read_text()
    readers = re.findall(r"`pretrained\.(\w+)\.(\w+)`", text)
    assert len(readers) > 8
    for module, function in readers:
        assert callable(getattr(importlib.import_module(f"genjax.pretrained.{module}"), function))


def test_sounds_are_the_data_of_a_config_as_shown():
    block = next(
        each for each in blocks(ROOT / "docs/guides/own_data.md", "py") if "sounds" in each.text
    )
    config = digits_flow.get_config()
    exec(block.text, {"config": config})
    data = Data.from_config(config)
    assert (data.name, data.directory, data.train_split) == ("sound_folder", "sounds", "train")
    assert dict(data.options)["seconds"] * config.data.sample_rate == data.image_shape[0]


LECTURE = sorted(ROOT.glob("docs/lecture/*.md"))


@pytest.mark.parametrize(
    "page",
    [*LECTURE, *(ROOT / f"docs/guides/{name}.md" for name in ("evaluation", "laptop_to_pod"))],
    ids=lambda page: page.stem,
)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a page's files are written
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block.text, page.name, "exec"), names)


def check_edm(names):
    """The deviations are those of the data up to what 4,000 samples and a small network leave."""
    error = lambda name: abs(names[name] - np.array([2.0, 1.0])).max()
    assert error("with_edm") < 0.15 and error("with_clean_from_a_tenth") < 0.15
    assert error("with_clean") > 0.5  # as the page says


def check_network(names):
    assert names["losses"].shape == (4,)


CHECKS = {"own_network": check_network, "edm": check_edm}
