"""prunesid show: draw which tokens of a picture or clip are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import overrides_fixed, read_budget, read_media, read_settings
from prunesid_cli.cli.notices import FULLY_VISIBLE, format_share, note_if_all_kept
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.file_type import detect_file_type
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import DEFAULTS
from prunesid_cli.runtime.output_file import check_output, is_stream, replace_output
from prunesid_cli.selection import GROUPING_METHODS
from prunesid_cli.text import plural
from prunesid_cli.tokencache import information_sample

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.visualization.explain import PruningExplanation, SegmentExplanation
    from prunesid_cli.visualization.panels import Annotations, Panel

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
STREAM_FORMAT = "PNG"
"""Format of a picture that is written to stdout."""
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "JPEG": {"quality": 92, "subsampling": 0},
    "WEBP": {"quality": 92},
}


def show(
    context: typer.Context,
    media: Annotated[str, typer.Argument(metavar="MEDIA", help="An image or video file, or - for an image on stdin.")],
    out: o.Picture = None,
    groups: o.Groups = False,
    links: o.Links = False,
    model: o.Model = DEFAULTS.model,
    revision: o.Revision = DEFAULTS.revision,
    keep: o.Keep = DEFAULTS.keep,
    dynamic: o.Dynamic = DEFAULTS.dynamic,
    calibration: o.Calibration = None,
    method: o.Method = DEFAULTS.method,
    fit: o.Fit = DEFAULTS.fit,
    frames: o.Frames = DEFAULTS.frames,
    fps: o.Fps = DEFAULTS.fps,
    window: o.Window = DEFAULTS.window,
    video_backend: o.VideoBackend = DEFAULTS.video_backend,
    strict: o.Strict = DEFAULTS.strict,
    timeout: o.Timeout = DEFAULTS.timeout,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Draw which visual tokens of an image or clip are kept: in the terminal, or as a picture.

    Kept patches are as bright as in the image, others dimmed; what the model's preparation crops off is behind bars.

    Example: prunesid show samples/scene5.png --groups --out kept.png
    """
    printer.check_stdout()
    if calibration and not overrides_fixed(context, "calibration", "--calibration"):
        calibration = None
    settings = read_settings(context, **({"dynamic": True} if calibration else {}))
    budget = read_budget(context, settings)
    _check_drawing_options(method, groups, links, out, as_json)
    if out:
        _check_output_path(out, media)
    (item,) = read_media([media], settings)
    session = Session.open(settings)
    from prunesid_cli.visualization.explain import explain
    from prunesid_cli.visualization.panels import make_panels

    sample = (
        information_sample(calibration, session.checkpoint.name, session.checkpoint.revision) if calibration else ()
    )
    explanation = explain(session.pruner(budget, sample), item)
    layout = explanation.tokens.layout
    note_if_all_kept(budget, layout.total)
    annotations = _choose_annotations(explanation, groups, links)
    panels = make_panels(item.frames, item.times, layout)
    if out:
        facts = _caption(item, explanation, groups).replace("   ", " · ")
        caption = [f"{os.path.basename(item.source)}: {facts}"]
        caption.append(f"{session.checkpoint.name}, --method {method} --keep {keep}")
        _write_picture(panels, annotations, caption, layout.visible_share < FULLY_VISIBLE, out)
    if as_json:
        options = {"method": method, "keep": keep, "picture": out and str(out)}
        printer.record(_to_record(session, item, explanation, options))
    elif out:
        if not is_stream(out):
            printer.result(str(out))
        printer.note(_caption(item, explanation, groups))
    else:
        printer.result(_render_in_terminal(panels, annotations), is_styled=True)
        printer.result(_caption(item, explanation, groups))


def _check_drawing_options(method: str, groups: bool, links: bool, out: Path | None, as_json: bool) -> None:
    for is_set, option in ((groups, "--groups"), (links, "--links")):
        if is_set and method not in GROUPING_METHODS:
            hint = f"methods that do: {', '.join(GROUPING_METHODS)}"
            raise UsageError(f"{option}: --method {method} does not group tokens", hint)
    if links and not out and not as_json:
        raise UsageError("--links draws lines, which a terminal cannot show", "add --out links.png, or --json")


def _check_output_path(out: Path, media: str) -> None:
    """Check that a picture may be written to `out`: it may replace another picture, but no other file.

    Raises:
        UsageError: It may not.
    """
    if out.suffix.lower() not in FORMATS and not is_stream(out):
        raise UsageError(f"--out {out} is not the name of a picture", f"use a name that ends in {', '.join(FORMATS)}")
    if os.path.exists(media) and os.path.exists(out) and out.samefile(media):
        raise UsageError(f"--out {out} is the input image itself", "give the picture another name")
    check_output(out, "--out", "a picture", lambda header: detect_file_type(header).is_image)


