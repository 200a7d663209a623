"""Options that several commands have. Names and defaults of settings are those of `pipeline.settings.Settings`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesid_cli.cli.arguments import is_typed
from prunesid_cli.cli.help import ADVANCED, ANSWERING, CLIPS, CLUSTER, COMMON, MODEL, OUTPUT, PRUNING
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import MAX_FRAMES
from prunesid_cli.models.loading.checkpoint import ALIASES, DEMO
from prunesid_cli.pipeline import settings
from prunesid_cli.selection import METHODS
from prunesid_cli.text import STATUS


def completes(*values: str) -> Callable[[str], list[str]]:
    """What the shell offers for an option with these values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _keep_for_hints(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Keeps an option that chooses the model, if it was typed, for hints that name a command."""
    if value is not None and is_typed(context, str(parameter.name)):
        printer.model_options += [parameter.opts[0], value]
    return value


def read_worker_count(text: Any) -> Any:
    """A number of workers, or a pair of MIN-MAX."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(text))
    if match is None or (match[2] and int(match[2]) < max(int(match[1]), 1)):
        raise typer.BadParameter(f"{text!r} is not a number of workers: 4, or with --ray MIN-MAX, such as 2-8")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


Model = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", envvar="PRUNESID_MODEL", callback=_keep_for_hints, rich_help_panel=COMMON,
        show_default="the embedded model", autocompletion=completes(DEMO, *ALIASES),
        help="The model: a Hugging Face repo id, a folder, or an alias (see: prunesid models).",
    ),
]  # fmt: skip
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", envvar="PRUNESID_REVISION", callback=_keep_for_hints, rich_help_panel=MODEL, show_default="main",
        help="Branch, tag or commit of the model's repo.",
    ),
]  # fmt: skip
CacheModel = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", rich_help_panel=MODEL, show_default="the cache's model",
        help="The cache's model under another name, for example a folder that was moved.",
    ),
]  # fmt: skip
CacheRevision = Annotated[
    str | None,
    typer.Option(
        "--revision", rich_help_panel=MODEL, show_default="the cache's revision",
        help="Branch, tag or commit of the model's repo. It must be the revision that the cache was made with.",
    ),
]  # fmt: skip
Keep = Annotated[
    str,
    typer.Option(
        "-k", "--keep", metavar="BUDGET", envvar="PRUNESID_KEEP", rich_help_panel=COMMON,
        help="How many visual tokens to keep of each image or clip: 64, 11% or all. A CLS token counts as one.",
    ),
]  # fmt: skip
Method = Annotated[
    str,
    typer.Option(
        "--method", envvar="PRUNESID_METHOD", rich_help_panel=PRUNING, autocompletion=completes(*METHODS),
        help=f"How to select the tokens: {', '.join(METHODS)}.",
    ),
]  # fmt: skip
Dynamic = Annotated[
    bool | None,
    typer.Option(
        "--dynamic/--fixed", envvar="PRUNESID_DYNAMIC", rich_help_panel=PRUNING, show_default="neither",
        help="How to share the budget (Eq. 7). --dynamic: images with more information get more tokens, and "
        "the budget is the average (each image is decoded twice). --fixed: tiles and frames share it by their size. "
        "Neither: every image or clip gets the budget, and its tiles and frames share it by information.",
    ),
]  # fmt: skip
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration", metavar="CACHE", rich_help_panel=PRUNING,
        help="Set the budget of this image relative to the images of a cache. Implies --dynamic. The cache may hold "
        "tokens, or be made by compress --calibrate.",
    ),
]  # fmt: skip
Fit = Annotated[
    settings.Fit,
    typer.Option(
        "--fit", metavar="crop|pad", envvar="PRUNESID_FIT", rich_help_panel=PRUNING,
        help="What models that read squares do with other images. crop: what the checkpoint says, often the central "
        "square alone. pad: pad them to squares, so that nothing is lost. Models that do not crop ignore it.",
    ),
]  # fmt: skip
Frames = Annotated[
    int,
    typer.Option(
        "--frames", min=1, max=MAX_FRAMES, envvar="PRUNESID_FRAMES", rich_help_panel=CLIPS,
        help="How many frames to read of each clip, spread evenly over its time. A shorter clip gives all its frames.",
    ),
]  # fmt: skip
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps", envvar="PRUNESID_FPS", rich_help_panel=CLIPS,
        help="Read this many frames per second instead of --frames, for example 1 or 0.5.",
    ),
]  # fmt: skip
Window = Annotated[
    int,
    typer.Option(
        "--window", min=1, max=MAX_FRAMES, envvar="PRUNESID_WINDOW", rich_help_panel=CLIPS,
        help="Prune this many successive frames together, so that what stands still is kept once. Try 8. 1 prunes each "
        "frame alone. Qwen models count pairs of frames.",
    ),
]  # fmt: skip
VideoBackend = Annotated[
    settings.VideoBackend,
    typer.Option(
        "--video-backend", metavar="auto|pyav|decord", envvar="PRUNESID_VIDEO_BACKEND", rich_help_panel=ADVANCED,
        help="The clip decoder. auto is pyav. decord refuses files that it is known to decode wrongly.",
    ),
]  # fmt: skip
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", envvar="PRUNESID_STRICT", rich_help_panel=ADVANCED,
        help="Refuse a JPEG or TIFF with damaged data, even if it can be decoded. Without it, a note says that "
        "part of the picture may be wrong.",
    ),
]  # fmt: skip
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", envvar="PRUNESID_TIMEOUT", rich_help_panel=ADVANCED,
        show_default="60 for an image, 120 and more for a clip",
        help="Give up an image or clip that takes longer to decode. 0 is no limit.",
    ),
]  # fmt: skip
MaxItems = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, rich_help_panel=COMMON, show_default="all", help="Take only the first N inputs."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="GLOB", rich_help_panel=COMMON,
        help="Take only files whose path matches, or whose name does if GLOB has no slash. Repeatable.",
    ),
]  # fmt: skip
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", rich_help_panel=COMMON, help="Leave out what matches. GLOB is as for --include."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", rich_help_panel=COMMON,
        help="Only print what would be done, and how long it would take by the time of a few inputs.",
    ),
]  # fmt: skip
Draft = Annotated[
    bool,
    typer.Option(
        "--draft", envvar="PRUNESID_DRAFT", rich_help_panel=ADVANCED,
        help="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, but never below twice the model's input size. "
        "Loading is 6 to 9 times faster, and about a tenth of the kept tokens differ. Only for models that resize all "
        "images to one size.",
    ),
]  # fmt: skip
Store = Annotated[
    settings.TokenStore,
    typer.Option(
        "--store", metavar="model|int8|fp8", envvar="PRUNESID_STORE", rich_help_panel=ADVANCED,
        help="How the cache stores tokens: in the model's precision, or in 8 bits with scales. int8 is more accurate, "
        "fp8 a little smaller.",
    ),
]  # fmt: skip
ShardItems = Annotated[
    int,
    typer.Option(
        "--shard-items", metavar="N", min=1, rich_help_panel=ADVANCED,
        help="Maximum number of items per shard file. Shards are also limited to 256 MiB.",
    ),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option(
        "--device", envvar="PRUNESID_DEVICE", rich_help_panel=MODEL,
        autocompletion=completes("auto", "cpu", "cuda:0", "mps"), help="Where to run: auto, cpu, cuda:0 or mps.",
    ),
]  # fmt: skip
Dtype = Annotated[
    settings.Dtype,
    typer.Option(
        "--dtype", metavar="auto|bf16|fp16|fp32", envvar="PRUNESID_DTYPE", rich_help_panel=MODEL,
        help="Precision. auto is fp32 on a CPU and the checkpoint's own precision elsewhere.",
    ),
]  # fmt: skip
Attention = Annotated[
    settings.Attention,
    typer.Option(
        "--attn", metavar="KERNELS", envvar="PRUNESID_ATTN", rich_help_panel=ADVANCED,
        help="Attention kernels: auto, sdpa, flash_attention_2 or eager. auto is sdpa where the model supports it.",
    ),
]  # fmt: skip


