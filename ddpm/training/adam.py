"""Adam (Kingma & Ba 2015, algorithm 1), as `torch.optim.Adam(fused=True)` computes it; AdamW where weights decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """torch.optim.Adam without the import of torch's compiler, which takes seconds at the start of every training.

    Weight decay is AdamW's, decoupled from the gradient (Loshchilov & Hutter 2019): before Adam's update every
    parameter, biases and norms included, is multiplied by 1 − rate · weight_decay. With 0 it is Adam.

    What a `torch.amp.GradScaler` asks of an optimiser is here too.
    """

    # Says to a GradScaler that `step` leaves out a step whose gradients overflowed, without waiting for the GPU.
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.param_groups = [{"params": list(parameters)}]
        # The moments exist from the start, so that saving and restoring need not know whether a step was taken.
        self.state = {
            parameter: {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for parameter in self.parameters
        }

    @property
    def parameters(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters that have a gradient, with this learning rate."""
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        states = [self.state[parameter] for parameter in moved]
        adam(
            moved,
            [parameter.grad for parameter in moved if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            decoupled_weight_decay=self.weight_decay > 0,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )
