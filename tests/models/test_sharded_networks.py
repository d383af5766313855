"""Networks over `tensor` and `context` give equal outputs and communicate by Megatron's rules."""

import math

import pytest

from tests.virtual_devices import lines_of

pytestmark = pytest.mark.slow  # eight devices

DATA, TENSOR, CONTEXT = 2, 2, 2
BATCH, IMAGE, TEXT, WIDTH, DEPTH, PATCH = 4, 16, 6, 32, 2, 12  # as in tests.models.sharded_networks


@pytest.fixture(scope="module")
def runs():
    mesh = '{"data": 2, "tensor": 2, "context": 2}'
    return {row["name"]: row for row in lines_of("tests.models.sharded_networks", 8, mesh)}


def test_outputs_and_gradients_are_those_of_one_device(runs):
    assert len(runs) == 25
    for name, row in runs.items():
        # float32 sums of up to 64 products, over 2 to 4 layers, in another order. Group norms of
        # few numbers amplify the rounding: 3.4e-5 was seen where only the batch is split.
        limit = 1e-4 if name.startswith("Autoencoder") else 1e-5
        assert row["output"] < 3e-6 and row["gradients"] < limit, name
        assert row["loss"] < (1e-4 if name.startswith("Autoencoder") else 2e-6), name


def floats(*shape):
    return 4 * math.prod(shape)


def gathered_keys(length):
    """Keys and values of a layer, for some heads and the whole sequence."""
    return 2 * floats(BATCH // DATA, length, WIDTH // TENSOR)


def summed(length):
    """Outputs of attention and of the feed-forward layer, for some of the tokens."""
    return 2 * floats(BATCH // DATA, length // CONTEXT, WIDTH)


def modulation(parts):
    return floats(BATCH // DATA, parts * WIDTH)


HEAD = floats(BATCH // DATA, IMAGE, PATCH)  # the joined patches


@pytest.mark.parametrize(
    ("name", "over_context", "gathers", "sums"),
    [
        (
            "DiT",
            DEPTH * gathered_keys(IMAGE),
            DEPTH * modulation(6) + modulation(2),
            DEPTH * summed(IMAGE),
        ),
        (
            "Flux",  # two blocks of two streams, two of one stream
            4 * gathered_keys(IMAGE + TEXT),
            2 * 2 * modulation(6) + 2 * modulation(3) + modulation(2),
            4 * summed(IMAGE + TEXT),
        ),
        (
            # The first of three blocks has two attentions, the last one drops the text after
            # reading it.
            "MMDiT",
            3 * gathered_keys(IMAGE + TEXT) + gathered_keys(IMAGE),
            modulation(9) + 3 * modulation(6) + modulation(6) + modulation(2) + modulation(2),
            2 * summed(IMAGE + TEXT) + summed(IMAGE) // 2 + summed(IMAGE),
        ),
    ],
)
def test_a_forward_pass_sends_what_the_rules_say(runs, name, over_context, gathers, sums):
    sent = {(kind, *axes): size for kind, axes, _, size in runs[name]["collectives"]}
    assert sent == {
        ("all-gather", "context"): over_context + HEAD,
        ("all-gather", "tensor"): gathers,
        ("all-reduce", "tensor"): sums,
    }


def test_norms_over_all_heads_send_a_sum_of_squares_for_each_token(runs):
    """Wan's norms of queries and keys are over features that devices hold parts of."""
    sent = {(kind, *axes): size for kind, axes, _, size in runs["Wan"]["collectives"]}
    frames, image = 4, 5
    length = frames * IMAGE
    # Of self-attention's queries and keys, and of cross-attention's queries and both its keys.
    squares = floats(BATCH // DATA, 3 * (length // CONTEXT) + TEXT + image)
    outputs = 3 * summed(length) // 2  # of two attentions and a feed-forward layer
    assert sent == {
        ("all-gather", "context"): DEPTH * gathered_keys(length) + frames * HEAD,
        ("all-reduce", "tensor"): DEPTH * (outputs + squares),
    }


def test_video_is_split_by_tokens_of_all_frames(runs):
    """Of 4 frames of 4×4: 2×2 patches for VideoDiT, and single latents for LTX-Video.

    LTX-Video's norms and rotations are over the features of all heads, as Wan's norms are. Turning
    them exchanges a few pairs over `tensor`.
    """
    sent = lambda name: {(kind, *axes): size for kind, axes, _, size in runs[name]["collectives"]}
    length, pixels = 4 * 4, 4 * 4 * 4
    head = floats(BATCH // DATA, pixels, 3)
    assert sent("VideoDiT") == {
        ("all-gather", "context"): DEPTH * gathered_keys(length) + head,
        ("all-reduce", "tensor"): DEPTH * summed(length),
    }
    found = sent("LTXVideo")
    exchanged = found.pop(("all-to-all", "tensor"))
    assert exchanged < gathered_keys(pixels)
    # Of self-attention's queries and keys, and of cross-attention's queries and keys.
    squares = floats(BATCH // DATA, 3 * (pixels // CONTEXT) + TEXT)
    assert found == {
        ("all-gather", "context"): DEPTH * gathered_keys(pixels) + head,
        ("all-reduce", "tensor"): DEPTH * (3 * summed(pixels) // 2 + squares),
    }


def test_two_streams_of_video_and_conditions_are_split_together(runs):
    """HunyuanVideo-1.5 joins text, glyphs and an image once, and reads them with the video."""
    sent = {(kind, *axes): size for kind, axes, _, size in runs["HunyuanVideo"]["collectives"]}
    video, conditions = 4 * 4 * 4, TEXT + TEXT + 4
    length = video + conditions
    refined = 1  # block of the text alone
    assert sent == {
        ("all-gather", "context"): DEPTH * gathered_keys(length)
        + refined * gathered_keys(TEXT)
        + floats(BATCH // DATA, video, 3),
        ("all-gather", "tensor"): DEPTH * 2 * modulation(6)
        + refined * modulation(2)
        + modulation(2),
        ("all-reduce", "tensor"): DEPTH * summed(length) + refined * summed(TEXT),
        ("all-to-all", "context"): floats(BATCH // DATA, conditions, WIDTH),
    }
