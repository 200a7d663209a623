"""Mini-Gemini (MGM): CLIP and ConvNeXt joined patch by patch, a projector, Llama, Gemma or Mixtral. No class of
transformers; `mgm_model` is our port.

Cut before `mm_projector`: 576 rows of CLIP-L/336 (layer -2), to each of which what the large picture shows there was
added. Saliency is the attention of CLIP's CLS in the layer that is read. CLS itself is no token here: it shows no
patch, so nothing can be found for it, and the projector was trained on joined rows alone. HD checkpoints (`image_grid`
2 with `image_global`) read the whole picture and then 2 x 2 tiles of it, 2880 rows; each of the five is a segment.

Verified, on tiny random weights under the original names (the real ones were not at hand): all laws, against a plain
reference in the tests; ConvNeXt against timm's, name by name. Not verified: any real checkpoint. Known differences:
the original keeps its prompts in code and picks one by the folder's name; here the checkpoint's own chat template
comes first, and Vicuna's prompt only stands in where there is none (7B, 13B). The original's prompts for 8B (Llama 3)
and 34B (Yi) differ from those models' own templates: put them into `chat_template.jinja` to have them. transformers
takes the tanh form of GELU for Gemma, whatever config.json says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig

from prunesid_cli.errors import ModelError, UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import REINSTALL, load_config, load_half, one_line
from prunesid_cli.models.mini_gemini import weights as stored
from prunesid_cli.models.mini_gemini.model import KINDS, STRIDE, projector, resized, views
from prunesid_cli.models.shared.attention_saliency import cls_attention
from prunesid_cli.models.shared.language_half import Language
from prunesid_cli.models.shared.token_grid import Box, square
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Region, Segment

MARKER = "<image>"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. {% for message in messages %}{{ message['role'] | upper }}: "
    "{{ message['content'] }}{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""How Vicuna is prompted. Its tokenizer has no chat template."""
EXPECTED = {"mm_vision_select_feature": "patch", "mm_use_im_start_end": False}


