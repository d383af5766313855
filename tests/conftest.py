"""Shared by all tests: one compilation cache a session, and no parity tests where PyTorch is absent."""

import importlib.util
import os
import tempfile

# Set before jax is imported; programs that tests start inherit it. Every worker of a session shares it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="genjax-compilations-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TFDS_DATA_DIR", tempfile.mkdtemp(prefix="genjax-datasets-"))

collect_ignore = [] if importlib.util.find_spec("torch") else ["parity"]
