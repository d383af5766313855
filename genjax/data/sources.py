"""Datasets by name: your own files, embedded sets, and tensorflow-datasets without TensorFlow."""

import contextlib
import difflib
import importlib
import inspect
import io
import itertools
import logging
import math
import os
import pkgutil
import queue
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from genjax import parts
from genjax.data import sets
from genjax.data.dataset import PRELOAD_BYTES, Dataset, OnDisk, preload

CONNECT_SECONDS = 3.0


def load_dataset(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    *,
    preload_bytes: int = PRELOAD_BYTES,
    **options: Any,
) -> Dataset:
    """Return one split of a data set; download and prepare the set if needed.

    Sets of fixed shapes and at most `preload_bytes` are read into memory; other sets are read
    record by record. If several processes prepare one dataset at the same time, the first does the
    work and the others wait.

    Args:
        name: one of
            - a module of `genjax.data.sets`, whose `load_NAME` makes the set: `digits`, `emoji`,
              `moving_digits`, `sounding_digits`, `grid_of_gaussians` and `ring_of_gaussians` need
              no network; `spoken_digits` needs espeak-ng, `notes` FluidSynth, and `atari` ale-py;
              `folder` reads your own image files, `clips` your own videos, and `sound_folder` your
              own sounds; `spoken_stamps` reads a folder of Tux Paint's stamps;
              `animated_emoji/32` and `clips/32` have 32 pixels instead of 64;
            - a dotted path of a function `(split, data_dir) -> Dataset`: "my_package.flowers.load";
            - any tensorflow-datasets name, `name[/config][:version]`.
        split: in the split language of tensorflow-datasets: `train`, `test[:80%]`, `train+test`.
        data_dir: the folder of the files; None or "" for the default. The sets of
            `genjax.data.sets` say what they take. tensorflow-datasets prepares sets in
            `$TFDS_DATA_DIR`, else in `~/tensorflow_datasets`.
        options: further arguments of a set of `genjax.data.sets`, or of the function of a dotted
            path: `load_dataset("clips", "train", folder, num_frames=33, sample_rate=16_000)`.

    Raises:
        ImportError: tensorflow-datasets is not installed; or TensorFlow is not installed, which
            some sets need to unpack archives, and sets of videos even to be read.
        ValueError: the dataset (the error names the nearest), configuration, version, split or
            option is unknown; an option that must be a number or a truth value is a text; or the
            function of a dotted path returned no `Dataset`.
        ConnectionError: the set is not prepared, and none of its download hosts answers.
        FileNotFoundError: the set is not prepared, and its files must be downloaded by hand first.
        NotImplementedError: the set was prepared in a format without random access (TFRecord).
    """
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    family, _, size = name.partition("/")
    if loader := _loader(family):
        if size and not size.isdecimal():
            raise ValueError(f"dataset {name!r}: after the slash is a side in pixels, such as 32")
        sized = {"size": int(size)} if size else {}
        takes = inspect.signature(loader).parameters
        _check_options(name, sized | options, takes)
        given = {"data_dir": data_dir, "preload_bytes": preload_bytes}
        usual = {option: value for option, value in given.items() if option in takes}
        dataset = loader(split, **usual | sized | options)
        if isinstance(dataset, Dataset):
            return dataset
        if dataset is not None:
            raise ValueError(
                f"dataset {name!r}: its function returned a {type(dataset).__name__}, not a Dataset"
            )
    _check_options(name, options, {})
    return _read_prepared(name, split, data_dir, preload_bytes)


def _check_options(
    name: str, options: Mapping[str, Any], takes: Mapping[str, inspect.Parameter]
) -> None:
    """Raise ValueError if the loader of a set takes no such option, or no text for it."""
    if unknown := sorted(set(options) - set(takes)):
        offers = ", ".join(option for option in takes if option not in ("split", "data_dir"))
        raise ValueError(
            f"dataset {name!r} takes no option {unknown[0]!r}; it takes {offers or 'none'}"
        )
    for option, value in options.items():
        if isinstance(value, str):
            parts.refuse_text(value, takes[option], f"option {option!r} of dataset {name!r}")


def _loader(family: str) -> Callable[..., Dataset | None] | None:
    """Return the loader of a set in `genjax.data.sets` or at a dotted path, or None."""
    if "." in family.partition(":")[0]:
        return parts.find(family, (), "the data set's name")
    if family not in _own_names():
        return None
    return getattr(importlib.import_module(f"{sets.__name__}.{family}"), f"load_{family}", None)


def _own_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(sets.__path__)]


def _read_prepared(name: str, split: str, data_dir: str | None, preload_bytes: int) -> Dataset:
    """Return one split of a tensorflow-datasets set."""
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
        image_shape=next((shapes[key] for key in ("image", "video") if key in shapes), None),
        num_classes=getattr(features.get("label"), "num_classes", None),
        class_names=tuple(names) if names else None,
    )