class MGM:
    """model_type `mgm`, `mgm_gemma`, `mgm_mixtral`, and the same with `mini_gemini`."""

    def check(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        if checkpoint.random:
            raise UnsupportedModel("Mini-Gemini cannot be made with random weights", "name a model of another kind")
        clip, convnext = (str(getattr(config, name, None)) for name in ("mm_vision_tower", "mm_vision_tower_aux"))
        if not any(word in clip.lower() for word in ("clip-vit", "openai", "sharegpt4v")):
            raise UnsupportedModel(
                f"{checkpoint.name} has the vision tower {clip}", hint="Mini-Gemini is supported with a CLIP ViT"
            )
        if "convnext" not in convnext.lower() or "xxlarge" in convnext.lower():  # its norms have another epsilon
            raise UnsupportedModel(
                f"{checkpoint.name} has the second vision tower {convnext}",
                hint="Mini-Gemini is supported with the base or large ConvNeXt of OpenCLIP",
            )
        for name, value in EXPECTED.items():
            if getattr(config, name, value) != value:
                raise UnsupportedModel(
                    f"{checkpoint.name} has {name} {getattr(config, name)!r}", hint=f"supported: {value!r}"
                )
        projector(config.mm_projector_type, 1, 1)

    def vision(self, checkpoint: Checkpoint, placement: Placement) -> MGMVision:
        return MGMVision(checkpoint, placement)

    def language(self, checkpoint: Checkpoint, placement: Placement) -> MGMLanguage:
        return MGMLanguage(checkpoint, placement)


class MGMVision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        self.config = load_config(checkpoint)
        self.placement = placement
        location = stored.tower_location(checkpoint, self.config.mm_vision_tower)
        try:
            clip = CLIPVisionConfig.from_pretrained(location)
            self.images = CLIPImageProcessorPil.from_pretrained(location)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read the settings of {location}: {one_line(error)}", REINSTALL) from error
        self.grid = getattr(self.config, "image_grid", None) or 1
        self.has_whole = self.grid > 1 and bool(getattr(self.config, "image_global", False))
        self.side = clip.image_size
        self.shortest: int = self.config.image_size_aux
        self.rows = clip.image_size // clip.patch_size
        if self.config.image_size_aux % (STRIDE * self.grid * self.rows):
            raise UnsupportedModel(
                f"{checkpoint.name} has image_size_aux {self.config.image_size_aux}",
                hint=f"supported: multiples of {STRIDE * self.grid * self.rows}, so that patches are whole",
            )
        self.model = stored.load_towers(checkpoint, self.config, clip, placement)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """The large picture alone: the small ones are made of it."""
        image, is_padded = media.image.convert("RGB"), self.config.image_aspect_ratio == "pad"
        if is_padded:
            image = squared(image, tuple(int(255 * one) for one in self.images.image_mean))
        side = self.config.image_size_aux
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        pixels = self.images(images=[image], return_tensors="pt", **size)["pixel_values"]
        return Pixels({"pixel_values": pixels}, self.layout(square(media.image.size, is_padded)))

    def layout(self, box: Box) -> Layout:
        """Of a picture of which the square shows `box`."""
        boxes = [box] if self.has_whole else []
        boxes += [part(box, row, column, self.grid) for row in range(self.grid) for column in range(self.grid)]
        size = self.rows**2
        regions = tuple(Region(size * i, self.rows, self.rows, self.rows, one) for i, one in enumerate(boxes))
        return Layout(MARKER, (size * len(boxes),), regions)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        large = torch.cat([item.tensors["pixel_values"] for item in items]).to(self.placement.device)
        small = views(resized(large, 2 * [self.side * self.grid]), self.grid, self.has_whole)
        with cls_attention(self.model.clip.encoder.layers[-1].self_attn) as attention:
            states = self.model.vision_tower(small.flatten(0, 1).to(self.placement.dtype)).last_hidden_state
        states, saliency = (one.unflatten(0, small.shape[:2]) for one in (states, attention[0]))
        rows = [self._joined(*pair) for pair in zip(states[:, :, 1:], large, strict=True)]
        return [
            Encoded(tuple(segments(joined, important, item.layout)), item.layout)
            for joined, important, item in zip(rows, saliency, items, strict=True)
        ]

    def _joined(self, rows: Tensor, large: Tensor) -> Tensor:
        """Rows of CLIP [K, N, C] and a picture [3, H, W] -> [K, N, C]. One at a time: the maps are far larger."""
        maps = self.model.vision_tower_aux(large[None].to(self.placement.dtype))
        joined: Tensor = self.model.mining(rows, views(maps, self.grid, self.has_whole)[0])
        return joined


def segments(rows: Tensor, saliency: Tensor, layout: Layout) -> list[Segment]:
    """[K, N, C] and [K, N], a segment a region."""
    parts = zip(rows, saliency, layout.regions, strict=True)
    return [Segment(one, important, slots=tuple(region.slots)) for one, important, region in parts]


def squared(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """A picture in the middle of a square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def part(box: Box, row: int, column: int, grid: int) -> Box:
    """A tile of what is shown."""
    left, top, width, height = box[0], box[1], (box[2] - box[0]) / grid, (box[3] - box[1]) / grid
    return (left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height)


@dataclass(frozen=True)
class Prompts:
    """What a language half needs of a processor: the checkpoint's tokenizer and chat template."""

    tokenizer: Any
    image_token: str = MARKER

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str:
        """Templates of language models take text alone; a picture is a marker and a line break in it."""
        turns = [
            {**turn, "content": "".join(piece.get("text", f"{MARKER}\n") for piece in turn["content"])}
            for turn in conversation
        ]
        text: str = self.tokenizer.apply_chat_template(turns, **options)
        return text


def load_prompts(checkpoint: Checkpoint) -> Prompts:
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.location, revision=checkpoint.commit)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the tokenizer of {checkpoint.name}: {one_line(error)}", REINSTALL) from error
    if not tokenizer.chat_template and KINDS[checkpoint.model_type] == KINDS["mgm"]:
        tokenizer.chat_template = VICUNA
    return Prompts(tokenizer)


class MGMLanguage(Language):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        base, kind = KINDS[checkpoint.model_type]
        plain = base.from_dict(config.to_dict() | {"model_type": base.model_type})
        plain.image_token_index = config.vocab_size  # none of the vocabulary: pictures have no token of their own
        super().__init__(load_half(kind, checkpoint, plain, placement), load_prompts(checkpoint))
        with torch.device("meta"):
            self.projector = projector(config.mm_projector_type, config.mm_hidden_size, config.hidden_size)
        stored.own_part(checkpoint, stored.PROJECTOR).fill(self.projector, placement)
        # Gemma scales its words. When Mini-Gemini was trained that was done after the pictures had been put in.
        self.scale = getattr(self.model.get_input_embeddings(), "scalar_embed_scale", 1.0)

    def project(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = self.projector(tokens) * self.scale
        return embeds

    def ids(self, text: str) -> Tensor:
        """What stands before, between and after pictures is tokenised each for itself, as in training."""
        first, *others = text.split(MARKER)
        found = super().ids(first).tolist()
        for one in others:
            found += [*self.placeholder_ids, *self.tokenizer(one, add_special_tokens=False)["input_ids"]]
        return torch.tensor(found)
