"""The pages of runs: their contents, by a parser, and whether a browser shows them."""

import base64
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from experiments.compare import best, comparison
from experiments.pages.html import Html, chart, element, page
from experiments.pages.report import duration, write_report
from genjax.pipelines.media import write_clip, write_wav
from genjax.training.pictures import (
    image_grid,
    label_rows,
    save_animation,
    save_grid,
    save_picture,
)
from genjax.training.task import FROM_TRAINING
from tests.experiments.browser import CHROMIUM, Browser
from tests.experiments.launching import run

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="no Chromium; apt-get install chromium, or Google Chrome",
)
REPORT = dict(
    experiment="flow <b>&",
    steps=300,
    seconds=12.25,
    class_accuracy=0.9,
    classifier_accuracy=0.99,
    frechet_distance=1.5,
    frechet_distance_train=0.625,
    density=0.75,
    num_samples=1000,
    features="pixels in [-1, 1]",
    ema=True,
    skipped={"cats/broken.jpg": "image file is truncated"},
)


def make_run(folder, report=REPORT, learning_rate=1e-3, steps=300, num_pictures=3):
    """The folder of a run as training leaves it, with small pictures."""
    (folder / "samples").mkdir(parents=True)
    config = dict(
        experiment="flow <b>&", seed=0, num_steps=300, optimizer=dict(learning_rate=learning_rate)
    )
    record = dict(
        config=config, device="1 × cpu", versions=dict(jax="0.10.2"), git_commit="c0ffee" + "0" * 34
    )
    (folder / "config.json").write_text(json.dumps(record))
    rows = [
        dict(step=s, seconds=s / 20, loss=3.0 / s, norm=float(s)) for s in range(10, steps + 1, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3)).astype(np.uint8)
    for picture in range(1, num_pictures + 1):
        save_grid(folder / f"samples/step_{100 * picture:06d}.png", images[0], 2)
    if report:
        (folder / "report.json").write_text(json.dumps(report))
        sheet = label_rows(image_grid(images[0], 2), ["cats & dogs", "birds"])
        save_picture(folder / "samples.png", sheet)
        save_picture(folder / "real.png", sheet)
        save_animation(folder / "noise_to_data.gif", [image_grid(frame, 2) for frame in images])
    return folder


class Page(HTMLParser):
    """The contents of a page: elements with their attributes, texts, and rows of tables."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self.rows, self._open = [], "", [], []
        self.texts = []  # pairs of the innermost element and its text
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "link", "wbr"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.texts.append((self._open[-1] if self._open else "", data))
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data

    def all(self, tag, class_=None):
        return [
            a
            for t, a in self.elements
            if t == tag and class_ in (None, *a.get("class", "").split())
        ]


def check(source, pictures, charts):
    """Check the properties of every page; return it parsed."""
    page = Page(source)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    assert not page.all("script") and not re.search(r"url\(|@import", source)
    assert len(page.all("img")) == pictures
    assert all(len(image["alt"]) > 10 and int(image["width"]) > 0 for image in page.all("img"))
    assert len(page.all("svg", "chart")) == charts
    assert all(len(drawing["aria-label"]) > 20 for drawing in page.all("svg", "chart"))
    assert [a["lang"] for a in page.all("html")] == ["en"] and len(page.all("h1")) == len(
        page.all("main")
    ) == 1
    return page


def test_report_of_a_finished_run(tmp_path):
    clips = dict(caption_accuracy=0.5, caption_accuracy_real=0.97)
    path = write_report(make_run(tmp_path / "run", REPORT | clips))
    assert path == tmp_path / "run" / "report.html"
    page = check(path.read_text(encoding="utf-8"), pictures=6, charts=2)
    assert "flow <b>&" in page.text and not page.all("b")  # escaped
    for row in (
        ["class accuracy↑ higher is better", "0.9", "0.99"],
        ["Fréchet distance↓ lower is better", "1.5", "0.625"],
        ["density→ 1 is best", "0.75", ""],
        ["caption accuracy↑ higher is better", "0.5", "0.97"],
        ["num samples", "1000"],
        ["features", "pixels in [-1, 1]"],
        ["ema", "yes"],
        ["cats/broken.jpg", "image file is truncated"],
        ["optimizer.learning_rate", "0.001"],
        ["versions.jax", "0.10.2"],
        ["git_commit", "c0ffee" + "0" * 34],
    ):
        assert row in page.rows, row
    # They stand beside their figures.
    assert not {"Fréchet distance train", "caption accuracy real"} & {row[0] for row in page.rows}
    for words in ("300 of 300", "15.0 s", "1 × cpu", "step 100", "step 300"):
        assert words in page.text
    assert "Not evaluated yet" not in page.text


def edit_record(folder, **facts):
    """Add to a run's config the entry `config`, and the other facts beside the config."""
    record = json.loads((folder / "config.json").read_text())
    record["config"] |= facts.pop("config", {})
    (folder / "config.json").write_text(json.dumps(record | facts))


