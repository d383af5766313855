"""Test plans of steps against known facts of networks, and the advice if a step does not fit."""

import json
import sys

import jax
import pytest

from configs import (
    digits_flow,
    digits_gan,
    digits_vae,
    gaussians_gan,
    imagenet256_latent_flow,
    text_to_audio,
    text_to_image,
    text_to_video,
)
from experiments.configuration.runs import build
from experiments.inputs.datasets import abstract_batch
from experiments.plan import advice, parse_mesh, plan
from genjax.devices import make_mesh
from genjax.training import abstract_state
from genjax.training.loop import compile_update
from tests.experiments.launching import ROOT, run
from tests.virtual_devices import lines_of

XL = 674_816_272  # parameters of DiT-XL/2, of FACTS


@pytest.fixture(scope="module")
def of_dit_xl():
    """Return the plan of DiT-XL/2 on 64 devices. Do not change it."""
    return plan(imagenet256_latent_flow.get_config(), {"data": 2, "fsdp": 32}, "h100")


def test_a_plan_of_dit_xl(of_dit_xl):
    found = of_dit_xl
    assert found["parameters"] == XL
    # all but small arrays are split
    assert 4 * XL / 32 < found["memory"]["params"] < 4 * XL / 32 * 1.01
    assert found["memory"]["optimizer_state"] == pytest.approx(
        2 * found["memory"]["params"], rel=1e-3
    )
    # 118.6 G multiply-adds forward (Peebles & Xie 2023, table 4), 256 examples, three passes; what
    # is computed again adds the products of attention, which the policy does not keep
    assert 3 * 118.6e9 * 256 < found["multiply_adds"] < 1.05 * 3 * 118.6e9 * 256
    assert 3 * 118.6e9 * 256 < found["useful_multiply_adds"] < 1.001 * 3 * 118.6e9 * 256
    assert found["terms"]["arithmetic"] == pytest.approx(2 * found["multiply_adds"] / 64 / 989e12)
    assert found["seconds"] == max(found["terms"].values())
    assert found["days"] == pytest.approx(400_000 * found["seconds"] / 86400)
    assert (
        found["sequences"] == [256]
        and found["tokens_per_second"] == 256 * found["images_per_second"]
    )


def test_operations_are_those_of_the_form_that_a_device_takes():
    """A device has 4 examples, so attention takes its plain form.

    The logits of all 512 examples would exceed the limit of the plain form.
    """
    config = imagenet256_latent_flow.get_config()
    config.model.update(name="DiT", width=1152, depth=2, num_heads=16, dtype="float32")

    def operations(batch_size, devices):
        config.batch_size = batch_size
        found = plan(config, {"fsdp": devices}, "h100")
        assert [each["form"] for each in found["attention"]] == ["plain"]
        return found["multiply_adds"]

    assert operations(512, 128) == 128 * operations(4, 1)


def test_attention_is_that_of_the_device_planned_for(of_dit_xl):
    """A device has 4 of 256 examples, of 256 tokens and 16 heads.

    Attention takes a kernel if products are in bfloat16.
    """
    config = imagenet256_latent_flow.get_config()
    heads = (4, 256, 16, 72)
    (choice,) = of_dit_xl["attention"]
    assert (choice["form"], choice["query"], choice["key"]) == ("cudnn", heads, heads)
    assert choice["words"] == "cudnn: 4 × 256 queries, 256 keys, 16 heads of 72"
    config.model.dtype = "float32"
    found = plan(config, {"data": 2, "fsdp": 32}, "h100")
    assert [each["form"] for each in found["attention"]] == ["plain"]


@pytest.mark.slow
def test_a_kernel_stores_no_weights(monkeypatch):
    """Without a kernel, a step stores float32 weights of attention and their bfloat16 copies.

    A kernel stores outputs and one number for each query. The step holds these arrays for 4
    examples, for 28 layers and for the layer at work.
    """
    config = imagenet256_latent_flow.get_config()
    config.model.remat_policy = None
    activations = lambda: plan(config, {"data": 2, "fsdp": 32}, "h100")["memory"][
        "activations and workspace"
    ]
    by_kernel = activations()
    monkeypatch.setattr(sys.modules["genjax.nn.attention.dispatch"], "KERNEL_LENGTH", 257)
    queries = 29 * 4 * 16 * 256
    saved = queries * 256 * (4 + 2) - queries * (2 * 72 + 4)
    assert activations() - by_kernel == pytest.approx(saved, rel=0.01)


