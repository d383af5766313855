import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.models.autoencoders.autoencoder_kl import AutoencoderKL
from genjax.models.gans import resnet_gan
from genjax.models.transformers.jit import JiT
from genjax.models.transformers.ltx2 import LTX2
from genjax.models.transformers.mean_flow_dit import MeanFlowDiT
from genjax.models.transformers.sound_and_video import SoundAndVideoDiT
from genjax.models.unets.adm import ADM
from genjax.models.unets.song_unet import SongUNet
from genjax.nn import Text
from genjax.pretrained.lora import init_lora
from genjax.training import make_optimizer
from genjax.training.optimizers import evaluation_params, hidden_matrices, kernels_only

NUMBERS = dict(name="adamw", learning_rate=0.1, num_steps=100, warmup=10)


def test_schedule_warms_up_and_falls_as_a_half_cosine():
    _, schedule = make_optimizer(**NUMBERS)
    steps = np.array([0, 5, 10, 55, 100])
    np.testing.assert_allclose([schedule(s) for s in steps], [0, 0.05, 0.1, 0.05, 0], atol=1e-8)


@pytest.mark.parametrize(("warmup", "decay"), [(10, 50), (0.1, 0.5)])
def test_the_rate_falls_to_its_end_and_stays(warmup, decay):
    """Lengths are in steps, or below 1 in shares of the run's 100 steps."""
    options = dict(NUMBERS, warmup=warmup, decay=decay)
    _, schedule = make_optimizer(**options, end_learning_rate=0.02)
    np.testing.assert_allclose(
        [schedule(s) for s in (10, 30, 50, 80)], [0.1, 0.06, 0.02, 0.02], rtol=1e-6
    )


