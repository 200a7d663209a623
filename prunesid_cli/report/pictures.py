"""The pictures of a page: each image or frame once, small, with the token grids that lie on it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.inputs.video.frame_sampling import FrameSampling
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.types import Layout, Region
from prunesid_cli.visualization.panels import make_panels
from prunesid_cli.visualization.patches import PatchRecord, read_regions

MAX_SIDE, MAX_FRAME_SIDE, QUALITY = 448, 224, 80
"""Longest side of an image, and of a frame of a clip, in pixels; and the quality of the JPEG."""
MAX_PANELS = 12
"""Panels of an item that are shown: frames of a clip, or a picture and its tiles."""


@dataclass
class Pictures:
    """The pictures of a page by the names of their media. Each is read once.

    Attributes:
        panels: Name -> its panels, as the page has them: `image`, `size`, `grids` ([rows, columns, left, top, right,
            bottom, number of the first patch]) and `time`; or `error`.
    """

    panels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, name: str, path: str, patches: PatchRecord | None) -> str:
        """Read an image or clip, and return its name on the page. One that cannot be read has its error instead.

        Args:
            name: Its name.
            path: Where it is.
            patches: Its token grids, if they are known.
        """
        if name not in self.panels:
            regions = tuple(read_regions(patches)) if patches else ()
            try:
                self.panels[name] = self._read(path, regions)
            except PruneSIDError as error:
                self.panels[name] = [{"error": error.problem, "size": [1, 1], "grids": []}]
        return name

    @staticmethod
    def _read(path: str, regions: tuple[Region, ...]) -> list[dict[str, Any]]:
        times = sorted({region.time for region in regions if region.time is not None})
        media = load_media(path, FrameSampling(frames=max(1, len(times))))
        if not regions:
            return [_panel(media.image, (), MAX_SIDE)]
        layout = Layout("", (sum(region.rows * region.columns for region in regions),), regions)
        # Frames are those nearest to the times of the grids: windows of frames have one grid for each frame.
        panels = make_panels(media.frames, media.times or tuple(times), layout)
        side = MAX_FRAME_SIDE if times else MAX_SIDE
        return [_panel(panel.image, panel.regions, side) for panel in panels[:MAX_PANELS]]


def _panel(image: Image.Image, regions: tuple[Region, ...], max_side: int) -> dict[str, Any]:
    small = image.convert("RGB")
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    data = BytesIO()
    small.save(data, "JPEG", quality=QUALITY)
    times = [region.time for region in regions if region.time is not None]
    return {
        "image": f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}",
        "size": list(small.size),
        "grids": [
            [region.rows, region.columns, *(round(edge, 5) for edge in region.box), region.first] for region in regions
        ],
    } | ({"time": times[0]} if times else {})
