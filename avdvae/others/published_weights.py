"""Published weights: the names of their tensors, and the names of ours.

The DVAE benchmark (github.com/XiaoyuBIE1994/DVAE; Girin et al., see models/dynamical_vae.py) and its counterpart for
speech enhancement (github.com/XiaoyuBIE1994/DVAE_SE) store a folder per model: config.ini, and a .pt with a state dict.
MixDVAE (github.com/linxiaoyu1/MixDVAE; X. Lin et al., see enhancement/sources.py) has a .pt a model, without settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.signals.audio import WINDOW, Stft


@dataclass(frozen=True)
class _Layout:
    """hidden    the key of config.ini that gives the width of the recurrent state, where there is one
    names     our name: theirs, where * stands for each tensor of a layer
    columns   reorders the inputs of a layer, given `hidden`, to our order
    """

    hidden: str
    names: Mapping[str, str]
    columns: Mapping[str, Callable[[Tensor, int], Tensor]] = field(default_factory=dict)


_BOX = 4  # numbers of a box
_TENSORS = ("weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh")

_RVAE = {
    "encoder_rnn.backward_rnn.*_l0": "rnn_g_x.*_l0",  # theirs runs over the reversed frames
    "encoder_rnn.forward_rnn.*_l0": "rnn_g_x.*_l0_reverse",
    "latent_rnn.*": "rnn_g_z.*_l0",
    "posterior_head.mean.*": "inf_mean.*",
    "posterior_head.log_var.*": "inf_logvar.*",
    "decoder_rnn.forward_rnn.*_l0": "rnn_h.*_l0",
    "decoder_rnn.backward_rnn.*_l0": "rnn_h.*_l0_reverse",
    "decoder_head.*": "gen_out.*",
}


def _past_first(weight: Tensor, hidden: int) -> Tensor:
    """Inputs of the future, the past and the latents -> the past, the future and the latents."""
    future, past, latents = weight.split(hidden, 1)
    return torch.cat([past, future, latents], 1)


_LAYOUTS = {  # by our experiment
    "vae": _Layout(
        "dense_x_z",
        {
            "encoder.0.*": "mlp_x_z.linear0.*",
            "encoder.2.mean.*": "inf_mean.*",
            "encoder.2.log_var.*": "inf_logvar.*",
            "decoder.0.*": "mlp_z_x.linear0.*",
            "decoder.2.*": "gen_out.*",
        },
    ),
    "dkf": _Layout(
        "dim_RNN_gx",
        {
            "phi_x.0.*": "mlp_x_gx.linear0.*",
            "encoder_rnn.backward_rnn.*_l0": "rnn_gx.*_l0",
            "combiner.z_to_hidden.0.*": "mlp_ztm1_g.linear0.*",
            "combiner.z_to_hidden.2.*": "mlp_ztm1_g.linear_last.*",
            "combiner.posterior_net.0.*": "mlp_g_z.linear0.*",
            "combiner.posterior_net.2.mean.*": "inf_mean.*",
            "combiner.posterior_net.2.log_var.*": "inf_logvar.*",
            "transition.gate.0.*": "mlp_gate.linear1.*",
            "transition.gate.2.*": "mlp_gate.linear2.*",
            "transition.proposed_mean.0.*": "mlp_z_prop.linear1.*",
            "transition.proposed_mean.2.*": "mlp_z_prop.linear2.*",
            "transition.z_to_loc.*": "prior_mean.*",
            "transition.scale.1.*": "prior_logvar.1.*",
            "emitter.0.*": "mlp_z_x.linear0.*",
            "emitter.2.*": "mlp_z_x.linear1.*",
            "emitter.4.*": "mlp_z_x.linear2.*",
            "emitter.6.*": "mlp_z_x.linear3.*",
            "emitter.8.*": "gen_out.*",
        },
    ),
    "storn": _Layout(
        "dim_RNN_g",
        {
            "phi_x.0.*": "mlp_x_g.linear0.*",
            "encoder_rnn.forward_rnn.*_l0": "rnn_g.*_l0",
            "posterior_net.0.*": "mlp_g_z.linear0.*",
            "posterior_net.2.*": "mlp_g_z.linear1.*",
            "posterior_net.4.mean.*": "inf_mean.*",
            "posterior_net.4.log_var.*": "inf_logvar.*",
            "phi_z.0.*": "mlp_z_h.linear0.*",
            "phi_z.2.*": "mlp_z_h.linear1.*",
            "phi_past.0.*": "mlp_xtm1_h.linear0.*",
            "decoder_rnn.*_l0": "rnn_h.*_l0",
            "decoder_net.0.*": "mlp_h_x.linear0.*",
            "decoder_net.2.*": "gen_out.*",
        },
    ),
    "vrnn": _Layout(
        "dim_RNN",
        {
            "phi_x.0.*": "feature_extractor_x.linear0.*",
            "phi_z.0.*": "feature_extractor_z.linear0.*",
            "phi_z.2.*": "feature_extractor_z.linear1.*",
            "rnn.*_l0": "rnn.*_l0",
            "posterior_net.mean.*": "inf_mean.*",
            "posterior_net.log_var.*": "inf_logvar.*",
            "prior_net.mean.*": "prior_mean.*",
            "prior_net.log_var.*": "prior_logvar.*",
            "decoder_net.*": "gen_out.*",
        },
        {"decoder_net.weight": lambda weight, hidden: weight.roll(hidden, 1)},  # latent, state -> state, latent
    ),
    "srnn": _Layout(
        "dim_RNN_h",
        {
            "phi_x.0.*": "mlp_x_h.linear0.*",
            "rnn.*_l0": "rnn_h.*_l0",
            "encoder_net.0.*": "mlp_hx_g.linear0.*",
            "encoder_rnn.backward_rnn.*_l0": "rnn_g.*_l0",
            "posterior_net.0.*": "mlp_gz_z.linear0.*",
            "posterior_net.2.*": "mlp_gz_z.linear1.*",
            "posterior_net.4.mean.*": "inf_mean.*",
            "posterior_net.4.log_var.*": "inf_logvar.*",
            "prior_net.0.*": "mlp_hz_z.linear0.*",
            "prior_net.2.*": "mlp_hz_z.linear1.*",
            "prior_net.4.mean.*": "prior_mean.*",
            "prior_net.4.log_var.*": "prior_logvar.*",
            "decoder_net.0.*": "mlp_hz_x.linear0.*",
            "decoder_net.2.*": "gen_out.*",
        },
    ),
    "rvae_causal": _Layout("dim_RNN_h", _RVAE),
    "rvae": _Layout(
        "dim_RNN_h", _RVAE, dict.fromkeys(("posterior_head.mean.weight", "posterior_head.log_var.weight"), _past_first)
    ),
    "dsae": _Layout(
        "dim_RNN_gv",
        {
            "v_encoder_rnn.forward_rnn.*_l0": "rnn_g_v.*_l0",
            "v_encoder_rnn.backward_rnn.*_l0": "rnn_g_v.*_l0_reverse",
            "v_posterior_head.mean.*": "inf_v_mean.*",
            "v_posterior_head.log_var.*": "inf_v_logvar.*",
            "encoder_rnn.forward_rnn.*_l0": "rnn_g_xv.*_l0",
            "encoder_rnn.backward_rnn.*_l0": "rnn_g_xv.*_l0_reverse",
            "posterior_rnn.*_l0": "rnn_g_z.*_l0",
            "posterior_head.mean.*": "inf_z_mean.*",
            "posterior_head.log_var.*": "inf_z_logvar.*",
            "prior_rnn.forward_rnn.*_l0": "rnn_prior.*_l0",
            "prior_head.mean.*": "prior_mean.*",
            "prior_head.log_var.*": "prior_logvar.*",
            "decoder_net.0.*": "mlp_vz_x.linear0.*",
            "decoder_net.2.*": "mlp_vz_x.linear1.*",
            "decoder_net.4.*": "mlp_vz_x.linear2.*",
            "decoder_net.6.*": "mlp_vz_x.linear3.*",
            "decoder_net.8.*": "gen_out.*",
        },
    ),
}

_MIXDVAE_NAMES = {".linear": ".linear_", "inf_": "inf_z_", "prior_": "prior_z_", "gen_out.": "gen_x."}  # of DVAE_SE's


def _in_mixdvae(name: str) -> str:
    for dvae_se, mixdvae in _MIXDVAE_NAMES.items():
        name = name.replace(dvae_se, mixdvae)
    return name


_MIXDVAE = _Layout("", {ours: _in_mixdvae(theirs) for ours, theirs in _LAYOUTS["srnn"].names.items()})


@dataclass(frozen=True)
class PublishedWeights:
    """`experiment` and `arguments`, of its model's constructor, are ours; `tensors` have the published names."""

    file: Path
    experiment: str
    arguments: dict[str, Any]
    hop: int
    tensors: dict[str, Tensor]
    layout: _Layout

    def fill(self, model: nn.Module) -> None:
        """Load the weights into `model`, made with `arguments`. Missing, unknown and misshaped tensors are errors."""
        layout, own = self.layout, model.state_dict()
        pairs = ((o.replace("*", t), p.replace("*", t)) for o, p in layout.names.items() for t in _TENSORS)
        theirs = {ours: name for ours, name in pairs if ours in own}
        if unknown := self.tensors.keys() - set(theirs.values()):
            raise self._unfit(f"holds {', '.join(sorted(unknown))}, for which there is no place", model)
        if missing := set(theirs.values()) - self.tensors.keys():
            raise self._unfit(f"lacks {', '.join(sorted(missing))}", model)
        for ours, name in theirs.items():
            found, wanted = tuple(self.tensors[name].shape), tuple(own[ours].shape)
            if found != wanted:
                raise self._unfit(f"has {name} of shape {found} and not {wanted}", model)
        weights = {ours: self.tensors[name] for ours, name in theirs.items()}
        for ours, reorder in layout.columns.items():
            weights[ours] = reorder(weights[ours], self.arguments["hidden"])
        model.load_state_dict(weights)

    def _unfit(self, fault: str, model: nn.Module) -> UserError:
        name = type(model).__name__
        return UserError(
            f"{self.file} {fault} in our {name}: import weights with the layers that the benchmark has for speech"
        )


