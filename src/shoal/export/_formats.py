"""The winner's model in files that others read: safetensors with its architecture, ``torch.export`` and ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import StudyError, UsageError, blame
from shoal.prepared_state import NotPlainError, packed
from shoal.preparing import Preparation
from shoal.recipe import Batch, Recipe

# Largest difference between outputs, as a share of the largest output: what float32 kernels of two programs may differ by.
TOLERANCE = 1e-4


def save_weights(
    path: Path, model: nn.Module, facts: Mapping[str, object], preparation: Preparation | None = None
) -> None:
    """State dict and description in one safetensors file: tensors under the model's own names, the rest as JSON metadata.

    Args:
        path: Of the file.
        model: With trained weights.
        facts: Plain data about the trial, put beside ``architecture``.
        preparation: What was learnt to prepare inputs with; its arrays are ``prepare.0``, ``prepare.1``, ... A preparation that is
            not of scikit-learn's own classes is left out, with a warning.
    """
    from safetensors.torch import save_file

    state: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        first = seen.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), name)
        if first != name and state[first].shape == tensor.shape:
            tied[name] = first  # safetensors keeps no tensor twice
        else:
            state[name] = tensor.detach().contiguous().cpu()
    described = {**facts, "architecture": architecture(model), "tied": tied}
    metadata = {name: json.dumps(value) for name, value in described.items()}
    if preparation is not None:
        try:
            metadata["prepare"], arrays = packed(preparation.fitted)
        except NotPlainError as error:
            warnings.warn(
                f"{path.name} goes without the preparation of its inputs: {error}. Keep study.preparation yourself.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            state |= {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_file(state, path, metadata=metadata)


def architecture(model: nn.Module) -> list[dict[str, object]]:
    """Each module of a model in order: its name, class, settings as it prints them, and the shapes of its own tensors.

    >>> architecture(nn.Sequential(nn.Linear(2, 1)))[1]["settings"]
    'in_features=2, out_features=1, bias=True'
    """
    return [
        {
            "name": name,
            "class": f"{type(m).__module__}.{type(m).__qualname__}",
            "settings": m.extra_repr(),
            "tensors": {
                n: list(t.shape) for n, t in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False))
            },
        }
        for name, m in model.named_modules()
    ]


def inputs_of(recipe: Recipe, batch: Batch) -> tuple[Tensor, ...]:
    """What the model is called with on a batch.

    Raises:
        UsageError: If that is not a tuple of tensors.
    """
    if recipe.is_criterion:
        inputs, by_name = recipe.form.inputs(batch)
        if by_name:
            raise UsageError(
                "only a model that is called with tensors, and with no keywords, can be exported as pt2 or onnx; this one is "
                f"called by the names {', '.join(by_name)}. Wrap it in a module whose forward takes tensors."
            )
        return inputs
    given = recipe.form.batch(batch)
    seen: list[tuple[Any, ...]] = []
    hook = recipe.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        with torch.no_grad():
            recipe.predict(recipe.model, given) if recipe.predict is not None else recipe.loss(recipe.model, given)
    finally:
        hook.remove()
    args, kwargs = seen[0] if seen else ((), {"nothing": None})
    if kwargs or not all(isinstance(a, Tensor) for a in args):
        raise UsageError(
            "only a model that is called with tensors, and with no keywords, can be exported as pt2 or onnx; loss or predict calls "
            "this one otherwise. Wrap it in a module whose forward takes tensors."
        )
    return tuple(args)


def save_program(path: Path, model: nn.Module, inputs: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Write the model as a ``torch.export`` program (``.pt2``) whose batch may have any size, and read it back.

    Args:
        path: Of the file.
        model: In evaluation mode.
        inputs: Of a few samples, to trace with.
        other: Of another number of samples, to check with.

    Returns:
        The largest difference between its outputs and the model's, as a share of the largest output.

    Raises:
        StudyError: If the model cannot be exported, or the program gives something else.
    """
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, inputs, dynamic_shapes=_dynamic(inputs))
            torch.export.save(program, path)
            came = torch.export.load(path).module()(*other)
        except Exception as error:
            raise StudyError(f"torch.export cannot take this model: {blame(error)}") from error
        return _checked("the torch.export program", came, model(*other))


def save_onnx(path: Path, model: nn.Module, inputs: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Write the model as ONNX, whose batch may have any size, and run that with ONNX's own reference implementation.

    Args, Returns and Raises as for `save_program`.

    Raises:
        UsageError: If onnx and onnxscript are not installed.
    """
    try:
        import onnx
        import onnx.reference
        import onnxscript  # noqa: F401  (torch's exporter is written in it)
    except ImportError as error:
        raise UsageError('ONNX needs more packages: run `pip install "shoal[onnx]"`.') from error
    with _quiet(), torch.no_grad():
        try:
            names = [f"input_{i}" for i in range(len(inputs))]
            torch.onnx.export(
                model,
                inputs,
                path,
                input_names=names,
                output_names=["output"],
                dynamo=True,
                dynamic_shapes=_dynamic(inputs),
                external_data=False,
                verbose=False,
            )
            loaded = onnx.load(path)
            onnx.checker.check_model(loaded)
            given = {i.name: t.numpy() for i, t in zip(loaded.graph.input, other, strict=True)}
            came = torch.from_numpy(onnx.reference.ReferenceEvaluator(loaded).run(None, given)[0])  # type: ignore[index]
        except Exception as error:
            raise StudyError(f"torch's ONNX exporter cannot take this model: {blame(error)}") from error
        return _checked("the ONNX model", came, model(*other))


def _dynamic(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    return tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)


def _checked(what: str, came: Any, expected: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(came, Tensor) or came.shape != expected.shape:
        raise StudyError(
            f"{what} gives {getattr(came, 'shape', type(came).__name__)} where the model gives "
            f"{getattr(expected, 'shape', type(expected).__name__)}; only models with one tensor as output can be exported."
        )
    off = float((came.double() - expected.double()).abs().max() / max(float(expected.abs().max()), 1e-30))
    if not off <= TOLERANCE:
        raise StudyError(f"{what} gives other outputs than the model: they differ by {off:.2g} of the largest one.")
    return off


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporters tell much of themselves."""
    below = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(below)
