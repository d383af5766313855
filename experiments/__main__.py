"""The console command: `genjax train --config=…`, and the other commands of this folder.

A config is a file of a checkout's `configs` folder, or a file of one's own.
"""

import difflib
import importlib.util
import os
import pkgutil
import runpy
import sys
from pathlib import Path

import experiments


def commands() -> dict[str, str]:
    """Return the commands and what each does, in one line."""
    names = [
        module.name
        for module in pkgutil.iter_modules(experiments.__path__)
        if not module.ispkg and module.name != "__main__"
    ]
    sources = {name: Path(importlib.util.find_spec(f"experiments.{name}").origin) for name in names}
    first_line = lambda source: source.read_text(encoding="utf-8").partition("\n")[0]
    return {name: first_line(source).removeprefix('"""') for name, source in sources.items()}


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    experiments.end_at_ctrl_c()
    name, there = (sys.argv[1:] or ["--help"])[0], commands()
    if name not in there:
        print("usage: genjax COMMAND [FLAGS]\n       genjax COMMAND --help\n\ncommands:")
        for command, description in there.items():
            print(f"  {command:14} {description}")
        nearest = difflib.get_close_matches(name, there, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        wrong = f"\nerror: {name!r} is none of the commands{hint}"
        sys.exit(0 if name in ("-h", "--help") else wrong)
    sys.path.insert(0, os.getcwd())  # for configs and parts of one's own
    del sys.argv[0]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
