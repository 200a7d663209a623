"""Data-parallel training on one machine: one process per core or one for a GPU, averaged gradients, checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from transformers import PreTrainedModel

EAGER_MAX_TOKENS = 220
"""Number of tokens below which eager attention is faster on a CPU."""
SAVE_INTERVAL = 100
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class Worker:
    """One of several equal processes.

    Attributes:
        rank: Number of this process.
        count: Number of processes.
        device: "cpu" or "cuda".
    """

    rank: int
    count: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Return a context with bf16 where that is fast: without AVX-512 it is fifty times slower than fp32."""
        fast = self.device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return torch.autocast(self.device, torch.bfloat16, enabled=fast)

    def choose_attention(self, model: PreTrainedModel, tokens: int) -> None:
        """Choose the faster attention for a number of tokens.

        On one thread of a CPU, the backward pass of fused attention takes 2.3 times as long as the eager one at 72
        tokens, as long at 192, and half as long at 576.
        """
        model.set_attn_implementation("eager" if self.device == "cpu" and tokens < EAGER_MAX_TOKENS else "sdpa")

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their means over all workers."""
        if self.count == 1:
            return
        parent = parent_process()
        if parent and not parent.is_alive():
            raise SystemExit("the process that started the training is gone")
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.count
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def spawn(job: Callable[..., None], count: int, *args: Any) -> None:
    """Run `job(worker, *args)` in `count` processes of one thread each; on a GPU, once in this process."""
    if torch.cuda.is_available():
        job(Worker(0, 1, "cuda"), *args)
    elif count == 1:
        job(Worker(0, 1, "cpu"), *args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_run_worker, (count, f"file://{folder}/workers", job, args), nprocs=count)


def _run_worker(rank: int, count: int, init_method: str, job: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method, timedelta(hours=1), count, rank)
    try:
        job(Worker(rank, count, "cpu"), *args)
    finally:
        dist.destroy_process_group()


def steps_done(path: Path) -> int:
    """Return the number of steps of a `Trainer` checkpoint; 0 if there is none."""
    return int(torch.load(path, weights_only=True, map_location="cpu")["step"]) if path.exists() else 0


class Trainer:
    """AdamW with warm-up, a cosine and gradient clipping. Saves checkpoints, and continues from one.

    Args:
        worker: This process.
        module: What is trained.
        path: File of the checkpoint.
        steps: Number of steps.
        peak: Highest learning rate.
        slow: Part of the module that learns at a tenth of the rate.
    """

    def __init__(
        self, worker: Worker, module: nn.Module, path: Path, steps: int, peak: float, slow: nn.Module | None = None
    ) -> None:
        self.worker, self.module, self.path, self.steps = worker, module.to(worker.device), path, steps
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        slow_ids = {id(parameter) for parameter in slow.parameters()} if slow else set()
        fast = [parameter for parameter in self.parameters if id(parameter) not in slow_ids]
        groups = [
            {"params": [parameter for parameter in fast if parameter.dim() > 1], "weight_decay": 0.05},
            {"params": [parameter for parameter in fast if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
        if slow:
            groups.append({"params": list(slow.parameters()), "weight_decay": 0.0, "lr": peak / 10})
        self.optimiser = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        warmup_steps = min(200, steps // 10 + 1)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(
            self.optimiser,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimiser, 0.02, total_iters=warmup_steps),
                torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(1, steps - warmup_steps), peak / 50),
            ],
            [warmup_steps],
        )
        self.step = 0
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=worker.device)
            self.module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.step = state["step"]

    def update(self, loss: Tensor) -> None:
        """Do one step."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.worker.average(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        if self.step % SAVE_INTERVAL == 0 or self.step == self.steps:
            self.save()

    def save(self) -> None:
        """Replace the checkpoint atomically, so that an interruption leaves the last one intact."""
        if not self.worker.leads:
            return
        state = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        temporary = self.path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.path)
