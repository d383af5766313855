"""Datasets by name: of one's own files, embedded, or of tensorflow-datasets read without TensorFlow."""

import contextlib
import difflib
import inspect
import io
import itertools
import logging
import math
import os
import queue
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Collection, Iterator
from urllib.parse import SplitResult, urlsplit

import numpy as np

from genjax.data.dataset import PRELOAD_BYTES, Dataset, OnDisk, preload
from genjax.data.sets.animated_emoji import load_animated_emoji
from genjax.data.sets.emoji import load_emoji
from genjax.data.sets.fashion import find_fashion, load_fashion
from genjax.data.sets.folder import load_folder
from genjax.data.sets.gaussians import MODES, load_gaussians
from genjax.data.sets.latents import load_latents
from genjax.data.sets.moving_digits import load_moving_digits

CONNECT_SECONDS = 3.0


def load_dataset(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    *,
    preload_bytes: int = PRELOAD_BYTES,
) -> Dataset:
    """One split of a dataset, downloaded and prepared if it is not yet.

    Sets of fixed shapes and at most `preload_bytes` are read into memory, others record by record. Of the
    processes that prepare one dataset at the same time the first does it and the others wait.

    Args:
        name: `digits`, `emoji`, `moving_digits`, `grid_of_gaussians` or `ring_of_gaussians`, which need no
            network; `fashion_mnist`; `animated_emoji`, or `animated_emoji/32` of 32 pixels and not 64;
            `folder`, for image files of one's own; or any tensorflow-datasets name,
            `name[/config][:version]`.
        split: `train`, `test[:80%]`, `train+test`: the split language of tensorflow-datasets.
        data_dir: None or "" for the default. Of `emoji`, a folder of npm packages; by default the embedded
            set (`load_emoji`). Of `fashion_mnist`, the folder of its four `.gz` files; by default Debian's
            (`load_fashion`); where neither has them it is a tensorflow-datasets name like others. Of
            `animated_emoji`, a folder of npm packages (`load_animated_emoji`). Of `folder`, the folder
            (`load_folder`). Of the others, where prepared datasets lie; by default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.

    Raises:
        ImportError: tensorflow-datasets is not installed, or TensorFlow, with which it unpacks archives.
        ValueError: unknown dataset (the error names the nearest), configuration, version or split.
        ConnectionError: not prepared, and none of the hosts that it is downloaded from answers.
        FileNotFoundError: not prepared, and its files, to be fetched by hand, are not there.
        NotImplementedError: prepared earlier in a format without random access, such as TFRecord.
    """
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    if name in MODES:
        return load_gaussians(name, split)
    if name == "emoji":
        return load_emoji(split, data_dir, preload_bytes=preload_bytes)
    if name == "moving_digits":
        return load_moving_digits(split)
    if match := re.fullmatch(r"animated_emoji(?:/([1-9]\d*))?", name):
        return load_animated_emoji(split, data_dir, **({"size": int(match[1])} if match[1] else {}))
    if name == "latents":
        return load_latents(split, data_dir, preload_bytes=preload_bytes)
    if name == "folder":
        return load_folder(split, data_dir, preload_bytes=preload_bytes)
    if name == "fashion_mnist" and (folder := find_fashion(data_dir)):
        return load_fashion(split, folder)
    builder = _prepared_builder(name, data_dir)
    records = builder.as_data_source(split)
    features = {
        key: feature
        for key, feature in builder.info.features.items()
        if not isinstance(feature.np_dtype, dict) and np.issubdtype(feature.np_dtype, np.number)
    }
    dtypes = {key: np.dtype(feature.np_dtype) for key, feature in features.items()}
    if "label" in dtypes:
        dtypes["label"] = np.dtype(np.int32)
    source = OnDisk(records, dtypes)
    shapes = {key: feature.shape for key, feature in features.items()}
    fixed = all(None not in shape for shape in shapes.values())
    size = lambda key: math.prod(shapes[key]) * dtypes[key].itemsize
    if fixed and len(records) * sum(map(size, shapes)) <= preload_bytes:
        source = preload(source, shapes)
    names = getattr(features.get("label"), "names", None)
    return Dataset(
        name=name,
        split=split,
        source=source,
        image_shape=features["image"].shape if "image" in features else None,
        num_classes=getattr(features.get("label"), "num_classes", None),
        class_names=tuple(names) if names else None,
    )


