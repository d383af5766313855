"""Text to image, small: how well pictures match their prompts, and pictures of new prompts."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.configuration.runs import open_run
from experiments.evaluation import prompts
from experiments.evaluation.prompts import pairs_of
from experiments.inputs.datasets import Data
from genjax.training.pictures import read_rows
from tests.experiments import few_emoji, stand_in
from tests.experiments.launching import ROOT, run

pytestmark = pytest.mark.slow

SMALL = [
    "--config.num_steps=4",
    "--config.batch_size=8",
    "--config.optimizer.warmup=0",
    "--config.sampling.num_steps=2",
    "--config.sampling.per_class=1",
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.log_every=1",
]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Encoded prompts are shared by the tests of this file, and with no other program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def succeed(name, *flags):
    result = run(name, *flags)
    assert result.returncode == 0, result.stderr
    return result


def test_a_run_reports_what_it_reached_and_draws_new_prompts(tmp_path):
    workdir = tmp_path / "run"
    config = [
        f"--config={ROOT}/configs/emoji_text.py:cross_attention,pixels",
        "--config.data.name=tests.experiments.few_emoji.load_batches",
    ]
    succeed("train", *config, *SMALL, f"--workdir={workdir}")
    report, trained = json.loads((workdir / "report.json").read_text()), open_run(workdir)
    pairs = pairs_of(Data.from_config(trained.config), trained.task.condition)
    for kind, split in dict(training="train", held_out="test").items():
        # four steps: chance
        assert 0.05 < report[f"{kind}_accuracy"] < 0.2 and f"{kind}_accuracy_unguided" in report
        assert report[f"{kind}_accuracy_real"] == pairs.real[split] > 0.35
    assert report["fd_vgg16"] > report["fd_vgg16_train"] == pairs.floor
    assert report["num_samples"] == len(few_emoji.load_batches("test").source)
    with Image.open(workdir / "samples.png") as sheet:
        assert sheet.height == 10 * 66 and sheet.width > 66
        assert read_rows(sheet) == list(trained.config.condition.prompts)
    drawn = ["--prompt=green apple", "--prompt=blue book", "--count=3"]
    succeed("sample", f"--workdir={workdir}", *drawn, f"--out={tmp_path}/drawn.png")
    with Image.open(tmp_path / "drawn.png") as sheet:
        assert sheet.height == 2 * 66 and sheet.width > 3 * 66
        assert read_rows(sheet) == ["green apple", "blue book"]


def photos(folder, counts):
    """Write wide, square and high pictures, split into folders, with captions beside them."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        with open(folder / split / "metadata.jsonl", "w") as captions:
            for i in range(count):
                size = [(32, 64), (40, 44), (70, 36)][i % 3]  # Pillow's: width, height
                pixels = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{i}.png")
                captions.write(
                    json.dumps({"file_name": f"{i}.png", "text": f"{split} photo {i}"}) + "\n"
                )


CONFIG = """
from configs import emoji_text

def get_config():
    config = emoji_text.get_config("cross_attention,pixels")
    config.data.buckets = dict(multiple=8, max_ratio=2.0)
    return config
"""


def test_photos_of_many_sizes_train_one_network_that_samples_at_any_size(tmp_path, monkeypatch):
    """The photos are of noise, so a stand-in for VGG16 scores them."""
    monkeypatch.setattr(prompts, "_maps", stand_in.maps)
    photos(tmp_path / "photos", {"train": 48, "test": 12})
    (tmp_path / "photos.py").write_text(CONFIG)
    workdir = tmp_path / "run"
    data = ["--config.data.name=folder", f"--config.data.directory={tmp_path}/photos"]
    flags = [*SMALL, *data, f"--workdir={workdir}"]
    result = run("train", f"--config={ROOT}/configs/emoji_text.py:cross_attention,pixels", *flags)
    assert result.returncode != 0 and "config.data.buckets" in result.stderr
    succeed("train", f"--config={tmp_path}/photos.py", *flags)
    report = json.loads((workdir / "report.json").read_text())
    assert report["num_samples"] == 12 and 0 <= report["held_out_accuracy"] <= 1
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2, 3, 4]
    wide = [f"--workdir={workdir}", "--prompt=a", "--count=2", f"--out={tmp_path}/wide.npz"]
    succeed("sample", *wide, "--size=24x40")
    assert np.load(tmp_path / "wide.npz")["images"].shape == (2, 24, 40, 3)
    for size, message in ("24", "HEIGHTxWIDTH"), ("24x41", "does not divide into patches"):
        result = run("sample", *wide, f"--size={size}")
        assert result.returncode != 0 and message in result.stderr
