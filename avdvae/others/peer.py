"""Public benchmark code, for a comparison of speed. It is imported from a checkout; none of it is copied here.

X. Bie et al., "A benchmark of dynamical variational autoencoders applied to speech spectrogram modeling", Interspeech
2021 (arXiv 2106.06500). Its models take spectra T B F and store the moments of their latents as attributes; its loss is
a sum over the batch, divided by the frames in training. Its training also enables autograd's anomaly detection and
copies each loss to the CPU; neither is done here, which makes it faster than published.

J. D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707). Its
models take companded waveforms. They are built with the sizes of ours where their code allows it: it fixes the state at
twice the width of the layers around it, as published.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.others.bench import Trainee
from avdvae.probability.pcm import CODES, compand
from avdvae.protocols import Batch

MODELS = {  # by our experiment: its builder and configuration
    "vae_sequences": ("build_VAE", "cfg_vae.ini"),
    "dkf": ("build_DKF", "cfg_dkf.ini"),
    "storn": ("build_STORN", "cfg_storn.ini"),
    "vrnn": ("build_VRNN", "cfg_vrnn.ini"),
    "srnn": ("build_SRNN", "cfg_srnn.ini"),
    "rvae": ("build_RVAE", "cfg_rvae_NonCausal.ini"),
    "rvae_causal": ("build_RVAE", "cfg_rvae_Causal.ini"),
    "dsae": ("build_DSAE", "cfg_dsae.ini"),
}


@runtime_checkable
class Peer(Protocol):
    def trainee(self, name: str, batch: Batch, config: Mapping[str, Any]) -> Trainee | None:
        """The counterpart of our experiment `name` with the model of `config`; None if there is none."""
        ...


def open_peer(path: Path) -> Peer:
    return WaveformPeer(path) if (path / "blvm").is_dir() else DynamicalPeer(path)


class WaveformPeer:
    def __init__(self, path: Path):
        os.environ.setdefault("BLVM_DATA_ROOT_DIRECTORY", tempfile.mkdtemp())  # required on import
        self.models, self.likelihoods = (
            _imported(path, f"blvm.{part}") for part in ("models", "modules.distributions")
        )

    def trainee(self, name: str, batch: Batch, config: Mapping[str, Any]) -> Trainee | None:
        if (model := self._model(config)) is None:
            return None
        assert batch.waveform is not None and batch.lengths is not None
        x_BN = compand(batch.waveform)
        model, lengths_B = model.to(x_BN.device), batch.lengths.cpu()
        return Trainee(model, lambda: model(x_BN, lengths_B)[0])

    def _model(self, config: Mapping[str, Any]) -> nn.Module | None:
        codes: dict[str, Any] = {"likelihood": "DMoL", "num_bins": 2 * CODES}
        stride, kind = config.get("stride"), config["target"].rpartition(".")[2]
        if kind == "CWVAE":
            layers, dim = config["layers"], config["dim"]
            return self.models.CWVAEAudio(
                z_size=[dim] * layers if isinstance(dim, int) else list(dim),
                h_size=config["channels"],
                strides=[stride, *[8] * (layers - 1)],
                num_level_layers=8,
                stride_per_layer=2,
                precision_posterior=True,
                **codes,
            )
        if kind in ("VRNNWave", "SRNNWave") and config["hidden"] == 2 * config["wide"]:
            sizes = {"input_size": stride, "hidden_size": config["wide"], "latent_size": config["dim"]}
            return getattr(self.models, kind.replace("Wave", "Audio"))(residual_posterior=True, **sizes, **codes)
        if kind == "LSTM":
            sizes = {"stack_size": stride, "hidden_size": config["hidden"], "num_layers": config["layers"]}
            return self.models.LSTMAudio(num_bins=2 * CODES, **sizes)
        if kind == "STCN":
            sizes = {"n_stack_frames": stride, "res_channels": config["channels"], "latent_size": list(config["dims"])}
            stacks = {"n_layers": config["layers"], "n_stacks": len(config["dims"]), "kernel_size": 2}
            return self.models.STCN(likelihood="DMoL", in_channels=1, base_dilation=2, **sizes, **stacks)
        if kind == "WaveNet":
            dmol = self.likelihoods.DiscretizedLogisticMixtureDense(config["channels"], 1, 10, num_bins=2 * CODES)
            sizes = {"n_stack_frames": stride, "res_channels": config["channels"], "num_bins": 2 * CODES}
            return self.models.WaveNet(dmol, n_layers=config["layers"], n_stacks=config["stacks"], **sizes)
        return None


class DynamicalPeer:
    def __init__(self, path: Path):
        self.configs = path / "config" / "speech"
        if not self.configs.is_dir() or not (path / "dvae" / "model").is_dir():
            raise UserError(
                f"peer={path} is no checkout of the DVAE benchmark: give one, with dvae/model and config/speech"
            )
        self.models, self.losses = (_imported(path, f"dvae.{part}") for part in ("model", "utils"))

    def trainee(self, name: str, batch: Batch, config: Mapping[str, Any]) -> Trainee | None:
        builder, file = MODELS.get(name, ("", ""))
        if not hasattr(self.models, builder):
            return None
        power_BTF = batch.need("power", self)
        sizes = ConfigParser()
        sizes.optionxform = str  # type: ignore[assignment,method-assign]  # its keys have capitals
        sizes.read(self.configs / file)
        model: Any = getattr(self.models, builder)(sizes, str(power_BTF.device))
        power_TBF = power_BTF.transpose(0, 1).contiguous()
        latents = ("z", "v") if name == "dsae" else ("z",)

        def loss() -> Tensor:
            recon = self.losses.loss_ISD(power_TBF, torch.exp(model(power_TBF)))
            moments = ([getattr(model, f"{z}_{m}") for m in ("mean", "logvar", "mean_p", "logvar_p")] for z in latents)
            return (recon + sum(self.losses.loss_KLD(*m) for m in moments)) / power_BTF[..., 0].numel()

        return Trainee(model, loss)


def _imported(path: Path, name: str) -> Any:
    """A module of the checkout. Third-party modules that are not installed are replaced by mocks: the timed code needs
    none of them."""
    stand_ins: dict[str, ModuleType] = {}
    sys.path.insert(0, str(path.resolve()))
    try:
        while True:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                lacking = error.name or ""
                if lacking.split(".")[0] in ("", "dvae", "blvm") or lacking in stand_ins:
                    raise UserError(f"the code of peer= cannot be imported: {error}") from error
                sys.modules[lacking] = stand_ins[lacking] = MagicMock()
    finally:
        sys.path.remove(str(path.resolve()))
        for stand_in in stand_ins:
            sys.modules.pop(stand_in)
