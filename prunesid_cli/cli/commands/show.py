"""prunesid show: what is kept of a picture or clip, drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import outweighs_fixed, read_sampling, revision_meant
from prunesid_cli.cli.choices import Attention, Backend, Dtype
from prunesid_cli.cli.compress_report import note_if_all
from prunesid_cli.cli.media_arguments import read_media
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.inputs.file_type import HEADER_BYTES, detect_file_type
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES
from prunesid_cli.pipeline.session import Hardware, Session, read_budget
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.selection import GROUPED, SUPPRESSING
from prunesid_cli.text import plural
from prunesid_cli.tokencache import sample_of

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.visualization.explain import Explained, Part
    from prunesid_cli.visualization.panels import Marks, Panel

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SETTINGS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "JPEG": {"quality": 92, "subsampling": 0},
    "WEBP": {"quality": 92},
}

WHOLE = 0.995
"""Share of a picture from which on it is all of it, but for a row of pixels that rounding costs."""


def show(
    context: typer.Context,
    media: Annotated[str, typer.Argument(metavar="MEDIA", help="An image or video file, or - for an image on stdin.")],
    out: o.Picture = None,
    groups: o.Groups = False,
    links: o.Links = False,
    model: o.Model = None,
    revision: o.Revision = None,
    keep: o.Keep = "11%",
    dynamic: o.Dynamic = None,
    calibration: o.Calibration = None,
    method: o.Method = "prunesid",
    frames: o.Frames = DEFAULT_FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = Backend.auto,
    device: o.Device = "auto",
    dtype: o.DtypeOption = Dtype.auto,
    attention: o.AttentionOption = Attention.auto,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Draw which visual tokens of an image or clip are kept: in the terminal, or as a picture.

    Kept patches are as bright as in the image, others dimmed; what the model's preparation crops off is behind bars.

    Example: prunesid show samples/scene5.png --groups --out kept.png
    """
    printer.check()
    if calibration and not outweighs_fixed(context, "calibration", "--calibration"):
        calibration = None
    budget = read_budget(context, keep, True if calibration else dynamic, method)
    _check_wanted(method, groups, links, out, as_json)
    if out:
        _check_place(out, media)
    sampling = read_sampling(context)
    (item,) = read_media([media], sampling)
    session = Session.open(model, revision_meant(context, model, revision), Hardware(device, dtype, attention))
    from prunesid_cli.visualization.explain import explained

    sample = sample_of(calibration, session.checkpoint.name, session.checkpoint.revision) if calibration else ()
    found = explained(session.pruner(budget, method, sample, sampling), item)
    note_if_all(budget, found.tokens.layout.total)
    panels, marks = _drawn(item, found, groups, links)
    if out:
        _write(panels, marks, out)
    if as_json:
        printer.record(_record(session, item, found, {"method": method, "keep": keep, "picture": out and str(out)}))
    elif out:
        printer.result(str(out))
        printer.note(_caption(item, found, groups))
    else:
        printer.result(_in_terminal(panels, marks))
        printer.result(_caption(item, found, groups))


def _check_wanted(method: str, groups: bool, links: bool, out: Path | None, as_json: bool) -> None:
    for wanted, option, having, lack in (
        (groups, "--groups", GROUPED, "puts tokens into no groups"),
        (links, "--links", SUPPRESSING, "suppresses no tokens"),
    ):
        if wanted and method not in having:
            raise UsageError(f"{option}: --method {method} {lack}", f"methods that do: {', '.join(having)}")
    if links and not out and not as_json:
        raise UsageError("--links draws lines, which a terminal cannot show", "add --out links.png, or --json")


def _check_place(out: Path, media: str) -> None:
    """Whether the picture may be written there: over another picture, but over nothing else.

    Raises:
        UsageError: it may not.
    """
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out} is no name of a picture", f"one that ends in {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: no such folder: {out.parent}", f"make it with: mkdir -p {out.parent}")
    if not out.exists():
        return
    if os.path.exists(media) and out.samefile(media):
        raise UsageError(f"--out {out} is the very image that is shown", "give the picture another name")
    if not out.is_file() or not detect_file_type(_head(out)).is_image:
        raise UsageError(f"--out {out} exists, and is no picture", "give the picture another name")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEADER_BYTES)
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror}", "give the picture another name") from error


