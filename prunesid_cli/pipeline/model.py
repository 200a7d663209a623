"""The Python API: a model that encodes, compresses, asks and answers. The command line does the same step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cached_property, partial
from os import fspath
from pathlib import Path
from typing import Any

from PIL import Image

from prunesid_cli import __version__
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.containers import DEFAULT_OPTIONS
from prunesid_cli.inputs.image import Media, media_from_image
from prunesid_cli.inputs.listing import ListedFile, Listing
from prunesid_cli.inputs.table_files import expand_tables
from prunesid_cli.inputs.video.load import load_media
from prunesid_cli.models.base import LanguageHalf, VisionHalf
from prunesid_cli.pipeline.answer import answer
from prunesid_cli.pipeline.ask import ask, encode_media
from prunesid_cli.pipeline.batches import make_runner
from prunesid_cli.pipeline.compress import compress, open_writer, write_results
from prunesid_cli.pipeline.distinct_queries import answer_distinct
from prunesid_cli.pipeline.measure import measure
from prunesid_cli.pipeline.prompt_file import ItemFilter, Prompt, Prompts
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.query import Reply
from prunesid_cli.pipeline.results import CachedInput, CopiedInput, FailedInput
from prunesid_cli.pipeline.session import LazyVision, Session, check_cache_model
from prunesid_cli.pipeline.settings import Attention, Dtype, Fit, Settings, TokenStore, VideoBackend
from prunesid_cli.pipeline.token_budgets import TokenAllocator, allocate_on_arrival, plan_tokens
from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool
from prunesid_cli.text import did_you_mean
from prunesid_cli.tokencache import open_cache
from prunesid_cli.types import Answer, Generation, TokenSet

MediaInput = str | Path | Image.Image
"""A path of an image or clip, or an RGB image."""
ENUMS: dict[str, type[Enum]] = {"dtype": Dtype, "attention": Attention, "video_backend": VideoBackend, "fit": Fit}
"""Settings that have a few values, which may be given as text."""


@dataclass(frozen=True)
class CompressSummary:
    """What `Model.compress` did.

    Attributes:
        encoded: Sources that were encoded now.
        cached: Sources that the cache had already.
        copied: Sources with the contents of another one, whose tokens were used.
        failed: Source and error of each input that failed. They are retried by the next call.
    """

    encoded: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    failed: list[tuple[str, Exception]] = field(default_factory=list)


def load(model: str = "demo", **settings: Any) -> Model:
    """Opens a model. Its weights are read when they are first needed.

    Args:
        model: A Hugging Face repo id, a folder, an alias, or "demo", the embedded model.
        **settings: Further settings; see `prunesid_cli.pipeline.settings.Settings`. The options of the command line
            have the same names: `keep="64"`, `method="prunesid"`, `dynamic=True`, `device="cuda:0"`, `dtype="bf16"`.

    Raises:
        ModelError: There is no such model, or it is not supported.
        UsageError: There is no such setting, or a value makes no sense.
    """
    known = [one.name for one in fields(Settings)]
    for name, value in settings.items():
        if name not in known:
            raise UsageError(f"no setting '{name}'", did_you_mean(name, known, f"one of: {', '.join(known)}"))
        if name in ENUMS:
            values = [member.value for member in ENUMS[name]]
            if value not in values:
                raise UsageError(f"{name}='{value}' is unknown", f"one of: {', '.join(values)}")
            settings[name] = ENUMS[name](value)
    chosen = Settings(model=model, **settings)
    chosen.check_method()
    chosen.budget()
    chosen.sampling()
    chosen.decoding()
    return Model(Session.open(chosen))


class Model:
    """A vision-language model whose visual tokens are pruned. Made by `load`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings = session.settings

    @cached_property
    def vision(self) -> VisionHalf:
        """The vision half; reads its weights."""
        return self.session.load_vision()

    @cached_property
    def language(self) -> LanguageHalf:
        """The language half; reads its weights."""
        return self.session.load_language()

    @cached_property
    def pruner(self) -> Pruner:
        """Encodes items and selects their tokens, by the settings."""
        return self.session.pruner(vision=LazyVision(lambda: self.vision))

    @property
    def generation(self) -> Generation:
        """How answers are decoded, by the settings."""
        return Generation(self.settings.max_new_tokens, self.settings.temperature, self.settings.seed)

    def encode(self, media: MediaInput | Sequence[MediaInput]) -> list[TokenSet]:
        """Encodes images or clips, as one prompt about all of them would.

        Args:
            media: One or several images or clips.

        Returns:
            The kept tokens of each.

        Raises:
            MediaError: One cannot be read.
        """
        return self.pruner.prune(encode_media(self.pruner, self._load(media)))

    def ask(self, media: MediaInput | Sequence[MediaInput], prompt: str) -> Answer:
        """Answers one prompt about one or several images or clips.

        Raises:
            MediaError: One cannot be read.
            UsageError: The model cannot be asked this prompt.
        """
        reply, _ = ask(self.pruner, self.language, self._load(media), prompt, self.generation)
        return reply

    def compress(
        self, paths: str | Path | Sequence[str | Path], out: str | Path, store: str = "model"
    ) -> CompressSummary:
        """Encodes and prunes images and clips into a cache. What the cache holds already is not encoded again.

        Args:
            paths: Files, folders, globs and tables of paths.
            out: The cache's folder. It is created or continued.
            store: How tokens are stored: "model", "int8" or "fp8".

        Raises:
            CacheError: The folder cannot be written, or holds a cache that was made with other settings.
        """
        listed = [paths] if isinstance(paths, str | Path) else paths
        files: Iterable[ListedFile] = Listing(expand_tables((fspath(path) for path in listed), DEFAULT_OPTIONS))
        summary = CompressSummary()
        setup = WorkerSetup(self.session.checkpoint, self.settings)
        with (
            worker_pool(setup) as pool,
            closing(open_writer(self.session, self.pruner, Path(out), TokenStore(store), tool=__version__)) as writer,
        ):
            runner = make_runner(self.session, self.pruner, pool, writer)
            allocator: TokenAllocator
            if self.pruner.spreads_across_items:
                files = list(files)
                allocator = plan_tokens(self.pruner, measure(runner, files))
            else:
                allocator = allocate_on_arrival(self.pruner, writer.index.entries())
            for result in compress(runner, files, allocator, lambda batch: write_results(writer, batch)):
                if isinstance(result, FailedInput):
                    summary.failed.append((result.source, result.error))
                elif isinstance(result, CachedInput):
                    summary.cached.append(result.source)
                elif isinstance(result, CopiedInput):
                    summary.copied.append(result.source)
                else:
                    summary.encoded.append(result.source)
            writer.complete()
        return summary

    def answer(self, cache: str | Path, prompt: str) -> Iterator[Reply]:
        """Answers one prompt about every item of a cache, without the images and without the vision tower.

        Args:
            cache: A cache that was made with this model.
            prompt: The prompt.

        Yields:
            A reply for each item, in the order in which they were written: `reply.query.item.source`,
            `reply.answer.text`, or `reply.error`.

        Raises:
            CacheError: There is no such cache, or it was made with another model.
            UsageError: The model cannot be asked this prompt.
        """
        opened, checkpoint = open_cache(cache), self.session.checkpoint
        if opened.run:
            check_cache_model(opened.run, checkpoint)
        self.language.check_prompt(prompt, 1)
        prompts, sizes = Prompts([Prompt(prompt)]), self.session.answer_batch_size()
        engine = partial(answer, self.language, generation=self.generation, batch_sizes=sizes)
        for replies in answer_distinct(engine, prompts.queries(opened, ItemFilter()), opened):
            yield from replies

    def _load(self, media: MediaInput | Sequence[MediaInput]) -> list[Media]:
        items = [media] if isinstance(media, str | Path | Image.Image) else media
        return [
            media_from_image(item.convert("RGB"))
            if isinstance(item, Image.Image)
            else load_media(item, self.pruner.sampling, self.pruner.decoding)
            for item in items
        ]