def test_the_title_is_the_runs_folder_and_below_it_is_where_the_run_comes_from(tmp_path):
    run = make_run(tmp_path / "my_run")
    edit_record(run, init_from=None)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "".join(text for kind, text in page.texts if kind == "h1") == "my_run"
    assert ("title", "my_run · flow <b>&") in page.texts
    assert "Config flow <b>&" in page.text and "started from" not in page.text
    edit_record(run, config=dict(data=dict(name="folder", directory="cats")), init_from="runs/a")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Config flow <b>&, data set folder (cats), started from runs/a" in text


def test_alarms_and_the_logits_are_shown(tmp_path):
    folder = make_run(tmp_path / "run", REPORT | dict(alarms=["Mode collapse: 3 of 25 modes."]))
    (folder / "logits").mkdir()
    for step in (100, 300):
        save_grid(folder / f"logits/step_{step:06d}.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
    page = check(write_report(folder).read_text(encoding="utf-8"), pictures=7, charts=2)
    assert "Mode collapse: 3 of 25 modes." in page.text
    assert "held-out and generated imagesstep 300" in page.text
    quiet = write_report(make_run(tmp_path / "quiet", REPORT | dict(alarms=[]))).read_text(
        encoding="utf-8"
    )
    assert "Alarms" not in quiet and "logits" not in quiet


def headings(page):
    return [text for kind, text in page.texts if kind == "h2"]


def test_samples_stand_beside_real_examples_with_the_names_of_their_rows(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8"))
    samples, real, film = (image["alt"] for image in page.all("img")[:3])
    assert samples == "Grid of samples, after training. Rows: cats & dogs; birds"
    assert real == "Grid of real examples. Rows: cats & dogs; birds" and "Film" in film
    assert page.all("img")[2]["src"].startswith("data:image/webp")  # smaller than the GIF
    sizes = [(int(image["width"]), int(image["height"])) for image in page.all("img")[:2]]
    assert sizes[0] == sizes[1] and sizes[0][1] == 2 * 66 and sizes[0][0] > 2 * 66


def test_the_page_says_which_real_examples_the_network_was_trained_on(tmp_path):
    run = make_run(tmp_path / "run")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Real examplesheld out" in text and "training examples where" not in text
    with Image.open(run / "real.png") as sheet:
        names = ["cats & dogs", f"birds (1 {FROM_TRAINING}"]
        save_picture(run / "real.png", label_rows(sheet, names))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "Real examplesheld out, and training examples where a row says so" in text


def test_films_of_older_runs_are_shown(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "noise_to_data.webp").unlink()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.all("img")[2]["src"].startswith("data:image/gif")


def test_the_films_of_moved_inputs_are_shown_with_their_decibels(tmp_path):
    run = make_run(tmp_path / "run", REPORT | {"eq_t": 51.25, "eq_r": 13.5})
    film = [image_grid(np.zeros((2, 8, 8, 1), np.uint8), 2)] * 2
    for name in ("translation", "rotation"):
        save_animation(run / f"{name}.gif", film)
    source = write_report(run).read_text(encoding="utf-8")
    shown = {each["alt"] for each in Page(source).all("img")}
    assert "Film of samples whose input turns once" in shown
    assert "Film of samples whose input moves on a circle of two pixels' radius" in shown
    assert "eq t frac" not in source and "eq t" in source and "51.2" in source


def test_the_films_of_clips_are_shown(tmp_path):
    """Those of the last sheet while the run goes on, and those of samples and real clips after."""
    film = [image_grid(np.zeros((2, 8, 8, 1), np.uint8), 2)] * 2
    going = make_run(tmp_path / "going", report=None)
    save_animation(going / "samples/step_000300.gif", film)
    ended = make_run(tmp_path / "ended")
    for name in ("samples", "real"):
        save_animation(ended / f"{name}.gif", film)
    for folder, films in ((going, {"sampled"}), (ended, {"sampled", "held-out"})):
        page = Page(write_report(folder).read_text(encoding="utf-8"))
        shown = [each for each in page.all("img") if each["alt"].endswith(" clips")]
        assert {each["alt"] for each in shown} == {f"Film of {kind} clips" for kind in films}
        assert all(each["src"].startswith("data:image/webp") for each in shown)


def add_sounds(run):
    """Write a second of sound, and a clip with it, beside the samples and the real examples."""
    sound = np.random.default_rng(0).integers(-999, 999, (8000, 1)).astype(np.int16)
    for name in ("samples", "real"):
        write_wav(run / f"{name}.wav", sound, 8000)
    write_clip(run / "samples.webm", np.zeros((8, 8, 8, 1), np.uint8), 8.0, sound, 8000)


def test_sounds_and_clips_with_sound_are_played_from_the_page_itself(tmp_path):
    run = make_run(tmp_path / "run")
    add_sounds(run)
    source = write_report(run).read_text(encoding="utf-8")
    page = check(source, pictures=6, charts=2)
    files = {"audio": ["samples.wav", "real.wav"], "video": ["samples.webm"]}
    for tag, names in files.items():
        players = page.all(tag)
        assert all("controls" in each and each["aria-label"] for each in players)
        embedded = [each["src"].partition(";base64,") for each in players]
        assert [base64.b64decode(data) for *_, data in embedded] == [
            (run / name).read_bytes() for name in names
        ]
    assert "media-src data:" in page.all("meta")[2]["content"]
    (run / "samples.wav").unlink()
    assert len(Page(write_report(run).read_text(encoding="utf-8")).all("audio")) == 1


@needs_chromium
def test_a_browser_plays_sounds_and_clips_with_sound(tmp_path):
    run = make_run(tmp_path / "run")
    add_sounds(run)
    path = write_report(run)
    with Browser(tmp_path / "profile") as browser:
        browser.open(path.as_uri())
        seconds = browser.evaluate(
            "Promise.all([...document.querySelectorAll('audio, video')].map(m => new Promise("
            "(done, fail) => { m.onerror = () => done(m.error.message);"
            "m.oncanplaythrough = () => done(m.duration); m.load() })))"
        )
        np.testing.assert_allclose(sorted(seconds), [1, 1, 1], atol=0.06)
        assert browser.complaints == []
        assert all(request.startswith("data:") for request in browser.requests[1:])


def test_an_autoencoder_shows_originals_beside_reconstructions(tmp_path):
    run = make_run(tmp_path / "run")
    edit_record(run, config=dict(reconstruction=dict(name="l1")))
    (run / "reconstructions").mkdir()
    save_grid(run / "reconstructions/step_000300.png", np.zeros((2, 8, 8, 3), np.uint8), 1)
    page = check(write_report(run).read_text(encoding="utf-8"), pictures=7, charts=2)
    assert headings(page)[:2] == ["Reconstructions", "Originals and reconstructions"]
    assert "Reconstructionsafter training" in page.text and "Originalsheld out" in page.text


@pytest.mark.parametrize(
    "report, config, name",
    [
        ({}, {}, "samples"),
        ({}, {"reconstruction": {"name": "l1"}}, "reconstructions"),
        ({"sampler": "reconstruction of held-out examples"}, {}, "reconstructions"),
    ],
)
def test_columns_say_whether_figures_are_of_samples_or_reconstructions(
    tmp_path, report, config, name
):
    run = make_run(tmp_path / "run", REPORT | report)
    edit_record(run, config=config)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert ["", name, "real examples"] in page.rows
    assert headings(page)[0] == name.capitalize()


def test_guidance_is_shown_for_conditional_runs_alone(tmp_path):
    guided = REPORT | dict(guidance_scale=1.5, guidance_interval=[0.25, 0.75])
    for condition in ("Classes", "Unconditional"):
        folder = make_run(tmp_path / condition, guided)
        edit_record(folder, config=dict(condition=dict(name=condition)))
        text = write_report(folder).read_text(encoding="utf-8")
        shown = [f"guidance {word}" in text for word in ("scale", "interval")]
        assert shown == [condition == "Classes"] * 2


def test_ways_of_inversion_are_rows_of_one_table(tmp_path):
    """A dictionary of dictionaries is a table with a column for each of their entries."""
    ways = {
        "gradient descent": dict(reconstruction_error=0.25, milliseconds=130.0),
        "encoder": dict(reconstruction_error=0.5, milliseconds=0.5),
    }
    run = make_run(tmp_path / "run", REPORT | dict(reconstruction_error=0.5, inversion=ways))
    rows = Page(write_report(run).read_text(encoding="utf-8")).rows
    header = rows.index(["", "reconstruction error", "milliseconds"])
    assert rows[header + 1 :][:2] == [
        ["gradient descent", "0.25", "130"],
        ["encoder", "0.5", "0.5"],
    ]
    assert ["reconstruction error↓ lower is better", "0.5", ""] in rows


def test_no_heading_is_empty(tmp_path):
    """Neither with a report of no measures nor without any picture or metric."""
    nothing = dict(skipped_files={}, converted_files={}, alarms=[])
    empty = make_run(tmp_path / "empty", REPORT | nothing)
    bare = make_run(tmp_path / "bare", report=None, num_pictures=0)
    (bare / "metrics.jsonl").unlink()
    (bare / "samples/step_000100.png").write_bytes(b"cut short")
    for folder in (empty, bare):
        source = write_report(folder).read_text(encoding="utf-8")
        assert not re.search(r"<h2>[^<]*</h2></section>|<tbody></tbody>|<div[^>]*></div>", source)
    assert headings(Page(source)) == ["Config and environment"]
    source = comparison([make_run(tmp_path / "a", report=None, num_pictures=0), bare])
    assert headings(Page(source)) == ["Differences", "Curves over the steps"]


def test_losses_by_time_share_a_chart_and_norms_are_folded_away(tmp_path):
    run = make_run(tmp_path / "run")
    names = ["loss/t_0_0.5", "loss/t_0.5_1", "norm/update/head", "norm/update/total"]
    row = {"step": 1, "seconds": 1.0, "loss": 1.0} | dict.fromkeys(names, 1.0)
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    page = check(write_report(run).read_text(encoding="utf-8"), pictures=6, charts=3)
    labels = [drawing["aria-label"] for drawing in page.all("svg", "chart")]
    assert [label.partition(" over")[0] for label in labels] == [
        "loss",
        "loss by time",
        "norm/update",
    ]
    assert "t 0–0.5 1 at step 1; t 0.5–1 1 at step 1" in labels[1]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("details") == 1
    inside = page.elements[tags.index("details") :]
    assert [a["aria-label"] for t, a in inside if t == "svg" and "aria-label" in a] == labels[2:]
    page = Page(comparison([run, make_run(tmp_path / "other")]))
    assert [tag for tag, _ in page.elements].count("details") == 2  # norms, and the loss by time


def test_a_comparison_starts_with_samples(tmp_path):
    a, b = (
        make_run(tmp_path / name, REPORT | dict(goodput=good))
        for name, good in (("a", 0.1), ("b", 0.9))
    )
    page = Page(comparison([a, b]))
    assert headings(page) == ["Samples", "Figures", "Differences", "Curves over the steps"]
    assert ["goodput↑ higher is better", "0.1", "0.9"] in page.rows  # no best


def test_report_of_a_run_that_is_going_on(tmp_path):
    run = make_run(tmp_path / "run", report=None, steps=200, num_pictures=2)
    picture = run / "samples/step_000200.png"
    picture.write_bytes(picture.read_bytes()[:-40])  # being written, or cut short by a kill
    page = check(write_report(run).read_text(encoding="utf-8"), pictures=1, charts=2)
    assert (
        "Not evaluated yet: training has logged 200 of 300 steps" in page.text
        and "10.0 s" in page.text
    )
    (run / "metrics.jsonl").unlink()
    picture.unlink()
    (run / "samples/step_000100.png").unlink()
    page = check(write_report(run).read_text(encoding="utf-8"), pictures=0, charts=0)
    assert "0 of 300" in page.text


def test_of_many_pictures_some_are_shown_the_last_always(tmp_path):
    run = make_run(tmp_path / "run", num_pictures=40)
    page = check(write_report(run).read_text(encoding="utf-8"), pictures=13, charts=2)
    assert "10 of 40 pictures" in page.text and "step 4,000" in page.text
    for step in (999_000, 1_000_000):  # which strings have in the other order
        shutil.copy(run / "samples/step_004000.png", run / f"samples/step_{step:06d}.png")
    page = write_report(run).read_text(encoding="utf-8")
    assert "step 1,000,000" in page and "step 999,000" not in page


def test_comparison(tmp_path):
    better = REPORT | dict(frechet_distance=0.5, class_accuracy=0.8, density=1.1, num_samples=500)
    runs = [
        make_run(tmp_path / "a/run"),
        make_run(tmp_path / "b/run", better, learning_rate=0.01),
        make_run(tmp_path / "c", report=None, steps=200),
    ]
    page = check(comparison(runs), pictures=4, charts=2)
    for row in (
        ["", "a/run", "b/run", f"{tmp_path.name}/c"],
        ["class accuracy↑ higher is better", "0.9best", "0.8", "–"],
        ["Fréchet distance↓ lower is better", "1.5", "0.5best", "–"],
        ["density→ 1 is best", "0.75", "1.1best", "–"],
        ["num samples", "1000", "500"],
        ["optimizer.learning_rate", "0.001", "0.01", "0.001"],
    ):
        assert row in page.rows, row
    assert "seed" not in page.text and "In the environments nothing differs" in page.text
    assert f"{tmp_path.name}/c is not evaluated yet: it has logged 200 of 300 steps" in page.text
    assert len(page.all("path", "curve")) == 3 + 2 * 3  # legend and two charts


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("class_accuracy", [0.5, 0.9, None], {1}),
        ("frechet_distance", [0.5, 0.9, 0.5], {0, 2}),
        ("frechet_distance", [math.nan, 0.9, 0.5], {2}),
        ("frechet_distance", [0.9, 0.5, math.nan], {1}),
        ("nearest_neighbour_ratio", [0.2, 1.3, 1.4], {1}),
        ("density", [None, 1.0], set()),
        ("precision", [0.5, 0.5], set()),
        ("steps_per_second", [10.0, 20.0], set()),  # says nothing of quality
        ("goodput", [0.5, 0.9], set()),
        ("precision", [None, None], set()),
        ("frechet_distance", [1.23456, 1.23458], set()),  # both are printed as 1.235
        ("frechet_distance", [1.23456, 1.23458, 2.0], {0, 1}),
        ("frechet_distance", [12345.1, 12345.3], set()),
        ("density", [0.9, 1.1], set()),
        ("density", [0.9, 1.1, 2.0], {0, 1}),
        ("kernel_distance", [-0.003156, -0.003081], set()),  # both are 0 within their noise
        ("kid", [-0.003156, -0.003081, 0.01], {0, 1}),
        ("kernel_distance", [0.003, 0.002], {1}),
        ("log_spectral_distance", [-1.0, -2.0], {1}),  # is not clipped
    ],
)
def test_the_best_is_by_the_figures_direction(name, values, expected):
    assert best(name, values) == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (125.9, "2 min 5 s"),
        (3570.0, "59 min 30 s"),
        (3599.98, "1 h 0 min"),
        (3700.0, "1 h 2 min"),
    ],
)
def test_no_duration_has_60_seconds_or_minutes(seconds, words):
    assert duration(seconds) == words


