"""Fields and types of config files."""

import functools
import importlib
import inspect
import re
import sys
import types
from operator import getitem
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import digits_flow, digits_gan
from experiments.configuration.fields import check_fields, ignored_fields, known_fields
from experiments.inputs.datasets import Data

CONFIGS = sorted(path.stem for path in Path(__file__).parents[3].glob("configs/*.py"))


def put(config, field, value):
    *parts, name = field.split(".")
    functools.reduce(getitem, parts, config)[name] = value


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_every_choice_of_the_configs_exists(name):
    get_config, choices = importlib.import_module(f"configs.{name}").get_config, []
    if inspect.signature(get_config).parameters:
        with pytest.raises(ValueError) as error:
            get_config("no such choice")
        choices = re.search("choices are (.*); got", str(error.value))[1].split(", ")
    for config in [get_config(choice) for choice in choices] or [get_config()]:
        check_fields(config, name)


def test_every_field_of_the_data_exists():
    assert {f"data.{name}" for name in inspect.signature(Data).parameters} <= known_fields().keys()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_step", 5, "5 in mine.py, and there is no such field; did you mean config.num_steps"),
        ("learning_rate", 1e-3, "did you mean config.optimizer.learning_rate"),
        ("sampling.num_stpes", 3, "did you mean config.sampling.num_steps"),
        ("evaluation.meassures", {"x": "Samples"}, "did you mean config.evaluation.measures"),
        ("data.resise", True, "did you mean config.data.resize"),
        ("mesh.date", 2, "did you mean config.mesh.data"),
        ("modl", {"wdth": 3}, "did you mean config.model"),
        ("mesh.colour", 2, r"there are mesh.context, mesh.data, mesh.fsdp, mesh.tensor\. Correct"),
    ],
)
def test_a_field_that_does_not_exist_is_refused_with_the_nearest(field, value, words):
    config = digits_flow.get_config()
    put(config, field, value)
    with pytest.raises(ValueError, match=f"^config.{field} is .*{words}"):
        check_fields(config, "mine.py")
    assert ignored_fields(config) == [field]


def test_fields_that_a_part_reads_itself_are_left_to_the_part():
    config = digits_flow.get_config()
    config.adapters = dict(source="runs/digits_flow", rank=4, select="attention")
    config.model = dict(name="my_networks.UNet", channels=(16, 32), inner=dict(depth=2))
    config.sampling.sampler = dict(name="my_samplers.mine", eta=0.5)
    config.optimizer = dict(name="adamw", clip_norm=None, b3=0.5)
    config.averages.wide = dict(name="my_averages.Mine", any=1)
    config.evaluation.measures.mine = dict(name="my_measures.Mine", options=dict(a=1))
    with config.ignore_type():
        config.evaluation.measures.samples = config.evaluation.measures.likelihood = "ExactBits"
        config.process = dict(name="my_processes.Mine", schedule="cosine", log_snr=(-5, 5))
        config.condition = dict(name="my_conditions.Mine", num_classes=(3, 4))
    config.data.options = dict(language="fr")
    config.data.sample_rate = config.sampling.guidance_interval = None
    config.writers.board = "TensorBoard"
    check_fields(config, "mine.py")
    config = digits_gan.get_config()
    config.regularizers.r1 = dict(weight=1.0, every=16)
    check_fields(config, "mine.py")


def test_the_networks_of_a_gan_are_fields():
    config = digits_gan.get_config()
    config.model.generatr = dict(width=3)
    with pytest.raises(ValueError, match="there is no such field; did you mean config.model.gene"):
        check_fields(config, "mine.py")
    config = digits_flow.get_config()
    config.model = dict(width=3)  # the lack of a name is reported where the network is made
    check_fields(config, "mine.py")


def test_a_task_of_ones_own_may_read_any_field(monkeypatch, capsys):
    """A name close to that of a field, which is more likely a mistake, is warned of."""

    class Task:
        __module__ = "my_tasks"
        from_config = update = generate = None

    module = types.ModuleType("my_tasks")
    module.Task = Task
    monkeypatch.setitem(sys.modules, "my_tasks", module)
    config = digits_flow.get_config()
    config.task, config.noise, config.num_step = "my_tasks.Task", 0.1, 5
    config.blur, config.weights, config.method = 0.5, (1.0, 2.0), "mine"  # of genjax's own tasks
    check_fields(config, "mine.py")
    words = "warning: config.num_step is 5 in mine.py, which is no field of genjax; did you mean "
    assert capsys.readouterr().err == f"{words}config.num_steps?\n"
    assert ignored_fields(config) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_size", "64", "is '64' in mine.py; it must be an integer"),
        ("num_steps", 5.5, "is 5.5 in mine.py; it must be an integer"),
        ("num_steps", True, "is True in mine.py; it must be an integer"),
        ("num_steps", None, "is None in mine.py; it must be an integer"),
        ("conditioning_dropout", "0.1", "it must be a number"),
        ("experiment", 3, "it must be text"),
        ("profile_at", "10", "it must be an integer or None"),
        ("sampling.guidance_scale", "2", "it must be a number or fields of its own"),
        ("data.flip", "False", "it must be True or False"),
        ("sampling.frames", "9", "it must be an integer"),  # of tasks of video
        ("sampling.modality_scale", "2", "it must be a number or fields of its own or None"),
        ("data.image_shape", 8, "it must be several values"),
        ("model", "DiT", "is 'DiT' in mine.py; it has fields of its own, so set those"),
        ("optimizer", None, "is None in mine.py; it has fields of its own, so set those"),
        ("space", "Pixels", "is 'Pixels' in mine.py; it has fields of its own, so set those"),
        ("task", 5, "is 5 in mine.py; it must be text"),
        (
            "sampling.temperature",
            None,
            "is None in mine.py; it must be a number. Remove the line to have the default, 1.0",
        ),
        ("num_steps", {"num": 5}, "is {'num': 5} in mine.py; it must be an integer"),
    ],
)
def test_a_value_of_another_type_is_refused(field, value, words):
    """ml_collections refuses only some of them, and none in a part that is given anew."""
    config = digits_flow.get_config().to_dict()
    put(config, field, value)
    with pytest.raises(ValueError, match=re.escape(f"config.{field} ") + ".*" + re.escape(words)):
        check_fields(ConfigDict(config), "mine.py")


def test_numbers_of_several_forms_and_lists_are_values_too():
    config = digits_flow.get_config().to_dict()
    config["sampling"]["guidance_scale"] = 2
    config["data"]["image_shape"] = [8, 8, 1]
    config["adapters"] = None
    check_fields(ConfigDict(config), "mine.py")