def test_only_kernels_decay_even_when_layers_are_stacked():
    params = {"blocks": {"dense": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}}
    mask = kernels_only(params)
    assert mask == {"blocks": {"dense": {"kernel": True, "bias": False}}}
    optimizer, _ = make_optimizer(**{**NUMBERS, "warmup": 0}, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    # without a gradient AdamW's update is −learning rate · decay · parameter
    np.testing.assert_allclose(updates["blocks"]["dense"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["blocks"]["dense"]["bias"], 0)


def test_the_kernels_of_an_lstm_decay():
    params = {"lstm": {"layer_0_hidden_kernel": jnp.ones((2, 8)), "layer_0_bias": jnp.ones(8)}}
    assert kernels_only(params)["lstm"] == {"layer_0_hidden_kernel": True, "layer_0_bias": False}


def test_the_factors_of_adapted_kernels_decay():
    """PyTorch's AdamW, with which PEFT and diffusers train adapters, decays both factors."""
    adapters = init_lora(
        jax.random.key(0), {"blocks": {"key": {"kernel": jnp.ones((3, 4, 2))}}}, 1, lambda _: True
    )
    params = jax.tree.map(jnp.ones_like, adapters)
    optimizer, _ = make_optimizer(**{**NUMBERS, "warmup": 0}, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    (factors,) = updates.values()
    np.testing.assert_allclose(factors["down"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(factors["up"], -0.05, rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    options = {**NUMBERS, "warmup": 0, "b1": 0.0, "b2": 0.0, "eps": 1e6}
    optimizer, _ = make_optimizer(**options, clip_norm=1.0)
    # with eps far above the gradient, Adam's update is −learning rate · gradient / eps
    params = {"kernel": jnp.zeros(2)}
    updates, _ = optimizer.update(
        {"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.1 * np.array([0.6, 0.8]) / 1e6, rtol=1e-4)


def test_a_constant_schedule_warms_up_and_stays():
    for warmup, expected in ((10, [0, 0.05, 0.1, 0.1, 0.1]), (0, [0.1] * 5)):
        _, schedule = make_optimizer(**{**NUMBERS, "warmup": warmup}, schedule="constant")
        np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 55, 100)], expected, rtol=1e-6)


def test_a_linear_schedule_warms_up_and_falls_to_its_end():
    options = dict(schedule="linear", decay=50, end_learning_rate=0.02)
    for warmup, expected in ((10, [0, 0.05, 0.1, 0.06, 0.02]), (0, [0.1, 0.092, 0.084, 0.052])):
        _, schedule = make_optimizer(**{**NUMBERS, "warmup": warmup}, **options)
        rates = [schedule(step) for step in (0, 5, 10, 30, 80)]
        np.testing.assert_allclose(rates[: len(expected)], expected, rtol=1e-6)


def test_a_linear_schedule_stays_before_it_falls():
    options = dict(NUMBERS, warmup=10, schedule="linear", hold=0.5)
    _, schedule = make_optimizer(**options)
    rates = [schedule(step) for step in (5, 10, 35, 60, 70, 100)]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.1, 0.1, 0.075, 0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            dict(name="admw"),
            "did you mean 'adamw'.* there are .*lion, muon, schedule_free_adamw",
        ),
        (dict(name="add_decayed_weights"), "there are"),
        (dict(name="lion", momentum=0.9), "has momentum, which lion does not take; it takes .*b1"),
        (dict(warmup=200), "warmup is 200 steps.*num_steps=100"),
        (dict(decay=10), "warmup is 10 steps.*decay=10"),
        (dict(hold=95, schedule="linear"), "hold=95 .* before decay=100; .* the warm-up 10 steps"),
        (dict(hold=0.5), "hold=0.5 is of the schedule 'linear'.* is 'cosine'"),
        (dict(schedule="step"), "schedule is 'step'; there are cosine, linear, constant"),
        (dict(name="schedule_free_adamw"), "set config.optimizer.schedule to 'constant'"),
        (dict(clip_norm=0.0), "clip_norm is 0.0, .* take a positive norm, or None to clip none"),
    ],
)
def test_mistakes_are_answered_with_what_there_is(changes, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(**{**NUMBERS, **changes})


PARAMS = {
    "patch_embedding": {"kernel": (4, 6), "bias": (6,)},
    "label_embedding": {"embedding": (3, 6)},
    "blocks": {
        "qkv": {"kernel": (3, 6, 18), "bias": (3, 18)},
        "modulation": {"dense": {"kernel": (3, 6, 12)}},
    },
    "time_in": {"kernel": (8, 6)},
    "head": {"kernel": (6, 4)},
}
IS_SHAPE = dict(is_leaf=lambda shape: isinstance(shape, tuple))
STEPS, RATE, DECAY = 5, 0.01, 0.3
OPTIONS = dict(b1=0.8, b2=0.95, eps=1e-3)  # none of them a default


def draw(seed):
    """Numbers in the shapes of `PARAMS`, float64."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: generator.standard_normal(shape), PARAMS, **IS_SHAPE)


def run(name, gradients, warmup=0, **options):
    """Parameters after each update, and the optimizer's state, in float64."""
    numbers = dict(learning_rate=RATE, num_steps=STEPS + 1, schedule="constant", weight_decay=DECAY)
    with jax.enable_x64(True):
        optimizer, _ = make_optimizer(name=name, warmup=warmup, **numbers, **options)
        params = jax.tree.map(jnp.asarray, draw(0))
        state, update, history = optimizer.init(params), jax.jit(optimizer.update), []
        for gradient in gradients:
            updates, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)
            history.append(jax.tree.map(np.asarray, params))
    return history, state


def adam_direction(first, second, step, b1=0.9, b2=0.999, eps=1e-8):
    return first / (1 - b1**step) / (np.sqrt(second / (1 - b2**step)) + eps)


def by_hand(rule, gradients):
    """Apply `rule(parameter, gradient, memory, step, decay) -> (parameter, memory)` to leaves."""
    params = draw(0)
    decays = jax.tree.map(lambda kernel: DECAY * kernel, kernels_only(params))
    memory = jax.tree.map(lambda p: (0.0, 0.0, p.copy()), params)
    history = []
    for step, gradient in enumerate(gradients, 1):
        pairs = jax.tree.map(
            lambda p, g, m, d, t=step: rule(p, g, m, t, d), params, gradient, memory, decays
        )
        params, memory = (jax.tree.map(lambda _, pair, i=i: pair[i], params, pairs) for i in (0, 1))
        history.append(params)
    return history


def adamw(p, g, memory, step, decay, b1=0.9, b2=0.999, eps=1e-8):
    """Loshchilov and Hutter 2019, algorithm 2."""
    first, second, _ = memory
    first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
    direction = adam_direction(first, second, step, b1, b2, eps)
    return p - RATE * (direction + decay * p), (first, second, 0.0)


def lion(p, g, memory, step, decay):
    """Chen et al. 2023, algorithm 2."""
    first, _, _ = memory
    direction = np.sign(0.9 * first + 0.1 * g)
    return p - RATE * (direction + decay * p), (0.99 * first + 0.01 * g, 0.0, 0.0)


@pytest.mark.parametrize("rule", [adamw, lion], ids=["adamw", "lion"])
def test_every_step_is_the_paper_s(rule):
    gradients = [draw(1 + step) for step in range(STEPS)]
    history, _ = run(rule.__name__, gradients)
    for found, expected in zip(history, by_hand(rule, gradients), strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected
        )


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["defaults", "options"])
def test_schedule_free_is_the_paper_s_recursion_and_gives_its_average(options):
    """Defazio et al. 2024, algorithm 1: two steps of warm-up, squared rates as weights."""
    gradients = [draw(1 + step) for step in range(STEPS)]
    rates = RATE * np.minimum(1, np.arange(1, STEPS + 1) / 2)
    b1, b2, eps = (dict(b1=0.9, b2=0.999, eps=1e-8) | options).values()

    def rule(y, g, memory, step, decay):
        x, second, z = memory if step > 1 else (memory[2], 0.0, memory[2])
        second = b2 * second + (1 - b2) * g**2
        direction = g / (np.sqrt(second / (1 - b2**step)) + eps)
        z = z - rates[step - 1] * (direction + decay * y)
        share = rates[step - 1] ** 2 / np.sum(rates[:step] ** 2)
        x = (1 - share) * x + share * z
        averages.append(x)
        return (1 - b1) * z + b1 * x, (x, second, z)

    averages = []
    expected = by_hand(rule, gradients)
    clipping = dict(clip_norm=1e6) if options else {}  # a state inside a chain is found too
    history, state = run("schedule_free_adamw", gradients, warmup=2, **options, **clipping)
    for a, b in zip(history, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), a, b)
    with jax.enable_x64(True):
        found = jax.tree.leaves(evaluation_params(state, history[-1]))
    for a, b in zip(found, averages[-len(found) :], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_other_optimizers_evaluate_the_parameters_themselves():
    history, state = run("adamw", [draw(1)])
    assert evaluation_params(state, history[-1]) is history[-1]


@pytest.fixture(scope="module", params=[{}, OPTIONS], ids=["defaults", "options"])
def muon_run(request):
    """Return gradients, options, and the parameters after each step of Muon."""
    gradients = [draw(1 + step) for step in range(STEPS)]
    options = request.param and dict(request.param, beta=0.8)
    return gradients, options, run("muon", gradients, **options)[0]


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(muon_run):
    gradients, options, history = muon_run
    of_adamw = {name: options[name] for name in OPTIONS if options}
    expected = by_hand(functools.partial(adamw, **of_adamw), gradients)[-1]
    orthogonalized = {"blocks/qkv/kernel", "time_in/kernel"}
    for (path, a), b in zip(
        jax.tree.leaves_with_path(history[-1]), jax.tree.leaves(expected), strict=True
    ):
        is_adam = np.allclose(a, b, rtol=1e-9)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert is_adam == (name not in orthogonalized), name


IMAGE, TIME = jnp.zeros((1, 16, 16, 3)), jnp.zeros(1)
SMALL = dict(width=32, multipliers=(1, 2), blocks=1, attention_levels=(1,))


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (SongUNet(**SMALL), (IMAGE, TIME)),
        (ADM(**SMALL), (IMAGE, TIME)),
        (resnet_gan.Generator(widths=(16, 16, 8)), (jnp.zeros((1, 32)),)),
        (AutoencoderKL(latent_channels=3, widths=(32, 64), blocks=1), (IMAGE,)),
    ],
    ids=["SongUNet", "ADM", "GAN", "AutoencoderKL"],
)
def test_muon_leaves_the_layers_at_pictures_and_latents_to_adamw(network, inputs):
    """Jordan et al. 2024: Muon is for hidden layers. Only outer ones have 3 or 6 channels here."""
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    marks = jax.tree.leaves(hidden_matrices(params))
    for (path, a), is_hidden in zip(jax.tree.leaves_with_path(params), marks, strict=True):
        if a.ndim == 4:
            assert is_hidden != bool({3, 6} & {*a.shape[2:]}), jax.tree_util.keystr(path)


