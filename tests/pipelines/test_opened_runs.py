"""Runs that stand on other runs, that cannot be opened, or that are not sampled as asked."""

import json
import pydoc
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_distillation, digits_flow, emoji_latent_flow
from experiments.configuration.runs import open_run
from experiments.inputs.conditions import Prompts
from genjax.data.sets.latents import write_origin
from genjax.folders import located
from genjax.pipelines import Run, runs
from genjax.pipelines.runs import labels_of_classes
from genjax.training.workdir import Config
from tests.experiments.autoencoder_run import small_config


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a run of an older version, whose record names no `built_by`."""
    config = {"sampling": {"weights": "ema", "seed": 0}}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    return tmp_path


def test_an_older_run_names_the_function_that_opens_it(folder):
    with pytest.raises(ValueError, match="older genjax") as raised:
        Run(folder)
    name, argument = re.search(r"open it by ([\w.]+)\((.*)\)", str(raised.value)).groups()
    assert pydoc.locate(name) is open_run and argument == repr(str(folder))


def test_weights_that_are_not_restored_are_refused(folder, monkeypatch):
    """Sampling would find None in their place."""
    task = SimpleNamespace(condition=SimpleNamespace(num_rows=1))
    run = Run(folder, build=lambda config: task)
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(runs, "sample", lambda *inputs, **_: np.array([inputs[-1].seed]))
    words = "weights='params' are not restored.*with the weights 'ema'.*weights='params'"
    with pytest.raises(ValueError, match=words) as raised:
        run.sample(weights="params")
    assert f"open_run({str(folder)!r}, weights='params')" in str(raised.value)
    assert run.sample(weights="ema", seed=1) == [1]


def test_a_name_in_place_of_a_part_with_fields_is_answered_with_the_dictionary(folder):
    task = SimpleNamespace(condition=SimpleNamespace(num_rows=1))
    config = Config(sampling=Config(weights="ema", sampler=Config(name="euler")))
    run = Run(folder, config=config, build=lambda config: task)
    with pytest.raises(ValueError, match=r"give a dictionary, as sampler=\{'name': 'heun'\}"):
        run.sample(sampler="heun")


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(sampler=len), r"give a dictionary, as sampler=\{'name': 'len'\}"),
        (dict(guidance_scale="2"), "guidance_scale='2' must be a finite number"),
        (dict(guidance_scale=[1.0, 2.0]), "must be a finite number"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan must be a finite number"),
        (dict(guidance_scale={"video": 2, "sound": None}), r"guidance_scale\['sound'\]=None must"),
        (dict(modality_scale="3"), "modality_scale='3' must be a finite number"),
        (dict(seed=None), "seed=None must be a finite number"),
        (dict(seed=jax.random.key(0)), "must be a finite number"),
        (dict(seed=2**32), "seed=4294967296 must be a whole number from 0 to 4294967295"),
        (dict(seed=-1), "whole number from 0"),
        (dict(seed=1.0), "whole number from 0"),
        (dict(batch_size=0), "batch_size=0 must be a whole number from 1"),
    ],
)
def test_values_that_no_field_takes_are_refused(folder, monkeypatch, given, words):
    """JAX's keys drop the higher bits of a seed, and a scale of NaN makes black images."""
    task = SimpleNamespace(condition=SimpleNamespace(num_rows=1))
    sampling = Config(
        weights="ema", seed=0, batch_size=2, guidance_scale=1.5, sampler=Config(name="euler")
    )
    sampling.update(top_k=5, modality_scale=dict(video=1.0, sound=2.0))
    run = Run(folder, config=Config(sampling=sampling), build=lambda config: task)
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(runs, "check_null_condition", lambda *_: None)
    monkeypatch.setattr(runs, "sample", lambda *inputs, **_: np.array(inputs[-1].guidance_scale))
    run.sample(guidance_scale={"video": 2.0, "sound": 1})  # one for each modality
    run.sample(modality_scale=3.0)  # in place of one for each
    run.sample(top_k=None)  # which turns it off
    for scale in (2, np.float32(2), jnp.float32(2)):
        assert run.sample(guidance_scale=scale, seed=np.int64(3)) == 2
    with pytest.raises(ValueError, match=words):
        run.sample(**given)


def test_a_task_is_built_anew_for_a_field_that_it_is_built_with(folder, monkeypatch):
    """Once for each value, so that its program is compiled once."""
    built = []

    def build(config):
        built.append(config.sampling.sampler["name"])
        return SimpleNamespace(
            sampler=built[-1], condition=SimpleNamespace(num_rows=1), built_with=("sampler",)
        )

    sampling = Config(weights="ema", seed=0, sampler=Config(name="euler"))
    run = Run(folder, config=Config(sampling=sampling), build=build)
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(runs, "sample", lambda task, *_, **__: np.array([task.sampler]))
    for name in ("heun", "heun", "euler"):
        assert run.sample(sampler={"name": name}) == [name]
    assert run.sample(seed=1) == ["euler"] and built == ["euler", "heun"]


def test_fields_that_a_config_may_lack_are_taken(folder, monkeypatch):
    """As the programs take them (`--guidance_interval`)."""
    task = SimpleNamespace(
        condition=SimpleNamespace(num_rows=1),
        built_with=("temperature",),
        optional_sampling=("guidance_interval", "temperature"),
    )
    run = Run(folder, build=lambda config: task)
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(runs, "sample", lambda *inputs, **_: np.array(inputs[-1].guidance_interval))
    given = dict(guidance_interval=(0.2, 0.8), temperature=0.5)
    assert run.sample(**given).tolist() == [0.2, 0.8]
    with pytest.raises(ValueError, match="config.sampling has no top_k"):
        run.sample(**given, top_k=3)


