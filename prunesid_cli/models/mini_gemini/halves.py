"""Mini-Gemini (MGM). transformers has no class for it; `model` is our port.

Checkpoints: YanweiLi/MGM-2B to -34B and the -HD ones, under their original names, with Llama, Gemma or Mixtral.
Vision tower: CLIP-L/336 (layer -2) and a ConvNeXt that sees the same square at 768 or 1536 pixels. Each CLIP patch gets
    what the large image shows in its place (`model.PatchInfoMining`).
Cut: before `mm_projector`, where a token is as wide as CLIP.
Layout: 576 patches of the square in raster order. HD checkpoints (`image_grid` 2 with `image_global`) read the whole
    square and then 2 x 2 tiles of it, 2880 patches; each of the five views is a segment.
Saliency: attention of CLIP's CLS in the layer that is read. CLS itself is no token here: it shows no part of the image,
    so there is nothing to mine for it, and the projector was trained on patches alone.

Verified on tiny random weights under the original names (real weights were not available): all laws, against a plain
reference in the tests; ConvNeXt against timm's, name by name. Not verified: any real checkpoint. Known differences: the
original keeps its prompts in code and picks one by the folder's name; here the checkpoint's own chat template comes
first, and Vicuna's prompt is only used where there is none (7B, 13B). The original's prompts for 8B (Llama 3) and 34B
(Yi) differ from those models' own templates: put them into `chat_template.jinja` to have them. transformers takes the
tanh form of GELU for Gemma, whatever config.json says. Settings about repetition see the prompt, as in transformers;
the original passes embeddings alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from prunesid_cli.errors import ModelError, UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import REINSTALL_HINT, Checkpoint, first_line
from prunesid_cli.models.loading.weights import load_config, load_model_half
from prunesid_cli.models.mini_gemini.model import (
    CONVNEXT_STRIDE,
    LANGUAGE_MODELS,
    build_projector,
    resize_bilinear,
    split_views,
)
from prunesid_cli.models.mini_gemini.stored_names import PROJECTOR
from prunesid_cli.models.mini_gemini.weights import find_checkpoint_weights, find_tower, load_mgm_vision_model
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.registered_attention import record_attention
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.token_grid import square_box
from prunesid_cli.types import Box, Encoded, Layout, Pixels, Placement, Region, Segment

IMAGE_TEXT = "<image>"
"""Placeholder of an image in a prompt."""
VICUNA_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. {% for message in messages %}{{ message['role'] | upper }}: "
    "{{ message['content'] }}{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Chat template of Vicuna, whose tokenizer has none."""


class MGM:
    """Family of model_type `mgm`, `mgm_gemma`, `mgm_mixtral`, and the same with the older name `mini_gemini`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse random weights, towers other than CLIP and ConvNeXt, and prompts with CLS or image delimiters."""
        if checkpoint.has_random_weights:
            raise UnsupportedModel("Mini-Gemini cannot be made with random weights", "name a model of another kind")
        config = load_config(checkpoint)
        clip, convnext = (str(getattr(config, name, None)) for name in ("mm_vision_tower", "mm_vision_tower_aux"))
        feature = getattr(config, "mm_vision_select_feature", "patch")
        has_delimiters = getattr(config, "mm_use_im_start_end", False)
        is_clip = any(word in clip.lower() for word in ("clip-vit", "openai", "sharegpt4v"))
        # The norms of the xxlarge ConvNeXt have another epsilon.
        is_convnext = "convnext" in convnext.lower() and "xxlarge" not in convnext.lower()
        requirements = (
            (is_clip, f"has the vision tower {clip}", "a CLIP ViT"),
            (is_convnext, f"has the second vision tower {convnext}", "the base or large ConvNeXt of OpenCLIP"),
            (feature == "patch", f"has mm_vision_select_feature {feature!r}", "'patch'"),
            (has_delimiters is False, f"has mm_use_im_start_end {has_delimiters!r}", "False"),
        )
        check_requirements(checkpoint, "Mini-Gemini", requirements)
        build_projector(config.mm_projector_type, 1, 1)  # raises for an unknown type

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> MGMVision:
        return MGMVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> MGMLanguage:
        return MGMLanguage(checkpoint, placement)


