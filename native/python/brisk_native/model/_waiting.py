"""Let a model compute while its weights come: each part of it waits for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def waiting(
    model: PreTrainedModel, group_of: Mapping[str, str], wait_for: Callable[[str], None]
) -> Iterator[None]:
    """Within the block, a module that is called waits for the groups of its parameters first.

    `group_of` tells the group of each parameter. Only modules whose parameters are all of one
    group wait, and the owner of a parameter always does: the model itself begins at once.
    """
    with ExitStack() as stack:
        for name, module in model.named_modules():
            prefix = f"{name}." if name else ""
            inside = {
                group_of[prefix + parameter]
                for parameter, _ in module.named_parameters()
                if prefix + parameter in group_of
            }
            own = {
                group_of[prefix + parameter]
                for parameter, _ in module.named_parameters(recurse=False)
                if prefix + parameter in group_of
            }
            if groups := inside if len(inside) == 1 else own:
                hook = _hook(frozenset(groups), wait_for)
                handle = module.register_forward_pre_hook(hook, prepend=True)
                stack.callback(handle.remove)
        yield


def _hook(
    groups: frozenset[str], wait_for: Callable[[str], None]
) -> Callable[[torch.nn.Module, object], None]:
    def wait(_module: torch.nn.Module, _inputs: object) -> None:
        for group in groups:
            wait_for(group)

    return wait
