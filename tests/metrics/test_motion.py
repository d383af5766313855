import numpy as np
import pytest
from scipy import stats

from genjax.metrics import frame_differences, kolmogorov_smirnov, warping_error


def test_frame_differences_of_known_changes():
    videos = np.zeros((2, 4, 3, 5, 2), np.uint8)
    videos[0, 1:] = 7  # one change, by 7 everywhere
    videos[1, 2, 0, 0, 0] = 255  # on and off again, in one of 30 values
    differences = frame_differences(videos)
    np.testing.assert_allclose(differences, [[7, 0, 0], [0, 8.5, 8.5]], rtol=1e-15)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 3, 5, 2\); expected \[batch time"):
        frame_differences(videos[:, :1])


def test_a_moving_picture_has_no_warping_error():
    """Whole steps lose nothing, and half a step gives the mean of two neighbours."""
    picture = np.random.default_rng(0).normal(size=(8, 9, 2))
    video = np.stack([np.roll(picture, (t, 2 * t), (0, 1)) for t in range(4)])[None]
    flow = np.broadcast_to([1.0, 2.0], (1, 3, 8, 9, 2))
    inner = np.zeros((1, 3, 8, 9), bool)
    inner[:, :, :-1, :-2] = True  # what stays inside the frame
    assert warping_error(video, flow, inner) == 0
    assert warping_error(video, 0 * flow, inner) > 0.5
    still = np.broadcast_to(np.arange(9.0)[:, None], (1, 2, 8, 9, 1))
    right = np.broadcast_to([0.0, 0.5], (1, 1, 8, 9, 2))
    np.testing.assert_allclose(warping_error(still, right, inner[:, :1]), 0.5, rtol=1e-12)
    assert np.isnan(warping_error(still, right, ~np.ones_like(inner[:, :1])))
    everywhere = np.ones_like(inner[:, :1])
    for noise in (1e-7, -1e-7):  # of an estimate of no flow
        assert warping_error(still, 0 * right + noise, everywhere) < 1e-5


def test_unknown_places_do_not_count():
    video = np.zeros((1, 2, 4, 4, 1))
    video[0, 1, 0, 0] = 3.0
    known = np.ones((1, 1, 4, 4), bool)
    flow = np.zeros((1, 1, 4, 4, 2))
    np.testing.assert_allclose(warping_error(video, flow, known), 3 / 4, rtol=1e-12)
    beside_still = np.concatenate([video, 0 * video], axis=-1)  # a mean over channels, too
    np.testing.assert_allclose(warping_error(beside_still, flow, known), 3 / 4 / np.sqrt(2))
    # Beyond the frame pixels count as 0.
    np.testing.assert_allclose(warping_error(video + 2, flow + 9, known), 2, rtol=1e-12)
    known[0, 0, 0, 0] = False
    assert warping_error(video, flow, known) == 0
    # All known pixels count equally: 1 of 16 pixels changes by 3, then 1 of 4 known ones by 1.
    video = np.zeros((1, 3, 4, 4, 1))
    video[0, 1:, 0, 0] = [[3.0], [4.0]]
    known = np.ones((1, 2, 4, 4), bool)
    known[0, 1, 1:] = False
    twice = np.concatenate([flow, flow], axis=1)
    np.testing.assert_allclose(warping_error(video, twice, known) ** 2, 10 / 20, rtol=1e-12)


def test_kolmogorov_smirnov_is_scipys_with_its_power():
    """The stated power is a bound, as the share of rejections among 200 draws shows."""
    generator = np.random.default_rng(0)
    a, b = generator.uniform(size=150), generator.uniform(size=250)
    found = kolmogorov_smirnov(a, b)
    reference = stats.ks_2samp(a, b)
    assert found[:2] == (reference.statistic, reference.pvalue)
    shift = found.detectable  # uniform laws shifted by d differ by d
    # By tables: 1.358 is Kolmogorov's quantile at 5 %, and 1.282 the normal one at 90 %.
    assert shift == pytest.approx((1.358 + 1.282 / 2) * np.sqrt(1 / 150 + 1 / 250), rel=1e-3)
    rejected = lambda shift: np.mean(
        [
            kolmogorov_smirnov(generator.uniform(size=150) + shift, generator.uniform(size=250))[1]
            < 0.05
            for _ in range(200)
        ]
    )
    assert rejected(shift) > 0.9 - 3 * 0.021  # three standard errors
    assert rejected(0.0) < 0.05 + 3 * 0.015
    assert kolmogorov_smirnov(a[:2], b[:2]).detectable == 1  # no two laws differ by more
    with pytest.raises(ValueError, match="values_b has 1 values"):
        kolmogorov_smirnov(a, b[:1])