def test_only_what_is_compiled_has_a_breakdown():
    with pytest.raises(ValueError, match="h100 is a GPU; take one of v4, v5e, v5p"):
        plan(imagenet256_latent_flow.get_config(), {"data": 8}, "h100", by_operation=True)


@pytest.mark.slow
def test_a_plan_of_sampling():
    config = imagenet256_latent_flow.get_config()
    config.sampling.update(sampler=dict(name="euler"), num_steps=50, guidance_scale=1.5)
    mesh = {"data": 2, "fsdp": 32}
    found = plan(config, mesh, "h100", "sample")
    # 50 steps of Euler, two network calls each by guidance
    calls = 50 * 2 * 256
    assert calls * 118.6e9 < found["multiply_adds"] < 1.01 * calls * 118.6e9
    assert found["useful_multiply_adds"] == found["multiply_adds"]
    assert 4 * XL / 32 < found["memory"]["params"] < 4 * XL / 32 * 1.01
    assert found["memory"].keys() == {"params", "activations and workspace"}
    # both halves of guidance at once
    assert [each["query"] for each in found["attention"]] == [(8, 256, 16, 72)]
    # Weights are gathered for each of the steps, those of bfloat16 products in bfloat16, and no
    # gradient is sent.
    (sent,) = found["collectives"]
    in_bfloat16 = 28 * 12 * 1152**2
    assert sent["kind"] == "all-gather"
    assert sent["bytes"] == pytest.approx(50 * (4 * XL - 2 * in_bfloat16), rel=1e-3)
    assert found["images_per_second"] == 256 / found["seconds"] and "days" not in found

    # no more activations for more steps or layers; twice of them for twice as many images at once
    working = lambda found: found["memory"]["activations and workspace"]
    config.sampling.num_steps = 10
    config.model.update(name="DiT", width=1152, depth=14, num_heads=16)
    assert working(plan(config, mesh, "h100", "sample")) == pytest.approx(working(found), rel=1e-3)
    config.batch_size = 512
    weights = 4 * 1152 * 6912  # of the largest layer, gathered
    assert working(found) > weights
    assert 1.4 < working(plan(config, mesh, "h100", "sample")) / working(found) < 2
    with pytest.raises(
        ValueError, match="the task of digits_gan_r3gan is GAN; take --program=train"
    ):
        plan(digits_gan.get_config(), mesh, "h100", "sample")


@pytest.mark.slow
def test_grouped_heads_do_not_count_as_tokens():
    """Stable Audio has 1,024 latents and the timing's token; 24 heads share 12 of the prompt."""
    config = text_to_audio.get_config()
    config.space = dict(name="Pixels")
    config.data.image_shape = (1024, 64)
    found = plan(config, {"data": 8}, "h100")
    assert found["tokens_per_second"] / found["images_per_second"] == pytest.approx(1025)


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_to_do():
    config = text_to_image.get_config("flux,latents")
    config.batch_size = 16
    found = plan(config, {"data": 8, "fsdp": 1}, "h100")
    assert found["parameters"] == 11_891_178_560
    # parameters, two moments, an average and gradients, in float32
    assert found["peak"] > 5 * 4 * found["parameters"] > found["capacity"]
    # of what the config may change, which rematerialises already
    (sentence,) = [sentence for sentence in advice(found) if sentence.startswith("It does not fit")]
    assert "take a larger config.accumulation_steps" in sentence and "remat_policy" not in sentence
    assert found["tokens_per_second"] == (4096 + 512) * found["images_per_second"]
    # each block's forward pass runs twice, the backward one costs two of it, and the kernel's
    # computes logits once more: of 4,608 tokens and 3,072 features in 19 + 38 blocks, where
    # embeddings and head are computed once
    logits = 16 * 57 * 4608**2 * 3072
    again = found["multiply_adds"] - found["useful_multiply_adds"]
    assert again == pytest.approx(found["useful_multiply_adds"] / 3 + logits, rel=0.01)
    found = plan(config, {"fsdp": 16}, "b200")
    assert found["peak"] < found["capacity"]
    assert not any(sentence.startswith("It does not fit") for sentence in advice(found))


