"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunesid_cli.cli.arguments import is_typed
from prunesid_cli.cli.choices import Attention, Backend, Dtype, Stored
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import MAX_FRAMES
from prunesid_cli.selection import METHODS

MODEL, PRUNING, CLIPS, RUNNING, ANSWERING, OUTPUT = "Model", "Pruning", "Clips", "Running", "Answering", "Output"

Model = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", envvar="PRUNESID_MODEL", rich_help_panel=MODEL, show_default="the embedded model",
        help="A Hugging Face repo id, a local folder, or an alias (see: prunesid models).",
    ),
]  # fmt: skip
CacheModel = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", rich_help_panel=MODEL, show_default="the cache's own",
        help="The cache's model under another name, say a folder that was moved.",
    ),
]  # fmt: skip
Revision = Annotated[
    str | None,
    typer.Option(
        envvar="PRUNESID_REVISION", rich_help_panel=MODEL, show_default="main", help="Branch, tag or commit of a repo."
    ),
]
CacheRevision = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODEL, show_default="the cache's own", help="Branch, tag or commit, if it is that."),
]
Keep = Annotated[
    str,
    typer.Option(
        "-k", "--keep", envvar="PRUNESID_KEEP", rich_help_panel=PRUNING,
        help="Visual tokens to keep of each image or clip: 64, 11% or all. CLS counts, where the tower has one.",
    ),
]  # fmt: skip
Dynamic = Annotated[
    bool | None,
    typer.Option(
        "--dynamic/--fixed", envvar="PRUNESID_DYNAMIC", rich_help_panel=PRUNING,
        show_default="over tiles and frames of one image or clip",
        help="Spread the average by how much is in them: over images, too (each is decoded twice), or not at all.",
    ),
]  # fmt: skip
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="CACHE", rich_help_panel=PRUNING,
        help="Implies --dynamic: an average image is one of this cache, by compress --calibrate or as it is.",
    ),
]  # fmt: skip
Method = Annotated[
    str, typer.Option(envvar="PRUNESID_METHOD", rich_help_panel=PRUNING, help=f"How to choose: {', '.join(METHODS)}.")
]
Draft = Annotated[
    bool,
    typer.Option(
        "--draft", envvar="PRUNESID_DRAFT", rich_help_panel=RUNNING,
        help="Decode large JPEGs at 1/2, 1/4 or 1/8, still twice what the model reads: 6 to 9 times faster, and "
        "of what is kept a tenth is another. Noted of each image. For models that shrink all images to one size.",
    ),
]  # fmt: skip
Frames = Annotated[
    int,
    typer.Option(
        "--frames", min=1, max=MAX_FRAMES, envvar="PRUNESID_FRAMES", rich_help_panel=CLIPS,
        help="Of each clip, spread evenly over its time; of a shorter one all.",
    ),
]  # fmt: skip
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps", envvar="PRUNESID_FPS", rich_help_panel=CLIPS, show_default="as --frames says",
        help="Frames a second instead, however long the clip is: 1, 0.5.",
    ),
]  # fmt: skip
Window = Annotated[
    int,
    typer.Option(
        "--window", min=1, max=MAX_FRAMES, envvar="PRUNESID_WINDOW", rich_help_panel=CLIPS,
        help="Successive frames (Qwen: pairs of them) that are selected from together, so that what stands still is "
        "hardly kept twice; 1: each alone. Try 8.",
    ),
]  # fmt: skip
VideoBackend = Annotated[
    Backend,
    typer.Option(
        "--video-backend", envvar="PRUNESID_VIDEO_BACKEND", rich_help_panel=CLIPS,
        help="What decodes clips; auto is pyav. decord refuses what it is known to get wrong.",
    ),
]  # fmt: skip
Store = Annotated[
    Stored,
    typer.Option(
        "--store", envvar="PRUNESID_STORE", rich_help_panel=PRUNING,
        help="Kept tokens in the model's dtype, or in about half of 16 bits: int8 is closer, fp8 a little smaller.",
    ),
]  # fmt: skip
ShardItems = Annotated[
    int, typer.Option(min=1, rich_help_panel=RUNNING, help="At most so many a file of the cache; 256 MiB are.")
]
Device = Annotated[
    str, typer.Option(envvar="PRUNESID_DEVICE", rich_help_panel=RUNNING, help="auto, cpu, cuda:0 or mps.")
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        envvar="PRUNESID_DTYPE",
        rich_help_panel=RUNNING,
        help="auto: fp32 on a CPU, the checkpoint's own elsewhere.",
    ),
]
AttentionOption = Annotated[
    Attention, typer.Option("--attn", envvar="PRUNESID_ATTN", rich_help_panel=RUNNING, help="Attention kernels.")
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=0,
        envvar="PRUNESID_BATCH_SIZE",
        rich_help_panel=RUNNING,
        help="Items a forward; 0: 8 on a CPU, 32 elsewhere.",
    ),
]
TowerBatch = Annotated[
    int,
    typer.Option(
        "--batch-size", min=0, envvar="PRUNESID_BATCH_SIZE", rich_help_panel=RUNNING,
        help="Pictures, tiles and frames that the tower sees at once, one image or clip at least; 0: 8 on a CPU, "
        "elsewhere grown while it pays. Halved where memory ends.",
    ),
]  # fmt: skip
Checksum = Annotated[
    bool,
    typer.Option(
        "--checksum", rich_help_panel=RUNNING,
        help="Tell what changed by the contents of files, and not by their size and time of change.",
    ),
]  # fmt: skip
Partition = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", rich_help_panel=RUNNING,
        help="Only the inputs of one of N machines: 1/4 to 4/4, each with an --out of its own, the same whatever files "
        "are added. auto: as a SLURM array or an indexed Kubernetes job says.",
    ),
]  # fmt: skip
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed", rich_help_panel=RUNNING,
        help="Only what failed before, as the cache lists it; no PATH. The options are those of that run.",
    ),
]  # fmt: skip
MaxNewTokens = Annotated[
    int,
    typer.Option(min=1, envvar="PRUNESID_MAX_NEW_TOKENS", rich_help_panel=ANSWERING, help="Longest answer, in tokens."),
]
Temperature = Annotated[
    float, typer.Option(min=0.0, envvar="PRUNESID_TEMPERATURE", rich_help_panel=ANSWERING, help="0 decodes greedily.")
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=2**63 - 1, envvar="PRUNESID_SEED", rich_help_panel=ANSWERING, help="Of sampling, with a temperature."
    ),
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="JSON on stdout.")]
Usage = Annotated[
    bool, typer.Option("-u", "--usage", rich_help_panel=OUTPUT, help="Tokens and time by stage, on stderr.")
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare", rich_help_panel=OUTPUT, help="Answer with and without pruning, side by side, each with its time."
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PICTURE", rich_help_panel=OUTPUT, show_default="the terminal",
        help="A .png, .jpg or .webp file to draw it in. A picture that is there is replaced, any other file is not.",
    ),
]  # fmt: skip
Groups = Annotated[
    bool, typer.Option("--groups", rich_help_panel=OUTPUT, help="Colour tokens by the group that they were put in.")
]
Links = Annotated[
    bool,
    typer.Option(
        "--links", rich_help_panel=OUTPUT, help="Draw a line from each suppressed token to the one that suppressed it."
    ),
]


def _quiet(context: typer.Context, wanted: bool) -> None:
    printer.quiet = printer.quiet or wanted
    _check_volume(context)


def _verbose(context: typer.Context, wanted: bool) -> None:
    printer.verbose = printer.verbose or wanted
    _check_volume(context)


def _check_volume(context: typer.Context) -> None:
    if is_typed(context, "quiet") and is_typed(context, "verbose"):
        raise UsageError("--quiet and --verbose contradict each other", "leave out one")


def _debug(wanted: bool) -> None:
    printer.debug = printer.debug or wanted


Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", callback=_quiet, rich_help_panel=OUTPUT, help="Only warnings and errors on stderr."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=_verbose, rich_help_panel=OUTPUT, help="Also say what is used, and of each input."
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, rich_help_panel=OUTPUT, help="Show the traceback of an error.")
]
