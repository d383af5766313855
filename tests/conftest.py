"""Shared by all tests: fast compilation, one cache of it a session, and no tests against what is absent."""

import importlib.util
import os
import tempfile

# Set before jax is imported; programs that tests start inherit it. Every worker of a session shares it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="genjax-compilations-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most programs run a few times: LLVM's optimization takes a fifth of all time and more than it saves.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("TFDS_DATA_DIR", tempfile.mkdtemp(prefix="genjax-datasets-"))

collect_ignore = [] if importlib.util.find_spec("torch") else ["parity"]
