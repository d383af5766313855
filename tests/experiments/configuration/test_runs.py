from types import SimpleNamespace

import pytest

from configs import digits_flow, emoji_latent_flow, moving_digits_video
from experiments.configuration.runs import mesh_axes, open_run
from experiments.launch.fine_tuning import check_frozen
from genjax.training import record_config
from genjax.training.workdir import frozen_runs


@pytest.mark.parametrize(
    ("module", "shape"), [(digits_flow, [24, 40, 1]), (moving_digits_video, [17, 24, 40, 1])]
)
def test_another_size_keeps_channels_and_frames(module, shape, tmp_path):
    record_config(tmp_path, module.get_config().to_dict(), ())
    run = open_run(tmp_path, size=(24, 40), build=lambda config: SimpleNamespace())
    assert run.config.data.image_shape == shape


def test_another_size_is_not_that_of_the_latents_on_disk(tmp_path):
    """The autoencoder has the shape of their latents."""
    record_config(tmp_path, emoji_latent_flow.get_config("latents").to_dict(), ())
    run = open_run(tmp_path, size=(48, 64), build=lambda config: SimpleNamespace())
    assert run.config.data.image_shape == [48, 64, 3]
    assert "shape" not in run.config.space and run.config.space.directory == "runs/emoji_latents"


@pytest.mark.parametrize(
    "part", [{"adapters": {"source": "runs/base"}}, {"teacher": "runs/base"}], ids=list
)
def test_a_run_tells_that_its_frozen_parts_were_trained_further(part, tmp_path, monkeypatch):
    """Adapters of step 20 are no adapters of step 40. Both runs may be seen from another folder."""
    (tmp_path / "runs/base/checkpoints/00000020").mkdir(parents=True)
    (tmp_path / "runs/adapted").mkdir()
    monkeypatch.chdir(tmp_path)
    config = digits_flow.get_config()
    config.update(part)
    frozen = frozen_runs(config.to_dict())
    assert frozen == {"runs/base": 20}
    record_config(tmp_path / "runs/adapted", config.to_dict(), (), frozen_runs=frozen)
    open_adapted = lambda: open_run(tmp_path / "runs/adapted", build=lambda config: None)
    monkeypatch.chdir(tmp_path.parent)
    check_frozen(tmp_path / "runs/adapted", frozen)
    open_adapted()  # a warning would be an error
    (tmp_path / "runs/base/checkpoints/00000040").mkdir()
    with pytest.warns(UserWarning, match="with runs/base at step 20, which is at step 40 by now"):
        open_adapted()
    with pytest.raises(ValueError, match="which is at step 40 by now: choose another --workdir"):
        check_frozen(tmp_path / "runs/adapted", {"runs/base": 40})


def test_the_mesh_has_its_axes_in_order_and_none_of_tensor_and_context_that_split_nothing():
    config = digits_flow.get_config()
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1)]
    config.mesh.update(context=2, tensor=4)
    assert list(mesh_axes(config).items()) == [
        ("data", -1),
        ("fsdp", 1),
        ("tensor", 4),
        ("context", 2),
    ]
    del config.mesh.tensor, config.mesh.context  # as in the record of an old run
    assert list(mesh_axes(config).items()) == [("data", -1), ("fsdp", 1)]