class MGMVision:
    """Vision half: a square image -> CLIP patches with details from ConvNeXt, C wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        self.config = load_config(checkpoint)
        self.placement = placement
        location = find_tower(checkpoint, self.config.mm_vision_tower)
        try:
            clip = CLIPVisionConfig.from_pretrained(location)
            image_processor = CLIPImageProcessorPil.from_pretrained(location)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read the settings of {location}: {first_line(error)}", REINSTALL_HINT) from error
        self.grid = getattr(self.config, "image_grid", None) or 1
        self.has_global_view = self.grid > 1 and bool(getattr(self.config, "image_global", False))
        self.view_pixels = clip.image_size
        self.view_patches = clip.image_size // clip.patch_size
        self.fixed_short_side: int = self.config.image_size_aux
        multiple = CONVNEXT_STRIDE * self.grid * self.view_patches
        if self.config.image_size_aux % multiple:
            raise UnsupportedModel(
                f"{checkpoint.name} has image_size_aux {self.config.image_size_aux}",
                hint=f"supported: multiples of {multiple}, so that patches are whole",
            )
        side = self.config.image_size_aux
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        self.preprocessor = FramePreprocessor(image_processor, **size)
        self.model = load_mgm_vision_model(checkpoint, self.config, clip, placement)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> the large square alone [1, 3, H, W]. `encode` makes the small views of it."""
        image, is_padded = media.image.convert("RGB"), self.config.image_aspect_ratio == "pad"
        if is_padded:
            side, means = max(image.size), self.preprocessor.image_processor.image_mean
            canvas = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in means))
            canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = canvas
        layout = self._layout(square_box(media.image.size, is_padded))
        return Pixels({"pixel_values": self.preprocessor([image])}, layout, self.preprocessor.scale)

    def pad_to_square(self) -> None:
        """See `VisionHalf`."""
        self.config.image_aspect_ratio = "pad"

    def _layout(self, box: Box) -> Layout:
        """Layout of a square that shows `box` of its image: the global view, if there is one, then the tiles."""
        boxes = [box] if self.has_global_view else []
        left, top, width, height = box[0], box[1], (box[2] - box[0]) / self.grid, (box[3] - box[1]) / self.grid
        for row in range(self.grid):
            for column in range(self.grid):
                right, bottom = left + (column + 1) * width, top + (row + 1) * height
                boxes.append((left + column * width, top + row * height, right, bottom))
        side = self.view_patches
        regions = tuple(Region(number * side**2, side, side, side, shown) for number, shown in enumerate(boxes))
        return Layout(IMAGE_TEXT, (side**2 * len(boxes),), regions)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images -> a segment for each view."""
        images = upload_pixels(items, self.placement, torch.float32)
        side = self.view_pixels * self.grid
        views = split_views(resize_bilinear(images, (side, side)), self.grid, self.has_global_view)  # [B, K, 3, H, W]
        with record_attention([self.model.clip.encoder.layers[-1].self_attn]) as calls:
            states = self.model.vision_tower(views.flatten(0, 1).to(self.placement.dtype)).last_hidden_state
        patches = states.unflatten(0, views.shape[:2])[:, :, 1:]
        saliency = calls[0].of_first()[:, 1:].unflatten(0, views.shape[:2])
        encoded = []
        for number, item in enumerate(items):
            # One image at a time: the maps are far larger than the image.
            maps = self.model.vision_tower_aux(images[number : number + 1].to(self.placement.dtype))
            features = self.model.mining(patches[number], split_views(maps, self.grid, self.has_global_view)[0])
            segments = tuple(
                Segment(features[view], saliency[number, view], slots=tuple(region.slots))
                for view, region in enumerate(item.layout.regions)
            )
            encoded.append(Encoded(segments, item.layout))
        return encoded


@dataclass(frozen=True)
class TextProcessor:
    """The part of a transformers processor that a language half needs: the tokenizer and its chat template."""

    tokenizer: Any
    image_token: str = IMAGE_TEXT

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str:
        """Render a conversation. Templates of language models take text alone: an image is its placeholder and a line
        break."""
        turns = []
        for turn in conversation:
            content = turn["content"]
            if not isinstance(content, str):
                content = "".join(part.get("text", f"{IMAGE_TEXT}\n") for part in content)
            turns.append({**turn, "content": content})
        text: str = self.tokenizer.apply_chat_template(turns, **options)
        return text


def load_text_processor(checkpoint: Checkpoint) -> TextProcessor:
    """Load the tokenizer, with Vicuna's chat template if it is a Llama without one.

    Raises:
        ModelError: Its files cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.location, revision=checkpoint.commit, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"cannot load the tokenizer of {checkpoint.name}: {first_line(error)}", REINSTALL_HINT
        ) from error
    config_class, _ = LANGUAGE_MODELS[checkpoint.model_type]
    if not tokenizer.chat_template and config_class is LlamaConfig:
        tokenizer.chat_template = VICUNA_TEMPLATE
    return TextProcessor(tokenizer)


class MGMLanguage(BaseLanguageHalf):
    """Language half: projector, then Llama, Gemma or Mixtral."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config_class, model_class = LANGUAGE_MODELS[checkpoint.model_type]
        text_config = config_class.from_dict(config.to_dict() | {"model_type": config_class.model_type})
        text_config.image_token_index = config.vocab_size  # outside the vocabulary: images have no token of their own
        model = load_model_half(model_class, checkpoint, text_config, placement)
        super().__init__(model, load_text_processor(checkpoint))
        with torch.device("meta"):
            self.projector = build_projector(config.mm_projector_type, config.mm_hidden_size, config.hidden_size)
        find_checkpoint_weights(checkpoint, PROJECTOR).load_into(self.projector, placement)
        # Gemma scales its embeddings. When Mini-Gemini was trained, that was done after images had been put in.
        self.scale = getattr(self.model.get_input_embeddings(), "scalar_embed_scale", 1.0)

    def project(self, tokens: Tensor) -> Tensor:
        """[T, C] -> [T, D]."""
        embeds: Tensor = self.projector(tokens) * self.scale
        return embeds

    def tokenize_text(self, text: str) -> Tensor:
        """Tokenize the text before, between and after images separately, as in training."""
        first, *others = text.split(IMAGE_TEXT)
        ids = super().tokenize_text(first).tolist()
        for other in others:
            ids += [*self.placeholder_ids, *self.control_tokens.encode(other)]
        return torch.tensor(ids)