SIZES = dict(patch_size=4, width=16, depth=2, num_heads=2, num_classes=3)


@pytest.mark.parametrize(
    "network",
    [JiT(**SIZES, start=1), MeanFlowDiT(**SIZES, head_depth=1, bottleneck=4)],
    ids=["JiT", "MeanFlowDiT"],
)
def test_muon_takes_only_the_blocks_of_transformers_over_pixels(network):
    """Jordan et al. 2024: not the first layers, which read patches, and not the last."""
    numbers = (TIME, TIME) if isinstance(network, MeanFlowDiT) else ()
    inputs = IMAGE, TIME, TIME.astype(int), *numbers
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    marks = jax.tree.leaves_with_path(hidden_matrices(params))
    hidden = {path[0].key for path, is_hidden in marks if is_hidden}
    assert hidden == {name for name in params if name.endswith("blocks")}


STREAMS = dict(depth=1, num_heads=2)
SOUNDING = SoundAndVideoDiT(
    (1, 2, 2), 2, video_width=24, sound_width=16, frame_rate=4.0, sound_rate=8.0, **STREAMS
)
CLIP = {"video": jnp.zeros((1, 2, 4, 4, 1)), "sound": jnp.zeros((1, 4, 1))}
LATENTS = {"video": jnp.zeros((1, 2, 2, 2, 3)), "audio": jnp.zeros((1, 3, 4))}
TEXTS = {"video": Text(jnp.zeros((1, 2, 24))), "audio": Text(jnp.zeros((1, 2, 16)))}
EXCHANGE = {"video_exchange", "sound_exchange"}
PARTS = ("time", "text_time", "exchange", "exchange_gate")
OF_LTX2 = {f"{stream}_{part}" for stream in LATENTS for part in PARTS}


