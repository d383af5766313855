"""Write the tables of finished runs in Markdown: figures, and how they came about, by family.

    python -m experiments.table runs/digits_flow runs/digits_gan
    python -m experiments.table docs/results/records/* --out=docs/results/runs.md
    python -m experiments.table runs/fashion_families_* --families --pictures=pictures

Each figure is read from a run's `report.json`; task, device and commit are read from its
`config.json`. The folder of a run needs no other file, so the records in docs/results/records are
two small files each.

With --families the runs on each data set, in each of two budgets of training time, are rows of one
table. Runs that differ in their seed alone are one row. --out then replaces what stands between the
two marks of the page. --pictures takes the runs' samples.png too, and the page shows what it draws.
"""

import os
from pathlib import Path

from absl import flags

from experiments.launch.runtime import check_out, run_program, user_errors
from experiments.pages import families
from experiments.pages.tables import HEADER, tables

OUT = flags.DEFINE_string("out", None, "Markdown file to write; printed if not given.")
FAMILIES = flags.DEFINE_bool("families", False, "One table of all runs on the same data.")
PICTURES = flags.DEFINE_string(
    "pictures", None, "Folder for DATA_cost.png and DATA_BUDGET.png of --families."
)


def main(*folders: str) -> None:
    with user_errors():
        if not folders:
            raise ValueError(
                "name the folders of runs, as in: python -m experiments.table runs/a runs/b"
            )
        if PICTURES.value and not FAMILIES.value:
            raise ValueError("--pictures are of --families; add that flag")
        check_out(OUT.value)
        if FAMILIES.value and OUT.value and not Path(OUT.value).exists():
            raise FileNotFoundError(
                f"--out={OUT.value} is not there; with --families it is a page with the lines "
                f"{families.BEGIN} and {families.END}, between which the tables go"
            )
        text = of_families(folders) if FAMILIES.value else tables(folders)
        if OUT.value:
            out = Path(OUT.value)
            page = (
                families.insert(out.read_text("utf-8"), text) if FAMILIES.value else HEADER + text
            )
            out.write_text(page, encoding="utf-8")
            text = OUT.value
    print(text)


def of_families(folders: tuple[str, ...]) -> str:
    """Return the tables of all families, and draw their pictures."""
    rows = families.read_rows(folders)
    if not PICTURES.value:
        return families.families(rows)
    families.draw(rows, Path(PICTURES.value))
    page = Path(OUT.value).parent if OUT.value else Path()
    return families.families(rows, Path(os.path.relpath(PICTURES.value, page)).as_posix())


if __name__ == "__main__":
    run_program(main)
