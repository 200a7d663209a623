"""Reference implementation of Mini-Gemini for the laws, written from the equations of the paper.

It computes one image, one patch and one tile after the other, from the checkpoint's tensors by their original names.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from prunesid_cli.models.mini_gemini.model import LANGUAGE_MODELS


class Reference:
    """Towers, mining, projector and language model, eager and in fp32."""

    def __init__(self, folder: Path) -> None:
        self.settings = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        tower = self.settings["mm_vision_tower"]
        vision = CLIPVisionConfig.from_pretrained(tower)
        self.clip = CLIPVisionModel._from_config(vision, attn_implementation="eager").eval()
        inner = getattr(self.clip, "vision_model", self.clip)
        inner.load_state_dict(self.part("model.vision_tower.vision_tower.vision_model."))
        base, kind = LANGUAGE_MODELS[self.settings["model_type"]]
        self.config = base.from_dict(self.settings | {"model_type": base.model_type})
        self.config.image_token_index = self.config.vocab_size + 7  # any number that no word has
        self.lm = kind.from_pretrained(folder, config=self.config, attn_implementation="eager").eval()
        self.model, self.lm_head = SimpleNamespace(language_model=self.lm.model), self.lm.lm_head
        self.processor = Processor(folder, tower, self.settings, self.config.image_token_index, vision)

    def part(self, start: str) -> dict[str, Tensor]:
        return {name.removeprefix(start): tensor for name, tensor in self.weights.items() if name.startswith(start)}

    def norm_and_linear(self, name: str, states: Tensor) -> Tensor:
        """Apply the LayerNorm and the Linear of that name."""
        weights = self.part(f"model.{name}.")
        normed = functional.layer_norm(states, states.shape[-1:], weights["0.weight"], weights["0.bias"])
        return functional.linear(normed, weights["1.weight"], weights["1.bias"])

    def mine_details(self, rows: Tensor, maps: Tensor) -> Tensor:
        """[N, C], [E, H, W] -> [N, C]: row + softmax(q k^T / sqrt C) v over the square of the row alone."""
        side = int(len(rows) ** 0.5)
        size = maps.shape[1] // side
        keys, values = (
            self.norm_and_linear(f"vlm_uni_{name}_projector", maps.movedim(0, -1)) for name in ("aux", "val")
        )
        details = []
        for number, row in enumerate(self.norm_and_linear("vlm_uni_query_projector", rows)):
            down, across = size * (number // side), size * (number % side)
            square = slice(down, down + size), slice(across, across + size)
            weights = (keys[square].flatten(0, 1) @ row / len(row) ** 0.5).softmax(0)
            details.append(weights @ values[square].flatten(0, 1))
        return rows + torch.stack(details)

    def rows(self, large: Tensor) -> Tensor:
        """An image [1, 3, S, S] -> the embeddings that the language model reads [rows, D]."""
        grid = self.settings["image_grid"]
        side = self.clip.config.image_size
        small, maps = scaled(large, side * grid), convnext(self.part("model.vision_tower_aux.vision_"), large)
        pairs = [(scaled(small, side), scaled(maps, maps.shape[-1] // grid))] if grid > 1 else []
        for down in range(grid):
            for across in range(grid):
                pairs.append((tile(small, grid, down, across), tile(maps, grid, down, across)))
        rows = []
        for view, part in pairs:
            states = self.clip(view, output_hidden_states=True).hidden_states[-2]
            rows.append(self.mine_details(states[0, 1:], part[0]))
        weights = self.part("model.mm_projector.")
        hidden = functional.gelu(functional.linear(torch.cat(rows), weights["0.weight"], weights["0.bias"]))
        out = functional.linear(hidden, weights["2.weight"], weights["2.bias"])
        return out * self.config.hidden_size**0.5 if self.config.model_type == "gemma" else out

    def embeds(self, ids: Tensor, pixels: Tensor) -> Tensor:
        is_word = ids != self.config.image_token_index
        embeds = self.lm.get_input_embeddings()(ids * is_word)
        embeds[~is_word] = torch.cat([self.rows(image[None]) for image in pixels])
        return embeds

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Any:
        return self.lm(inputs_embeds=self.embeds(input_ids, pixel_values), attention_mask=attention_mask)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, **generation: Any) -> Tensor:
        embeds, is_word = self.embeds(input_ids, pixel_values), input_ids != self.config.image_token_index
        # The ids are for settings about repetition; images have none.
        words = torch.where(is_word, input_ids, input_ids[is_word][0])
        inputs = {"input_ids": words, "inputs_embeds": embeds, "attention_mask": attention_mask}
        return self.lm.generate(**inputs, **generation)

    def save_pretrained(self, folder: Path, max_shard_size: str) -> None:
        folder.mkdir()
        save_torch_state_dict(dict(self.weights), folder, max_shard_size=max_shard_size)


class Processor:
    """Prompt and images -> ids, with as many placeholders as an image has rows, and pixels."""

    def __init__(self, folder: Path, tower: str, settings: dict[str, Any], image: int, vision: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = CLIPImageProcessorPil.from_pretrained(tower)
        self.is_padded = settings["image_aspect_ratio"] == "pad"
        side, grid = settings["image_size_aux"], settings["image_grid"]
        self.images.size, self.images.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
        views = grid * grid + (grid > 1)
        self.run = [image] * views * (vision.image_size // vision.patch_size) ** 2

    def __call__(self, images: list[list[Image.Image]], text: list[str], **_: Any) -> dict[str, Tensor]:
        (prompt_images,) = images  # of one prompt
        ids: list[int] = []
        for number, piece in enumerate(text[0].split("<image>")):
            piece_ids = self.tokenizer(piece.removeprefix("<s>")).input_ids
            ids += [*self.run, *piece_ids[1:]] if number else piece_ids
        if self.is_padded:
            gray = tuple(int(255 * mean) for mean in self.images.image_mean)
            prompt_images = [expand_to_square(image, gray) for image in prompt_images]
        pixels = self.images(images=prompt_images, return_tensors="pt")["pixel_values"]
        input_ids = torch.tensor([ids])
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}


def expand_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """Pad as the published code does: of an odd margin, the larger half is on the right or at the bottom."""
    width, height = image.size
    square = Image.new("RGB", (max(width, height),) * 2, color)
    square.paste(image, (0, (width - height) // 2) if width > height else ((height - width) // 2, 0))
    return square


def scaled(squares: Tensor, side: int) -> Tensor:
    return functional.interpolate(squares, (side, side), mode="bilinear", align_corners=False)


def tile(squares: Tensor, grid: int, down: int, across: int) -> Tensor:
    size = squares.shape[-1] // grid
    return squares[..., down * size : (down + 1) * size, across * size : (across + 1) * size]


def convnext(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """[1, 3, H, W] -> [1, E, H / 4, W / 4]: the maps of all stages, resized to the first."""

    def conv(name: str, states: Tensor, **options: Any) -> Tensor:
        return functional.conv2d(states, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(name: str, states: Tensor) -> Tensor:
        last = states.movedim(1, -1)
        normed = functional.layer_norm(last, last.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)
        return normed.movedim(-1, 1)

    def linear(name: str, states: Tensor) -> Tensor:
        return functional.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])

    states, maps = norm("stem.1", conv("stem.0", pixels, stride=4)), list[Tensor]()
    for stage in range(4):
        start = f"stages.{stage}"
        if stage:
            states = conv(f"{start}.downsample.1", norm(f"{start}.downsample.0", states), stride=2)
        for block in range(sum(name.startswith(start) and name.endswith("gamma") for name in weights)):
            name = f"{start}.blocks.{block}"
            inner = norm(f"{name}.norm", conv(f"{name}.conv_dw", states, padding=3, groups=states.shape[1]))
            wide = functional.gelu(linear(f"{name}.mlp.fc1", inner.movedim(1, -1)))
            narrow = linear(f"{name}.mlp.fc2", wide) * weights[f"{name}.gamma"]
            states = states + narrow.movedim(-1, 1)
        maps.append(states)
    return torch.cat([scaled(stage_map, maps[0].shape[-1]) for stage_map in maps], 1)


def load_reference(folder: Path) -> Reference:
    return Reference(folder)
