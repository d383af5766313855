"""The choices of a config, such as `iwae` of `--config=configs/digits_vae.py:iwae`."""

import difflib
from collections.abc import Sequence


def check_choice(choice: str, choices: Sequence[str]) -> None:
    """Raise ValueError, with the choices and the nearest one, if `choice` is none of them."""
    if choice not in choices:
        (nearest,) = difflib.get_close_matches(choice, choices, n=1, cutoff=0.0)
        raise ValueError(
            f"the choices are {', '.join(choices)}; got {choice!r}, nearest to {nearest!r}"
        )
