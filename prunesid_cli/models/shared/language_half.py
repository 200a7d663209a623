"""What all language halves share: building prompts, batching and decoding.

A prompt is built as if no token had been pruned; then the pruned slots are left out, and the positions of the others
are kept. The stock model is given token ids with a placeholder for each kept token, and in place of pixels what its own
vision side would have made of them (`mm_encoder_outputs`). So it does the rest itself: it puts the features in their
places, masks, and penalises repeated ids. Processor, chat template, special tokens and stop conditions are the
checkpoint's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from packaging import version
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from prunesid_cli.errors import ModelError, UsageError, misfit_error
from prunesid_cli.models.shared.choices import score_choices
from prunesid_cli.models.shared.control_tokens import ControlTokens
from prunesid_cli.models.shared.generation import generate_options, left_pad
from prunesid_cli.models.shared.processor import item_tokens, modality_ids, placeholder_ids, placeholder_text
from prunesid_cli.models.shared.prompt_pieces import (
    MEDIA_TAG,
    VisualRun,
    mrope_coordinates,
    split_at_tags,
    user_content,
)
from prunesid_cli.models.shared.schema import is_complete
from prunesid_cli.models.shared.shared_prefix import (
    CACHE_ARGUMENT,
    PrefixCache,
    batch_prefix_caches,
    caches_every_token,
    split_prefix_caches,
)
from prunesid_cli.runtime.device import to_device
from prunesid_cli.runtime.out_of_memory import free_memory, is_out_of_memory
from prunesid_cli.text import is_encodable
from prunesid_cli.types import CLS_NOT_READ, Answer, Generation, Layout, Prompt, TokenSet

CONTINUES_IMAGES = version.parse(transformers.__version__) >= version.parse("5.23")
"""Whether transformers still attends in both directions within an image when some of its tokens are cached already."""
CACHE_SHARE = 0.5
"""Share of the free memory that keys and values of a batch may take."""
TYPE_ARGUMENTS = ("token_type_ids", "mm_token_type_ids")
"""Arguments of stock models that say what each token is: 0 for text, 1 for images, 2 for clips."""


class BaseLanguageHalf:
    """A language model with its projector; implements `LanguageHalf`.

    A family implements `project`, or leaves it out if its cut is where the language model reads tokens. It overrides
    `model_inputs` if its model needs other arguments, and `render_chat` and `tokenize_text` if it writes prompts in a
    way of its own.

    Attributes:
        model: The stock model, without its vision tower.
        processor: The checkpoint's processor.
        tokenizer: The processor's tokenizer.
        placeholder_ids: See `LanguageHalf`.
        placeholder_texts: The placeholder of an image (False) and of a clip (True) in a rendered prompt; None if none.
        uses_mrope: Whether visual tokens have positions in time, row and column.
        checked_channels: Widths of tokens that `project` is known to take.
        placeholders: All texts that stand for visual tokens, before or after the processor has expanded a prompt.
        control_tokens: The control tokens, and how text is encoded.
        item_pattern: The control tokens that the text of an image or clip may contain.
        can_share_prefix: See `LanguageHalf`.
        allow_special_tokens, system: See `LanguageHalf`.
        item_tokens: Patterns of further control tokens that the processor writes for an image or clip.
        newline_embedding: The embedding of structural slots [D]; None if the family has none.
        is_causal: Whether the start of a prompt is read in the same way whatever follows it.
        joins_images: Whether tokens of an image attend to each other in both directions.
        num_deepstack: Number of layers after which something is added to visual tokens.
        list_modalities: The modalities whose features the stock model takes as a list of tensors. It takes those of the
            others as one tensor.
        modalities: The name of the stock model for visual tokens -> their placeholder: "image", and mostly "video".
    """

    newline_embedding: Tensor | None = None
    is_causal = True
    joins_images = False
    num_deepstack = 0
    list_modalities: tuple[str, ...] = ("image", "video")
    allow_special_tokens = False
    system = ""
    item_tokens: tuple[str, ...] = ()

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.placeholder_ids = placeholder_ids(model.config)
        self.modalities = modality_ids(model.config)
        self.arguments = signature(model.forward).parameters
        self.placeholder_texts = {is_clip: placeholder_text(processor, is_clip) for is_clip in (False, True)}
        self.uses_mrope = hasattr(model.base_model, "get_rope_index")
        self.checked_channels = set[int]()
        placeholders = self.tokenizer.convert_ids_to_tokens(sorted(self.placeholder_ids))
        self.placeholders = {text for text in (*self.placeholder_texts.values(), *placeholders) if text}
        chat_template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        texts = {*self.placeholders, *item_tokens(processor)}
        self.item_pattern = re.compile("|".join([*map(re.escape, texts), *self.item_tokens]))
        self.control_tokens = ControlTokens(self.tokenizer, chat_template, self.item_pattern, self.placeholders)
        self.can_share_prefix = self.is_causal and caches_every_token(model.config)

    def max_batch_tokens(self) -> int | None:
        """See `LanguageHalf`."""
        free, text = free_memory(self.model.device), self.model.config.get_text_config()
        if free is None:
            return None
        numbers_per_token = 0
        # Layers of Gemma 4 differ in their heads.
        is_mixed = getattr(text, "is_heterogeneous", False)
        for layer in text.per_layer_config if is_mixed else [text] * text.num_hidden_layers:
            heads = getattr(layer, "num_key_value_heads", None) or getattr(layer, "num_attention_heads", None)
            if heads is None:
                return None
            head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
            numbers_per_token += heads * head_dim
        return int(CACHE_SHARE * free) // max(2 * numbers_per_token * self.model.dtype.itemsize, 1)

    def project(self, tokens: Tensor) -> Tensor:
        """Turn kept tokens into embeddings of the language model.

        Args:
            tokens: Kept tokens at the cut [T, C].

        Returns:
            Embeddings [T, D], or [T, D * (1 + K)] if something is added to them after each of the first K layers.
        """
        width = self.model.get_input_embeddings().embedding_dim * (1 + self.num_deepstack)
        if tokens.shape[-1] != width:
            raise RuntimeError(f"tokens {tokens.shape[-1]} wide, not {width}")
        return tokens

    def model_inputs(self, prompts: Sequence[Prompt], num_cached: int = 0) -> dict[str, Any]:
        """The arguments of `generate` for a left-padded batch of prompts.

        Args:
            prompts: B prompts.
            num_cached: Number of columns of the batch whose keys and values are given; no features are passed there.
        """
        # Each row is padded with an id of its own, so what penalises the ids of a prompt sees no others.
        fills = [int(prompt.ids[~prompt.visual][0]) for prompt in prompts]
        ids = left_pad([prompt.ids for prompt in prompts], fills)
        mask = left_pad([torch.ones_like(prompt.ids) for prompt in prompts])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        types = sum((ids == token_id) * number for number, token_id in enumerate(self.modalities.values(), 1))
        inputs |= {name: types for name in TYPE_ARGUMENTS if name in self.arguments}
        if ids.max() >= self.model.get_input_embeddings().num_embeddings:
            return self._embedded_inputs(prompts, fills, mask)
        positions = [prompt.positions for prompt in prompts if prompt.positions is not None]
        if positions:
            # transformers expects plain positions, which show where padding ends, before those of M-RoPE.
            plain = (mask.cumsum(-1) - 1).clamp(min=0)
            padded = left_pad([position.mT for position in positions]).permute(2, 0, 1)
            inputs["position_ids"] = torch.cat([plain[None], padded])
        inputs = {name: to_device(tensor, self.model.device) for name, tensor in inputs.items()}
        if outputs := self._encoder_outputs(prompts, ids[:, num_cached:]):
            inputs["mm_encoder_outputs"] = outputs
        return inputs

    def _embedded_inputs(self, prompts: Sequence[Prompt], fills: Sequence[int], mask: Tensor) -> dict[str, Any]:
        """`model_inputs` for models whose vocabulary has no placeholder: they are given embeddings.

        The ids are for settings such as `repetition_penalty`; another id of the prompt stands in for placeholders.
        """
        words = self.model.get_input_embeddings()
        device = words.weight.device
        ids = [prompt.ids.masked_fill(prompt.visual, fill) for prompt, fill in zip(prompts, fills, strict=True)]
        embeds = [words(to_device(row, device)) for row in ids]
        for prompt, row in zip(prompts, embeds, strict=True):
            row[to_device(prompt.visual, device)] = prompt.features
        inputs = {"input_ids": left_pad(ids, fills), "attention_mask": mask, "inputs_embeds": left_pad(embeds)}
        return {name: to_device(tensor, device) for name, tensor in inputs.items()}

    def _encoder_outputs(self, prompts: Sequence[Prompt], ids: Tensor) -> dict[str, Any]:
        """Features of visual tokens, as the stock model's vision side gives them.

        Args:
            prompts: B prompts.
            ids: The last columns of the batch of their ids [B, L].
        """
        outputs = {}
        for modality, token_id in self.modalities.items():
            rows = []
            for prompt, row in zip(prompts, ids, strict=True):
                is_modality = prompt.ids[prompt.visual] == token_id
                features = prompt.features[to_device(is_modality, prompt.features.device)]
                rows.append(features[len(features) - int((row == token_id).sum()) :])
            rows = [features for features in rows if len(features)]
            if rows:
                outputs[modality] = self.encoder_output(rows, modality)
        return outputs

    def encoder_output(self, rows: Sequence[Tensor], modality: str) -> BaseModelOutputWithPooling:
        """What the stock model's vision side returns for images or clips.

        Args:
            rows: For each prompt its features, [V, D] or [V, D * (1 + K)].
            modality: "image" or "video".
        """
        width = self.model.get_input_embeddings().embedding_dim
        first, *deepstack = zip(*(features.split(width, -1) for features in rows), strict=True)
        # [V, 1, D]: each token is an image of its own. So the numbers of tokens may differ where images are counted by
        # the first axis: in one tensor, and for beams, for which transformers repeats the images of each prompt.
        features = [layer[:, None] for layer in first]
        is_list = modality in self.list_modalities
        output = BaseModelOutputWithPooling(pooler_output=features if is_list else torch.cat(features))
        if deepstack:
            output["deepstack_features"] = [list(layer) for layer in deepstack]
        return output

    def check_prompt(self, prompt: str, num_items: int) -> None:
        """See `LanguageHalf.check_prompt`."""
        if not is_encodable(prompt):
            raise UsageError("the prompt is not UTF-8 text", "type it again")
        split_at_tags(prompt, num_items)
        text = MEDIA_TAG.sub("", prompt)
        for placeholder in sorted(self.placeholders) if self.allow_special_tokens else ():
            if placeholder in text:
                raise UsageError(f"the prompt contains {placeholder}, which stands for an image", hint="leave it out")
        if not text.strip():
            raise UsageError("the prompt asks nothing", hint='ask something: "what is shown?"')

    @torch.no_grad()
    def check_item(self, item: TokenSet) -> None:
        """See `LanguageHalf.check_item`."""
        channels, weights = item.tokens.shape[1], self.model.get_input_embeddings().weight
        is_right = bool(item.layout.mrope_deltas) == self.uses_mrope
        if is_right and channels not in self.checked_channels:
            try:
                self.project(weights.new_zeros(1, channels))
                self.checked_channels.add(channels)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                is_right = False  # matrices that do not fit
        if not is_right:
            raise misfit_error()

    @torch.no_grad()
    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """See `LanguageHalf.embed`."""
        self.check_prompt(prompt, len(items))
        ids = self.tokenize(prompt, [item.layout for item in items])
        is_placeholder = torch.isin(ids, torch.tensor(sorted(self.placeholder_ids)))
        runs = [run for item in items for run in self._visual_runs(item)]
        if int(is_placeholder.sum()) != len(runs):
            raise ModelError("the chat template does not place every image", hint="give one image at a time")
        repeats, advances = torch.ones_like(ids), torch.ones_like(ids)
        repeats[is_placeholder] = torch.tensor([len(run.features) for run in runs])
        advances[is_placeholder] = torch.tensor([run.advance for run in runs])
        visual = is_placeholder.repeat_interleave(repeats)
        positions = None
        if any(item.layout.mrope_deltas for item in items):
            positions = (advances.cumsum(0) - advances).repeat_interleave(repeats).repeat(3, 1)
            positions[:, visual] += torch.cat([run.coordinates for run in runs], 1)
        return Prompt(
            ids=ids.repeat_interleave(repeats),
            visual=visual,
            features=torch.cat([run.features for run in runs]),
            positions=positions,
        )

    def tokenize(self, prompt: str, layouts: Sequence[Layout]) -> Tensor:
        """See `LanguageHalf.tokenize`."""
        item_texts = iter([self.control_tokens.disguise(layout.text, self.item_pattern) for layout in layouts])
        prompt = prompt if self.allow_special_tokens else self.control_tokens.disguise(prompt, MEDIA_TAG)
        content = user_content(prompt, [layout.is_clip for layout in layouts])
        rendered = self.render_chat([*self.system_turn(), {"role": "user", "content": content}])
        placeholders = "|".join(re.escape(text) for text in dict.fromkeys(self.placeholder_texts.values()) if text)
        return self.tokenize_text(re.sub(placeholders, lambda match: next(item_texts, match[0]), rendered))

    def tokenize_text(self, text: str) -> Tensor:
        """The token ids [L] of a rendered prompt. BOS is added unless the text starts with it."""
        has_bos = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        return torch.tensor(self.control_tokens.encode(text, add_special_tokens=not has_bos), dtype=torch.long)

    def system_turn(self) -> list[dict[str, Any]]:
        """The turn of a conversation with the system prompt, if there is one.

        Raises:
            UsageError: The chat template leaves it out.
        """
        if not self.system:
            return []
        text = self.control_tokens.disguise(self.system)
        question = {"role": "user", "content": user_content("?", [])}
        # Some templates take one text, and others parts, as of a prompt with images.
        for content in (text, [{"type": "text", "text": text}]):
            turn = {"role": "system", "content": content}
            with suppress(ModelError):
                if text.strip() in self.render_chat([turn, question]):
                    return [turn]
        problem = "the chat template of this model has no place for a system prompt"
        raise UsageError(problem, "leave out --system, and say it in the prompt")

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        """Apply the checkpoint's chat template, up to the start of the model's turn.

        Args:
            conversation: Turns with "role" and "content", as chat templates take them.

        Raises:
            ModelError: There is no chat template.
        """
        try:
            text: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except ValueError as error:
            hint = "use an instruction-tuned model"
            raise ModelError(f"the model has no chat template: {error}", hint) from error
        except TemplateError as error:  # also of what a template may not do
            raise ModelError(f"the chat template of the model fails: {error}", "download the model again") from error
        return text

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], generation: Generation, prefix_caches: Sequence[PrefixCache] = ()
    ) -> list[Answer]:
        """See `LanguageHalf.generate`. Sampling does not change torch's global random state."""
        if generation.choices:
            return score_choices(self, prompts, generation.choices, prefix_caches)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(generation.seed)
            output = self.run_generate(
                prompts, prefix_caches, **generate_options(generation, self.tokenizer, self.stop_ids)
            )
        new_ids = output[:, max(len(prompt.ids) for prompt in prompts) :].tolist()
        answers = []
        for prompt, ids in zip(prompts, new_ids, strict=True):
            length = next((number for number, token in enumerate(ids) if token in self.stop_ids), len(ids))
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
            is_json = bool(generation.schema) and is_complete(text)
            answers.append(Answer(text=text, prompt_tokens=len(prompt.ids), new_tokens=length, is_json=is_json))
        return answers

    @torch.no_grad()
    def read_prefixes(self, prompts: Sequence[Prompt]) -> list[PrefixCache]:
        """See `LanguageHalf.read_prefixes`."""
        # Without a configuration, layers with a sliding window keep all tokens, which another row may need.
        cache = DynamicCache()
        self.run_generate(prompts, (), max_new_tokens=1, do_sample=False, **{CACHE_ARGUMENT: cache})
        return split_prefix_caches(cache, [len(prompt.ids) for prompt in prompts])

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], prefix_caches: Sequence[PrefixCache] = ()) -> Tensor:
        """See `LanguageHalf.logits`."""
        options = {"output_logits": True, "return_dict_in_generate": True}
        output = self.run_generate(prompts, prefix_caches, max_new_tokens=1, do_sample=False, **options)
        first: Tensor = output.logits[0].float()
        return first

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer."""
        stop_ids = self.model.generation_config.eos_token_id
        return [stop_ids] if isinstance(stop_ids, int) else list(stop_ids or ())

    def pad_token_id(self) -> int:
        """The id for positions of a batch that have no token."""
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)
        return 0

    def run_generate(self, prompts: Sequence[Prompt], prefix_caches: Sequence[PrefixCache], **options: Any) -> Any:
        """Run the stock `generate` on a left-padded batch of prompts, given the caches of their prefixes, if any."""
        num_cached = 0
        if prefix_caches:
            cache = batch_prefix_caches(prefix_caches, [len(prompt.ids) for prompt in prompts])
            width = max(len(prompt.ids) for prompt in prompts)
            ends = [width - len(prompt.ids) + int(prompt.visual.nonzero()[-1]) for prompt in prompts]
            if CONTINUES_IMAGES or not self.joins_images or max(ends) < cache.get_seq_length():
                options[CACHE_ARGUMENT], num_cached = cache, cache.get_seq_length()
        inputs = self.model_inputs(prompts, num_cached)
        if type(self.model).generate is not GenerationMixin.generate:
            options["guidance_scale"] = None  # Janus has a method of its own, for images, which ignores processors
        return GenerationMixin.generate(self.model, **inputs, pad_token_id=self.pad_token_id(), **options)

    def _visual_runs(self, item: TokenSet) -> Iterator[VisualRun]:
        """The kept tokens of an item, run by run. The first run starts with the tokens at CLS_NOT_READ."""
        weights = self.model.get_input_embeddings().weight
        embeds = self.project(to_device(item.tokens, weights.device, weights.dtype))
        slots = torch.tensor(item.slots)
        if item.is_unpruned and len(slots) < item.layout.total:
            if self.newline_embedding is None:
                raise ModelError("the item has structural tokens, which this model does not know", "compress it again")
            tokens, embeds = embeds, self.newline_embedding.to(embeds).repeat(item.layout.total, 1)
            embeds[slots] = tokens
            slots = torch.arange(item.layout.total)
        coordinates, start = mrope_coordinates(item.layout), 0
        for number, length in enumerate(item.layout.runs):
            is_inside = (slots >= start) & (slots < start + length)
            is_inside |= (slots == CLS_NOT_READ) & (start == 0)
            rows = is_inside.nonzero().flatten()
            yield VisualRun(
                features=embeds[to_device(rows, embeds.device)],
                coordinates=coordinates[:, slots[rows]],
                advance=item.layout.mrope_deltas[number] if item.layout.mrope_deltas else len(rows),
            )
            start += length