@pytest.mark.slow
def test_a_plan_of_text_to_video():
    """Wan's 14 billion parameters with 75,600 tokens fit on H100s, and wait for arithmetic.

    The products are counted by hand: six matrices of a block for tokens of the video and two for
    those of the text, two of the feed-forward layer, and attention to the video and to the text.
    """
    found = plan(text_to_video.get_config("wan_14b"), {"fsdp": 64, "context": 8}, "h100")
    tokens, words, width, inner = 21 * 45 * 80, 512, 5120, 13_824
    assert found["sequences"][-1] == tokens and found["parameters"] == 14_288_491_584
    assert found["fits"] and found["peak"] < 20e9
    block = 6 * width**2 * tokens + 2 * width**2 * words + 2 * width * inner * tokens
    block += 2 * tokens * (tokens + words) * width
    assert found["useful_multiply_adds"] == pytest.approx(3 * 64 * 40 * block, rel=1e-3)
    assert found["largest"] == "arithmetic" and found["seconds"] == pytest.approx(3.6, abs=0.05)


@pytest.mark.slow
def test_planned_memory_is_what_a_run_holds():
    """On eight devices, planned bytes are exact for the state and for both programs' arguments."""
    (found,) = lines_of("tests.experiments.planned_run", 8)
    assert found["planned"] == found["held"]
    step, key, labels, grid = (
        4,
        8,
        2 * 4 * 32 // 8,
        4 * (1 + 3),
    )  # labels and indices; guidance scale and times
    assert found["arguments"] == sum(found["planned"].values()) + found["batch"] + step + key
    sampling = found["planned_for_sampling"]
    assert found["arguments_of_sampling"] == sampling["params"] + key + labels + grid
    # XLA's CPU back end orders and fuses in its own way.
    working = sampling["activations and workspace"]
    assert 0.8 * working < found["temporaries_of_sampling"] < 1.25 * working
    working = found["all_planned"]["gradients"] + found["all_planned"]["activations and workspace"]
    assert 0.8 * working < found["temporaries"] < 1.25 * working


def test_a_plan_over_tensor_and_context():
    """The plan's traffic of activations is what eight virtual devices of this machine send."""
    config = imagenet256_latent_flow.get_config()
    config.model.update(name="DiT", width=256, depth=3, num_heads=4)
    config.batch_size = 32
    found = plan(config, {"fsdp": 2, "tensor": 2, "context": 2}, "h100")
    sent = {(each["kind"], tuple(each["axes"])): each["bytes"] for each in found["collectives"]}
    bfloat16, float32, examples, tokens = 2, 4, 32 // 2, 256
    # Heads are exchanged for tokens, forward four times, again in rematerialisation, and back
    assert found["attention"][0]["form"] == "all_to_all"
    # Outputs of attention and the feed-forward layer, kept for the backward pass; gradients of what
    # both take; and of modulations. Of DiT-XL/2 on fsdp:32,tensor:2 this is 528 MB, where the
    # compiler for TPUs sends 530.
    hidden, vector = bfloat16 * examples * tokens // 2 * 256, float32 * examples * 256
    assert sent["all-reduce", ("tensor",)] == 3 * (2 * hidden + 2 * hidden + vector) + vector
    # All but what `tensor` splits, and half of that, is half on each device of fsdp; gradients are
    # summed over context.
    assert sent["all-reduce", ("context",)] == sent["reduce-scatter", ("fsdp",)]
    whole = plan(config, {"fsdp": 2, "tensor": 2}, "h100")
    ratio = (
        found["memory"]["activations and workspace"] / whole["memory"]["activations and workspace"]
    )
    assert 0.5 <= ratio < 0.6
    assert (
        found["memory"]["params"] == whole["memory"]["params"] < 0.6 * 4 * found["parameters"] / 2
    )


