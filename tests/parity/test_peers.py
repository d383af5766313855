"""Peer networks with equal weights and work give equal results, and times are printed."""

import numpy as np
import pytest

from experiments import peers
from experiments.speed.peer_decoding import Decoding
from experiments.speed.peer_networks import Case, genjax_side, torch_side

# PyTorch's compiler uses it too
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)

DIT = Case(
    "dit",
    "DiT",
    dict(patch_size=2, width=32, depth=1, num_heads=2, num_classes=10, out_channels=4, base_size=4),
    (8, 8, 4),
    2,
    "training",
    num_steps=3,
)
SMALL = {
    "dit_training": DIT,
    "dit_sampling": DIT._replace(work="sampling"),
    "autoencoder_gradient": Case(
        "autoencoder_kl",
        "AutoencoderKL",
        dict(latent_channels=2, widths=(8,), blocks=1, groups=4),
        (8, 8, 3),
        2,
        "gradient",
    ),
    "flux_training": Case(
        "flux",
        "Flux",
        dict(
            num_double_blocks=0,
            num_single_blocks=1,
            num_heads=2,
            rotary_features=(4, 4, 8),
            out_channels=4,
        ),
        (8, 12, 4),
        2,
        "training",
        text=(3, 12, 10),
    ),
    "wan_training": Case(
        "wan",
        "Wan",
        dict(width=32, depth=1, num_heads=2, mlp_features=24),
        (3, 4, 6, 4),
        2,
        "training",
        text=(3, 12),
        num_steps=3,
    ),
}
SMALL["wan_sampling"] = SMALL["wan_training"]._replace(work="sampling")


@pytest.mark.parametrize("name", SMALL)
def test_both_do_the_same_work(name, tmp_path):
    """Run twice: in training the second loss follows a step of the optimizer."""
    ours = genjax_side(SMALL[name], tmp_path)
    theirs = torch_side(SMALL[name], tmp_path, channels_last=True)
    assert ours.facts["parameters"] == theirs.facts["parameters"]
    output, expected = (side.compared(side.programs["output"]()) for side in (theirs, ours))
    assert peers.difference(output, expected) < 2e-5 and expected[0].shape == (
        2,
        *SMALL[name].shape,
    )
    results = [[ours.compared(ours.programs["genjax"]()) for _ in range(2)]]
    results += [[theirs.compared(theirs.programs["torch eager"]()) for _ in range(2)]]
    for expected, found in zip(*results, strict=True):
        # float32; measured: 4e-6 or less
        assert peers.difference(found, expected) < 2e-5
        assert all(np.abs(a).max() > 0.01 for a in expected)
    (first,), (second,) = (each[:1] for each in results[0])
    if SMALL[name].work == "training":  # a missing step would change the second loss
        assert np.abs(first - second) > 1e-4 * first
    else:
        np.testing.assert_array_equal(first, second)


def test_both_decode_the_same_tokens(tmp_path):
    case = Decoding(vocabulary=11, side=3, width=16, depth=2, num_heads=2, batch_size=2)
    ours, theirs = case.genjax_side(tmp_path), case.torch_side(tmp_path, channels_last=True)
    assert ours.facts["parameters"] == theirs.facts["parameters"]
    (logits,), (expected,) = (each.compared(each.programs["output"]()) for each in (theirs, ours))
    assert logits.shape == (2, 9, 11)
    assert peers.difference([logits], [expected]) < 2e-5  # float32
    (tokens,), (expected,) = (
        side.compared(side.programs[name]())
        for side, name in ((theirs, "torch eager"), (ours, "genjax"))
    )
    assert tokens.shape == (2, 9)
    np.testing.assert_array_equal(tokens, expected)


def test_times_are_compared_in_turns(capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else PyTorch starts more processes
    row = peers.compare(DIT._replace(work="forward"), repeats=3)
    assert row["seconds"].keys() == {"genjax", "torch eager", "torch compiled"}
    for values in row["seconds"].values():
        low, high = values["quartiles"]
        assert 0 < low <= values["median"] <= high
    assert row["ratios"].keys() == row["differences"].keys() == {"torch eager", "torch compiled"}
    # the ratio of each round lies between those of the extremes
    fastest, slowest = (
        {
            name: min(v["quartiles"]) if low else max(v["quartiles"])
            for name, v in row["seconds"].items()
        }
        for low in (True, False)
    )
    assert fastest["torch eager"] / slowest["genjax"] <= row["ratios"]["torch eager"]
    assert {"torch", "diffusers", "jax"} <= row["versions"].keys() and row["date"]
    # Terms of a forward pass: the block, patches in and out, modulation of the head, time.
    width, tokens = (32, 16)
    block = 12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2
    ends = tokens * width * (16 + 16) + 2 * width**2 + 256 * width + width**2
    assert row["useful_multiply_adds"] == 2 * (block + ends)
    assert not row["wrong"]
    peers.show("dit_forward", row)
    ratio = f"{row['ratios']['torch compiled']:.2f} × genjax's"
    printed = capsys.readouterr().out
    assert ratio in printed and "differ" not in printed
    peers.show("dit_forward", row | dict(wrong=["torch compiled"]))
    assert f"{ratio}, with results that differ" in capsys.readouterr().out


def test_differences_are_of_the_largest_value_of_each_array():
    a = np.array([1.0, -4.0])
    assert peers.difference([a + 0.4, 10 * a], [a, 10 * a]) == pytest.approx(0.1)
    assert peers.difference([a[:1]], [a]) == np.inf
    assert not peers.difference([a * np.nan], [a]) <= np.inf
    assert not peers.difference([a, a * np.nan], [a, a]) <= np.inf  # in any array
    assert peers.difference([a, 0 * a], [a, 0 * a]) == 0
    assert peers.difference([a], [0 * a]) > 1e6


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OSError, match=r"needs a C\+\+ compiler"):
        peers.require_peers()
