"""The devices and processes of a training, by Lightning Fabric; compiled models."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from avdvae.errors import UserError
from avdvae.training.settings import Training


def launch(settings: Training) -> Any:
    """Lightning Fabric, with all processes running."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    devices, nodes = settings.devices, settings.nodes
    if (started := int(os.environ.get("WORLD_SIZE", devices * nodes))) != devices * nodes:
        raise UserError(f"train.devices={devices} times train.nodes={nodes} must be the {started} processes started")
    # Some layers have no gradient in some batches, alike in all processes: CVAE's freeze_sound, MDVAE's together.
    ddp = settings.strategy == "ddp" or devices * nodes > 1
    strategy = DDPStrategy(find_unused_parameters=True) if ddp else "auto"
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=nodes,
            precision=settings.precision,  # type: ignore[arg-type]  # checked by Training
        )
        fabric.launch()
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        wanted = f"train.accelerator={settings.accelerator}, train.devices={devices} and train.nodes={nodes}"
        raise UserError(f"{wanted} cannot be had here ({error}): choose what this machine has") from error
    if fabric.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    return fabric


def compile_model(model: nn.Module, fabric: Any) -> None:
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=fabric.device))  # models are compiled when they are first used
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train.compile=true cannot be had here ({reason}): install a C++ compiler, such as g++, or give "
            "train.compile=false"
        ) from error
    model.compile()
    if fabric.is_global_zero:
        print("compiling with the first steps: some minutes, where a model goes from frame to frame", flush=True)
