"""How strictly, and for how long, inputs are decoded. It does not change what a good input decodes to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import BytesIO

from prunesid_cli.inputs.file_type import FileType

PICTURE_SECONDS = 60.0
READ_IN_PARTS = frozenset({FileType.JPEG, FileType.GIF, FileType.TIFF})
"""Formats in which few bytes can mean much work, such as scans of a JPEG. Pillow reads them while it decodes."""


@dataclass(frozen=True)
class Decoding:
    """Conditions for decoding.

    Attributes:
        strict: Refuse an input whose data is damaged, even if the decoder gives a picture.
        limit: Seconds after which decoding of an input is given up; 0: never. None: `PICTURE_SECONDS` for a picture,
            and what its size allows for a clip.
    """

    strict: bool = False
    limit: float | None = None


DEFAULT_DECODING = Decoding()


def picture_limit(decoding: Decoding) -> float:
    """Seconds after which decoding of a picture is given up; 0: never."""
    return PICTURE_SECONDS if decoding.limit is None else decoding.limit


class TimedFile(BytesIO):
    """Bytes of a file that can be read until a deadline, by `time.monotonic`. It ends decoders that read in parts."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self.deadline = deadline

    def read(self, size: int | None = -1) -> bytes:
        if time.monotonic() > self.deadline:
            raise TimeoutError
        return super().read(size)
