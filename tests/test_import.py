"""Published weights become runs: every number in its place, nothing executed, all or nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from published import LAYERS, publish
from torch import Tensor

from avdvae.enhancement.separation import separate_long
from avdvae.errors import UserError
from avdvae.orchestration.importing import import_weights
from avdvae.others.published_weights import read_published_weights
from avdvae.protocols import Batch
from avdvae.runs import build_model, build_vem, open_run

PROJECT = Path(__file__).parent.parent
EXPERIMENT = {"RVAE": "rvae_causal", "RVAE both ways": "rvae"}
T = 6
HALVES = ("mean", "logvar")


# ---------------------------------------------------------------------------------------------------------------------
# The models as formulas, of one utterance x_TF, along the means


class Said(NamedTuple):
    """Means and log-variances of q and p, side by side, and the log-variance of the speech."""

    q: Tensor
    p: Tensor
    x: Tensor


class Net:
    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def __call__(self, name: str, *x: Tensor) -> Tensor:
        return torch.cat(x, -1) @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def tanh(self, names: str, *x: Tensor) -> Tensor:
        """Layers linear0, linear1, ..., each followed by tanh."""
        y, number = torch.cat(x, -1), 0
        while f"{names}.linear{number}.bias" in self.tensors:
            y, number = torch.tanh(self(f"{names}.linear{number}", y)), number + 1
        return y

    def both(self, mean: str, log_var: str, *x: Tensor) -> Tensor:
        return torch.cat([self(mean, *x), self(log_var, *x)], -1)

    def rnn(self, name: str, x_TM: Tensor, way: str = "", step: Callable[..., Any] | None = None) -> Tensor:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return (step or lstm)(x_TM, *(self.tensors[f"{name}.{kind}_l0{way}"] for kind in kinds))


def lstm(x_TM: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    h = c = torch.zeros(W_hh.shape[1])
    every = []
    for x in x_TM:
        i, f, g, o = (W_ih @ x + b_ih + W_hh @ h + b_hh).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        every.append(h)
    return torch.stack(every)


def elman(x_TM: Tensor, W_ih: Tensor, W_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    every = [torch.zeros(W_hh.shape[1])]
    for x in x_TM:
        every.append(torch.tanh(W_ih @ x + b_ih + W_hh @ every[-1] + b_hh))
    return torch.stack(every[1:])


def late(x_TM: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, x_TM.shape[1]), x_TM[:-1]])


def chain(step: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """q_t of step(t, z_0:t-1), whose mean is z_t; returns q and z."""
    z, q = torch.zeros(1, 16), []
    for t in range(T):
        q.append(step(t, z))
        z = torch.cat([z, q[-1][None, :16]])
    return torch.stack(q), z[1:]


STANDARD = torch.zeros(T, 32)


def vae(net: Net, x: Tensor) -> Said:
    q = net.both("inf_mean", "inf_logvar", net.tanh("mlp_x_z", x))
    return Said(q, STANDARD, net("gen_out", net.tanh("mlp_z_x", q[:, :16])))


def dkf(net: Net, x: Tensor) -> Said:
    g = net.rnn("rnn_gx", net.tanh("mlp_x_gx", x).flip(0)).flip(0)

    def step(t: int, past: Tensor) -> Tensor:
        told = torch.tanh(net("mlp_ztm1_g.linear_last", net.tanh("mlp_ztm1_g", past[-1])))
        return net.both("inf_mean", "inf_logvar", net.tanh("mlp_g_z", (told + g[t]) / 2))

    q, z = chain(step)
    gate = torch.sigmoid(net("mlp_gate.linear2", torch.relu(net("mlp_gate.linear1", late(z)))))
    new = net("mlp_z_prop.linear2", torch.relu(net("mlp_z_prop.linear1", late(z))))
    mean = (1 - gate) * net("prior_mean", late(z)) + gate * new
    log_var = (1 + net("prior_logvar.1", torch.relu(new)).exp()).log().log()
    return Said(q, torch.cat([mean, log_var], -1), net("gen_out", net.tanh("mlp_z_x", z)))


def storn(net: Net, x: Tensor) -> Said:
    q = net.both("inf_mean", "inf_logvar", net.tanh("mlp_g_z", net.rnn("rnn_g", net.tanh("mlp_x_g", x))))
    told = torch.cat([net.tanh("mlp_z_h", q[:, :16]), net.tanh("mlp_xtm1_h", late(x))], -1)
    return Said(q, STANDARD, net("gen_out", net.tanh("mlp_h_x", net.rnn("rnn_h", told))))


def vrnn(net: Net, x: Tensor) -> Said:
    now = net.tanh("feature_extractor_x", x)

    def state(z: Tensor) -> Tensor:
        """h_1 = 0, and then what the frames so far make of it."""
        heard = torch.cat([now[: len(z) - 1], net.tanh("feature_extractor_z", z[1:])], -1)
        return torch.cat([torch.zeros(1, 128), net.rnn("rnn", heard)]) if len(z) > 1 else torch.zeros(1, 128)

    q, z = chain(lambda t, z: net.both("inf_mean", "inf_logvar", now[t], state(z)[-1]))
    h = state(late(z))
    p = net.both("prior_mean", "prior_logvar", h)
    return Said(q, p, net("gen_out", net.tanh("feature_extractor_z", z), h))


def srnn(net: Net, x: Tensor) -> Said:
    h = net.rnn("rnn_h", net.tanh("mlp_x_h", late(x)))
    g = net.rnn("rnn_g", net.tanh("mlp_hx_g", h, x).flip(0)).flip(0)
    q, z = chain(lambda t, z: net.both("inf_mean", "inf_logvar", net.tanh("mlp_gz_z", g[t], z[-1])))
    p = net.both("prior_mean", "prior_logvar", net.tanh("mlp_hz_z", h, late(z)))
    return Said(q, p, net("gen_logvar", net.tanh("mlp_hz_x", h, z)))


def rvae(net: Net, x: Tensor) -> Said:
    g = net.rnn("rnn_g_x", x.flip(0)).flip(0)
    q, z = chain(lambda t, z: net.both("inf_mean", "inf_logvar", g[t], net.rnn("rnn_g_z", z)[-1]))
    return Said(q, STANDARD, net("gen_out", net.rnn("rnn_h", z)))


def rvae_both_ways(net: Net, x: Tensor) -> Said:
    """The bidirectional LSTM hears the sound turned around, so what comes first is of the future."""
    g = torch.cat([net.rnn("rnn_g_x", x.flip(0)).flip(0), net.rnn("rnn_g_x", x, "_reverse")], -1)
    q, z = chain(lambda t, z: net.both("inf_mean", "inf_logvar", g[t], net.rnn("rnn_g_z", z)[-1]))
    h = torch.cat([net.rnn("rnn_h", z), net.rnn("rnn_h", z.flip(0), "_reverse").flip(0)], -1)
    return Said(q, STANDARD, net("gen_logvar", h))


def dsae(net: Net, x: Tensor) -> Said:
    ends = net.rnn("rnn_g_v", x)[-1], net.rnn("rnn_g_v", x.flip(0), "_reverse")[-1]
    v = net("inf_v_mean", *ends).expand(T, -1)
    xv = torch.cat([x, v], -1)
    heard = torch.cat([net.rnn("rnn_g_xv", xv), net.rnn("rnn_g_xv", xv.flip(0), "_reverse").flip(0)], -1)
    q = net.both("inf_z_mean", "inf_z_logvar", net.rnn("rnn_g_z", heard, step=elman))
    z = q[:, :16]
    p = net.both("prior_mean", "prior_logvar", net.rnn("rnn_prior", late(z)))
    return Said(q, p, net("gen_out", net.tanh("mlp_vz_x", v, z)))


FORMULAS = dict(zip(LAYERS, (vae, dkf, storn, vrnn, srnn, rvae, rvae_both_ways, dsae), strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_of_published_weights_says_and_learns_what_the_formula_does(name, tmp_path):
    tensors = publish(tmp_path / "theirs", name)
    import_weights(tmp_path / "theirs", tmp_path / "runs" / "ours")
    run = open_run(tmp_path / "runs" / "ours")
    assert run.config["exp"] == EXPERIMENT.get(name, name.lower()) and run.stft.hop == 256
    noted = json.loads((run.path / "run.json").read_text())
    assert noted["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert noted["imported"].endswith("_final_epoch7.pt") and not run.trained
    model: Any = run.load_model().requires_grad_(True)
    power = torch.randn(1, T, 513, generator=torch.Generator().manual_seed(1)).exp()
    batch = Batch(("a",), torch.ones(1, T, dtype=torch.bool), power=power)
    inferred = model.infer(batch, mode="mean")
    made = model.decode(inferred.z, model.context(batch))["power"].log_var
    q, p = (torch.cat([part["z"].mean, part["z"].log_var], -1).view(T, 32) for part in (inferred.q, inferred.p))
    for tensor in tensors.values():
        tensor.requires_grad_()
    ours, said = (q, p, made.view(T, 513)), FORMULAS[name](Net(tensors), power[0])
    torch.testing.assert_close(ours, tuple(said), atol=2e-5, rtol=1e-5)
    assert [path.name for path in run.path.parent.iterdir()] == ["ours"]

    slopes = [torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) for value in said]
    for values in (ours, said):
        learnt = [(value, slope) for value, slope in zip(values, slopes, strict=True) if value.requires_grad]
        torch.autograd.backward([value for value, _ in learnt], [slope for _, slope in learnt])
    gradients: Any = build_model(run.config["model"])  # theirs, put where our weights are
    theirs = {key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in tensors.items()}
    torch.save(theirs, noted["imported"])
    read_published_weights(tmp_path / "theirs").fill(gradients)
    for key, parameter in model.named_parameters():
        gradient = gradients.get_parameter(key)
        slack = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient.data, atol=slack, rtol=1e-4)


@pytest.mark.parametrize("numpy", [b"numpy._core", b"numpy.core"])  # since numpy 2, and before
def test_weights_come_from_a_checkpoint_where_no_final_file_is(numpy, tmp_path):
    tensors = publish(tmp_path / "theirs", "VAE")
    (tmp_path / "theirs" / "VAE_final_epoch7.pt").unlink()
    file = tmp_path / "theirs" / "VAE_checkpoint.pt"
    losses = {"best_val_loss": np.float64(2.5), "loss_log": {"train_loss": np.zeros(3)}}
    torch.save({"epoch": 7, "model_state_dict": tensors} | losses, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core", numpy))
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert torch.equal(open_run(tmp_path / "ours").load_model().state_dict()["decoder.2.bias"], tensors["gen_out.bias"])


class Runs:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"mlp_x_z.linear1.weight": torch.ones(2)},
            "holds mlp_x_z.linear1.weight, for which there is no place in our VAE",
        ),
        ({"inf_mean.bias": None, "gen_out.weight": None}, "lacks gen_out.weight, inf_mean.bias in our VAE"),
        ({"inf_mean.weight": torch.ones(16, 64)}, r"has inf_mean.weight of shape \(16, 64\) and not \(16, 128\)"),
        ({"epoch": 7}, "is no state dict"),
        ({"model": Runs(Path("ran"))}, "refused, for to read it, .*mkdir would have to be run"),
    ],
    ids=["unknown", "missing", "shape", "number", "code"],
)
def test_tensors_that_do_not_fit_are_named(change, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = publish(tmp_path / "theirs", "VAE") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    torch.save(kept, tmp_path / "theirs" / "VAE_final_epoch7.pt")
    with pytest.raises(UserError, match=complaint):
        import_weights(tmp_path / "theirs", tmp_path / "runs" / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("name = VAE", "name = KVAE", "has name = KVAE: models that can be imported are DKF, DSAE, RVAE"),
        ("x_dim = 513", "x_dim = 257", r"has x_dim = 257.0 in \[Network\]: only 513 can be imported"),
        ("wlen_sec = 64e-3", "wlen_sec = 32e-3", r"wlen_sec = 0.032 in \[STFT\]: only 0.064"),
        ("tanh", "relu", "activation = relu"),
        ("dense_x_z = 128", "dense_x_z = 256,128", "dense_x_z = 256,128 .* our model has one number there"),
        ("dense_x_z = 128", "dense_x_z = 64", r"mlp_x_z.linear0.weight of shape \(128, 513\) and not \(64, 513\)"),
        ("hop_percent = 0.25", "hop_percent = 25", "the hop is 25600 samples"),
        ("hop_percent = 0.25", "", r"has no hop_percent in \[STFT\]"),
        ("[User]", "User", "cannot be read: File contains no section headers"),
    ],
)
def test_other_settings_are_refused_in_a_sentence(old, new, complaint, tmp_path):
    publish(tmp_path / "theirs", "VAE")
    ini = tmp_path / "theirs" / "config.ini"
    ini.write_text(ini.read_text().replace(old, new))
    with pytest.raises(UserError, match=complaint):
        import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_folder_without_its_files_and_a_run_in_the_way_are_refused(tmp_path):
    publish(tmp_path / "theirs", "VAE")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    with pytest.raises(UserError, match="ours holds a run already"):
        import_weights(tmp_path / "theirs", tmp_path / "ours")
    file = tmp_path / "theirs" / "VAE_final_epoch7.pt"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="is refused, for it is damaged"):
        import_weights(tmp_path / "theirs", tmp_path / "new")
    (tmp_path / "theirs" / "VAE_final_epoch9.pt").touch()
    with pytest.raises(UserError, match=r"config.ini and VAE_final_epoch7.pt, VAE_final_epoch9.pt: give"):
        import_weights(tmp_path / "theirs", tmp_path / "new")
    with pytest.raises(UserError, match=r"holds no config.ini and no .pt file"):
        import_weights(tmp_path, tmp_path / "new")


def test_a_run_of_published_weights_enhances_and_does_not_train(tmp_path):
    publish(tmp_path / "theirs", "RVAE both ways")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    run = open_run(tmp_path / "ours")
    noise = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    settings = build_vem(run.config["enhance"] | {"iterations": 2})
    (clean,) = separate_long(run.load_speech_prior(), noise, run.stft, settings)
    assert 0 < clean.square().sum() < noise.square().sum()
    command = [sys.executable, str(PROJECT / "experiments" / "run.py"), f"resume={run.path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "ours holds weights and no training to go on with" in done.stderr


def test_published_weights_are_trained_on(prepared, tmp_path):
    publish(tmp_path / "theirs", "RVAE both ways")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    program = [sys.executable, str(PROJECT / "experiments" / "run.py"), "exp=rvae", f"start=[{tmp_path / 'ours'}]"]
    program += [f"prepared={prepared.out}", "train=debug", "train.epochs=0", "evaluate.tasks=[]"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *words], cwd=tmp_path, capture_output=True, text=True)

    other_input = run(f"run_dir={tmp_path / 'no'}")
    assert "ours]: this run has model.floor=null, and here it is 0.03: give them alike" in other_input.stderr
    done = run("floor=null", f"run_dir={tmp_path / 'on'}")
    assert done.returncode == 0, done.stderr
    before, after = (open_run(tmp_path / name).load_model().state_dict() for name in ("ours", "on"))
    torch.testing.assert_close(dict(after), dict(before), rtol=0, atol=0)  # after no epoch at all


def test_a_file_of_mixdvae_becomes_a_run_with_each_tensor_in_its_place(tmp_path):
    """By the names of its class, against the same numbers under those of DVAE_SE."""
    tensors = publish(tmp_path / "theirs", "SRNN")
    import_weights(tmp_path / "theirs", tmp_path / "dvae_se")
    names = {"gen_logvar": "gen_x"} | {f"{q}_{part}": f"{q}_z_{part}" for q in ("inf", "prior") for part in HALVES}
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.replace(".linear", ".linear_").partition(".")
        renamed[f"{names.get(layer, layer)}.{rest}"] = tensor
    assert {"mlp_gz_z.linear_1.bias", "inf_z_mean.weight", "prior_z_logvar.bias", "gen_x.bias"} <= renamed.keys()
    file = tmp_path / "model_scass_wsj.pt"
    torch.save(renamed, file)
    import_weights(file, tmp_path / "ours", "flute")
    run = open_run(tmp_path / "ours")
    assert run.config["exp"] == "srnn_gm" and run.config["hop"] == 256 and run.noted["parameters"] == 884_993
    assert run.config["data"]["reader"] == "flute" != open_run(tmp_path / "dvae_se").config["data"]["reader"]
    ours, same = (open_run(tmp_path / name).load_model().state_dict() for name in ("ours", "dvae_se"))
    assert all(torch.equal(ours[name], same[name]) for name in same)

    for change, complaint in (
        (
            {"mlp_x_h.linear_0.weight": torch.ones(4, 5)},
            "model of 5 numbers a frame, and only those of spectra",
        ),
        ({"rnn_h.weight_hh_l0": None}, "is no model of MixDVAE, for it lacks 'rnn_h.weight_hh_l0'"),
        ({"gen_x.bias": None}, "lacks gen_x.bias in our SRNN"),
    ):
        kept = {name: tensor for name, tensor in (renamed | change).items() if tensor is not None}
        torch.save(kept, file)
        with pytest.raises(UserError, match=complaint):
            import_weights(file, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_boxes_of_mixdvae_become_a_run_that_predicts_alike(tmp_path):
    """The prior and the output, after the published names."""
    layers = {"mlp_x_h.linear_0": (4, 4), "mlp_gz_z.linear_0": (16, 16), "mlp_gz_z.linear_1": (8, 16)}
    layers |= {"mlp_hz_z.linear_0": (8, 12), "mlp_hz_z.linear_1": (8, 8), "mlp_hz_x.linear_0": (16, 12)}
    layers |= {f"{q}_z_{part}": (4, 8) for q in ("inf", "prior") for part in HALVES}
    layers |= {f"gen_x_{part}": (4, 16) for part in HALVES}
    lstm, generator = torch.nn.LSTM(4, 8, batch_first=True), torch.Generator().manual_seed(0)
    theirs = {f"rnn_h.{name}": tensor.detach() for name, tensor in lstm.named_parameters()}
    for name, size in layers.items():
        theirs[f"{name}.weight"] = torch.randn(size, generator=generator)
        theirs[f"{name}.bias"] = torch.randn(size[0], generator=generator)
    torch.save(theirs, tmp_path / "model_mot.pt")
    import_weights(tmp_path / "model_mot.pt", tmp_path / "ours")
    run = open_run(tmp_path / "ours")
    assert run.config["exp"] == "box_srnn" and run.noted["parameters"] == 1540
    model: Any = run.load_model()

    def layer(name, x):
        return torch.nn.functional.linear(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"])

    x, z = torch.rand(2, T, 4, generator=generator), torch.randn(1, 2, T, 4, generator=generator)
    before = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
    h = lstm(layer("mlp_x_h.linear_0", before).tanh())[0]
    hz = layer("mlp_hz_x.linear_0", torch.cat([h, z[0]], -1)).tanh()
    context = model.context(Batch(("a", "b"), torch.ones(2, T, dtype=torch.bool), boxes=x))
    found = model.decode({"z": z}, context)["boxes"].density
    torch.testing.assert_close(found.mean[0], layer("gen_x_mean", hz))
    torch.testing.assert_close(found.log_var[0], layer("gen_x_logvar", hz))
    z_before = torch.nn.functional.pad(z[0], (0, 0, 1, 0))[:, :-1]
    p = layer("mlp_hz_z.linear_1", layer("mlp_hz_z.linear_0", torch.cat([h, z_before], -1)).tanh()).tanh()
    torch.testing.assert_close(model.prior({"z": z}, context)["z"].log_var[0], layer("prior_z_logvar", p))
    q = model.posterior(x, context, {"z": torch.zeros_like(z)}).q["z"]
    g = torch.cat([h[:, 0], x[:, 0], 0 * z[0, :, 0]], -1)
    g = layer("mlp_gz_z.linear_1", layer("mlp_gz_z.linear_0", g).tanh()).tanh()
    torch.testing.assert_close(q.mean[0, :, 0], layer("inf_z_mean", g))


def test_the_program_says_what_it_misses():
    command = [sys.executable, str(PROJECT / "experiments" / "import_weights.py"), "source=theirs"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "import_weights.py: run_dir= missing: give source=FOLDER run_dir=RUN\n"
