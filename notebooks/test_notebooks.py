"""Every notebook runs from top to bottom, with shorter trainings, and is stored as run.

Notebooks run as Jupyter runs them, with their own folder as the working directory.
"""

import base64
import io
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

from genjax.data import load_dataset

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
# Much of a notebook's time compiles its programs: with fewer of LLVM's optimizations, and fusions
# not written through MLIR, it is less.
QUICKER_COMPILATION = (
    "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# Tests train for a fifth to two fifths of these notebooks' steps. Every cell runs, and the stored
# outputs are those of all steps.
SHORTER = {
    "01_rectified_flow": {"moons_batch, 4000": "moons_batch, 1000", "steps=1000": "steps=200"},
    "02_diffusion_in_two_dimensions": {
        "3000 * 256).reshape(3000,": "750 * 256).reshape(750,",
    },
    "03_samplers": {"1500": "400"},
    "04_gans": {"updates = 40, 100,": "updates = 40, 25,"},
    "05_autoencoders_and_latent_diffusion": {"600, 250, 16": "240, 100, 16", "= 450": "= 150"},
    "06_text_to_image": {"= 600, 32": "= 150, 32"},
    "09_autoregression": {
        "(levels, labels), 500,": "(levels, labels), 150,",
        "    1200,\n": "    300,\n",
        "    1000,\n": "    250,\n",
    },
    "10_few_steps": {"steps=3000": "steps=750"},
    "11_sound_and_video": {"STEPS, BATCH = 1000": "STEPS, BATCH = 250"},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def train_less(notebook: nbformat.NotebookNode, name: str) -> None:
    """Replace numbers of training steps in a notebook by smaller ones, as `SHORTER` says."""
    for steps, fewer in SHORTER.get(name, {}).items():
        cells = [cell for cell in code_cells(notebook) if steps in cell.source]
        assert cells, f"{name} has no {steps!r}"
        for cell in cells:
            cell.source = cell.source.replace(steps, fewer)


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """What cells raised, or wrote to stderr: warnings, progress bars."""
    return [
        f"{cell.id}: {output.get('text') or output.get('evalue')}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
@pytest.mark.filterwarnings("ignore:Jupyter is migrating its paths:DeprecationWarning")
def test_runs_without_a_complaint(path):
    load_dataset("digits")  # preparing it, once per machine, shows a progress bar
    notebook = read(path)
    train_less(notebook, path.stem)
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        resources={"metadata": {"path": str(path.parent)}},
    )
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    compiler_flags = f"{QUICKER_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".strip()
    variables = {"PYTHONPATH": search_path, "XLA_FLAGS": compiler_flags, "OMP_NUM_THREADS": "1"}
    client.execute(env={**os.environ, **variables})  # why one thread: tests/conftest.py
    assert not complaints(notebook)


@each_notebook
def test_is_stored_as_run(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not complaints(notebook)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@each_notebook
def test_stored_outputs_name_no_machine(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(
                r" at 0x[0-9a-f]+|(^|[\s'\"])/(home|root|tmp|work|Users)/", text
            ), cell.id


@each_notebook
def test_is_small_enough_to_be_shown(path):
    assert path.stat().st_size < 2_000_000, (
        "code-hosting pages show large notebooks slowly or not at all"
    )


@each_notebook
def test_pictures_have_150_dots_per_inch(path):
    pictures = [
        output.data["image/png"]
        for cell in code_cells(read(path))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@each_notebook
def test_lines_end_at_100_columns(path):
    """All lines but those of tables and formulas, and commands, which cannot be broken."""
    for cell in read(path).cells:
        long = [line for line in cell.source.splitlines() if len(line) > 100]
        assert not [line for line in long if not line.startswith(("|", "$$", "python -m"))]
