"""Encode a data set into latents or codes, or sample pairs, for a config that trains on them.

    python -m experiments.encode --config=configs/emoji_latent_flow.py
    python -m experiments.encode --config=configs/digits_distillation.py:Reflow

The first reads `config.data`, encodes it by the autoencoder of `config.space`, and writes
array_record files to `config.space.directory`. The second samples `config.teacher` and writes pairs
of noise and sample to `config.pairs.directory`. Started again, the command resumes where it
stopped. Several processes (--coordinator, see --help) share the work.
"""

import sys

from absl import flags

from experiments.launch import runtime
from experiments.launch.config_flag import define_config
from experiments.launch.encoding import write
from experiments.launch.runtime import run_program

CONFIG = define_config("The experiment of latent diffusion, or of a student of pairs.")
flags.adopt_module_key_flags(runtime)


def main() -> None:
    try:
        write(CONFIG.value)
    except OSError as error:
        sys.exit(f"error: {error}\nStart the same command again to go on.")


if __name__ == "__main__":
    run_program(main)