def test_the_program(tmp_path):
    flags = [f"--config={ROOT}/configs/digits_flow.py", "--device=h100"]
    result = run("plan", *flags, "--mesh=data:4,fsdp:2", f"--out={tmp_path}/plan.json")
    assert result.returncode == 0, result.stderr
    for words in (
        "on 8 × h100",
        "optimizer_state",
        "plain: 8 × 16 queries",
        "all-gather",
        "device-hours",
    ):
        assert words in result.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["mesh"] == {"data": 4, "fsdp": 2}
    result = run("plan", *flags, "--mesh=data:4,fsdp:2", "--program=sample")
    assert "sampling 64 images on 8 × h100" in result.stdout and "device-hours" not in result.stdout
    result = run("plan", *flags, "--mesh=data:5")
    assert result.returncode == 1 and "does not divide over 5 devices" in result.stderr


def test_meshes_are_names_and_sizes():
    assert parse_mesh("data:2,fsdp:32") == {"data": 2, "fsdp": 32}
    for text in ("fsdp", "fsdp:x", "fsdp:0"):
        with pytest.raises(ValueError, match="must be names and sizes"):
            parse_mesh(text)


@pytest.mark.parametrize("name", ["digits_vae", pytest.param("digits_gan", marks=pytest.mark.slow)])
def test_other_tasks_are_planned(name):
    """On one device the plan is near XLA's temporary bytes.

    Over eight devices the state is split, and gradients are summed.
    """
    config = {
        "digits_vae": digits_vae.get_config,
        "digits_gan": lambda: digits_gan.get_config("stylegan2"),
    }[name]()
    config.batch_size = 16
    alone = plan(config, {"data": 1}, "h100")["memory"]
    mesh, task, key = (
        make_mesh({"data": 1}, 16, jax.devices()[:1]),
        build(config),
        jax.random.key(0),
    )
    with jax.set_mesh(mesh):
        state = abstract_state(task, key, mesh)
        update = (
            compile_update(task, state, mesh)
            .lower(state, abstract_batch(config, task, mesh), key)
            .compile()
        )
    working = alone["gradients"] + alone["activations and workspace"]
    assert 0.75 < working / update.memory_analysis().temp_size_in_bytes < 1.25
    found = plan(config, {"fsdp": 8}, "h100")
    assert alone["gradients"] / 8 <= found["memory"]["gradients"] < alone["gradients"]
    sent = {(each["kind"], *each["axes"]): each["bytes"] for each in found["collectives"]}
    large = [
        a
        for a in jax.tree.leaves(state.params)
        if a.size >= 4096 and any(n % 8 == 0 for n in a.shape)
    ]
    whole = 4 * sum(a.size for a in large)
    assert (sent["all-gather", "fsdp"], sent["reduce-scatter", "fsdp"]) == (whole, whole // 8)
    (sentence,) = [
        sentence for sentence in advice(found | {"fits": False}) if "It does not fit" in sentence
    ]
    assert ("accumulation_steps" in sentence) == (
        name == "digits_vae"
    ) and "remat_policy" not in sentence


def test_axes_that_a_program_cannot_use_are_refused():
    refusals = [
        (
            gaussians_gan.get_config("r3gan"),
            {"tensor": 8},
            "tensor splits heads of attention, which here are none",
        ),
        (
            digits_flow.get_config(),
            {"context": 5},
            "context splits .* of transformers, which here are 16 long",
        ),
    ]
    for config, mesh, message in refusals:
        with pytest.raises(ValueError, match=message):
            plan(config, mesh, "h100")


def test_advice_is_of_the_mesh():
    found = dict(
        program="train",
        device="h100",
        slices=1,
        fits=True,
        largest="links of data",
        utilisation=0.5,
        sequences=[77, 256],
    )
    sentences = lambda **mesh: " ".join(advice(found | {"mesh": mesh}))
    assert "within the 8 devices of a node sends faster: name it last" in sentences(data=2, fsdp=8)
    assert "sends faster" not in sentences(data=2, fsdp=4) + sentences(fsdp=8, data=2)
    assert "does not divide sequences of 77 tokens" in sentences(data=2, context=4)
    found |= dict(device="v6e", slices=2, largest="links of slices")
    assert "links of slices: 50% of the arithmetic at most. A larger batch" in sentences(
        data=2, fsdp=256
    )
