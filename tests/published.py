"""Folders as the DVAE benchmark leaves them: config.ini and tensors of its names and shapes, with random numbers."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

F, L = 513, 16

# A layer a line: inputs and outputs; of a recurrence, its gates and directions too
LSTM, BOTH, RNN = (4, 1), (4, 2), (1, 1)
HEAD = {"inf_mean": (32, L), "inf_logvar": (32, L)}
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "VAE": {
        "mlp_x_z.linear0": (F, 128),
        "inf_mean": (128, L),
        "inf_logvar": (128, L),
        "mlp_z_x.linear0": (L, 128),
        "gen_out": (128, F),
    },
    "DKF": {
        "mlp_x_gx.linear0": (F, 256),
        "rnn_gx": (256, 128, *LSTM),
        "mlp_ztm1_g.linear0": (L, 32),
        "mlp_ztm1_g.linear_last": (32, 128),
        "mlp_g_z.linear0": (128, 32),
        **HEAD,
        "mlp_gate.linear1": (L, L),
        "mlp_gate.linear2": (L, L),
        "mlp_z_prop.linear1": (L, L),
        "mlp_z_prop.linear2": (L, L),
        "prior_mean": (L, L),
        "prior_logvar.1": (L, L),
        "mlp_z_x.linear0": (L, 32),
        "mlp_z_x.linear1": (32, 64),
        "mlp_z_x.linear2": (64, 128),
        "mlp_z_x.linear3": (128, 256),
        "gen_out": (256, F),
    },
    "STORN": {
        "mlp_x_g.linear0": (F, 256),
        "rnn_g": (256, 128, *LSTM),
        "mlp_g_z.linear0": (128, 64),
        "mlp_g_z.linear1": (64, 32),
        **HEAD,
        "mlp_z_h.linear0": (L, 32),
        "mlp_z_h.linear1": (32, 64),
        "mlp_xtm1_h.linear0": (F, 256),
        "rnn_h": (64 + 256, 128, *LSTM),
        "mlp_h_x.linear0": (128, 256),
        "gen_out": (256, F),
    },
    "VRNN": {
        "feature_extractor_x.linear0": (F, 256),
        "feature_extractor_z.linear0": (L, 32),
        "feature_extractor_z.linear1": (32, 64),
        "inf_mean": (256 + 128, L),
        "inf_logvar": (256 + 128, L),
        "prior_mean": (128, L),
        "prior_logvar": (128, L),
        "gen_out": (64 + 128, F),
        "rnn": (256 + 64, 128, *LSTM),
    },
    "SRNN": {
        "mlp_x_h.linear0": (F, 256),
        "rnn_h": (256, 128, *LSTM),
        "mlp_hx_g.linear0": (128 + F, 256),
        "rnn_g": (256, 128, *LSTM),
        "mlp_gz_z.linear0": (128 + L, 64),
        "mlp_gz_z.linear1": (64, 32),
        **HEAD,
        "mlp_hz_z.linear0": (128 + L, 64),
        "mlp_hz_z.linear1": (64, 32),
        "prior_mean": (32, L),
        "prior_logvar": (32, L),
        "mlp_hz_x.linear0": (128 + L, 256),
        "gen_logvar": (256, F),  # as DVAE_SE calls it
    },
    "RVAE": {
        "rnn_g_x": (F, 128, *LSTM),
        "rnn_g_z": (L, 128, *LSTM),
        "inf_mean": (256, L),
        "inf_logvar": (256, L),
        "rnn_h": (L, 128, *LSTM),
        "gen_out": (128, F),
    },
    "RVAE both ways": {
        "rnn_g_x": (F, 128, *BOTH),
        "rnn_g_z": (L, 128, *LSTM),
        "inf_mean": (384, L),
        "inf_logvar": (384, L),
        "rnn_h": (L, 128, *BOTH),
        "gen_logvar": (256, F),
    },
    "DSAE": {
        "rnn_g_v": (F, 128, *BOTH),
        "inf_v_mean": (256, L),
        "inf_v_logvar": (256, L),
        "rnn_g_xv": (F + L, 128, *BOTH),
        "rnn_g_z": (256, 128, *RNN),
        "inf_z_mean": (128, L),
        "inf_z_logvar": (128, L),
        "rnn_prior": (L, 128, *LSTM),
        "prior_mean": (128, L),
        "prior_logvar": (128, L),
        "mlp_vz_x.linear0": (2 * L, 32),
        "mlp_vz_x.linear1": (32, 64),
        "mlp_vz_x.linear2": (64, 128),
        "mlp_vz_x.linear3": (128, 256),
        "gen_out": (256, F),
    },
}
INI = """
[User]
saved_root = ./saved_model
[STFT]
wlen_sec = 64e-3
hop_percent = 0.25
fs = 16000
zp_percent = 0
[Network]
name = {name}
x_dim = 513
z_dim = 16
v_dim = 16
activation = tanh
dense_x_z = 128
dim_RNN = 128
dim_RNN_gx = 128
dim_RNN_g = 128
dim_RNN_h = 128
dim_RNN_gv = 128
bidir_h = {both}
"""


def shapes(layers: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, (inputs, outputs, *recurrence) in layers.items():
        if not recurrence:
            yield from ((f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,)))
            continue
        gates, directions = recurrence
        for way in ("", "_reverse")[:directions]:
            yield f"{name}.weight_ih_l0{way}", (gates * outputs, inputs)
            yield f"{name}.weight_hh_l0{way}", (gates * outputs, outputs)
            yield f"{name}.bias_ih_l0{way}", (gates * outputs,)
            yield f"{name}.bias_hh_l0{way}", (gates * outputs,)


def publish(folder: Path, model: str) -> dict[str, Tensor]:
    """Write the folder; returns the tensors."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes(LAYERS[model])}
    name, both = model.split()[0], " " in model
    (folder / "config.ini").write_text(INI.format(name=name, both=both))
    torch.save(made, folder / f"{name}_final_epoch7.pt")
    return made
