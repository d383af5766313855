"""Write the page of a run: its samples, figures, curves and config in one HTML file.

    python -m experiments.report --workdir=runs/digits_flow

Training and evaluation write the page when they end. This command writes it at any time, also while
a run trains.
"""

from absl import flags

from experiments.launch.runtime import run_program, user_errors
from experiments.pages.report import write_report

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def main() -> None:
    with user_errors():
        print(write_report(WORKDIR.value))


if __name__ == "__main__":
    run_program(main)