def _choose_annotations(explanation: PruningExplanation, groups: bool, links: bool) -> Annotations:
    """What --groups and --links ask to draw; warns if there is nothing to draw."""
    from prunesid_cli.visualization.panels import Annotations

    available = explanation.annotations
    if (groups or links) and not available.groups:
        missing = [name for name, is_set in (("groups", groups), ("links", links)) if is_set]
        printer.warning(f"nothing was pruned, so there are no {' and no '.join(missing)}")
    elif links and not available.links:
        printer.note(
            "no token suppressed another: no two tokens of a group are more similar than tau, which grows with --keep"
        )
    return Annotations(
        kept=available.kept,
        groups=available.groups if groups else {},
        links=available.links if links else {},
    )


def _write_picture(
    panels: list[Panel], annotations: Annotations, caption: list[str], has_unseen: bool, out: Path
) -> None:
    from prunesid_cli.visualization.contact_sheet import contact_sheet

    picture = contact_sheet(panels, annotations, caption, has_unseen)
    format_name = FORMATS.get(out.suffix.lower(), STREAM_FORMAT)
    options = SAVE_OPTIONS[format_name]
    replace_output(out, lambda file: picture.save(file, format=format_name, **options))


def _render_in_terminal(panels: list[Panel], annotations: Annotations) -> str:
    """Panels as text for stdout: in colour if stdout is a terminal with colours and NO_COLOR is not set."""
    from rich.console import Console

    from prunesid_cli.visualization.ansi import Canvas, render_text

    console = Console()
    has_colour = bool(console.color_system) and not console.no_color and console.encoding.startswith("utf")
    width = console.width
    if not console.is_terminal:  # a file or pipe has no width that the text must fit into
        width = max(width, *(panel.slots.shape[1] for panel in panels), 0)
    with console.capture() as captured:
        for line in render_text(panels, annotations, Canvas(width, console.height, has_colour)):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)
    return captured.get().removesuffix("\n")


def _caption(item: Media, explanation: PruningExplanation, groups: bool) -> str:
    tokens, layout = explanation.tokens, explanation.tokens.layout
    patch_slots = {slot for region in layout.regions for slot in region.slots}
    num_patches = len(patch_slots.intersection(tokens.slots))
    num_cls = sum(slot not in patch_slots for slot in tokens.slots)
    parts = [
        f"{tokens.kept} of {layout.total} visual tokens ({tokens.kept / layout.total:.1%})",
        f"{num_patches} of {len(patch_slots)} patches" + f" and {num_cls} CLS" * (num_cls > 0),
    ]
    if groups and explanation.annotations.groups:
        num_groups = sum(len(set(segment.groups or ())) for segment in explanation.segments)
        parts.append(plural(num_groups, "group"))
    if layout.visible_share < FULLY_VISIBLE:
        what = "each frame" if item.is_clip else "the picture"
        parts.append(f"{format_share(1 - layout.visible_share)} of {what} is not seen: cropped off")
    return "   ".join(parts)


def _to_record(
    session: Session, item: Media, explanation: PruningExplanation, options: dict[str, Any]
) -> dict[str, Any]:
    tokens = explanation.tokens
    kept = explanation.annotations.kept
    return {
        "source": item.source,
        "model": session.checkpoint.name,
        "revision": session.checkpoint.revision,
        **options,
        "size": item.size,
        "seen": round(tokens.layout.visible_share, 4),
        "tokens": tokens.layout.total,
        "kept": tokens.kept,
        "phi": explanation.phi,
        "slots": tokens.slots,
        "segments": [_segment_to_record(segment, kept) for segment in explanation.segments],
    }


def _segment_to_record(segment: SegmentExplanation, kept: frozenset[int]) -> dict[str, Any]:
    """Lists are in the order of the segment's tokens: raster order, frame by frame."""
    selection = segment.selection
    return {
        "regions": segment.regions,
        "times": segment.times,
        "top": segment.top,
        "left": segment.left,
        "rows": segment.rows,
        "columns": segment.columns,
        "box": segment.box,
        "phi": segment.phi,
        "share": segment.budget,
        "slots": segment.slots,
        "saliency": segment.saliency,
        "kept": [slot for slot in segment.slots if slot in kept],
        "groups": segment.groups,
        "suppressed_by": segment.suppressed_by,
        "redundancy": selection and float(selection.redundancy),
        "tau": selection and float(selection.tau),
    }
