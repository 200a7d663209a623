"""The embedded model before training: configuration, tokenizer, processor, and a start that already looks around."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .scenes import GRID, PATCH, SIDE

WIDTH, HEADS, LAYERS = 192, 6, 5
POSITION = 32
"""Channels of the residual stream that carry the place of a patch at the start."""
PERIODS = (3, 4, 6, 8, 12, 16, 24, 48)
VOCABULARY = 512
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the questions and answers; text is lowercased, so the case of a prompt is no matter."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        extra_special_tokens=["<image>"],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        **names,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA of 4.6 M parameters, seeded, with the tower started by `start_tower`."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        image_size=SIDE, patch_size=PATCH, projection_dim=WIDTH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=4, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.05,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=SPECIAL.index("<image>"),
        image_seq_length=GRID * GRID, vision_feature_layer=-2, vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.model.multi_modal_projector.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        for layer in model.model.language_model.layers[:2]:  # words look for what looks like them
            layer.self_attn.k_proj.load_state_dict(layer.self_attn.q_proj.state_dict())
    return model


def clip_tower(model: LlavaForConditionalGeneration) -> Any:
    """The module that holds embeddings, pre_layrnorm and encoder, wherever this transformers keeps it."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


@torch.no_grad()
def open_places(heads: Any) -> None:
    """Clear the eight channels of a trained tower that matter least, and let them carry the place of a patch.

    A tower that was never asked where in the picture it looks overwrites the place within one layer (a linear probe
    misses by 3.4 patches after the first, by 5 after the last). Nothing else writes to these channels at first, so that
    the place reaches the projector; `heads.centre` starts as the linear map that reads it.
    """
    tower = heads.tower
    writers = [tower.embeddings.patch_embedding.weight.flatten(1)]
    for layer in tower.encoder.layers[:-1]:
        writers += [layer.self_attn.out_proj.weight, layer.mlp.fc2.weight]
    energy = torch.stack([writer.square().sum(1) for writer in writers]).sum(0)
    channels = energy.argsort()[:8].sort().values
    for writer in writers:
        writer[channels] = 0
    for layer in tower.encoder.layers[:-1]:
        layer.self_attn.out_proj.bias[channels] = 0
        layer.mlp.fc2.bias[channels] = 0
        for reader in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.fc1):
            reader.weight[:, channels] = 0
    patch = torch.arange(GRID * GRID)
    table = tower.embeddings.position_embedding.weight
    table[:, channels] = 0
    table[1:, channels] = 6 * torch.cat([_place_code(patch % GRID), _place_code(patch // GRID)], 1)
    for norm in (tower.pre_layrnorm, heads.norm):
        norm.weight[channels], norm.bias[channels] = 1.0, 0.0
    heads.patch.weight[:, channels] = 0
    bins = heads.centre.out_features // 2
    code = 8 * _place_code((torch.arange(bins) + 0.5) * GRID / bins - 0.5)
    heads.centre.weight.zero_()
    heads.centre.bias.zero_()
    heads.centre.weight[:bins, channels[:4]] = code
    heads.centre.weight[bins:, channels[4:]] = code


def _place_code(coordinate: Tensor) -> Tensor:
    """Coordinates in patches [M] -> [M, 4]: half a turn over the picture, and one and a half."""
    angle = coordinate[:, None] * (2 * math.pi / torch.tensor([48.0, 16.0]))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


@torch.no_grad()
def start_projector(projector: Any, heads: Any, scale: float = 5.8) -> None:
    """Let the first units of an untrained projector read what the tower's training heads read.

    Args:
        heads: with `norm`, and the linear maps `patch` and `centre` behind it.
        scale: standard deviation of the tower's features, which the norm would divide by.
    """
    projector.linear_1.weight /= scale
    start = 0
    for head in (heads.patch, heads.centre):
        stop = start + head.out_features
        projector.linear_1.weight[start:stop] = head.weight * heads.norm.weight / scale
        projector.linear_1.bias[start:stop] = head.bias + head.weight @ heads.norm.bias
        start = stop
    projector.linear_2.weight *= 0.3


@torch.no_grad()
def start_tower(tower: Any, patches: Tensor, generator: torch.Generator) -> None:
    """Give an untrained tower eyes: whitened patch filters, 2-D sine positions, attention that looks at neighbours.

    Args:
        patches: sample patches [M, 3 * 14 * 14], as the processor normalises them.
    """
    content = WIDTH - POSITION
    mean = patches.mean(0)
    scale, basis = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    scale, basis = scale[-content:], basis[:, -content:]
    turn = torch.linalg.qr(torch.randn(content, content, generator=generator))[0]
    filters = turn @ (basis / (scale + 0.02 * scale.mean()).sqrt()).T
    embeddings = tower.embeddings
    kernel = embeddings.patch_embedding.weight
    kernel.zero_()
    kernel[:content] = filters.view(content, *kernel.shape[1:])
    table = embeddings.position_embedding.weight
    table.zero_()
    table[1:, :content] = -(filters @ mean)
    table[1:, content:] = _sines()
    for layer, offsets in zip(tower.encoder.layers, _OFFSETS, strict=False):
        for head, offset in enumerate(offsets):
            _look_at(layer.self_attn, head, offset)


_OFFSETS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2), (-1, 1), (1, -1)),
    ((-3, 0), (3, 0), (0, -3), (0, 3)),
)
"""Patches to the right and down at which each head of the first layers looks at the start."""


def _sines() -> Tensor:
    """[576, 32]: for each axis and period a sine and a cosine."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    turns = torch.stack([axis.flatten()[:, None] * (2 * math.pi / torch.tensor(PERIODS)) for axis in (x, y)], 1)
    return torch.stack([turns.sin(), turns.cos()], -1).flatten(1)


def _look_at(attention: Any, head: int, offset: tuple[int, int]) -> None:
    """Set a head's query to the position code turned by `offset` and its key to the plain code."""
    dim = attention.head_dim
    rows, columns = slice(head * dim, head * dim + POSITION), slice(WIDTH - POSITION, WIDTH)
    turn = torch.zeros(POSITION, POSITION)
    for a, step in enumerate(offset):
        for p, period in enumerate(PERIODS):
            angle = 2 * math.pi * step / period
            at = 2 * (a * len(PERIODS) + p)
            turn[at, at], turn[at, at + 1] = math.cos(angle), math.sin(angle)
            turn[at + 1, at], turn[at + 1, at + 1] = -math.sin(angle), math.cos(angle)
    sharpness = 2.2
    for projection, code in ((attention.q_proj, turn), (attention.k_proj, torch.eye(POSITION))):
        projection.weight[rows] *= 0.3
        projection.weight[rows, columns] = sharpness * code
