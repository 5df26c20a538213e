"""Former names of layers, under which the weights of older runs are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

FORMER_NAMES: Mapping[str, Mapping[str, str]] = {  # by class: the former name of a layer, and its name now
    "Recurrent": {"forth": "forward_rnn", "back": "backward_rnn"},
    "Residual": {"correct": "correction"},
    "GatedTransition": {"new": "proposed_mean", "stay": "z_to_loc", "spread": "scale"},
    "DKF": {
        "listen": "phi_x",
        "hear": "encoder_rnn",
        "recall": "combiner.z_to_hidden",
        "head": "combiner.posterior_net",
        "speak": "emitter",
    },
    "AVDKF": {
        "look": "lip_encoder",
        "listen": "phi_x",
        "watch": "lips_to_encoder",
        "mix": "encoder_fusion",
        "hear": "encoder_rnn",
        "recall": "combiner.z_to_hidden",
        "head": "combiner.posterior_net",
        "expect": "lips_to_transition",
        "steer": "transition_fusion",
        "want": "phi_z",
        "show": "lips_to_emitter",
        "tell": "emitter_fusion",
        "speak": "emitter_head",
    },
    "Fusion": {"sound": "main_in", "lips": "lips_in"},
    "STORN": {
        "listen": "phi_x",
        "hear": "encoder_rnn",
        "head": "posterior_net",
        "want": "phi_z",
        "listen_back": "phi_past",
        "speak": "decoder_rnn",
        "out": "decoder_net",
    },
    "VRNN": {
        "listen": "phi_x",
        "want": "phi_z",
        "remember": "rnn",
        "q_head": "posterior_net",
        "p_head": "prior_net",
        "out": "decoder_net",
    },
    "SRNN": {
        "listen": "phi_x",
        "remember": "rnn",
        "hear": "encoder_net",
        "hear_on": "encoder_rnn",
        "q_head": "posterior_net",
        "p_head": "prior_net",
        "out": "decoder_net",
    },
    "LSTM": {"listen": "phi_x", "remember": "rnn", "out": "decoder_net"},
    "WaveNet": {"first": "causal_conv", "second": "conv_1x1", "out": "decoder_net", "head": "decoder_head"},
    "STCN": {
        "first": "audio_in",
        "layers": "tcn",
        "p_heads": "prior_nets",
        "q_heads": "posterior_nets",
        "enter": "latent_in",
        "speak": "decoder_tcn",
        "head": "decoder_head",
    },
    "CWVAE": {"stem": "audio_in", "out": "decoder_net.0", "head": "decoder_net.2"},
    "Level": {"down": "encoder", "enter": "latent_in", "up": "decoder"},
    "Cell": {"mix": "rnn_in", "remember": "rnn", "p_head": "prior_net", "q_head": "posterior_net"},
    "Block": {
        "widen": "expand",
        "widened": "expand_norm",
        "slide": "depthwise",
        "slid": "depthwise_norm",
        "narrow": "project",
    },
    "RVAE": {
        "hear": "encoder_rnn",
        "remember": "latent_rnn",
        "head": "posterior_head",
        "speak": "decoder_rnn",
        "out": "decoder_head",
    },
    "AVRVAE": {"look": "lip_encoder", "watch": "prior_rnn", "expect": "prior_head"},
    "DSAE": {
        "hear_v": "v_encoder_rnn",
        "v_head": "v_posterior_head",
        "hear_z": "encoder_rnn",
        "follow": "posterior_rnn",
        "z_head": "posterior_head",
        "expect": "prior_rnn",
        "p_head": "prior_head",
        "speak": "decoder_net",
    },
    "AVVAE": {
        "sound_in": "encoder_audio_in",
        "lips_in": "encoder_lips_in",
        "head": "posterior_head",
        "latent_out": "decoder_latent_in",
        "lips_out": "decoder_lips_in",
        "sound_out": "decoder_head",
    },
    "CVAE": {
        "look": "lip_encoder",
        "sound_in": "encoder_audio_in",
        "lips_in": "encoder_lips_in",
        "head": "posterior_head",
        "prior_head": "prior_net",
        "latent_out": "decoder_latent_in",
        "lips_out": "decoder_lips_in",
        "sound_out": "decoder_head",
    },
    "MINVAE": {
        "prior_mean_ML": "prior_mean_CL",
        "prior_log_var_M1": "prior_log_var_C1",
        "pi_M": "pi_C",
        "hear": "audio_encoder",
        "look": "visual_encoder",
        "past": "epoch_start",
    },
    "MVAE": {
        "hear": "audio_encoder",
        "look": "visual_encoder",
        "speak": "audio_decoder",
        "draw": "visual_decoder",
    },
    "DynamicalLatent": {
        "remember": "rnn",
        "p": "prior_net",
        "q_in": "posterior_net.0",
        "q_on.0": "posterior_net.2",
        "q_head": "posterior_net.4",
    },
    "Multimodal": {
        "look": "phi_v",
        "hear_w": "w_rnn",
        "w_head": "w_posterior",
        "stay": "w_to_moments",
        "chains": "dynamical",
        "speak": "decoder_a",
        "show": "decoder_v",
    },
    "MDVAE": {"eye": "face_encoder", "brush": "face_decoder"},
    "VQMDVAE": {"ear": "vqvae_a", "eye": "vqvae_v"},
    "Standardisation": {"met": "updates"},
    "VAEMM": {"parts.sound": "sound", "parts.both": "both"},
}


def name_now(name: str, model: nn.Module) -> str:
    """Of a layer or a parameter of `model`, given by its name in this version or in an earlier one."""
    return _renamed(name, _renamings(model))


def with_names_now(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    renamings = _renamings(model)
    return {_renamed(name, renamings): tensor for name, tensor in state.items()}


def _renamings(model: nn.Module) -> list[tuple[str, str]]:
    """Paths of layers, former and present, in the order in which they apply: parents first, so that the path of a
    child begins with the present one of its parent."""
    return [
        (f"{path}.{former}".lstrip("."), f"{path}.{now}".lstrip("."))
        for path, module in model.named_modules()
        for kind in type(module).__mro__
        for former, now in FORMER_NAMES.get(kind.__name__, {}).items()
    ]


def _renamed(name: str, renamings: Sequence[tuple[str, str]]) -> str:
    for former, now in renamings:
        if name == former or name.startswith(f"{former}."):
            name = now + name[len(former) :]
    return name
