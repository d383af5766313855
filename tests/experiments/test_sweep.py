"""The program that measures a run by sampler and number of steps."""

import json

from tests.experiments.launching import run


def test_a_sweep_measures_as_evaluation_does(small_run, tmp_path):
    out = tmp_path / "sweep.json"
    result = run(
        "sweep",
        small_run[0],
        "--samplers=euler ddim",
        "--steps=1,4",
        "--num_samples=360",
        f"--out={out}",
    )
    assert result.returncode == 0, result.stderr
    records = json.loads(out.read_text())
    assert [(r["sampler"], r["num_steps"], r["evaluations"]) for r in records] == [
        ("euler", 1, 1), ("euler", 4, 4), ("ddim", 1, 1), ("ddim", 4, 4)
    ]  # fmt: skip
    report = json.loads((small_run[0] / "report.json").read_text())  # of 4 Euler steps
    for name in ("class_accuracy", "frechet_distance", "guidance_scale", "weights"):
        assert records[1][name] == report[name]
    row = (
        f"| digits_flow | euler | {{}} | {report['frechet_distance']:.3g} / "
        f"{100 * report['class_accuracy']:.1f} % |"
    )
    first = f"{records[0]['frechet_distance']:.3g} / {100 * records[0]['class_accuracy']:.1f} %"
    assert row.format(first) in result.stdout
    result = run("sweep", small_run[0], "--samplers=euler,x", f"--out={out}")
    assert result.returncode == 1 and "name,option=1.5" in result.stderr