def _prepared_builder(name: str, data_dir: str | None):
    try:
        # By name, because the package swallows failures to import its own parts.
        from tensorflow_datasets import builder as find_builder
        from tensorflow_datasets import list_builders
    except ImportError as error:
        raise ImportError(
            f"dataset {name!r} is read with tensorflow-datasets, which cannot be imported ({error}): "
            "pip install tensorflow-datasets array_record importlib_resources"
        ) from error
    import genjax.data.sets.digits  # noqa: F401  (to define a builder is to register it)

    logging.getLogger("absl").addFilter(_is_no_advice)
    try:
        builder = find_builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        own = ["animated_emoji", "emoji", "folder", "moving_digits", *MODES]
        known = [*list_builders(with_community_datasets=False), *own]
        family = re.split("[/:]", name)[0]
        if family in known:  # then the configuration or version is not, and tensorflow-datasets says so
            raise ValueError(str(error)) from error
        nearest = difflib.get_close_matches(family, known, n=5) or ["digits", "mnist", "cifar10"]
        message = f"no dataset is called {name!r}; the nearest names are {', '.join(nearest)}"
        raise ValueError(message) from error
    if not builder.data_path.exists():
        with _taking_turns(builder):
            builder = find_builder(name, data_dir=data_dir)  # prepared, if another process just did
            if not builder.data_path.exists():
                _prepare(builder, name)
    return builder


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Drops the one line by which tensorflow-datasets recommends OpenCV at the first image of every run."""
    return "OpenCV is not installed" not in record.getMessage()


@contextlib.contextmanager
def _taking_turns(builder) -> Iterator[None]:
    """Holds a lock file beside the data; the system releases it even if the process is killed."""
    import fcntl  # absent on Windows, where `import genjax.data` shall work all the same

    builder.data_dir_root.mkdir(parents=True, exist_ok=True)
    with open(builder.data_dir_root / f".{builder.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).warning("waiting for another process to prepare %s", builder.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(builder, name: str) -> None:
    """Downloads and prepares, or says at once what is missing, where tensorflow-datasets would retry long."""
    files = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    hosts = {(url := urlsplit(address)).netloc: url for address in files if "://" in address}
    downloads = builder.data_dir_root / "downloads"
    by_hand = downloads / "manual"
    fetched = any((downloads / builder.name).glob("*.INFO")) or any(
        file and (by_hand / file).exists() for file in files.values()
    )
    call = f'tfds.builder("{name}", data_dir="data").download_and_prepare(file_format="array_record")'
    elsewhere = (
        "    pip install tensorflow-datasets array_record importlib_resources tensorflow-cpu\n"
        f"    python -c 'import tensorflow_datasets as tfds; {call}'\n"
        f"  and copy data/{builder.name} into {builder.data_dir_root}"
    )
    if instructions := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if not by_hand.is_dir() or not any(by_hand.iterdir()):
            raise FileNotFoundError(
                f"dataset {name!r} is not prepared in {builder.data_dir}, and its files cannot be downloaded "
                f"automatically. Put them into {by_hand}:\n{inspect.cleandoc(instructions)}"
            )
    elif hosts and not fetched and not _any_answers(hosts.values()):
        addresses = "".join(f"\n    {address}" for address in itertools.islice(files, 8))
        more = f"\n    and {len(files) - 8} more" if len(files) > 8 else ""
        raise ConnectionError(
            f"dataset {name!r} is not prepared in {builder.data_dir}, and it cannot be downloaded: no answer "
            f"from {', '.join(hosts)}. Do one of these:\n"
            f"- where there is a network, run\n{elsewhere};\n"
            f"- put the files into {by_hand} and start again:{addresses}{more}\n"
            "- use the datasets 'digits' and 'emoji', which need no network."
        )
    announcements = contextlib.nullcontext()
    if not files:  # made in a second, of what is on this machine
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        announcements = contextlib.redirect_stdout(io.StringIO())
    try:
        with announcements:
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        if "No module named 'tensorflow'" not in str(error):
            raise
        raise ImportError(
            f"tensorflow-datasets prepares {name!r} with TensorFlow, though it reads it without: "
            f"pip install tensorflow-cpu, or on another machine run\n{elsewhere}"
        ) from error


def _any_answers(urls: Collection[SplitResult]) -> bool:
    """Whether one of the hosts, or the proxy for it, takes a TCP connection within `CONNECT_SECONDS`."""
    answers = queue.SimpleQueue()

    def knock(host: str, port: int) -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    deadline = time.monotonic() + CONNECT_SECONDS
    proxies = urllib.request.getproxies()
    for url in urls:
        if url.scheme in proxies and not urllib.request.proxy_bypass(url.hostname):
            url = urlsplit(proxies[url.scheme])
        port = url.port or {"http": 80, "ftp": 21}.get(url.scheme, 443)
        # Daemon threads: the look-up of a name knows no time-out and must not hold up the program's end.
        threading.Thread(target=knock, args=(url.hostname, port), daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in urls)
    return False
