"""Models of vLLM with positions in time, row and column (M-RoPE), for kept tokens in place of images.

vLLM counts these positions from the grid of an image. Of kept tokens no grid is left, so each brings its own place. The
classes are made when vLLM asks for them, as subclasses of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.integrations.vllm.support import MROPE_CLASSES

PREFIX = "PruneSID"
PLACES = "image_places"
"""Field of an image, [N, 4]: time, row and column of each token, and how far the image moves what follows it."""


def register() -> None:
    """Make the models known to vLLM. It calls this in each of its processes (entry points `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    for name in MROPE_CLASSES.values():
        ModelRegistry.register_model(f"{PREFIX}{name}", f"{__name__}:{PREFIX}{name}")


def __getattr__(name: str) -> Any:
    """A model by its name, as `register` told vLLM."""
    if name.removeprefix(PREFIX) not in MROPE_CLASSES.values() or not name.startswith(PREFIX):
        raise AttributeError(name)
    globals()[name] = _make_model(name)
    return globals()[name]


def _make_model(name: str) -> Any:
    """Create the subclass of a model, and of what vLLM needs to read its images."""
    from vllm.model_executor.models.qwen2_vl import _create_qwen2vl_field_factory
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.inputs import MultiModalFieldConfig
    from vllm.multimodal.parse import DictEmbeddingItems

    stock_name = name.removeprefix(PREFIX)
    model_type = next(model_type for model_type, one in MROPE_CLASSES.items() if one == stock_name)
    stock = import_module(f"vllm.model_executor.models.{model_type}")

    def fields(merge: int, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        sizes = inputs.get("image_grid_thw", torch.empty((0, 3))).prod(-1) // merge**2
        # vLLM drops other fields of images whose keys and values it has already.
        places = MultiModalFieldConfig.flat_from_sizes("image", sizes, keep_on_cpu=True)
        return {**_create_qwen2vl_field_factory(merge)(inputs), PLACES: places}

    class Info(getattr(stock, f"{stock_name}ProcessingInfo")):  # type: ignore[misc]
        def get_data_parser(self) -> Any:
            parser, merge = super().get_data_parser(), self.get_hf_config().vision_config.spatial_merge_size
            parser._parse_image_data = partial(
                DictEmbeddingItems,
                modality="image",
                required_fields={"image_embeds", "image_grid_thw", PLACES},
                fields_factory=partial(fields, merge),
            )
            return parser

    class Processor(getattr(stock, f"{stock_name}MultiModalProcessor")):  # type: ignore[misc]
        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
            return fields(self.info.get_hf_config().vision_config.spatial_merge_size, hf_inputs)

    class Model(getattr(stock, f"{stock_name}ForConditionalGeneration")):  # type: ignore[misc]
        def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Any) -> tuple[Tensor, int]:
            parts, start, end = [], 0, 0
            for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
                places, num_words = feature.data[PLACES].data, feature.mm_position.offset - end
                parts += [count_words(num_words, start), places[:, :3].T + start + num_words]
                start += num_words + int(places[0, 3])
                end = feature.mm_position.offset + len(places)
            parts.append(count_words(len(input_tokens) - end, start))
            return torch.cat(parts, 1), start - end

    Model.__name__ = Model.__qualname__ = name
    dummy_inputs = getattr(stock, f"{stock_name}DummyInputsBuilder")
    return MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=dummy_inputs)(Model)


def count_words(count: int, start: int) -> Tensor:
    """Positions of words, [3, count], the same in time, row and column."""
    return torch.arange(start, start + count).expand(3, -1)