def drawn(figure):
    """The points of a chart's curve, and the heights of its grid lines by their labels."""
    curve = [tuple(map(float, pair.split())) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", figure)]
    lines = [float(y) for y in re.findall(r'y1="([\d.]+)"', figure)]
    labels = re.findall(r'text-anchor="end">([^<]+)<', figure)
    return curve, dict(zip(labels, lines, strict=True))


def test_figures_of_few_examples_and_of_other_data_are_not_trusted(tmp_path):
    """A share of 20 images is known to ±1.96·√(0.25/20) = 22 points."""
    few = REPORT | dict(samples_per_distance=20)
    runs = [make_run(tmp_path / "a", few), make_run(tmp_path / "b", few | dict(density=0.5))]
    uncertain = "Measures compare with only 20 examples of"
    page = write_report(runs[0]).read_text()
    assert uncertain in page and "±22 points" in page
    page = comparison(runs)
    assert page.count(uncertain) == 1 and ">best<" in page
    record = json.loads((runs[1] / "config.json").read_text())
    record["config"]["data"] = dict(name="digits")
    (runs[1] / "config.json").write_text(json.dumps(record))
    page = comparison(runs)
    assert "different data, so no figure is marked as the best" in page and ">best<" not in page
    for folder, game in zip(runs, ("pong", "breakout"), strict=True):
        record["config"]["data"] = dict(name="atari", options=dict(game=game))
        (folder / "config.json").write_text(json.dumps(record))
    assert ">best<" not in comparison(runs)


def test_numbers_beside_an_axis_fit_and_steps_are_whole():
    for points in ([(60, 0.001)], [(0, 12345678.0), (3, 12345679.0)]):
        figure = chart("rate", {"run": points})
        labels = re.findall(r'x="(\d+)"[^>]*text-anchor="end">([^<]+)<', figure)
        assert labels and all(int(x) >= 7 * len(text) for x, text in labels)  # 12 pixels high
        steps = re.findall(r'text-anchor="middle">([^<]+)<', figure)
        assert steps and all(float(step).is_integer() for step in steps)


def test_curves_agree_with_the_grid():
    curve, lines = drawn(chart("loss", {"run": [(s, s / 10) for s in range(0, 11)]}))
    assert lines.keys() == {"0", "0.25", "0.5", "0.75", "1"}
    heights = [curve[0][1], curve[5][1], curve[10][1]]
    assert heights == pytest.approx(
        [lines["0"], lines["0.5"], lines["1"]], abs=0.1
    )  # drawn to a tenth
    assert np.diff([x for x, _ in curve]) == pytest.approx(
        (curve[-1][0] - curve[0][0]) / 10, abs=0.11
    )


def test_a_logarithmic_axis_where_it_shows_more():
    points = [(s, 100 * math.exp(-s)) for s in range(12)]
    figure = chart("loss", {"run": points})
    curve, lines = drawn(figure)
    assert "logarithmic" in figure
    assert np.diff([y for _, y in curve]) == pytest.approx(
        (curve[-1][1] - curve[0][1]) / 11, abs=0.11
    )
    decade = (curve[1][1] - curve[0][1]) * math.log(10)
    assert lines["0.01"] - lines["1"] == pytest.approx(2 * decade, abs=0.5)
    assert "logarithmic" not in chart(
        "rate", {"run": [(s, 1e-3 * (1 + math.cos(s / 4))) for s in range(13)]}
    )
    assert "logarithmic" not in chart("signed", {"run": [(s, y - 1e-2) for s, y in points]})


def test_what_is_not_finite_leaves_a_gap_and_extremes_stay():
    gap = chart(
        "loss", {"run": [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0), (5, 3.0)]}
    )
    assert (
        re.search(r' d="M[^M]*L[^M]*M[^M]*L[^M]*"', gap)
        and "nan" not in re.search(r' d="([^"]*)"', gap)[1]
    )
    assert "no finite values" in chart("loss", {"run": [(0, math.nan)]})
    many = [(s, math.sin(s)) for s in range(100_000)]
    many[54_321] = (54_321, 40.0)
    many[54_200] = (54_200, math.nan)  # the first of the same stretch
    figure = chart("loss", {"run": many})
    assert re.search(r' d="([^"]*)"', figure)[1].count("M") == 2
    curve, lines = drawn(figure)
    assert 500 < len(curve) <= 1100
    assert min(y for _, y in curve) == pytest.approx(lines["40"], abs=0.1)


