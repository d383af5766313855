"""The metrics file: what a crash or an editor does to it."""

import json
import warnings

import jax.numpy as jnp
import pytest

from genjax.training.log import Metrics, MetricsLog, read_metrics


def test_damaged_lines_are_named_and_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [{"step": step, "seconds": float(step), "loss": 1.0} for step in (1, 2, 3)]
    bad = [b'{"step": 1, "lo', b"\xff\xfe", b"7", b'{"loss": 1.0}', b'{"step": "two"}', b"null"]
    lines = [json.dumps(row).encode() for row in good]
    path.write_bytes(b"\n".join([lines[0], *bad, lines[1], b"", lines[2], b'{"step": 4, "se']))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_metrics(path) == good
    assert [str(each.message).split(" of ")[0] for each in caught] == [
        f"line {n}" for n in range(2, 8)
    ]
    assert all(str(path) in str(each.message) for each in caught)
    with warnings.catch_warnings(action="ignore"):
        MetricsLog(path, step=2).close()
    assert read_metrics(path) == good[:2]


def test_the_time_of_a_run_never_goes_back(tmp_path):
    """A checkpoint is written before the measures of its step, whose records say more."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "seconds": 30.0}\n')
    log = MetricsLog(path, step=5)
    log.go_on(20.0)
    assert 30 <= log.seconds < 40
    log.close()


def test_a_metric_is_a_scalar(unchecked_annotations):
    with pytest.raises(ValueError, match=r"metric 'loss' has shape \(8,\): give its mean"):
        Metrics.pack({"accuracy": jnp.ones(()), "loss": jnp.ones(8)})
