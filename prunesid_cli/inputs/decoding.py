"""How strictly, and for how long, inputs are decoded. It does not change what a good input decodes to."""

from __future__ import annotations

from dataclasses import dataclass

PICTURE_SECONDS = 60.0


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
