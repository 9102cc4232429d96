"""The optimizer that lets a small model learn its texts in minutes on one CPU core."""

from __future__ import annotations

import torch


class Optimizer:
    """Muon for the layers' matrices, AdamW for embeddings and norms, all in fp32.

    torch.optim.Muon orthogonalises in bf16, which CPUs without bf16 units emulate: three times
    slower. The state is a flat dict of tensors, so that a checkpoint is a safetensors file.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Prepare to train all parameters of `model`; those named "embed" go to AdamW."""
        self.parameters = dict(model.named_parameters())
        self.state: dict[str, torch.Tensor] = {}
        for name, weight in self.parameters.items():
            self.state[f"momentum.{name}"] = torch.zeros_like(weight)
            if not self._is_matrix(name):
                self.state[f"variance.{name}"] = torch.zeros_like(weight)

    def _is_matrix(self, name: str) -> bool:
        return self.parameters[name].ndim > 1 and "embed" not in name

    @torch.no_grad()
    def step(self, number: int, rate: float) -> None:
        """Apply the gradients as step `number` (from 1) at `rate` (1 = full) and clear them."""
        for name, weight in self.parameters.items():
            if weight.grad is None:
                continue
            momentum = self.state[f"momentum.{name}"]
            if self._is_matrix(name):
                momentum.mul_(0.95).add_(weight.grad)
                update = _orthogonal(weight.grad.add(momentum, alpha=0.95))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - 2e-4 * rate).sub_(update, alpha=0.02 * rate * scale)
            else:
                variance = self.state[f"variance.{name}"]
                momentum.lerp_(weight.grad, 0.1)
                variance.lerp_(weight.grad.square(), 0.05)
                mean, spread = momentum / (1 - 0.9**number), variance / (1 - 0.95**number)
                weight.sub_(mean / (spread.sqrt() + 1e-8), alpha=3e-3 * rate)
            weight.grad = None


def _orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """Return the nearest matrix with singular values about 1, by five Newton-Schulz steps."""
    tall = gradient.shape[0] > gradient.shape[1]
    x: torch.Tensor = (gradient.T if tall else gradient) / (gradient.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x
