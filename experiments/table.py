"""Write the tables of finished runs in Markdown: figures, and how they came about, by family.

    python -m experiments.table runs/digits_flow runs/digits_gan
    python -m experiments.table docs/results/records/* --out=docs/results/runs.md

Each figure is read from a run's `report.json`; task, device and commit are read from its
`config.json`. The folder of a run needs no other file, so the records in docs/results/records are
two small files each.
"""

from pathlib import Path

from absl import flags

from experiments.launch.runtime import run_program, user_errors
from experiments.pages.tables import HEADER, tables

OUT = flags.DEFINE_string("out", None, "Markdown file to write; printed if not given.")


def main(*folders: str) -> None:
    with user_errors():
        if not folders:
            raise ValueError(
                "name the folders of runs, as in: python -m experiments.table runs/a runs/b"
            )
        text = tables(folders)
        if OUT.value:
            Path(OUT.value).write_text(HEADER + text, encoding="utf-8")
            text = OUT.value
    print(text)


if __name__ == "__main__":
    run_program(main)
