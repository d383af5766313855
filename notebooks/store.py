"""Run notebooks and store them with their outputs.

    python notebooks/store.py notebooks/01_rectified_flow.ipynb

Pictures are stored in at most 256 colours: at 150 dots per inch they would otherwise make notebooks
that code-hosting pages show slowly or not at all.
"""

import base64
import io
import os
import sys
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

ROOT = Path(__file__).parents[1]


def reduced(png: str) -> str:
    """Return a picture, PNG in base64, in at most 256 colours."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture, io.BytesIO() as buffer:
        colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(buffer, "PNG", optimize=True, dpi=picture.info["dpi"])
        return base64.b64encode(buffer.getvalue()).decode()


def store(path: Path) -> None:
    """Run a notebook from top to bottom in its own folder, and write its outputs into it."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=600, resources=resources, record_timing=False
    )
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env={**os.environ, "PYTHONPATH": search_path})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = reduced(output.data["image/png"])
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name))
