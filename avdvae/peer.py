"""The public benchmark code of dynamical VAEs, for a comparison of speed: run from a checkout, nothing of it is here.

X. Bie et al., "A benchmark of dynamical variational autoencoders applied to speech spectrogram modeling", Interspeech
2021 (arXiv 2106.06500). Its models take spectra T B F and leave the moments of their latents on themselves; its loss
is a sum over the batch, which its training divides by the frames. Its training also switches autograd's anomaly
detection on and reads each loss back; here neither is done, which is in its favour.
"""

from __future__ import annotations

import importlib
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.bench import Trainee
from avdvae.errors import UserError

MODELS = {  # by our experiments: what builds it, and its configuration
    "vae_sequences": ("build_VAE", "cfg_vae.ini"),
    "dkf": ("build_DKF", "cfg_dkf.ini"),
    "storn": ("build_STORN", "cfg_storn.ini"),
    "vrnn": ("build_VRNN", "cfg_vrnn.ini"),
    "srnn": ("build_SRNN", "cfg_srnn.ini"),
    "rvae": ("build_RVAE", "cfg_rvae_NonCausal.ini"),
    "rvae_causal": ("build_RVAE", "cfg_rvae_Causal.ini"),
    "dsae": ("build_DSAE", "cfg_dsae.ini"),
}


class Peer:
    def __init__(self, path: Path):
        self.configs = path / "config" / "speech"
        if not self.configs.is_dir() or not (path / "dvae" / "model").is_dir():
            raise UserError(
                f"peer={path} is no checkout of the DVAE benchmark: give one, with dvae/model and config/speech"
            )
        sys.path.insert(0, str(path.resolve()))
        try:
            self.models, self.losses = (_import(f"dvae.{part}") for part in ("model", "utils"))
        finally:
            sys.path.remove(str(path.resolve()))

    def trainee(self, name: str, power_BTF: Float[Tensor, "B T F"]) -> Trainee | None:
        """Its counterpart of our experiment `name`, if it has one."""
        builder, file = MODELS.get(name, ("", ""))
        if not hasattr(self.models, builder):
            return None
        config = ConfigParser()
        config.optionxform = str  # type: ignore[assignment,method-assign]  # its keys have capitals
        config.read(self.configs / file)
        model: Any = getattr(self.models, builder)(config, str(power_BTF.device))
        power_TBF = power_BTF.transpose(0, 1).contiguous()
        latents = ("z", "v") if name == "dsae" else ("z",)

        def loss() -> Tensor:
            recon = self.losses.loss_ISD(power_TBF, torch.exp(model(power_TBF)))
            moments = ([getattr(model, f"{z}_{m}") for m in ("mean", "logvar", "mean_p", "logvar_p")] for z in latents)
            return (recon + sum(self.losses.loss_KLD(*m) for m in moments)) / power_BTF[..., 0].numel()

        return Trainee(model, loss)


def _import(name: str) -> Any:
    """With empty stand-ins for modules of others that are not installed: what is timed needs none of them."""
    stand_ins: dict[str, ModuleType] = {}
    try:
        while True:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                lacking = error.name or ""
                if lacking.split(".")[0] in ("", "dvae") or lacking in stand_ins:
                    raise UserError(f"the code of peer= cannot be imported: {error}") from error
                sys.modules[lacking] = stand_ins[lacking] = MagicMock()
    finally:
        for stand_in in stand_ins:
            sys.modules.pop(stand_in)
