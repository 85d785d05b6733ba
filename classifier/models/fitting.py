"""Whether weights fit a configuration, found out before anything of the size that it claims is made."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from skyheed.classifier.errors import ModelError

if TYPE_CHECKING:
    from skyheed.classifier.models.base import Network

MOST_BUFFERS = 2**30  # bytes of tables that a network computes instead of learning them
_SPARE = 100  # parameters that a network may set and replace while it is built
_DRAWN = {
    "normal_",
    "uniform_",
    "trunc_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "xavier_uniform_",
    "xavier_normal_",
}


def check(build: Callable[[], "Network"], state: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of the network, which is built without memory for its numbers.

    A network of another package that cannot be built so is not checked: its weights are compared when they are loaded.

    Args:
        build: makes the network.
        state: name -> torch tensor.

    Raises:
        ModelError: it has more parameters than there are weights, or needs too much memory besides.
        RuntimeError: names or shapes differ.
    """
    try:
        with torch.device("meta"), _NothingDrawn(), _at_most(4 * len(state) + _SPARE):
            network = build()
    except (NotImplementedError, RuntimeError):
        return
    network.load_state_dict(state, assign=True)
    size = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers() if buffer.is_meta)
    if size > MOST_BUFFERS:
        raise ModelError(f"its configuration needs tables of {size} bytes, more than {MOST_BUFFERS}")


class _NothingDrawn(TorchFunctionMode):
    """Draws no random numbers for tensors without memory, as torch would load its compiler for that: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _DRAWN:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Ends a build that sets more parameters than these."""
    left = parameters

    def count(_module: nn.Module, _name: str, _parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ModelError("its configuration has more layers than there are weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
