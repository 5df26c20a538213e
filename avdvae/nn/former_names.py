"""Names that layers had before, by which the weights of older runs are kept."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

FORMER_NAMES: Mapping[str, Mapping[str, str]] = {  # by class: the former name of a layer, and its name now
    "Recurrent": {"forth": "forward_rnn", "back": "backward_rnn"},
    "Residual": {"correct": "correction"},
}


def name_now(name: str, model: nn.Module) -> str:
    """Of a layer or a parameter of `model`, given by its name in this version or in an earlier one."""
    for path, module in model.named_modules():  # parents first, so that each path is already one of this version
        for kind in type(module).__mro__:
            for former, now in FORMER_NAMES.get(kind.__name__, {}).items():
                before = f"{path}.{former}" if path else former
                if name == before or name.startswith(f"{before}."):
                    name = name[: len(before) - len(former)] + now + name[len(before) :]
    return name


def with_names_now(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {name_now(name, model): tensor for name, tensor in state.items()}
