"""Event files for TensorBoard, by its own record writer; TensorFlow is not needed."""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


class Events:
    """One event file in `folder`, for a run that starts or goes on from `step`.

    TensorBoard then forgets what earlier files of the folder say beyond that step, so that curves
    do not double back.

    Raises:
        ImportError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: str | os.PathLike, step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(open(Path(folder) / name, "wb"))
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float | Image.Image]) -> None:
        """Write numbers and pictures by their tags. The part before a "/" names the section."""
        parts = [
            self._summary.Summary.Value(tag=tag, image=self._image(value))
            if isinstance(value, Image.Image)
            else self._summary.Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
        ]
        self._add(step=step, summary=self._summary.Summary(value=parts))

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields) -> None:
        self._file.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()

    def _image(self, image: Image.Image):
        png = io.BytesIO()
        image.save(png, format="PNG")
        return self._summary.Summary.Image(
            height=image.height,
            width=image.width,
            colorspace=len(image.getbands()),
            encoded_image_string=png.getvalue(),
        )