def _batch_size(default: str, help: str) -> Any:
    return typer.Option(
        "--batch-size", metavar="N", min=0, envvar="PRUNESID_BATCH_SIZE", rich_help_panel=ADVANCED,
        show_default=default, help=help,
    )  # fmt: skip


AnswerBatchSize = Annotated[
    int,
    _batch_size(
        "64 on a CPU, tuned elsewhere",
        "How many prompts to answer together. Fewer are answered together if memory is short.",
    ),
]
Engine = Annotated[
    settings.Engine,
    typer.Option(
        "--engine", rich_help_panel=MODEL,
        help="What runs the language model: transformers (builtin), or vLLM. Greedy answers are the same.",
    ),
]  # fmt: skip
ImageColumn = Annotated[
    str,
    typer.Option(
        "--image-column", metavar="NAME", rich_help_panel=COMMON, show_default=False,
        help="Column of a table with the images, or with their paths or URLs. By default it is found by its type and "
        "name.",
    ),
]  # fmt: skip
IdColumn = Annotated[
    str,
    typer.Option(
        "--id-column", metavar="NAME", rich_help_panel=COMMON, show_default=False,
        help="Column that names the images of a Parquet file. By default its rows are numbered.",
    ),
]  # fmt: skip
Dpi = Annotated[
    int,
    typer.Option(
        "--dpi", rich_help_panel=COMMON, min=1, max=2400, help="Resolution at which pages of PDF documents are drawn."
    ),
]
AskedBy = Annotated[
    settings.AskedBy,
    typer.Option(
        "--by", metavar="content|path", rich_help_panel=COMMON,
        help="Ask about each content once, and report the answer for each path with it; or ask about each path.",
    ),
]  # fmt: skip
EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-args", metavar="NAME=VALUE", rich_help_panel=ADVANCED,
        help="An argument of vllm.LLM for --engine vllm: tensor_parallel_size=2. Repeatable.",
    ),
]  # fmt: skip
RecordBatchSize = Annotated[
    int, _batch_size("8 on a CPU, 32 elsewhere", "How many records to encode and answer together.")
]
TowerBatchSize = Annotated[
    int,
    _batch_size(
        "8 on a CPU, tuned elsewhere",
        "How many pictures, tiles and frames the vision tower encodes together. It is halved if memory runs out.",
    ),
]
Workers = Annotated[
    Any,
    typer.Option(
        "--workers", metavar="N", parser=read_worker_count, envvar="PRUNESID_WORKERS", rich_help_panel=ADVANCED,
        show_default="2 on a CPU; with a GPU, all cores but one",
        help="How many processes read and decode inputs. 0 decodes in the main process: for debuggers, and where no "
        "processes can be started; an input that crashes its decoder then ends the run. With --ray: how many workers "
        "encode, as N or MIN-MAX; the run begins when MIN of them are there.",
    ),
]  # fmt: skip
ClusterWorkers = Annotated[
    Any,
    typer.Option(
        "--workers", metavar="N", parser=read_worker_count, rich_help_panel=CLUSTER,
        show_default="as many as there is room for",
        help="How many workers of the cluster answer, as N or MIN-MAX. The run begins when MIN of them are there.",
    ),
]  # fmt: skip
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", rich_help_panel=CLUSTER,
        help="Work on the machines of a Ray cluster: auto, local, or HOST:PORT. auto starts one on this machine if "
        "there is none. The folders of the run must have the same paths on all machines.",
    ),
]  # fmt: skip
GPUsPerWorker = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker", metavar="N", min=0, rich_help_panel=CLUSTER, show_default="1, or 0 in a cluster without",
        help="GPUs of a worker of the cluster.",
    ),
]  # fmt: skip
CPUsPerWorker = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker", metavar="N", min=1, rich_help_panel=CLUSTER,
        show_default="its share of the cluster's; 1 without GPUs",
        help="Cores of a worker of the cluster. All but one of them decode.",
    ),
]  # fmt: skip
Checksum = Annotated[
    bool,
    typer.Option(
        "--checksum", rich_help_panel=ADVANCED,
        help="Detect changed files by their contents instead of their size and modification time.",
    ),
]  # fmt: skip
Partition = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", rich_help_panel=ADVANCED,
        help="Process only the I-th of N partitions of the inputs, for N machines: 1/4 to 4/4, each with its own "
        "--out. Adding inputs moves no other input to another machine. auto reads a SLURM array or an indexed "
        "Kubernetes job.",
    ),
]  # fmt: skip
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed", rich_help_panel=ADVANCED,
        help="Retry only those of the paths that the cache lists as failed. Repeat the other options.",
    ),
]  # fmt: skip
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens", "--max-tokens", metavar="N", min=1, envvar="PRUNESID_MAX_NEW_TOKENS",
        rich_help_panel=ANSWERING, help="Maximum length of an answer, in tokens.",
    ),
]  # fmt: skip
System = Annotated[
    str,
    typer.Option(
        "--system", metavar="TEXT", envvar="PRUNESID_SYSTEM", rich_help_panel=ANSWERING, show_default="the model's own",
        help="A system prompt: how the model is to answer.",
    ),
]  # fmt: skip
Choices = Annotated[
    str | None,
    typer.Option(
        "--choices", metavar="A,B,...", rich_help_panel=ANSWERING,
        help="The possible answers, separated by commas, or a file with one a line. Nothing is generated: the answer "
        "is the one that the model finds most probable, and JSON has the probability of each. Write them as the "
        "model does: Yes,No.",
    ),
]  # fmt: skip
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema", metavar="FILE|JSON", rich_help_panel=ANSWERING,
        help="A JSON schema that answers obey. Needs the package llguidance: pip install 'prunesid[schema]'.",
    ),
]  # fmt: skip
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", min=0.0, envvar="PRUNESID_TEMPERATURE", rich_help_panel=ANSWERING,
        help="Sampling temperature. 0 decodes greedily.",
    ),
]  # fmt: skip
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**63 - 1, envvar="PRUNESID_SEED", rich_help_panel=ANSWERING,
        help="Random seed, used if --temperature is above 0.",
    ),
]  # fmt: skip
AllowSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--allow-special-tokens", envvar="PRUNESID_ALLOW_SPECIAL_TOKENS", rich_help_panel=ADVANCED,
        help="Give special tokens in a prompt, such as <|im_end|>, their meaning. Otherwise they are plain text, so a "
        "prompt cannot end its turn.",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON on stdout.")]