@pytest.mark.parametrize(
    ("network", "inputs", "modulation"),
    [
        (SOUNDING.clone(num_classes=1), (CLIP, jnp.zeros(1, int)), EXCHANGE),
        (LTX2(width=24, audio_width=16, gated=True, **STREAMS), (LATENTS, TEXTS), OF_LTX2),
    ],
    ids=["SoundAndVideoDiT", "LTX2"],
)
def test_muon_leaves_the_modulation_of_streams_to_adamw(network, inputs, modulation):
    """Their kernels make scales, shifts and gates. Attention between streams is hidden."""
    x, condition = inputs
    times = {name: jnp.zeros(1) for name in x}
    params = jax.eval_shape(network.init, jax.random.key(0), x, times, condition)["params"]
    hidden, others = set(), set()
    for path, is_hidden in jax.tree.leaves_with_path(hidden_matrices(params)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        (hidden if is_hidden else others).add(name)
    named = {n for n in hidden | others if n.split("/")[0] in modulation and n.endswith("/kernel")}
    assert {name.split("/")[0] for name in named} == modulation and named <= others
    between = {name for name in hidden if re.search("_from_|exchange/.*_to_", name)}
    assert {name.split("/")[-2] for name in between} >= {"query", "key", "value", "projection"}


def direction(after, before, name="blocks"):
    """The update of `qkv` without learning rate and decay."""
    after, before = after["blocks"]["qkv"]["kernel"], before["blocks"]["qkv"]["kernel"]
    return (before - after) / RATE - DECAY * before


def test_muon_orthogonalizes_each_scanned_layer_by_itself():
    gradient = draw(1)
    update = direction(run("muon", [gradient])[0][0], draw(0))
    scale = 0.2 * np.sqrt(18)
    for layer, g in zip(update, gradient["blocks"]["qkv"]["kernel"], strict=True):
        u, values, vt = np.linalg.svd(g, full_matrices=False)
        # five steps of the quintic leave singular values in this band (Jordan et al. 2024), the
        # vectors as they were
        in_their_basis = u.T @ layer @ vt.T / scale
        assert np.all((np.diag(in_their_basis) > 0.68) & (np.diag(in_their_basis) < 1.14)), (
            in_their_basis
        )
        np.testing.assert_allclose(in_their_basis, np.diag(np.diag(in_their_basis)), atol=1e-6)


@pytest.mark.parametrize("names", [("blocks", "qkv"), ("time_in",)], ids="/".join)
def test_the_momentum_of_muon_is_nesterov_s(muon_run, names):
    """Orthogonalized are β·m + (1 − β)·g, both corrected for their start (Dozat 2016, "Nadam").

    Five steps of the quintic do it (Jordan et al. 2024), of a wide matrix and of a tall one. The
    scale is 0.2·√max(in, out) (Liu et al. 2025, equation 4).
    """
    gradients, options, history = muon_run
    kernel = lambda tree: functools.reduce(dict.get, names, tree)["kernel"]
    beta, p, m = options.get("beta", 0.95), kernel(draw(0)), 0.0
    for t, (gradient, params) in enumerate(zip(gradients, history, strict=True), 1):
        g = kernel(gradient)
        m = beta * m + (1 - beta) * g
        x = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        x = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
        for _ in range(5):
            a = x @ x.swapaxes(-2, -1)
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        p = p - RATE * (0.2 * np.sqrt(max(p.shape[-2:])) * x + DECAY * p)
        np.testing.assert_allclose(kernel(params), p, rtol=1e-6)


def test_muon_of_stacked_layers_is_that_of_each_alone():
    gradients = [draw(1 + step) for step in range(STEPS)]
    stacked = run("muon", gradients)[0][-1]["blocks"]["qkv"]["kernel"]
    with jax.enable_x64(True):
        optimizer, _ = make_optimizer(
            name="muon",
            learning_rate=RATE,
            num_steps=STEPS + 1,
            schedule="constant",
            weight_decay=DECAY,
        )
        for layer in range(3):
            take = lambda tree, i=layer: {
                "qkv": {"kernel": jnp.asarray(tree["blocks"]["qkv"]["kernel"][i])}
            }
            params = take(draw(0))
            state = optimizer.init(params)
            for gradient in gradients:
                updates, state = optimizer.update(take(gradient), state, params)
                params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(
                stacked[layer], params["qkv"]["kernel"], rtol=1e-8, atol=1e-10
            )


def test_muon_updates_are_as_large_as_adamw_s():
    update = direction(run("muon", [draw(1)])[0][0], draw(0))
    assert np.sqrt(np.mean(update**2)) == pytest.approx(
        0.2, rel=0.3
    )  # Liu et al. 2025: about 0.2, whatever the shape


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "schedule_free_adamw"])
def test_each_descends_a_quadratic(name):
    schedule = "constant" if "free" in name else "cosine"
    optimizer, _ = make_optimizer(
        name=name, learning_rate=0.1, num_steps=300, warmup=10, schedule=schedule, clip_norm=10.0
    )
    target = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), draw(7))
    loss = lambda params: optax.tree.norm(optax.tree.sub(params, target), squared=True)
    params = jax.tree.map(jnp.zeros_like, target)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (end, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=300)
    assert loss(evaluation_params(state, end)) < 1e-2 * loss(params)
