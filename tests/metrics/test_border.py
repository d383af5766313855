"""Measures refuse what they cannot measure. Without the refusal, most would return a number."""

import re

import numpy as np
import pytest

from genjax import metrics

TIMES, SOUND, VIDEOS = np.ones(2), np.ones((900, 1)), np.zeros((2, 3, 4, 4, 1))
FLOW, KNOWN = np.zeros((2, 2, 4, 4, 2)), np.ones((2, 2, 4, 4), bool)
PAIRS = np.random.default_rng(0).normal(size=(5, 3))
OF_WAVEFORMS = [
    lambda waveform: metrics.detect_onsets(waveform, 8000),
    lambda waveform: metrics.onset_pitch(waveform, 0.0, 8000),
]
score = metrics.ridge_scorer(PAIRS, PAIRS)
warp = lambda flow=FLOW, known=KNOWN: metrics.warping_error(VIDEOS, flow, known)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("measure", "words"),
    [
        *[(lambda f=f: f(np.nan * SOUND), "the waveform holds NaN") for f in OF_WAVEFORMS],
        *[(lambda f=f: f(SOUND[:, 0]), "(900,); expected [samples") for f in OF_WAVEFORMS],
        (lambda: metrics.match_events(TIMES, np.nan * TIMES, 0.1), "audio_events holds NaN"),
        (lambda: metrics.match_events(TIMES, TIMES[None], 0.1), "shape (1, 2); expected [events]"),
        (lambda: metrics.synchrony([1.0], [TIMES], 0.1), "shape (); expected [events]"),
        (lambda: metrics.frame_differences(np.nan * VIDEOS), "videos holds NaN"),
        (lambda: metrics.kolmogorov_smirnov(TIMES, np.nan * TIMES), "values_b holds NaN"),
        (lambda: warp(flow=np.nan * FLOW), "flow where it is known holds NaN"),
        (lambda: warp(flow=FLOW[:1]), "expected (2, 2, 4, 4, 2) and (2, 2, 4, 4)"),
        (lambda: warp(known=KNOWN[0]), "known (2, 4, 4); expected"),
        (lambda: metrics.ridge_scorer(PAIRS[:1], PAIRS[:1]), "features has 1 rows; expected 2"),
        (lambda: score(PAIRS, PAIRS[:, :2]), "captions has 2, training has 3 features"),
    ],
)
def test_what_is_no_array_of_the_measure_is_refused(measure, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        measure()


def test_flow_counts_only_where_it_is_known():
    flow, known = FLOW.copy(), KNOWN.copy()
    flow[0, 0, 1, 1], known[0, 0, 1, 1] = np.nan, False
    np.testing.assert_array_equal(warp(flow, known), 0)


def test_an_empty_batch_has_no_features():
    assert metrics.spatial_features(np.zeros((0, 4, 5, 8))).shape == (0, 4 * 5 * 7)
