"""Single models against their papers."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from test_contract import utterances
from torch.distributions import Normal, kl_divergence

from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.models.av_dkf import AVDKF
from avdvae.models.av_rvae import AVRVAE
from avdvae.models.av_vae import AVVAE
from avdvae.models.cvae import CVAE
from avdvae.models.cw_vae import CWVAE
from avdvae.models.dkf import DKF
from avdvae.models.lstm import LSTM
from avdvae.models.min_vae import MINVAE
from avdvae.models.mvae import MVAE
from avdvae.models.nmf import NMF
from avdvae.models.rvae import RVAE
from avdvae.models.v_vae import VVAE
from avdvae.models.vae import VAE
from avdvae.models.vae_mm import VAEMM
from avdvae.models.vrnn_wave import VRNNWave
from avdvae.nn.blocks import standardised, zero_init
from avdvae.probability.gaussian import VARIANCE_FLOOR, Gaussian
from avdvae.probability.objectives import Schedule
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, is_speech_prior, why_not_enhancing

SIZES: Any = {"frequencies": 33, "pixels": 16, "hidden": 12, "dim": 4, "dropout": 0.0}
PLAIN = Schedule()


@pytest.fixture(scope="module")
def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    power = torch.randn((3, 6, 33), generator=g).exp()
    lips = torch.randint(0, 256, (3, 6, 4, 4), generator=g, dtype=torch.uint8)
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    return Batch(("a", "b", "c"), mask, power=power, lips=lips)


def cvae(**settings: Any) -> CVAE:
    torch.manual_seed(0)
    return CVAE(**{**SIZES, **settings})


def test_the_models_have_as_many_parameters_as_published():
    counts = [sum(p.numel() for p in model.parameters()) for model in (VAE(), CVAE())]
    assert counts == [144_449, 2_566_785]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (AVVAE, [VAE]),
        (CVAE, [VAE]),
        (VVAE, [VAE]),
        (MINVAE, [VAE, VVAE]),
        (AVDKF, [DKF]),
        (AVRVAE, [partial(RVAE, causal=False)]),
    ],
)
def test_a_model_as_it_comes_starts_from_others_as_they_come(model, parts):
    made, batch = model(), utterances(3300)
    sizes = [tensor.shape for tensor in made.state_dict().values()]
    made.start_from(*(part() for part in parts))
    assert [tensor.shape for tensor in made.state_dict().values()] == sizes
    assert made(batch, PLAIN).bound.isfinite().all()


def test_importance_sampling_finds_the_likelihood_of_sound_and_lips(batch):
    """Exactly known where neither sound nor lips depend on the latent."""
    torch.manual_seed(0)
    model = MVAE(**SIZES)
    heads: list[Any] = [model.audio_encoder[-1], model.visual_encoder[-1]]
    for part in (model.audio_decoder, model.visual_decoder, *heads):
        zero_init(part)
    for head in heads:  # whose product with the prior is N(0.3, 0.7 I)
        torch.nn.init.constant_(head.mean.bias, 1.0)
        torch.nn.init.constant_(head.log_var.bias, 1.5)
    pixels = standardised(batch.need("lips", model))
    sound = -(math.log(math.pi) + batch.need("power", model)).sum(-1)
    lips = -0.5 * (math.log(2 * math.pi) + pixels.square()).sum(-1)
    for chunk in (20, 333):  # the last is smaller than the others
        found = model.log_joint_likelihood(batch, 4000, chunk)
        torch.testing.assert_close(found, sound + lips, rtol=0, atol=0.1)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.9, 1.0])
def test_the_cvae_trains_on_the_bound_and_on_the_likelihood_given_the_lips_alone(batch, alpha):
    model = cvae(alpha=alpha)
    torch.manual_seed(5)
    elbo = model(batch, PLAIN)

    torch.manual_seed(5)
    context = model.context(batch)
    q, p = model.posterior(batch, context), model.prior(context)
    from_both = q.mean + torch.randn(q.mean.shape) * torch.exp(q.log_var / 2)
    from_lips = p.mean + torch.randn(p.mean.shape) * torch.exp(p.log_var / 2)
    fits = []
    for z in (from_both, from_lips):
        variance = model.decode({"z": z[None]}, context)["power"].log_var[0].exp() + VARIANCE_FLOOR
        log_prob = -(torch.pi * variance).log() - batch.need("power", model) / variance
        fits.append((log_prob.sum(2) * batch.mask).sum(1))
    normals = (Normal(g.mean, torch.exp(g.log_var / 2)) for g in (q, p))
    bound = fits[0] - (kl_divergence(*normals).sum(2) * batch.mask).sum(1)

    torch.testing.assert_close(elbo.bound, bound)
    torch.testing.assert_close(elbo.loss(PLAIN), -(alpha * bound + (1 - alpha) * fits[1]))
    assert set(elbo.aux) == (set() if alpha == 1 else {"from_lips"})


@pytest.mark.parametrize("beta", [0.05, 1.0])
@pytest.mark.parametrize(
    ("build", "weights"),
    [
        (lambda: cvae(alpha=0.9), [0.9]),
        (lambda: AVDKF(33, 16, 12, 4, wide=8, narrow=[8], alpha=0.7), [0.7]),
        (lambda: MVAE(**SIZES, joint="poe", lips_weight=0.2), [0.2, 1.0, 1.0]),
        (lambda: MVAE(**SIZES, joint="moe"), [1 / 2, 1 / 2]),
        (lambda: MVAE(**SIZES, joint="mopoe"), [1 / 3, 1 / 3, 1 / 3]),
    ],
    ids=["cvae", "av_dkf", "poe", "moe", "mopoe"],
)
def test_each_divergence_weighs_beta_times_its_share_of_the_loss(batch, monkeypatch, build, weights, beta):
    """d loss / d KL, for every KL that the model computes, in the frames that hold data."""
    divergences, kl = [], Gaussian.kl
    monkeypatch.setattr(Gaussian, "kl", lambda q, p: divergences.append(kl(q, p)) or divergences[-1])
    schedule = Schedule(beta=beta)
    slopes = torch.autograd.grad(build()(batch, schedule).loss(schedule).sum(), divergences)
    given = sorted(slope[..., 0, 0].item() for slope in slopes)
    torch.testing.assert_close(given, [beta * weight for weight in weights])
    for slope in slopes:
        torch.testing.assert_close(slope.view(batch.mask.shape), slope[..., 0, 0].item() * batch.mask)


def test_freeze_sound_freezes_the_sound_layers_of_the_cvae_in_that_fraction_of_the_batches(batch):
    model = cvae(freeze_sound=0.3).train()
    sound = {f"{layer}.{p}" for layer in ("encoder_audio_in", "decoder_latent_in") for p in ("weight", "bias")}
    sound |= {f"posterior_head.{layer}.{p}" for layer in ("mean", "log_var") for p in ("weight", "bias")}
    by_train_freeze = ("encoder_audio_in", "decoder_lips_in")
    frozen = {f"{layer}.{p}" for layer in by_train_freeze for p in ("weight", "bias")}
    for freeze, (coin, still) in product((False, True), ((0.29, sound), (0.3, set()), (0.0, sound), (1.0, set()))):
        model.zero_grad()
        if freeze:
            for layer in by_train_freeze:
                model.get_submodule(layer).requires_grad_(False)
        model(batch, Schedule(coin=coin)).loss(PLAIN).sum().backward()
        unmoved = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
        assert unmoved == still | (frozen if freeze else set())
        assert all(p.grad is None for name, p in model.named_parameters() if name in unmoved)  # which Adam passes over
    model.eval()(batch, Schedule(coin=0.0)).loss(PLAIN).sum().backward()
    assert model.get_parameter("posterior_head.mean.weight").grad is not None
    for setting in ({"alpha": 1.1}, {"freeze_sound": -0.1}):
        with pytest.raises(UserError, match=rf"model\.{next(iter(setting))}=.* from 0 to 1"):
            cvae(**setting)


def test_enhancement_tempers_the_prior_from_the_lips_and_training_does_not(batch, monkeypatch):
    """p(z | v) to the power of the temper, normalised; alone and in a mixture."""
    model, z = cvae().eval(), {"z": torch.randn(3, *batch.mask.shape, 4)}
    context = model.context(batch)
    log_p, tempered = (model.log_prior(z, replace(context, temper=temper)) for temper in (1.0, 0.2))
    grid = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    p = model.prior(context)
    powers = [
        ((grid - mean) ** 2 / -2 * 0.2 / variance).exp()
        for mean, variance in zip(p.mean[0, 0], p.log_var[0, 0].exp(), strict=True)
    ]
    constant = sum(power.sum().mul(grid[1] - grid[0]).log() for power in powers)
    expected = -0.2 * ((z["z"] - p.mean).square() / p.log_var.exp()).sum(-1)[:, 0, 0] / 2 - constant
    torch.testing.assert_close(tempered[:, 0, 0], expected.float(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(log_p, tempered)

    tempers: list[float] = []
    prior = CVAE.prior
    monkeypatch.setattr(CVAE, "prior", lambda self, context: tempers.append(context.temper) or prior(self, context))
    model(batch, PLAIN)
    assert {*tempers} == {1.0}
    noisy = Batch(batch.ids, batch.mask, noisy=batch.power, lips=batch.lips)
    mixture = VAEMM(VAE(frequencies=33, hidden=12, dim=4), model).requires_grad_(False)
    enhancing: Any
    for enhancing in (model.requires_grad_(False), mixture):
        for paper, temper in ((False, 0.3), (True, 1.0)):
            tempers.clear()
            enhance(enhancing, noisy, Vem(FreeGaussian(), iterations=1, temper=0.3, paper=paper))
            assert torch.as_tensor(tempers[-1]).eq(temper).all()
    with pytest.raises(UserError, match=r"enhance.temper=0: give a number above 0"):
        Vem(FreeGaussian(), temper=0)

    tempers.clear()
    enhance(enhancing.both, noisy, Vem(FreeGaussian(), iterations=10, temper=2.0))
    rising = [float(torch.as_tensor(temper).mean()) for temper in tempers if isinstance(temper, torch.Tensor)]
    assert rising[0] == pytest.approx(0.2) and rising[-1] == pytest.approx(2) and rising == sorted(rising)
    assert 0.2 < rising[1] < 2


def test_lips_unlike_those_of_training_count_less(batch):
    """They are moved towards the mean crop of training, and widen the prior that they give."""
    model: Any = cvae(pixels=40 * 40)
    encoder = model.lip_encoder[0]
    crops = torch.randint(0, 256, (8, *batch.mask.shape, 40, 40), dtype=torch.uint8)
    crops[..., 20:, :] //= 4  # faces have something in common
    crops[0, 0, 0] = 0  # no face was found
    for lips in crops:
        model(replace(batch, lips=lips), PLAIN)
    pixels = standardised(crops.flatten(0, 1)).flatten(0, 1)
    pixels = pixels[(pixels != 0).any(-1)]
    torch.testing.assert_close(encoder.mean_crop, pixels.mean(0), rtol=1e-4, atol=1e-5)

    model.eval()
    spread = (pixels - pixels.mean(0)).square().mean(-1)
    torch.testing.assert_close(
        encoder.typical(crops[1])[0, :, 0],
        (spread.mean() / (standardised(crops[1])[0] - pixels.mean(0)).square().mean(-1)).clamp_max(1),
        rtol=1e-2, atol=1e-2,
    )  # fmt: skip
    unlike = replace(batch, lips=255 - crops[1])
    typical_BT1 = encoder.typical(unlike.lips)
    assert (typical_BT1 < 0.6).all()
    moved = encoder.mean_crop + typical_BT1 * (standardised(unlike.lips) - encoder.mean_crop)
    torch.testing.assert_close(encoder(unlike.lips), encoder.features(torch.relu(encoder.pixels(moved))))
    context = model.context(unlike)
    wider = model.prior(context.tempered(1.0)).log_var - model.prior(context).log_var
    torch.testing.assert_close(wider, -typical_BT1.log().expand_as(wider))

    earlier = {name: value for name, value in model.state_dict().items() if not name.endswith(("mean_crop", "crops"))}
    old: Any = cvae(pixels=40 * 40)
    old.load_state_dict(earlier)
    assert old.eval().context(unlike).typical.min() > 0.99


@pytest.mark.parametrize("model", [VAE(51, 8, 3, observes="pose"), DKF(51, 8, 3, 8, 8, [8], observes="pose")])
def test_a_beta_of_a_tenth_of_the_joints_weighs_poses_as_published(model):
    """There, a frame costs its mean distance in millimetres and its divergence."""
    pose, mask = torch.randn(2, 6, 51), torch.arange(6) < torch.tensor([[6], [4]])
    batch, schedule, slopes = Batch(("a", "b"), mask, pose=pose), Schedule(beta=1.7), []
    for published in (False, True):
        torch.manual_seed(1)
        elbo = model(batch, schedule)
        loss = elbo.loss(schedule).sum()
        if published:
            torch.manual_seed(1)
            expected = model.decode(model.infer(batch).z, model.context(batch))["pose"].expected[0]
            distances = (1000 * (pose - expected)).unflatten(-1, (17, 3)).norm(dim=-1)
            loss = (distances.mean(-1) * mask).sum() + elbo.kl["z"].sum()
        slopes.append(torch.autograd.grad(loss, [*model.parameters()]))
    for own, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(own, 1.7 * theirs, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", [AVVAE, CVAE])
def test_a_model_that_starts_from_an_a_vae_is_that_a_vae_until_the_layers_of_the_lips_are_trained(batch, kind):
    torch.manual_seed(0)
    vae, model = VAE(frequencies=33, hidden=12, dim=4), kind(**SIZES)
    expected = vae.elbo(batch, vae.context(batch)).kl["z"].detach()
    z = {"z": torch.randn(2, 3, 6, 4)}
    spectra = vae.decode(z, vae.context(batch))["power"].log_var.detach()
    model.start_from(vae)
    torch.testing.assert_close(model.elbo(batch, model.context(batch)).kl["z"], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode(z, model.context(batch))["power"].log_var, spectra)
    model(batch, PLAIN).loss(PLAIN).sum().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("decoder_lips_in") for name in learning)


@pytest.mark.parametrize("kind", [AVVAE, CVAE])
def test_the_floor_of_an_a_vae_is_carried_into_what_starts_from_it(batch, kind):
    torch.manual_seed(0)
    vae, model = VAE(frequencies=33, hidden=12, dim=4, floor=0.01), kind(**SIZES, floor=0.01)
    model.start_from(vae)
    means = [m.infer(batch, mode="mean").z["z"] for m in (vae, model)]
    torch.testing.assert_close(*means)
    raw = VAE(frequencies=33, hidden=12, dim=4)
    assert not torch.allclose(means[0], raw.encoder(batch.power).mean)
    for other, floors in ((kind(**SIZES), "model.floor=0.01, and .* floor=null"), (VAEMM(raw, model), "floor=null")):
        given = (vae,) if isinstance(other, kind) else (vae, model)
        with pytest.raises(UserError, match=rf"VAE was trained with .*{floors}: start from one of that floor or give"):
            other.start_from(*given)
    with pytest.raises(UserError, match=r"MINVAE takes its encoder with floor=null: start from one of that floor or"):
        MINVAE(**SIZES).start_from(vae, VVAE(**SIZES))


def test_what_a_model_observes_decides_whether_it_is_a_prior_of_speech():
    wave: Any = {"stride": 8, "dim": 2, "wide": 4, "hidden": 4}
    others = [VAE(51, observes="pose"), RVAE(51, observes="pose"), VRNNWave(**wave), CWVAE(8, 1, 4, 2), LSTM(8, 4)]
    assert is_speech_prior(VAE()) and not any(map(is_speech_prior, others))
    said = [why_not_enhancing(model) for model in others]
    for reason, why in zip(said, ("poses", "poses", "samples"), strict=False):
        assert reason and f"cannot enhance, for it is a model of {why}" in reason
    assert all(said) and why_not_enhancing(VAE()) is None


def test_the_updates_of_nmf_approach_the_spectrum(batch):
    """More updates never fit worse, and a spectrum made of the dictionary is found again."""
    torch.manual_seed(0)
    model = NMF(frequencies=33, atoms=5)
    activations = torch.rand(1, 4, 5) + 0.1
    power = activations @ model.log_dictionary.exp().mT
    fits = []
    for updates in (0, 1, 2, 5, 20, 2000):
        model.updates = updates
        fits.append(ComplexGaussian((model.activations(power) @ model.log_dictionary.exp().mT).log()).log_prob(power))
    assert all((later >= earlier - 1e-4).all() for earlier, later in pairwise(fits))
    torch.testing.assert_close(model.activations(power), activations, rtol=0.02, atol=0.01)
