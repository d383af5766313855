"""Applies a function to 601 examples on four virtual devices, and prints how they were split.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.experiments.feature_batches
"""

import json

import jax
import numpy as np

from experiments.evaluation.features.networks import in_batches


def main():
    devices = []

    def apply(scale, x, y):
        jax.debug.inspect_array_sharding(
            x, callback=lambda sharding: devices.append(len(sharding.device_set))
        )
        return x * scale, {"y": x - y}

    x = np.arange(2 * 601.0, dtype=np.float32).reshape(601, 2)
    out = list(in_batches(apply, np.float32(2), lambda part: (x[part], x[part] / 4), 601))
    np.testing.assert_array_equal(np.concatenate([a for a, _ in out]), 2 * x)
    np.testing.assert_array_equal(np.concatenate([b["y"] for _, b in out]), x * 0.75)
    print(json.dumps({"batches": [len(a) for a, _ in out], "devices": sorted(set(devices))}))


if __name__ == "__main__":
    main()
