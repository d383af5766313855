import json

import pytest

from experiments.launch.reports import training_summary


def test_goodput_is_the_share_of_time_in_steps(tmp_path):
    """40 s of 50: 100 steps of 5 a second, 200 of 10."""
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "device": "1 × cpu"}))
    rows = [
        {"step": 100, "seconds": 21.0, "steps_per_second": 5.0},
        {"step": 100, "seconds": 30.0, "fid": 3.0},
        {"step": 300, "seconds": 50.0, "steps_per_second": 10.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = training_summary(tmp_path, "name", 300)
    assert summary["goodput"] == pytest.approx(0.8) and summary["seconds"] == 50.0
    (tmp_path / "metrics.jsonl").unlink()
    assert "goodput" not in training_summary(tmp_path, "name", 300)
