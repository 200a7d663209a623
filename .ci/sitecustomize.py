"""Goes into the test environment of vLLM and Ray, where the package index brings a CUDA build of torchvision.

Beside a CPU build of torch, that build cannot be imported, because the two operators that it describes are missing.
Their schemas are defined here before it is imported.
"""

import importlib.util

if importlib.util.find_spec("torch"):
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