def test_one_point_and_a_constant_are_drawn():
    for points in ([(100, 0.5)], [(0, 0.0), (1, 0.0)], [(0, -3.0), (10, -3.0)]):
        curve, lines = drawn(chart("loss", {"run": points}))
        assert len(curve) == len(points) and lines
        assert all(0 < x < 400 and 0 < y < 230 for x, y in curve)


def test_a_run_without_a_metric_changes_no_colours(tmp_path):
    assert 'class="curve s1"' in chart("loss", {"a": [], "b": [(0, 1.0), (1, 2.0)]})
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (b / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.0, "extra": 1.0}\n')
    looks = [path["class"] for path in Page(comparison([a, b])).all("path")]
    assert looks == [
        "curve s0",
        "curve s1",
        "curve s0",
        "curve s0",
        "curve s1",
    ]  # legend, loss, norm, extra


def test_markup_in_names_is_text():
    assert element("p", "<script>", title='"&') == '<p title="&quot;&amp;">&lt;script&gt;</p>'


def test_the_programs(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    out = tmp_path / "both.html"
    result = run("report", f"--workdir={a}")
    assert result.returncode == 0 and result.stdout == f"{a / 'report.html'}\n", result.stderr
    result = run("compare", a, f"--out={out}", b)
    assert result.returncode == 0 and result.stdout == f"{out}\n", result.stderr
    check(out.read_text(encoding="utf-8"), pictures=3, charts=2)


def test_mistakes_are_answered(tmp_path):
    made = make_run(tmp_path / "run")
    for folders, words in [
        ([made, tmp_path], "holds no run (no config.json); give the --workdir of a training"),
        ([made], "1 folders given; give those of two runs or more"),
        ([made, made / ".." / "run"], "2 folders given, 1 of them different; give each run once"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
            comparison(folders)
    for name, given in (("report", [f"--workdir={tmp_path}"]), ("compare", [tmp_path, made])):
        result = run(name, *given)
        assert (
            result.returncode == 1
            and "holds no run" in result.stderr
            and "Traceback" not in result.stderr
        )
    result = run("compare", made, make_run(tmp_path / "b"), "--out=absent/both.html")
    assert result.returncode == 1 and "--out=absent/both.html needs the folder" in result.stderr
    result = run("compare", made, tmp_path / "b", "--out=both.json")
    assert result.returncode == 1 and "--out=both.json must end in .html" in result.stderr


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    a = make_run(root / "a")
    b = make_run(
        root / "a_run_with_a_name_that_is_long_enough_to_be_a_nuisance", learning_rate=0.01
    )
    (root / "compare.html").write_text(comparison([a, b]), encoding="utf-8")
    return {"report": write_report(a), "comparison": root / "compare.html"}


@needs_chromium
@pytest.mark.parametrize("name, pictures", [("report", 6), ("comparison", 3)])
@pytest.mark.parametrize("width, scheme", [(1200, "light"), (390, "dark")])
def test_a_browser_shows_everything_and_asks_for_nothing(
    pages, tmp_path, name, pictures, width, scheme
):
    with Browser(tmp_path / "profile", width=width, scheme=scheme) as browser:
        browser.open(pages[name].as_uri())
        shown = browser.evaluate(
            "Promise.all([...document.images].map(i => i.decode())).then(() => "
            "[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width]))"
        )
        assert len(shown) == pictures and all(
            natural >= 132 and width > 100 for natural, width in shown
        )
        lengths = browser.evaluate(
            "[...document.querySelectorAll('path.curve')].map(p => p.getTotalLength())"
        )
        assert len(lengths) == (2 if name == "report" else 6) and min(lengths) > 30
        # Nothing wider than the window but what scrolls by itself
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        ink, paper = browser.evaluate(
            "(s => [s.color, s.backgroundColor].map("
            "c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b)))"
            "(getComputedStyle(document.body))"
        )
        assert (ink < 150 and paper > 700) if scheme == "light" else (ink > 600 and paper < 120)
        assert browser.complaints == []
        assert browser.requests[0] == pages[name].as_uri()
        assert all(request.startswith("data:") for request in browser.requests[1:])


@needs_chromium
def test_a_narrow_comparison_of_three_runs_fits_and_breaks_names_at_underscores(tmp_path):
    names = "emoji_latent_flow", "emoji_latent_flow_on_the_fly", "emoji_tokens_autoregression"
    runs = [make_run(tmp_path / name, learning_rate=i + 1.0) for i, name in enumerate(names)]
    for folder in runs:
        edit_record(folder, config=dict(experiment=folder.name))
    (tmp_path / "compare.html").write_text(comparison(runs), encoding="utf-8")
    with Browser(tmp_path / "profile", width=400) as browser:
        browser.open((tmp_path / "compare.html").as_uri())
        hidden = browser.evaluate(
            "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
        )
        assert hidden == [0, 0]
        # A word between underscores has one rectangle for each of its lines.
        lines = browser.evaluate(
            "[...document.querySelectorAll('thead th')].flatMap(th => [...th.childNodes])"
            ".filter(n => n.nodeType == 3).map(n => { const r = document.createRange();"
            "r.selectNodeContents(n); return r.getClientRects().length })"
        )
        assert len(lines) > 2 * 3 and set(lines) == {1}


@needs_chromium
def test_the_browser_would_notice(tmp_path):
    """A request, a failing script, a broken picture; and the pages' policy forbids a request."""
    picture = '<img src="http://127.0.0.1:9/a.png" alt="none">'
    broken = '<img src="data:image/png;base64,AAAA"><script>nowhere()</script>'
    (tmp_path / "bad.html").write_text(picture + broken)
    (tmp_path / "forbidden.html").write_text(
        page("forbidden", [], [Html(picture)]), encoding="utf-8"
    )
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "bad.html").as_uri())
        assert "http://127.0.0.1:9/a.png" in browser.requests
        assert "nowhere" in json.dumps(browser.complaints)
        assert browser.evaluate("[...document.images].map(i => i.naturalWidth)") == [0, 0]
    with Browser(tmp_path / "profile") as browser:
        browser.open((tmp_path / "forbidden.html").as_uri())
        assert "Content Security Policy" in json.dumps(browser.complaints)


def test_protocols_are_folded_away(tmp_path):
    protocol = dict(num_samples=1000, features=dict(pixels=dict(rounding="uint8")))
    run = make_run(tmp_path / "run", REPORT | dict(protocol_of_samples=protocol))
    shown = Page(write_report(run).read_text(encoding="utf-8"))
    assert ("summary", "Protocol of each measure") in shown.texts
    assert ["features.pixels.rounding", "uint8"] in shown.rows
    assert "protocol_of" not in shown.text