def _drawn(item: Media, found: Explained, groups: bool, links: bool) -> tuple[list[Panel], Marks]:
    from prunesid_cli.visualization.panels import Marks, panels

    marks = found.marks
    if (groups or links) and not marks.groups:
        lacking = [name for name, wanted in (("groups", groups), ("links", links)) if wanted]
        printer.warning(f"nothing was pruned, so there are no {' and no '.join(lacking)}")
    elif links and not marks.links:
        printer.note("no token suppressed another: none of a group are more similar than tau, which grows with --keep")
    wanted = Marks(marks.kept, marks.groups if groups else {}, marks.links if links else {})
    return panels(item.frames, item.times, found.tokens.layout), wanted


def _write(panels: list[Panel], marks: Marks, out: Path) -> None:
    from prunesid_cli.visualization.contact_sheet import sheet

    picture, name = sheet(panels, marks), FORMATS[out.suffix.lower()]
    try:
        write_atomically(out, lambda beside: picture.save(beside, format=name, **SETTINGS[name]))
    except OSError as error:
        problem = f"cannot write {out}: {error.strerror or error}"
        raise PruneSIDError(problem, "free some space, or choose another place") from error


def _in_terminal(panels: list[Panel], marks: Marks) -> str:
    """As stdout can show it: in colours, where it is a terminal that has them and NO_COLOR is not set."""
    from rich.console import Console

    from prunesid_cli.visualization.ansi import Canvas, text

    console = Console()
    coloured = bool(console.color_system) and not console.no_color and console.encoding.startswith("utf")
    # What is read by no eye is not made to fit one.
    width = console.width if console.is_terminal else max(console.width, *(one.slots.shape[1] for one in panels), 0)
    with console.capture() as captured:
        for line in text(panels, marks, Canvas(width, console.height, coloured)):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)
    return captured.get().removesuffix("\n")


def _caption(item: Media, found: Explained, groups: bool) -> str:
    tokens, layout = found.tokens, found.tokens.layout
    visual = {slot for region in layout.regions for slot in region.slots}
    patches = len(visual.intersection(tokens.slots))
    others = sum(slot not in visual for slot in tokens.slots)
    parts = [f"{tokens.kept} of {layout.total} visual tokens ({tokens.kept / layout.total:.1%})"]
    parts += [f"{patches} of {len(visual)} patches" + f" and {others} CLS" * (others > 0)]
    if groups and found.marks.groups:
        parts += [plural(sum(len(set(part.groups or ())) for part in found.parts), "group")]
    if found.seen < WHOLE:
        what = "each frame" if item.is_clip else "the picture"
        parts += [f"{1 - found.seen:.0%} of {what} is not seen: cropped off"]
    return "   ".join(parts)


def _record(session: Session, item: Media, found: Explained, asked: dict[str, Any]) -> dict[str, Any]:
    tokens = found.tokens
    return {
        "source": item.source,
        "model": session.checkpoint.name,
        "revision": session.checkpoint.revision,
        **asked,
        "size": item.size,
        "seen": round(found.seen, 4),
        "tokens": tokens.layout.total,
        "kept": tokens.kept,
        "phi": found.phi,
        "slots": tokens.slots,
        "segments": [_segment(part, found.marks.kept) for part in found.parts],
    }


def _segment(part: Part, kept: frozenset[int]) -> dict[str, Any]:
    """Lists go by the tokens of the segment, in raster order; of a window of frames, those of one after the other."""
    names = ("regions", "times", "top", "left", "rows", "columns", "box", "phi", "share", "slots", "saliency")
    return {name: getattr(part, name) for name in names} | {
        "kept": [slot for slot in part.slots if slot in kept],
        "groups": part.groups,
        "suppressed_by": part.suppressed_by,
        "redundancy": part.why and float(part.why.redundancy),
        "tau": part.why and float(part.why.tau),
    }
