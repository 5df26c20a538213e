"""Latents that change hands: what they take with them, and what stays."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from avdvae.errors import UserError
from avdvae.latents.transfer import find_latents, generate, require_latents, transfer
from avdvae.models.av_dkf import AVDKF
from avdvae.models.cvae import CVAE
from avdvae.models.dkf import DKF
from avdvae.models.dsae import DSAE
from avdvae.models.hit_dvae import HiTDVAE
from avdvae.models.rvae import RVAE
from avdvae.models.srnn import SRNN
from avdvae.models.storn import STORN
from avdvae.models.vae import VAE
from avdvae.models.vae_mm import VAEMM
from avdvae.models.vrnn import VRNN
from avdvae.protocols import Autoregressive, Batch

T = 9


def small(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"frequencies" if kind in (VAE, CVAE) else "features": 17, "hidden": 8, "dim": 3}
    sizes |= {"pixels": 16} if kind in (CVAE, AVDKF) else {}
    model = VAEMM(small(VAE), small(CVAE)) if kind is VAEMM else kind(**sizes)
    for parameter in model.parameters():  # the usual start is too timid for what depends on what to show
        parameter.data *= 1 if kind in (VAEMM, HiTDVAE) else 2
    return model.eval().requires_grad_(False)


def clip(seed: int, frames: int = T) -> Batch:
    g = torch.Generator().manual_seed(seed)
    lips = torch.randint(0, 256, (1, frames, 4, 4), generator=g, dtype=torch.uint8)
    power, waveform = torch.randn((1, frames, 17), generator=g).exp(), torch.zeros(1, 100)
    return Batch((str(seed),), torch.ones(1, frames) > 0, waveform, None, power, lips=lips)


@pytest.mark.parametrize("kind", [VAE, CVAE, VAEMM, RVAE, DKF, AVDKF, DSAE, VRNN, SRNN, STORN, HiTDVAE])
def test_all_latents_carry_all_that_the_lips_do_not(kind):
    model, source, target = small(kind), clip(0), clip(1)
    names = [spec.name for spec in model.latents]
    whole = transfer(model, source, target, names).likelihoods["power"].expected
    there = transfer(model, replace(target, lips=source.lips), source, names, share=0).likelihoods["power"].expected
    if "lips" not in model.sees:
        torch.testing.assert_close(whole, there)
    nothing = transfer(model, source, target, names, share=0).likelihoods["power"].expected
    half = transfer(model, source, target, names, share=0.5).likelihoods["power"].expected
    assert not torch.allclose(whole, nothing) and not torch.allclose(half, whole) and not torch.allclose(half, nothing)
    itself = transfer(model, source, source, names).likelihoods["power"].expected
    torch.testing.assert_close(itself, nothing)


def test_only_what_is_named_is_taken():
    model, source, target = small(DSAE), clip(0), clip(1, T - 3)
    own, others = (model.infer(batch, mode="mean").z for batch in (source, target))
    made = transfer(model, source, target, ["v"])
    torch.testing.assert_close(made.z, {"v": others["v"], "z": own["z"]})
    assert made.likelihoods["power"].expected.shape == (1, 1, T, 17) and made.mask.all()
    torch.testing.assert_close(
        transfer(model, source, target, ["v"], share=0.25).z["v"], own["v"].lerp(others["v"], 0.25)
    )
    made = transfer(model, source, target, ["z"])
    kept = model.infer(source.first(T - 3), mode="mean").z["v"]
    torch.testing.assert_close(made.z, {"v": kept, "z": others["z"]})
    assert made.likelihoods["power"].expected.shape == (1, 1, T - 3, 17)


def test_what_a_model_sees_is_that_of_the_source():
    model, source, target = small(CVAE), clip(0), clip(1)
    made = transfer(model, source, target, ["z"])
    expected = model.decode(model.infer(target, mode="mean").z, model.context(source))["power"].expected
    assert torch.equal(made.likelihoods["power"].expected, expected)


def test_what_pads_one_clip_counts_in_neither():
    model, source, target = small(RVAE), clip(0), clip(1)
    padded = replace(target, mask=torch.arange(T)[None] < 6)
    made = transfer(model, source, padded, ["z"])
    assert made.mask.tolist() == [[True] * 6 + [False] * 3]
    alone = transfer(model, source.first(6), target.first(6), ["z"])
    torch.testing.assert_close(made.likelihoods["power"].expected[:, :, :6], alone.likelihoods["power"].expected)


@pytest.mark.parametrize("kind", [VAE, CVAE, VAEMM, RVAE, DKF, AVDKF, DSAE, VRNN, SRNN, STORN, HiTDVAE])
def test_what_goes_on_is_what_was_analysed_and_then_the_models_own(kind):
    model, source = small(kind), clip(0)
    torch.manual_seed(1)
    around = source.only("lips") if "lips" in model.sees else source.only()
    made = generate(model, around, source.first(4), k=2)
    for name, z in model.infer(source.first(4), mode="mean").z.items():
        torch.testing.assert_close(made.z[name][:, :, :4], z.expand(2, -1, -1, -1)[:, :, :4])
    speech = made.likelihoods["power"].expected
    assert speech.shape == (2, 1, T, 17) and speech.isfinite().all() and (speech[0] != speech[1]).any()
    if isinstance(model, Autoregressive):  # it hears the analysis, and then itself
        for draw in range(2):
            z = {name: value[draw, None] for name, value in made.z.items()}
            past = torch.cat([source.need("power", model)[:, :4], speech[draw, :, 4:]], 1)
            again = model.decode(z, model.context(replace(source, power=past)))["power"].expected
            torch.testing.assert_close(again[0], speech[draw])
    assert generate(model, around, k=3).likelihoods["power"].expected.shape == (3, 1, T, 17)


def test_what_cannot_be_is_said_in_a_sentence():
    model = small(DSAE)
    for names, words in (
        (["w"], r"latents=\[w\]: DSAE has no latent called w: choose from v, z"),
        ([], r"latents=\[\]: none is named: choose from v, z"),
    ):
        with pytest.raises(UserError, match=words):
            find_latents(model, names)
    with pytest.raises(UserError, match="Linear has no latents"):
        require_latents(nn.Linear(1, 1))
    with pytest.raises(UserError, match="9 frames of analysis do not fit into 4"):
        generate(model, clip(0).first(4), clip(1))