Usage = Annotated[
    bool, typer.Option("-u", "--usage", rich_help_panel=OUTPUT, help="Print tokens and time by stage on stderr.")
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare", rich_help_panel=OUTPUT,
        help="Answer with and without pruning, and print both side by side with their times.",
    ),
]  # fmt: skip
Picture = Annotated[
    Path | None,
    typer.Option(
        "-o", "--out", metavar="PICTURE", rich_help_panel=COMMON, show_default="the terminal",
        help="Draw into a .png, .jpg or .webp file. An existing picture is replaced, any other file is not.",
    ),
]  # fmt: skip
Groups = Annotated[
    bool, typer.Option("--groups", rich_help_panel=COMMON, help="Color each token by its semantic group.")
]
Links = Annotated[
    bool,
    typer.Option(
        "--links", rich_help_panel=COMMON,
        help="Draw a line from each suppressed token to the token that suppressed it.",
    ),
]  # fmt: skip


def _set_verbosity(context: typer.Context, parameter: typer.CallbackParam, value: bool) -> None:
    """Sets an attribute of the printer, and the level of the package's logger."""
    setattr(printer, str(parameter.name), value or getattr(printer, str(parameter.name)))
    if is_typed(context, "quiet") and is_typed(context, "verbose"):
        raise UsageError("--quiet and --verbose contradict each other", "leave out one")
    if printer.log is None:
        level = logging.WARNING if printer.quiet else logging.DEBUG if printer.verbose else STATUS
        logging.getLogger("prunesid_cli").setLevel(level)


def _open_log(path: Path | None) -> Path | None:
    if path:
        printer.open_log(path)
        logging.getLogger("prunesid_cli").setLevel(logging.DEBUG)
    return path


Log = Annotated[
    Path | None,
    typer.Option(
        "--log", metavar="FILE", callback=_open_log, rich_help_panel=OUTPUT,
        help="Append all messages to a file, with their time, and with those of --verbose.",
    ),
]  # fmt: skip
Quiet = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        callback=_set_verbosity,
        rich_help_panel=OUTPUT,
        help="Print only warnings and errors on stderr.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=_set_verbosity, rich_help_panel=OUTPUT,
        help="Also print the model, the device, and a line for each input.",
    ),
]  # fmt: skip
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_verbosity, rich_help_panel=OUTPUT, help="Print the traceback of an error."),
]