def _prepared_builder(name: str, data_dir: str | None):
    try:
        # Names are imported directly, because the package hides import failures of its own parts.
        from tensorflow_datasets import builder as find_builder
        from tensorflow_datasets import list_builders
    except ImportError as error:
        raise ImportError(
            f"dataset {name!r} is read with tensorflow-datasets, which cannot be imported "
            f"({error}): pip install tensorflow-datasets array_record importlib_resources"
        ) from error
    import genjax.data.sets.digits  # noqa: F401  (defining a builder registers it)

    logging.getLogger("absl").addFilter(_is_useful)
    try:
        builder = find_builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        known = {*list_builders(with_community_datasets=False), *_own_names()}
        family = re.split("[/:]", name)[0]
        if family in known:  # so the configuration or version is unknown, and the error says so
            raise ValueError(str(error)) from error
        nearest = difflib.get_close_matches(family, known, n=5) or ["digits", "mnist", "cifar10"]
        message = f"no dataset is called {name!r}; the nearest names are {', '.join(nearest)}"
        raise ValueError(message) from error
    except ModuleNotFoundError as error:
        if "No module named 'tensorflow'" not in str(error):
            raise
        raise ImportError(
            f"dataset {name!r} needs TensorFlow even to be read: pip install tensorflow-cpu"
        ) from error
    if not builder.data_path.exists():
        with _preparation_lock(builder):
            builder = find_builder(name, data_dir=data_dir)  # another process may have prepared it
            if not builder.data_path.exists():
                _prepare(builder, name)
    return builder


def _is_useful(record: logging.LogRecord) -> bool:
    """Return False for tensorflow-datasets' advice to install OpenCV, logged in every run."""
    return "OpenCV is not installed" not in record.getMessage()


@contextlib.contextmanager
def _preparation_lock(builder) -> Iterator[None]:
    """Hold a lock file beside the data; the system releases it even if the process is killed."""
    import fcntl  # absent on Windows, where `import genjax.data` must work too

    builder.data_dir_root.mkdir(parents=True, exist_ok=True)
    with open(builder.data_dir_root / f".{builder.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).warning(
                "waiting for another process to prepare %s", builder.name
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(builder, name: str) -> None:
    """Download and prepare a set, or report at once what is missing, instead of long retries."""
    files = {url: info.filename for url, info in (builder.url_infos or {}).items()}
    hosts = {(url := urlsplit(address)).netloc: url for address in files if "://" in address}
    downloads = builder.data_dir_root / "downloads"
    by_hand = downloads / "manual"
    fetched = any((downloads / builder.name).glob("*.INFO")) or any(
        file and (by_hand / file).exists() for file in files.values()
    )
    call = (
        f'tfds.builder("{name}", data_dir="data").download_and_prepare(file_format="array_record")'
    )
    elsewhere = (
        "    pip install tensorflow-datasets array_record importlib_resources tensorflow-cpu\n"
        f"    python -c 'import tensorflow_datasets as tfds; {call}'\n"
        f"  and copy data/{builder.name} into {builder.data_dir_root}"
    )
    if instructions := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if not by_hand.is_dir() or not any(by_hand.iterdir()):
            raise FileNotFoundError(
                f"dataset {name!r} is not prepared in {builder.data_dir}, and its files cannot be "
                f"downloaded automatically. Put them into {by_hand}:\n"
                f"{inspect.cleandoc(instructions)}"
            )
    elif hosts and not fetched and not _any_host_answers(hosts.values()):
        addresses = "".join(f"\n    {address}" for address in itertools.islice(files, 8))
        more = f"\n    and {len(files) - 8} more" if len(files) > 8 else ""
        raise ConnectionError(
            f"dataset {name!r} is not prepared in {builder.data_dir}, and it cannot be downloaded: "
            f"no answer from {', '.join(hosts)}. Do one of these:\n"
            f"- where there is a network, run\n{elsewhere};\n"
            f"- put the files into {by_hand} and start again:{addresses}{more}\n"
            "- use the datasets 'digits' and 'emoji', which need no network."
        )
    announcements = contextlib.nullcontext()
    if not files:  # the set is made in a second from files on this machine
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
            f"tensorflow-datasets needs TensorFlow to prepare {name!r}, though not to read it: "
            f"pip install tensorflow-cpu, or on another machine run\n{elsewhere}"
        ) from error


def _any_host_answers(urls: Collection[SplitResult]) -> bool:
    """Return whether a host or its proxy accepts a TCP connection within `CONNECT_SECONDS`."""
    answers = queue.SimpleQueue()

    def connect(host: str, port: int) -> None:
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
        # Name look-up has no time-out. Daemon threads keep it from delaying the program's end.
        threading.Thread(target=connect, args=(url.hostname, port), daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in urls)
    return False