def test_classes_are_taken_by_number_or_name():
    names = ["circle", "square", "7"]  # a name that is a number stays a number
    assert list(labels_of_classes("labels", ["2", "circle"], 3, names)) == [2, 0]
    with pytest.raises(ValueError, match="from 0 to 2, or names: 0 circle, 1 square, 2 7$"):
        labels_of_classes("labels", ["7"], 3, names)
    with pytest.raises(ValueError, match="^--classes=0,3 must be numbers from 0 to 2$"):
        labels_of_classes("--classes", ["0", "3"], 3, None)
    many = [f"bird {n}" for n in range(30)] + ["goldfish"]
    with pytest.raises(ValueError, match="or names, such as: .*30 goldfish"):
        labels_of_classes("labels", ["goldfsh"], 31, many)


def test_a_run_is_sampled_by_the_names_of_its_classes(folder, monkeypatch):
    record = json.loads((folder / "config.json").read_text())
    record["class_names"] = ["circle", "square"]
    (folder / "config.json").write_text(json.dumps(record))
    condition = SimpleNamespace(num_rows=2, num_classes=2)
    run = Run(folder, build=lambda config: SimpleNamespace(condition=condition))
    run.state = None  # in place of a checkpoint's
    monkeypatch.setattr(run, "check_guidance", lambda fields: None)
    monkeypatch.setattr(runs, "sample", lambda task, state, labels, *_, **__: labels)
    for labels in (["square", "circle"], ["square", 0], [1, 0]):
        assert run.sample(labels).tolist() == [1, 0]
    with pytest.raises(ValueError, match="labels=cat must be .* or names: 0 circle, 1 square$"):
        run.sample(["cat"])
    with pytest.raises(ValueError, match="labels is the string 'circle'; expected a list"):
        run.sample("circle")


def test_a_prompt_alone_is_refused(folder):
    """A string would be a list of its letters."""
    run = Run(folder, build=lambda config: SimpleNamespace())
    with pytest.raises(ValueError, match="prompts is the string 'seven'; expected a list"):
        run.sample(prompts="seven")


def test_prompts_of_a_published_encoder_are_read_from_any_folder(tmp_path, monkeypatch):
    """Also after the system was moved. Another system of this name is refused."""

    def cached(encoder):
        Prompts(encoder, 3, 1, 1, 0.0, (), directory=str(tmp_path / "prompts")).cached([])

    for name in ("tree/system", "other/system"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "tree")
    cached("system")
    monkeypatch.chdir(tmp_path)
    cached(f"{tmp_path}/tree/system")
    for other in ("other/system", "minilm"):
        with pytest.raises(ValueError, match=f"encoded by .*tree/system, .*not by .*{other}, at"):
            cached(other)
    (tmp_path / "tree").rename(tmp_path / "moved")
    cached("moved/system")
    # Older versions wrote the name as it was given.
    (tmp_path / "prompts/origin.json").write_text('"system, at most 3 tokens"')
    cached("moved/system")


@pytest.fixture
def tree(tmp_path):
    """Return a folder with the records of runs that were started there, each on another one."""
    student = digits_distillation.get_config("Reflow")
    student.pairs.directory, student.teacher = "runs/pairs", "runs/flow"
    latent_flow = emoji_latent_flow.get_config()
    latent_flow.space.run = "runs/autoencoder"
    latent_flow.data.image_shape = small_config("kl").data.image_shape
    configs = dict(flow=digits_flow.get_config(), autoencoder=small_config("kl"))
    for name, config in (configs | dict(student=student, latent_flow=latent_flow)).items():
        folder = tmp_path / "tree/runs" / name
        folder.mkdir(parents=True)
        record = dict(config=config.to_dict(), built_by="experiments.configuration.runs.build")
        (folder / "config.json").write_text(json.dumps(record))
    (tmp_path / "tree/runs/pairs").mkdir()
    return tmp_path / "tree"


def test_the_current_folder_and_those_above_are_no_names_to_look_for(tmp_path, monkeypatch):
    (tmp_path / "runs/flow").mkdir(parents=True)
    (tmp_path / "runs/data").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (".", "../data"):
        assert located(dict(directory=name), "runs/flow") == dict(directory=name)
    assert located(dict(directory="data"), "runs/flow") == dict(directory=f"{tmp_path}/runs/data")


@pytest.mark.parametrize("opened", [Run, open_run])
def test_a_run_on_other_runs_opens_from_any_folder(tree, tmp_path, monkeypatch, opened):
    """Also in a tree that was moved, and where the folder has other runs of these names."""
    monkeypatch.chdir(tree)
    student = opened("runs/student")
    assert student.config.teacher == "runs/flow"
    write_origin("runs/pairs", student.task.pairs_origin)  # it is checked at each opening
    tree = tree.rename(tmp_path / "moved")
    (tmp_path / "runs/flow").mkdir(parents=True)
    (tmp_path / "runs/autoencoder").mkdir()
    monkeypatch.chdir(tmp_path)
    student, latent_flow = (opened(f"moved/runs/{name}") for name in ("student", "latent_flow"))
    assert student.task.teacher.folder == str(tree / "runs/flow")
    assert student.task.space.directory == str(tree / "runs/pairs")
    assert latent_flow.task.space.autoencoder.run == str(tree / "runs/autoencoder")
    (tree / "runs/flow/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"names {tree}/runs/flow, which has no run"):
        opened(tree / "runs/student")
