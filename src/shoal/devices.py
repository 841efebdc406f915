"""Where to train: a device by its name."""

from __future__ import annotations

import torch

from shoal.errors import UsageError


def device_named(name: str) -> torch.device:
    """A device that can be used here; "auto" is the GPU if there is one.

    Raises:
        UsageError: If it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device={name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
