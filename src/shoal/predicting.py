"""What a winner gives for new inputs, which are read and prepared as its training rows were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal import reading
from shoal.data import Split
from shoal.errors import UsageError
from shoal.lanes.lane import evaluation_chunk
from shoal.preparing import Prepared
from shoal.recipe import Recipe


def predicted(recipe: Recipe, prepared: Prepared, inputs: Sequence[Any]) -> Tensor:
    """The outputs of a trained model, (n, ...), on the CPU.

    Args:
        recipe: With trained weights, in evaluation mode, on the CPU.
        prepared: The study's data.
        inputs: One array or tensor (n, ...) per input.

    Raises:
        UsageError: If the inputs are not like the study's, or the loss does not say how the model is called.
    """
    if not recipe.is_criterion:
        raise UsageError(
            "predict() calls the model with its inputs, and a loss that is a callable does not say how; use best_model(), and "
            "preparation.transform() where there is a prepare=."
        )
    tensors = _read(inputs, prepared.raw.train)
    if prepared.preparation is not None:
        tensors = prepared.preparation.inputs(tensors, "the inputs of predict()")
    size, outputs = evaluation_chunk(tensors), []
    with torch.no_grad():
        for at in range(0, len(tensors[0]), size):
            chunk = [t[at : at + size].clone() for t in tensors]  # a forward pass may write to its inputs
            outputs.append(recipe.outputs(recipe.model, (*chunk, chunk[0])))  # in the place of a target
    return torch.cat(outputs)


def _read(inputs: Sequence[Any], like: Split) -> tuple[Tensor, ...]:
    """The inputs as tensors of the types that training had."""
    wanted = like.tensors[:-1]
    if len(inputs) != len(wanted):
        names = f" ({', '.join(like.names[:-1])})" if like.names else ""
        raise UsageError(
            f"predict() takes {len(wanted)} input(s){names}, as train had before its target; got {len(inputs)}."
        )
    _, tensors = reading.read({"predict()": tuple(inputs)})["predict()"]
    out = []
    for place, (tensor, known) in enumerate(zip(tensors, wanted, strict=True)):
        if tensor.is_floating_point() and known.is_floating_point():
            tensor = tensor.to(known.dtype)
        if (tensor.shape[1:], tensor.dtype) != (known.shape[1:], known.dtype) or not len(tensor):
            raise UsageError(
                f"input {place} of predict() must be like train's: samples of shape {tuple(known.shape[1:])} and {known.dtype}; "
                f"got {tuple(tensor.shape)} of {tensor.dtype}."
            )
        out.append(tensor.cpu())
    if len({len(t) for t in out}) > 1:
        raise UsageError(
            f"the inputs of predict() have {', '.join(str(len(t)) for t in out)} rows; they must have as many each."
        )
    return tuple(out)
