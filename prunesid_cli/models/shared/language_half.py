"""What every language half does alike: the prompt as if nothing had been pruned, without the slots that were; batches
padded on the left; decoding.

Processor, chat template, special tokens and stop conditions are the checkpoint's own.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from prunesid_cli.errors import ModelError, UsageError
from prunesid_cli.models.shared.processor import placeholder_ids, placeholder_text
from prunesid_cli.models.shared.prompt_pieces import (
    MEDIA_TAG,
    PromptPiece,
    mrope_coordinates,
    split_at_tags,
    user_content,
)
from prunesid_cli.models.shared.shared_prefix import (
    CACHE_ARGUMENT,
    PrefixCache,
    batch_prefix_caches,
    caches_every_token,
    empty,
    split_prefix_caches,
)
from prunesid_cli.runtime.device import to_device
from prunesid_cli.types import CLS_NOT_READ, Answer, Generation, Layout, Prompt, TokenSet


class BaseLanguageHalf(ABC):
    """A language model with its projector.

    A family says in `project` how kept tokens become embeddings, and in `model_inputs` and `generation_context` what its model is given
    besides those.
    """

    newline_embedding: Tensor | None = None
    """The embedding of structural slots [D], where a family has some."""

    is_causal = True
    """Whether what a prompt begins with is read alike whatever follows."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.placeholder_ids = placeholder_ids(model.config)
        self.placeholder_texts = {clip: placeholder_text(processor, clip) for clip in (False, True)}
        self.can_share_prefix = self.is_causal and caches_every_token(model.config)

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Kept tokens [T, C] -> embeddings [T, D]; [T, D * (1 + K)] where more is added after each of K layers."""

    def model_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What `generate` is given for a left-padded batch."""
        embeds, mask = left_pad([prompt.embeds for prompt in prompts])
        given: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": mask}
        positions = [prompt.positions for prompt in prompts if prompt.positions is not None]
        if positions:
            # transformers wants the plain positions, which tell where padding ends, before those of M-RoPE.
            project_query_key = (mask.cumsum(-1) - 1).clamp(min=0)
            padded = left_pad([one.mT for one in positions])[0].permute(2, 0, 1)
            given["position_ids"] = torch.cat([project_query_key[None], padded])
        return given

    def generation_context(self, prompts: Sequence[Prompt]) -> AbstractContextManager[None]:
        """What holds while a batch is generated."""
        return nullcontext()

    def check_prompt(self, prompt: str, num_items: int) -> None:
        """See `LanguageHalf`."""
        split_at_tags(prompt, num_items)
        words = self.tokenizer.convert_ids_to_tokens(sorted(self.placeholder_ids))
        text = MEDIA_TAG.sub("", prompt)
        found = next((word for word in (*self.placeholder_texts.values(), *words) if word and word in text), None)
        if found:
            raise UsageError(f"the prompt contains {found}, which stands for an image", hint="leave it out")
        if not text.strip():
            raise UsageError("the prompt asks nothing", hint='ask something: "what is shown?"')

    @torch.no_grad()
    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """See `LanguageHalf`."""
        self.check_prompt(prompt, len(items))
        pieces = list(self._pieces(prompt, items))
        width = self.model.get_input_embeddings().embedding_dim
        starts = torch.tensor([0, *(piece.advance for piece in pieces[:-1])]).cumsum(0).tolist()
        visual = torch.cat([piece.embeds for piece in pieces if piece.visual])
        added = visual[:, width:].unflatten(-1, (-1, width)).movedim(1, 0) if visual.shape[-1] > width else None
        under_mrope = any(item.layout.mrope_deltas for item in items)
        return Prompt(
            embeds=torch.cat([piece.embeds[:, :width] for piece in pieces]),
            visual=torch.cat([torch.full((len(piece.embeds),), piece.visual) for piece in pieces]),
            positions=to_device(
                torch.cat([s + piece.where for s, piece in zip(starts, pieces, strict=True)], 1), visual.device
            )
            if under_mrope
            else None,
            deepstack=added,
        )

    def _pieces(self, prompt: str, items: Sequence[TokenSet]) -> Iterator[PromptPiece]:
        ids = self.tokenize(prompt, [item.layout for item in items])
        is_spot = torch.isin(ids, torch.tensor(sorted(self.placeholder_ids)))
        spots = is_spot.nonzero().flatten().tolist()
        runs = [piece for item in items for piece in self._runs(item)]
        if len(spots) != len(runs):
            raise ModelError("the chat template does not place every image", hint="give one image at a time")
        # Placeholders are not read, and may be none of the vocabulary.
        words = self.model.get_input_embeddings()(to_device(ids.masked_fill(is_spot, 0), self.model.device))
        edges = zip([-1, *spots], [*spots, len(ids)], strict=True)
        for (before, after), run in zip_longest(edges, runs):
            some = words[before + 1 : after]
            yield PromptPiece(some, False, torch.arange(len(some)).expand(3, -1), len(some))
            if run:
                yield run

    def _runs(self, item: TokenSet) -> Iterator[PromptPiece]:
        """The kept tokens of an item, run by run. Those that the stock model does not have come first of all."""
        weights = self.model.get_input_embeddings().weight
        embeds, slots = self.project(to_device(item.tokens, weights.device, weights.dtype)), torch.tensor(item.slots)
        if item.is_unpruned and len(slots) < item.layout.total:
            if self.newline_embedding is None:
                raise ModelError("the item has structural tokens, which this model does not know", "compress it again")
            known, embeds = embeds, self.newline_embedding.to(embeds).repeat(item.layout.total, 1)
            embeds[slots], slots = known, torch.arange(item.layout.total)
        where, start = mrope_coordinates(item.layout), 0
        for number, length in enumerate(item.layout.runs):
            inside = (slots >= start) & (slots < start + length)
            inside |= (slots == CLS_NOT_READ) & (start == 0)
            rows = inside.nonzero().flatten()
            advance = item.layout.mrope_deltas[number] if item.layout.mrope_deltas else len(rows)
            yield PromptPiece(embeds[to_device(rows, embeds.device)], True, where[:, slots[rows]], advance)
            start += length

    def tokenize(self, prompt: str, layouts: Sequence[Layout]) -> Tensor:
        """A user's turn about some items -> ids [L], with one placeholder for each run of each item."""
        said = user_content(prompt, [layout.is_clip for layout in layouts])
        text = self.render_chat([{"role": "user", "content": said}])
        texts = iter([layout.text for layout in layouts])
        either = "|".join(re.escape(one) for one in dict.fromkeys(self.placeholder_texts.values()) if one)
        return self.tokenize_text(re.sub(either, lambda found: next(texts, found[0]), text))

    def tokenize_text(self, text: str) -> Tensor:
        """A rendered prompt -> ids [L]."""
        begins = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        ids: Tensor = self.tokenizer(text, add_special_tokens=not begins, return_tensors="pt")["input_ids"][0]
        return ids

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        """A conversation as the checkpoint's chat template writes it, up to where the model goes on."""
        try:
            text: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except ValueError as error:
            hint = "use an instruction-tuned model"
            raise ModelError(f"the model has no chat template: {error}", hint) from error
        return text

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], generation: Generation, prefix_caches: Sequence[PrefixCache] = ()
    ) -> list[Answer]:
        """See `LanguageHalf`; sampling has a seed of its own."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(generation.seed)
            said = self._run(prompts, prefix_caches, **self.decoding_options(generation))
        return [self._answer(prompt, ids) for prompt, ids in zip(prompts, said.tolist(), strict=True)]

    def decoding_options(self, generation: Generation) -> dict[str, Any]:
        """What the stock `generate` is told of how to decode."""
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        given: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens}
        given |= {"do_sample": True, "temperature": generation.temperature} if generation.temperature > 0 else greedy
        if generation.on_text:
            given["streamer"] = _Stream(self.tokenizer, generation.on_text)
        if generation.force_full_length:
            given["min_new_tokens"] = generation.max_new_tokens
        if generation.on_token:
            given["stopping_criteria"] = StoppingCriteriaList([_Told(generation.on_token)])
        return given

    @torch.no_grad()
    def read_prefixes(self, prompts: Sequence[Prompt]) -> list[PrefixCache]:
        """See `LanguageHalf`."""
        cache = empty()
        self._run(prompts, (), max_new_tokens=1, do_sample=False, **{CACHE_ARGUMENT: cache})
        return split_prefix_caches(cache, [len(prompt.embeds) for prompt in prompts])

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], prefix_caches: Sequence[PrefixCache] = ()) -> Tensor:
        """Prompts -> scores of the first token of each answer [B, vocabulary], fp32."""
        wanted = {"output_logits": True, "return_dict_in_generate": True}
        first: Tensor = self._run(prompts, prefix_caches, max_new_tokens=1, do_sample=False, **wanted).logits[0].float()
        return first

    def _run(self, prompts: Sequence[Prompt], prefix_caches: Sequence[PrefixCache], **generation: Any) -> Any:
        """What the stock `generate` makes of prompts, left-padded to one batch, given what was read of them before."""
        past = (
            {CACHE_ARGUMENT: batch_prefix_caches(prefix_caches, [len(one.embeds) for one in prompts])}
            if prefix_caches
            else {}
        )
        with self.generation_context(prompts):
            return self.model.generate(
                **self.model_inputs(prompts), pad_token_id=self.pad_token_id(), **past, **generation
            )

    def pad_token_id(self) -> int:
        """The id that rows of a batch are filled up with."""
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if value is not None:
                return int(value)
        return 0

    def _answer(self, prompt: Prompt, ids: list[int]) -> Answer:
        stops = self.model.generation_config.eos_token_id
        stops = {stops} if isinstance(stops, int) else set(stops or ())
        length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        return Answer(text, len(prompt.embeds), length)


def left_pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B x [L, D] -> [B, max L, D], zeros first, and the mask [B, max L] of what is real."""
    longest = max(len(row) for row in rows)
    padded = [torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows]
    mask = torch.zeros(len(rows), longest, dtype=torch.long, device=rows[0].device)
    for at, row in enumerate(rows):
        mask[at, longest - len(row) :] = 1
    return torch.stack(padded), mask


class _Told(StoppingCriteria):
    """Stops nothing, and tells that it was asked, as it is after each token."""

    def __init__(self, tell: Callable[[], object]) -> None:
        self.tell = tell

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        self.tell()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Stream(TextStreamer):
    """Hands each finished piece of text to a function."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.has_started = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.has_started else text.lstrip()
        self.has_started = self.has_started or bool(text)
        self.write(text)
