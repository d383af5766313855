from ml_collections import ConfigDict

from experiments.launch.findings import Findings


def config(**evaluation):
    evaluation = {
        "num_samples": 10,
        "measures": {"samples": {"name": "Samples"}, "bounds": "Bounds"},
    } | evaluation
    return ConfigDict({"seed": 0, "evaluation": evaluation})


def test_what_was_found_is_found_under_the_same_config_alone(tmp_path):
    path = tmp_path / "findings.json"
    findings = Findings(path, config())
    for name in ("samples", "bounds"):
        assert findings.find(40, name) is None
        findings.add(40, name, {"fid": 3.5, "name": name})
    again = Findings(path, config())
    assert again.find(40, "samples") == {"fid": 3.5, "name": "samples"}
    assert again.find(40, "bounds") == {"fid": 3.5, "name": "bounds"}
    assert again.find(50, "samples") is None and again.find(40, "codes") is None
    another = Findings(
        path, config(measures={"samples": {"name": "Samples", "k": 5}, "bounds": "Bounds"})
    )
    assert another.find(40, "samples") is None and another.find(40, "bounds")
    assert Findings(path, config(num_samples=20)).find(40, "bounds") is None
    again.add(50, "samples", {})
    assert again.find(50, "samples") == {} and again.find(40, "bounds") is None
    again.forget()
    assert again.find(50, "samples") is None


def test_a_damaged_file_counts_as_none(tmp_path):
    findings = Findings(tmp_path / "findings.json", config())
    for text in ("{", "[]", '{"step": 40}', '{"step": 40, "made": 3}'):
        (tmp_path / "findings.json").write_text(text)
        assert findings.find(40, "samples") is None
    findings.add(40, "samples", {"fid": 1.0})
    assert findings.find(40, "samples") == {"fid": 1.0}