def read_published_weights(source: Path) -> PublishedWeights:
    """Read a folder of the benchmark, or a file of MixDVAE; nothing in it is executed."""
    return _read_file(source) if source.is_file() else _read_folder(source)


def _read_file(file: Path) -> PublishedWeights:
    """An SRNN of spectra or of boxes, which its shapes describe."""
    tensors = _read_tensors(file)
    try:
        features = tensors["mlp_x_h.linear_0.weight"].shape[1]
        hidden, dim = tensors["rnn_h.weight_hh_l0"].shape[1], tensors["inf_z_mean.weight"].shape[0]
        if features == _BOX:
            for part in ("weight", "bias"):  # of mean and log-variance, one layer here
                moments = [tensors.pop(f"gen_x_{moment}.{part}") for moment in ("mean", "logvar")]
                tensors[f"gen_x.{part}"] = torch.cat(moments)
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{file} is no model of MixDVAE, for it lacks {error}: give one, or a folder with config.ini"
        ) from error
    arguments = {"hidden": hidden, "dim": dim}
    if features == _BOX:
        return PublishedWeights(file, "box_srnn", arguments, WINDOW // 4, tensors, _MIXDVAE)
    if features != WINDOW // 2 + 1:
        raise UserError(
            f"{file} is a model of {features} numbers a frame, and only those of spectra, of {WINDOW // 2 + 1}, and of "
            f"boxes, of {_BOX}, can be imported: give model_scass_wsj.pt, model_scass_cbf.pt or model_mot.pt"
        )
    arguments |= {"features": features, "floor": None}
    return PublishedWeights(file, "srnn_gm", arguments, WINDOW // 4, tensors, _MIXDVAE)


def _read_folder(folder: Path) -> PublishedWeights:
    ini, every = folder / "config.ini", sorted(folder.glob("*.pt"))
    files = [file for file in every if "_final_" in file.name] or every
    if not ini.is_file() or len(files) != 1:
        found = ", ".join(file.name for file in files) or "no .pt file"
        there = "config.ini" if ini.is_file() else "no config.ini"
        raise UserError(f"{folder} holds {there} and {found}: give a folder with config.ini and one .pt file")
    settings = _Settings(ini)
    name = settings.get("Network", "name")
    experiment = name.lower()
    if experiment == "rvae" and settings.get("Network", "bidir_h").lower() != "true":
        experiment = "rvae_causal"
    if experiment not in _LAYOUTS:
        known = ", ".join(sorted({experiment.split("_")[0].upper() for experiment in _LAYOUTS}))
        raise UserError(f"{ini} has name = {name}: models that can be imported are {known}")
    settings.expect("Network", "activation", "tanh")
    settings.expect("Network", "x_dim", WINDOW // 2 + 1)
    settings.expect("STFT", "fs", 16_000)
    settings.expect("STFT", "zp_percent", 0)
    settings.expect("STFT", "wlen_sec", WINDOW / 16_000)
    features = "frequencies" if experiment == "vae" else "features"
    keys = {features: "x_dim", "hidden": _LAYOUTS[experiment].hidden, "dim": "z_dim"}
    keys |= {"dim_v": "v_dim"} if experiment == "dsae" else {}
    arguments: dict[str, Any] = {argument: int(settings.number("Network", key)) for argument, key in keys.items()}
    arguments["floor"] = None
    stft = Stft(int(settings.number("STFT", "hop_percent") * WINDOW))
    layout = _LAYOUTS[experiment]
    return PublishedWeights(files[0], experiment, arguments, stft.hop, _read_tensors(files[0]), layout)


class _Settings:
    """config.ini; errors name the section and key."""

    def __init__(self, path: Path):
        self.path, self.parser = path, ConfigParser(interpolation=None)
        try:
            self.parser.read_string(path.read_text(encoding="utf-8"))
        except (IniError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error

    def get(self, section: str, key: str) -> str:
        try:
            return self.parser.get(section, key)
        except IniError as error:
            raise UserError(f"{self.path} has no {key} in [{section}]: give that of a model for speech") from error

    def number(self, section: str, key: str) -> float:
        value = self.get(section, key)
        try:
            return float(value)
        except ValueError as error:
            raise UserError(
                f"{self.path} has {key} = {value} in [{section}]: our model has one number there"
            ) from error

    def expect(self, section: str, key: str, value: str | float) -> None:
        found = self.get(section, key) if isinstance(value, str) else self.number(section, key)
        if found != value:
            raise UserError(f"{self.path} has {key} = {found} in [{section}]: only {value} can be imported")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_numbers()):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any
        code = re.search(r"GLOBAL (\S+)", str(error))
        why = f"to read it, {code[1]} would have to be run" if code else "it is damaged, or no file of torch.save"
        raise UserError(f"{file} is refused, for {why}: give a file of tensors alone") from error
    if isinstance(found, dict) and "model_state_dict" in found:  # a checkpoint to resume from
        found = found["model_state_dict"]
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise UserError(f"{file} is no state dict: give the file that the training of one model has left")
    return {name.replace("gen_logvar.", "gen_out."): value for name, value in found.items()}


def _numbers() -> list[Any]:
    """What numpy's numbers and arrays are read with, by the names of numpy 1 and 2: checkpoints also contain losses."""
    makers: list[Any] = [value.__reduce__()[0] for value in (np.float64(0), np.zeros(0))]
    named = [(maker, f"numpy.{core}.multiarray.{maker.__name__}") for maker in makers for core in ("core", "_core")]
    return [*named, np.ndarray, np.dtype, np.dtypes.Float64DType]
