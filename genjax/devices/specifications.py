"""Speeds and sizes of accelerators, by their vendors' data sheets."""

from typing import NamedTuple


class Device(NamedTuple):
    """One accelerator; in bytes, and bytes or operations a second.

    Attributes:
        operations: dense, of bfloat16, two to a multiply-add.
        memory: that can be used, of the high-bandwidth kind.
        bandwidth: of that memory.
        link: between the devices of a node, or of a pod along one axis of its torus, sent by each.
        node: devices that these links join; None for a whole slice of a pod.
        network: sent by each device to other nodes or slices.
        kinds: its `jax.Device.device_kind`; other boards of the same name, as for PCIe, are slower.
        topology: the TPU compiler's name of it, the dimensions of its torus, and the most chips in
            a slice, a power of two; None for GPUs.
        per_chip: JAX's devices of a TPU's chip.
    """

    operations: float
    memory: float
    bandwidth: float
    link: float
    node: int | None
    network: float
    kinds: tuple[str, ...]
    topology: tuple[str, int, int] | None = None
    per_chip: int = 1


# GPUs are SXM boards of eight, joined by NVLink, with one network card of 400 Gbit/s for each GPU.
#
# An axis of a TPU's torus has a link each way, of 45 or 90 GB/s (Austin et al. 2025, "How to scale
# your model", chapter 2). Google's pages of v5p, v6e and TPU7x say 200 GB/s of both directions for
# each link, and 2.765, 1.638 and 7.38 TB/s of memory. They count memory in GiB.
#
# The data centre's network joins slices. Google's pages say 6.4 and 25.6 Tbit/s for 256 chips of
# v5e and v6e, and 50 Gbit/s for a chip of v5p. We assume the v5p's rate for v4, and 100 Gbit/s for
# a chip of TPU7x, as for v6e. A chip of TPU7x is two devices to JAX, each of them half of it.
DEVICES = {
    "a100": Device(312e12, 80e9, 2.04e12, 300e9, 8, 25e9, ("NVIDIA A100-SXM4-80GB",)),
    "h100": Device(989e12, 80e9, 3.35e12, 450e9, 8, 50e9, ("NVIDIA H100 80GB HBM3",)),
    "h200": Device(989e12, 141e9, 4.8e12, 450e9, 8, 50e9, ("NVIDIA H200",)),
    "b200": Device(2250e12, 180e9, 7.7e12, 900e9, 8, 50e9, ("NVIDIA B200",)),
    "v4": Device(275e12, 32 * 2**30, 1.2e12, 90e9, None, 6.25e9, ("TPU v4",), ("v4", 3, 4096)),
    "v5e": Device(
        197e12,
        16 * 2**30,
        0.81e12,
        90e9,
        None,
        3.125e9,
        ("TPU v5 lite", "TPU v5e"),
        ("v5e", 2, 256),
    ),
    "v5p": Device(
        459e12, 95 * 2**30, 2.765e12, 180e9, None, 6.25e9, ("TPU v5p", "TPU v5"), ("v5p", 3, 4096)
    ),
    "v6e": Device(
        918e12,
        32 * 2**30,
        1.64e12,
        180e9,
        None,
        12.5e9,
        ("TPU v6 lite", "TPU v6e"),
        ("v6e", 2, 256),
    ),
    "tpu7x": Device(
        2307e12 / 2,
        96 * 2**30,
        3.69e12,
        90e9,
        None,
        6.25e9,
        ("TPU7x",),
        ("tpu7x", 3, 4096),
        per_chip=2,
    ),
}


def device_of(kind: str) -> Device | None:
    """Return the accelerator of a `jax.Device.device_kind`, or None if unknown."""
    return next((each for each in DEVICES.values() if kind in each.kinds), None)
