"""Every config builds its task and trains; those for accelerators in full shape abstractly, and narrowed for real."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT

from experiments.configuration import build
from genjax.data import Batches, load_dataset, sources
from genjax.training import abstract_state, init_state, make_mesh
from genjax.training.loop import compile_update

CONFIGS = sorted(path.stem for path in Path(ROOT, "configs").glob("*.py"))
PARAMETERS = {"cifar10_flow": 32_475_660, "imagenet256_latent_flow": 674_816_272}


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


def batch_of(config, count):
    random = np.random.default_rng(0)
    shape = (count, *config.data.image_shape)
    floats = "latents" in config.data.name or "gaussians" in config.data.name
    images = random.standard_normal(shape, np.float32) if floats else random.integers(0, 256, shape, np.uint8)
    return {"image": images, "label": random.integers(0, config.data.num_classes, count, np.int32)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_step_of_every_config_traces_at_its_full_size(name):
    config = load(name)
    assert config.experiment == name or config.experiment.startswith(f"{name}_")  # and the choice
    task, mesh = build(config), make_mesh(dict(config.mesh), config.batch_size)
    state = abstract_state(task, jax.random.key(0), mesh)
    parameters = sum(a.size for a in jax.tree.leaves(state.params))
    assert parameters == PARAMETERS.get(name, parameters)
    batch = {
        k: jax.ShapeDtypeStruct((config.batch_size, *a.shape[1:]), a.dtype)
        for k, a in batch_of(config, 1).items()
    }
    with jax.set_mesh(mesh):
        compile_update(task, state, mesh).trace(state, batch, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_configs_for_accelerators_step_when_narrowed(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_any_answers", lambda urls: True)  # mock data need no host
    config = load(name)
    options = {k: v for k, v in config.model.items() if k not in ("name", "patch_size")}
    config.model = dict(name="DiT", patch_size=2, width=32, depth=2, num_heads=2, **options)
    config.batch_size = 4
    task, mesh, key = build(config), make_mesh(dict(config.mesh), 4), jax.random.key(0)
    if name == "cifar10_flow":
        with tfds.testing.mock_data(num_examples=8, data_dir=tmp_path):
            batch = Batches(load_dataset("cifar10", "train", tmp_path), 4, 0, image_shape=task.image_shape)[0]
    else:
        batch = batch_of(config, 4)
    state = init_state(task, key, mesh)
    with jax.set_mesh(mesh):
        update = compile_update(task, abstract_state(task, key, mesh), mesh)
        for _ in range(2):
            state, metrics = update(state, batch, key)
    assert int(state.step) == 2 and np.isfinite(metrics["loss"])
