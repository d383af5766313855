"""Networks of another run go to those of a task that they belong to."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.launch import fine_tuning
from experiments.launch.fine_tuning import (
    check_examples,
    initializer,
    open_source,
    resumed_source,
    transfer,
)
from genjax.training import record_config


def test_an_empty_folder_is_no_source(tmp_path):
    words = "--init_from needs the folder of a run or of published weights: .*config.json does not"
    with pytest.raises(FileNotFoundError, match=words):
        open_source(str(tmp_path))


def network(width: int, value: float) -> dict:
    return {"params": {"dense": {"kernel": np.full((2, width), value, np.float32)}}}


def test_an_encoder_starts_from_the_encoder_of_a_run_with_more_networks():
    names = ("discriminator", "encoder", "generator")
    given = {name: network(3, value) for value, name in enumerate(names, 1)}
    found = transfer({"encoder": network(3, 0.0)}, given)
    np.testing.assert_array_equal(found.networks["encoder"]["params"]["dense"]["kernel"], 2.0)
    assert found.taken == 1 and len(found.faults) == 2  # the two other networks are left over


def test_a_source_of_which_little_fits_is_refused():
    """One array of two fits, a bias of 3 numbers of 9: the rest would be random weights."""
    own, given = network(3, 0.0), network(4, 1.0)
    for each in (own, given):
        each["params"]["dense"]["bias"] = np.ones(3, np.float32)
    words = "--init_from fits 3 of 9 numbers, .*\n  other shape: .*kernel .2, 4., here .2, 3."
    with pytest.raises(ValueError, match=words):
        transfer({"network": own}, {"network": given})


def test_a_new_head_or_text_encoder_starts_at_random():
    """More than half of the numbers fit, and the others are listed."""
    own, given = ({"network": {"body": np.ones(9), "head": np.ones(n)}} for n in (4, 5))
    found = transfer(own, given)
    assert found.taken == 1 and found.faults == ["other shape: network/head [5], here [4]"]


def test_one_network_of_several_is_enough():
    own = {"generator": network(3, 0.0), "discriminator": network(40, 0.0)}
    given = {"generator": network(3, 1.0), "discriminator": network(50, 1.0)}
    given["generator"] = jax.tree.map(np.float16, given["generator"])
    found = transfer(own, given)
    assert found.taken == 1
    # Weights that are published in half precision are trained in float32.
    assert found.networks["generator"]["params"]["dense"]["kernel"].dtype == np.float32


def test_a_network_of_another_name_goes_to_the_one_that_it_fits():
    own = {"discriminator": network(3, 0.0), "generator": network(4, 0.0)}
    found = transfer(own, {"network": network(4, 1.0)})
    kernels = {name: each["params"]["dense"]["kernel"] for name, each in found.networks.items()}
    assert np.all(kernels["generator"] == 1) and np.all(kernels["discriminator"] == 0)
    assert found.faults == ["missing: discriminator/params/dense/kernel [2, 3]"]


def test_a_network_may_name_the_parameters_of_another_architecture(monkeypatch, capsys):
    """All of the source goes to the part that the network says it is; the rest is missing."""
    monkeypatch.setattr(fine_tuning, "open_source", lambda *_, **__: {"network": network(3, 2.0)})
    own = {"network": {"params": {"stream": network(3, 0.0)["params"], "other": jnp.zeros(2)}}}
    task = SimpleNamespace(
        network=SimpleNamespace(adopted=lambda params: {"stream": params}),
        init=lambda key: own,
        networks=lambda state, weights: state,
        start_from=lambda state, networks: networks,
    )
    state = initializer(task, "runs/source")(jax.tree.map(jnp.asarray, own))
    np.testing.assert_array_equal(state["network"]["params"]["stream"]["dense"]["kernel"], 2.0)
    assert "1 arrays of runs/source; 1 do not fit" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_more_or_fewer_examples(tmp_path):
    record_config(tmp_path, {"seed": 0}, (), num_examples=1200)
    check_examples(tmp_path, 1200)
    for count in (1199, 1201):
        with pytest.raises(ValueError, match=f"was trained on 1,200 examples, .* has {count:,} by"):
            check_examples(tmp_path, count)


def test_a_source_is_the_same_by_any_path_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_config(tmp_path, {"seed": 0}, (), init_from="runs/first")
    for source in (None, "runs/first", f"{tmp_path}/runs/../runs/first/"):
        assert resumed_source(tmp_path, source) == "runs/first"
    with pytest.raises(ValueError, match="runs/other would change nothing: .* from runs/first"):
        resumed_source(tmp_path, "runs/other")


def test_a_source_is_the_same_from_any_folder(tmp_path, monkeypatch):
    for name in ("runs/first", "runs/second", "elsewhere/runs/first"):
        (tmp_path / name).mkdir(parents=True)
    workdir = tmp_path / "runs/second"
    record_config(workdir, {"seed": 0}, (), init_from="runs/first")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resumed_source(workdir, str(tmp_path / "runs/first")) == "runs/first"
    with pytest.raises(ValueError, match="would change nothing"):  # another run of this name
        resumed_source(workdir, "runs/first")
