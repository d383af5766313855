"""Modules run by themselves on as many virtual devices of the CPU as asked for, which is said before JAX starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def lines_of(module: str, num_devices: int, *arguments: str) -> list[Any]:
    """What `python -m module arguments…` prints, each line read as JSON."""
    # Without LLVM's optimizations a program compiles in half the time; what is sent between devices stays.
    options = f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level=0"
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"XLA_FLAGS": options},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
