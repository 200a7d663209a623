"""The pictures and clips that a command is given by name, or one picture on stdin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunesid_cli.cli.arguments import stdin
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import MediaError
from prunesid_cli.text import plural

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.inputs.video.frame_sampling import FrameSampling


def read_media(sources: Sequence[str], sampling: FrameSampling) -> list[Media]:
    """Load them; - is a picture on stdin."""
    from prunesid_cli.inputs.image import load_image_bytes
    from prunesid_cli.inputs.video.load import load_media

    media = [load_image_bytes(_piped(), "-") if one == "-" else load_media(one, sampling) for one in sources]
    for item in media:
        if item.is_clip:
            printer.detail(f"{item.source}: {plural(len(item.frames), 'frame')} by {item.decoder}")
        for note in item.notes:
            printer.note(f"{item.source}: {note}")
    return media


def _piped() -> bytes:
    data = stdin().buffer.read()
    if not data:
        raise MediaError(
            "nothing came on stdin", 'pipe a picture into it: prunesid ask - "what is shown?" < picture.jpg'
        )
    return data
