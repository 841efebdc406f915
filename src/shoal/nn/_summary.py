"""What a model is made of: its layers, the shapes that pass through them, and how many parameters each has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import UsageError


@dataclass(frozen=True, slots=True)
class Layer:
    """One module without children that was run: ``shape`` is that of its output, the batch included."""

    name: str
    kind: str
    shape: tuple[int, ...]
    n_parameters: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What ``shoal.nn.summary`` found; ``str()`` is made for reading."""

    kind: str
    layers: tuple[Layer, ...]
    n_parameters: int
    n_trainable: int

    def __str__(self) -> str:
        rows = [("layer", "kind", "output shape", "parameters")]
        rows += [(x.name, x.kind, str(x.shape), f"{x.n_parameters:,}") for x in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
        ]
        total = f"{self.kind}: {self.n_parameters:,} parameters"
        fixed = self.n_parameters - self.n_trainable
        return "\n".join([*lines, total + (f", {fixed:,} of them fixed" if fixed else "")])


def summary(model: nn.Module, *inputs: Tensor) -> Summary:
    """Run a model once on example inputs, in evaluation mode, and list its layers.

    Args:
        model: Any module; it is left as it was.
        inputs: What it is called with, such as ``torch.zeros(1, 64)``.

    Returns:
        The layers in the order in which they were run. A layer that is run several times is listed once, with its
        last shape; parameters held by no layer of their own count in the total.

    Raises:
        UsageError: If the model cannot be run on these inputs.

    Example:
        >>> print(summary(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 4)))
        layer  kind    output shape  parameters
        0      Linear  (2, 8)                40
        1      ReLU    (2, 8)                 0
        2      Linear  (2, 3)                27
        Sequential: 67 parameters
    """
    seen: dict[str, Layer] = {}
    hooks = [
        module.register_forward_hook(_note(seen, name or type(model).__name__))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fused kernel of attention in evaluation mode would run without its layers, and none of them would be seen.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs) or "none"
        raise UsageError(
            f"{type(model).__name__} cannot be run on inputs of these shapes: {shapes}. It raised "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    parameters = list(model.parameters())
    return Summary(
        type(model).__name__,
        tuple(seen.values()),
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


def _note(seen: dict[str, Layer], name: str) -> Callable[[nn.Module, Any, object], None]:
    def hook(module: nn.Module, inputs: Any, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shape = tuple(first.shape) if isinstance(first, Tensor) else ()
        size = sum(p.numel() for p in module.parameters(recurse=False))
        seen[name] = Layer(name, type(module).__name__, shape, size)

    return hook
