"""What every language half does alike: the chat prompt as token ids, left-padded batches, decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from prunesid_cli.errors import ModelError, UsageError
from prunesid_cli.types import Answer, Generation


class Decoder:
    """A model that generates from embeddings, with its processor's chat template, tokenizer and stop conditions."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer

    def chat_ids(self, prompt: str, images: int) -> Tensor:
        """A user's turn about `images` images -> ids [L], one image token an image, as the processor would tokenise."""
        marker = self.processor.image_token
        if marker in prompt:
            raise UsageError(f"the prompt contains {marker}, which stands for an image", hint="leave it out")
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        try:
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except ValueError as error:
            raise ModelError(
                f"the model has no chat template: {error}", hint="use an instruction-tuned model"
            ) from error
        begins = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(text, add_special_tokens=not begins, return_tensors="pt")["input_ids"][0]
        if int((ids == self.processor.image_token_id).sum()) != images:
            raise ModelError("the chat template does not place every image", hint="give one image at a time")
        return ids.to(self.model.device)

    def words(self, ids: Tensor) -> Tensor:
        """ids [L] -> embeddings [L, D]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tensor], how: Generation) -> list[Answer]:
        """Prompts B x [L, D] -> answers, greedy or sampled with a seed of their own."""
        embeds, mask = left_pad(prompts)
        streamer = _Stream(self.tokenizer, how.stream) if how.stream else None
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if how.temperature > 0:
            sampling = {"do_sample": True, "temperature": how.temperature}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(how.seed)
            said = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=how.max_new_tokens,
                pad_token_id=self._padding(),
                streamer=streamer,
                **sampling,
            )
        return [self._answer(prompt, ids) for prompt, ids in zip(prompts, said.tolist(), strict=True)]

    def _padding(self) -> int:
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if value is not None:
                return int(value)
        return 0

    def _answer(self, prompt: Tensor, ids: list[int]) -> Answer:
        stops = self.model.generation_config.eos_token_id
        stops = {stops} if isinstance(stops, int) else set(stops or ())
        length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        return Answer(text, prompt.shape[0], length)


def left_pad(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B x [L, D] -> embeddings [B, max L, D], zeros first, and the mask [B, max L] of what is real."""
    longest = max(len(prompt) for prompt in prompts)
    padded = [torch.nn.functional.pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts]
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=prompts[0].device)
    for row, prompt in enumerate(prompts):
        mask[row, longest - len(prompt) :] = 1
    return torch.stack(padded), mask


class _Stream(TextStreamer):
    """Hands each finished piece of text to a function."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        self.write(text)
