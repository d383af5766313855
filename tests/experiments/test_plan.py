"""Plans of training steps: against what is known of the network, and what is said where it does not fit."""

import json

import pytest
from conftest import ROOT, program

from configs import imagenet256_latent_flow, text_to_image
from experiments.plan import advice, parse_mesh, plan

XL = 674_816_272  # parameters of DiT-XL/2, of FACTS


def test_a_plan_of_dit_xl():
    found = plan(imagenet256_latent_flow.get_config(), {"data": 2, "fsdp": 32}, "h100")
    assert found["parameters"] == XL
    # all but small arrays are split
    assert 4 * XL / 32 < found["memory"]["params"] < 4 * XL / 32 * 1.01
    assert found["memory"]["optimizer_state"] == pytest.approx(2 * found["memory"]["params"], rel=1e-3)
    # 118.6 G multiply-adds forward (Peebles & Xie 2023, table 4), 256 examples, three passes; what is computed again adds
    # the products of attention, which the policy does not keep
    assert 3 * 118.6e9 * 256 < found["multiply_adds"] < 1.05 * 3 * 118.6e9 * 256
    assert 3 * 118.6e9 * 256 < found["useful_multiply_adds"] < 1.02 * 3 * 118.6e9 * 256
    assert found["terms"]["arithmetic"] == pytest.approx(2 * found["multiply_adds"] / 64 / 989e12)
    assert found["step_seconds"] == max(found["terms"].values())
    assert found["days"] == pytest.approx(400_000 * found["step_seconds"] / 86400)


def test_what_does_not_fit_is_told_what_to_do():
    config = text_to_image.get_config("flux,latents")
    config.batch_size = 16
    found = plan(config, {"data": 8, "fsdp": 1}, "h100")
    assert found["parameters"] == 11_891_178_560
    # parameters, two moments, an average and gradients, in float32
    assert found["peak"] > 5 * 4 * found["parameters"] > found["capacity"]
    assert any(sentence.startswith("It does not fit") for sentence in advice(found))
    # each block's forward pass runs twice, the backward one costs two of it
    assert 1.3 < found["multiply_adds"] / found["useful_multiply_adds"] < 4 / 3
    found = plan(config, {"fsdp": 16}, "b200")
    assert found["peak"] < found["capacity"]
    assert not any(sentence.startswith("It does not fit") for sentence in advice(found))


def test_the_program(tmp_path):
    flags = [f"--config={ROOT}/configs/digits_flow.py", "--device=h100"]
    result = program("plan", *flags, "--mesh=data:4,fsdp:2", f"--out={tmp_path}/plan.json")
    assert result.returncode == 0, result.stderr
    for words in ("on 8 × h100", "optimizer_state", "all-gather", "links of fsdp", "device-hours"):
        assert words in result.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["mesh"] == {"data": 4, "fsdp": 2}
    result = program("plan", *flags, "--mesh=data:5")
    assert result.returncode == 1 and "does not divide over 5 devices" in result.stderr


def test_meshes_are_names_and_sizes():
    assert parse_mesh("data:2,fsdp:32") == {"data": 2, "fsdp": 32}
    for text in ("fsdp", "fsdp:x", "fsdp:0"):
        with pytest.raises(ValueError, match="must be names and sizes"):
            parse_mesh(text)
