"""Data-parallel training on one machine: a process a core (or one on a GPU), averaged gradients, checkpoints."""

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

FEW = 220


@dataclass(frozen=True)
class Worker:
    """One of `count` equal processes."""

    rank: int
    count: int
    device: str

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """bf16 where it is fast: on a processor without AVX-512 it is fifty times slower than fp32."""
        fast = self.device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return torch.autocast(self.device, torch.bfloat16, enabled=fast)

    def choose_attention(self, model: PreTrainedModel, tokens: int) -> None:
        """Attention over few tokens is faster written out: the backward pass of the fused one, on one thread of a CPU,
        takes 2.3 times as long at 72 tokens, as long at 192, and half as long at 576."""
        model.set_attn_implementation("eager" if self.device == "cpu" and tokens < FEW else "sdpa")

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their mean over all workers."""
        if self.count == 1:
            return
        starter = parent_process()
        if starter and not starter.is_alive():
            raise SystemExit("the process that started the training is gone")
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.count
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def spawn(job: Callable[..., None], count: int, *args: Any) -> None:
    """Run `job(worker, *args)` in `count` processes of one thread each; on a GPU, once, here."""
    if torch.cuda.is_available():
        job(Worker(0, 1, "cuda"), *args)
    elif count == 1:
        job(Worker(0, 1, "cpu"), *args)
    else:
        with tempfile.TemporaryDirectory() as meeting:
            mp.spawn(_enter, (count, f"file://{meeting}/workers", job, args), nprocs=count)


def _enter(rank: int, count: int, meeting: str, job: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, timedelta(hours=1), count, rank)
    try:
        job(Worker(rank, count, "cpu"), *args)
    finally:
        dist.destroy_process_group()


def steps_done(path: Path) -> int:
    """How far a checkpoint of `Trainer` came; 0 where there is none."""
    return int(torch.load(path, weights_only=True, map_location="cpu")["step"]) if path.exists() else 0


class Trainer:
    """AdamW on a cosine with warm-up, clipped; saves and resumes itself.

    `slow` is a part of the module that learns at a tenth of the rate.
    """

    def __init__(
        self, worker: Worker, module: nn.Module, path: Path, steps: int, peak: float, slow: nn.Module | None = None
    ) -> None:
        self.worker, self.module, self.path, self.steps = worker, module.to(worker.device), path, steps
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        held = {id(p) for p in slow.parameters()} if slow else set()
        fast = [p for p in self.parameters if id(p) not in held]
        groups = [
            {"params": [p for p in fast if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in fast if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if slow:
            groups.append({"params": list(slow.parameters()), "weight_decay": 0.0, "lr": peak / 10})
        self.optimiser = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        warm = min(200, steps // 10 + 1)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(
            self.optimiser,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimiser, 0.02, total_iters=warm),
                torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, max(1, steps - warm), peak / 50),
            ],
            [warm],
        )
        self.step = 0
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=worker.device)
            self.module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.step = state["step"]

    def update(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.worker.average(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        if self.step % 100 == 0 or self.step == self.steps:
            self.save()

    def save(self) -> None:
        """Write beside and rename, so that an interruption leaves the last checkpoint whole."""
        if not self.worker.leads:
            return
        state = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        beside = self.path.with_suffix(".part")
        torch.save(state, beside)
        beside.replace(self.path)
