"""The contract of avdvae/protocols.py, for each model of configs/model that it concerns.

`pytest tests/test_contract.py --model=my_file.MyModel` checks a class of your own, made with its default arguments,
instead. The argument of a test names the kind of models that it is for; see KINDS.
"""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avdvae.configurations import choices, compose
from avdvae.enhancement.learned import Learned, LearnedPosterior
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.latents.resynthesis import decode_free_running
from avdvae.probability.gaussian import VARIANCE_FLOOR, Gaussian
from avdvae.probability.mixture import Mixture
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.pcm import CODES
from avdvae.probability.spectrum import ComplexGaussian, SpeechLikelihood
from avdvae.protocols import (
    Autoregressive,
    Batch,
    Denoises,
    LatentModel,
    MixtureModel,
    Model,
    WaveformModel,
    indispensable,
    is_speech_prior,
)
from avdvae.runs import build_model
from avdvae.signals.audio import Stft

STFT = Stft(533)
SHORT, LONG = 3300, 5900  # samples of the utterances; 7 and 12 frames
LISTED = {
    name: compose("config", [f"model={name}", "floor=0.03"])["model"] for name in choices("model") if name != "own"
}


@cache
def built(own: str | None) -> dict[str, Any]:
    """The models as they start, by name: all, or one of your own."""
    if own:
        sys.path.insert(0, str(Path.cwd()))  # as when Python runs a file there
    configs: dict[str, Any] = {own: {"target": own}} if own else LISTED
    models = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        models[name] = build_model(config).eval()
    return models


def subtracts_one_kl_a_latent(model: Any) -> bool:
    """Mixtures weigh the divergences of their components, and models that can miss a modality average bounds."""
    return isinstance(model, LatentModel) and not (isinstance(model, MixtureModel) or model.can_miss)


KINDS: dict[str, Callable[[Any], bool]] = {
    "model": lambda model: True,
    "latent_model": lambda model: isinstance(model, LatentModel),
    "elbo_model": subtracts_one_kl_a_latent,
    "autoregressive": lambda model: isinstance(model, Autoregressive),
    "speech_prior": is_speech_prior,
    "waveform_model": lambda model: isinstance(model, WaveformModel),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for kind in {*KINDS} & {*metafunc.fixturenames}:
        models = {n: m for n, m in built(metafunc.config.getoption("--model")).items() if KINDS[kind](m)}
        metafunc.parametrize(kind, models.values(), ids=models.keys(), indirect=True)


def copied(request: pytest.FixtureRequest) -> Any:
    return deepcopy(request.param)


model, latent_model, elbo_model, autoregressive, speech_prior, waveform_model = (
    pytest.fixture(copied, name=kind) for kind in KINDS
)


def utterances(*samples: int, frames: int | None = None) -> Batch:
    """Soft noise that swells and fades, another for each length, padded as the loader pads."""
    count = frames or max(STFT.frames(n) for n in samples)
    tensors: dict[str, Tensor] = {
        "mask": torch.zeros(len(samples), count, dtype=torch.bool),
        "waveform": torch.zeros(len(samples), count * STFT.hop),
        "mixture": torch.zeros(len(samples), count * STFT.hop),
        "power": torch.zeros(len(samples), count, 513),
        "noisy": torch.zeros(len(samples), count, 513),
        "spectrum": torch.zeros(len(samples), count, 513, dtype=torch.complex64),
        "lips": torch.zeros(len(samples), count, 67, 67, dtype=torch.uint8),
        "confidence": torch.zeros(len(samples), count),
        "face": torch.zeros(len(samples), count, 64, 64, 3, dtype=torch.uint8),
        "boxes": torch.zeros(len(samples), count, 4),
        "lengths": torch.tensor(samples),
    }
    for b, n in enumerate(samples):
        g, t = torch.Generator().manual_seed(n), STFT.frames(n)
        waveform = torch.randn(n, generator=g) * torch.linspace(0, 9, n).sin()
        mixture = waveform + 0.5 * torch.randn(n, generator=g)
        for sound, spectrum, values in (("waveform", "power", waveform), ("mixture", "noisy", mixture)):
            tensors[sound][b, :n] = 0.1 * values / values.abs().max()
            tensors[spectrum][b, :t] = STFT.power(tensors[sound][b : b + 1, :n])[0]
        tensors["spectrum"][b, :t] = STFT.analyse(tensors["waveform"][b : b + 1, :n])[0]
        tensors["mask"][b, :t] = True
        tensors["lips"][b, :t] = torch.randint(0, 256, (t, 67, 67), generator=g)
        tensors["confidence"][b, :t] = torch.rand(t, generator=g)
        tensors["face"][b, :t] = torch.randint(0, 256, (t, 64, 64, 3), generator=g)
        tensors["boxes"][b, :t] = 0.5 + 0.1 * torch.randn(t, 4, generator=g).cumsum(0)
    labels = tuple({"speaker": f"speaker {n}"} for n in samples)
    return Batch(ids=tuple(map(str, samples)), labels=labels, **tensors)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return utterances(SHORT, LONG)


def losses(model: Any, batch: Batch) -> Tensor:
    schedule = Schedule(epoch=1000)  # some models learn by and by
    return model(batch, schedule).loss(schedule)


def first(batch: Batch, steps: int) -> Batch:
    """The first frames, and 512 times as many samples, so that these are whole steps of all levels of a model."""
    waveform, lengths = batch.need("waveform", batch)[:, : 512 * steps], batch.need("lengths", batch)
    return replace(batch.first(steps), waveform=waveform, lengths=lengths.clamp(max=512 * steps))


def samples_of_a_step(model: Any) -> int:
    return model.stride if isinstance(model, WaveformModel) else STFT.hop


def decode(model: Any, batch: Batch, k: int = 1) -> Any:
    """The likelihood of what the model observes, given the true past."""
    return model.decode(model.infer(batch, k).z, model.context(batch))[model.observes]


def test_it_offers_all_that_its_kind_must(model):
    assert {model.observes, *model.sees} <= set(Batch.MODALITIES)
    assert isinstance(model, WaveformModel) == (model.observes == "waveform")
    assert isinstance(model, Model)
    verbs = {"denoise", "scale_F"}
    if not isinstance(model, Denoises):
        assert not verbs & set(dir(model))
        verbs = {"latents", "context", "infer", "decode", "log_prior", "sample_prior"}
    if has := verbs & set(dir(model)):
        assert not (missing := verbs - has), f"it has {', '.join(has)} but not {', '.join(missing)}"
        assert isinstance(model, LatentModel | Denoises)


def test_latents_have_names_of_their_own(latent_model):
    assert latent_model.latents
    assert len({spec.name for spec in latent_model.latents}) == len(latent_model.latents)


def test_the_bound_comes_in_finite_parts_of_each_utterance(model, batch):
    elbo = model(batch, Schedule())
    assert isinstance(elbo, Elbo) and elbo.recon and set(elbo.recon) <= set(Batch.MODALITIES)
    assert model.observes in elbo.recon
    latents = {spec.name for spec in model.latents} if isinstance(model, LatentModel) else set()
    assert set(elbo.kl) <= latents | {"switch"}
    for part in (*elbo.parts().values(), elbo.n, elbo.loss(Schedule(beta=0.1))):
        assert part.shape == (2,) and part.isfinite().all() and part.dtype == torch.float32
    assert elbo.n.tolist() == ([SHORT, LONG] if model.observes == "waveform" else [7, 12])  # samples or frames


def test_the_loss_trains_every_parameter(model, batch):
    for parameter in model.parameters():
        if not parameter.any():  # a last layer that starts at 0 holds gradients back at first
            torch.nn.init.normal_(parameter, std=0.01)
    losses(model.train(), batch).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_a_few_steps_lower_the_loss(model, batch):
    def judge() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return losses(model.eval(), batch).sum().item()

    before = judge()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(10):
        model.train()
        adam.zero_grad()
        losses(model, batch).sum().backward()
        adam.step()
    assert judge() < before


def test_shapes_are_those_that_the_latents_declare(latent_model, batch):
    model, context = latent_model, latent_model.context(batch)
    inferred, drawn = model.infer(batch, 3), model.sample_prior(context, 3)
    named, steps = {spec.name for spec in model.latents}, context.mask.shape[1]
    assert steps == -(-12 * STFT.hop // samples_of_a_step(model))
    assert named == set(inferred.z) == set(inferred.q) == set(inferred.p) == set(drawn)
    for spec in model.latents:
        z = inferred.z[spec.name]
        frames = (1,) if spec.rate is None else (steps if spec.rate == 1 else -(-12 * STFT.hop // spec.rate),)
        assert z.shape == drawn[spec.name].shape == (3, 2, *frames, spec.dim)
        assert z.ndim == 4
        for gaussian in (inferred.q[spec.name], inferred.p[spec.name]):
            for tensor in (gaussian.mean, gaussian.log_var):
                assert torch.broadcast_shapes(tensor.shape, z.shape) == z.shape
    assert model.log_prior(inferred.z, context).shape == (3, 2, steps)
    for alone in (model.infer(batch).z, model.sample_prior(context)):
        assert all(len(z) == 1 for z in alone.values())  # where none is asked for


def test_draws_are_from_the_posterior_and_means_are_its_means(latent_model, batch):
    model = latent_model
    inferred = model.infer(batch, 20)
    for name, z in inferred.z.items():
        q = inferred.q[name]
        noise = (z - q.mean) * torch.exp(-q.log_var / 2)
        several = 5 / noise.numel() ** 0.5
        assert noise.mean().abs() < several and (noise.var() - 1).abs() < 1.5 * several, name
        few = max(0.1, 3 / (2 * noise[0].numel()) ** 0.5)  # a latent of a whole utterance has few numbers
        assert (noise.mean(0).std() * 20**0.5 - 1).abs() < few, name  # the K draws are independent
    middle, again = (model.infer(batch, 2, "mean") for _ in range(2))
    for name, z in middle.z.items():
        assert torch.equal(z, again.z[name])
        torch.testing.assert_close(z, middle.q[name].mean.expand_as(z))


def density(side: Gaussian, z: Tensor) -> Tensor:
    """By torch, in nats of each step."""
    return torch.distributions.Normal(side.mean, (side.log_var / 2).exp()).log_prob(z).sum(-1)


def test_the_prior_declared_is_the_prior_computed(latent_model):
    """It is N(0, I) where it depends on nothing."""
    model, batch = latent_model, utterances(LONG)
    inferred, context = model.infer(batch, 20), model.context(batch)
    log_p = {}
    for name, z in inferred.z.items():
        p = inferred.p[name]
        if len(p.mean.unique()) == len(p.log_var.unique()) == 1 and not p.log_var.requires_grad:
            assert (p.mean == 0).all() and (p.log_var == 0).all(), name
        log_p[name] = density(p, z)
    computed = model.log_prior(inferred.z, context)
    total = sum(value.flatten(2).sum(-1) for value in log_p.values())
    torch.testing.assert_close(computed.sum(-1), total, rtol=1e-5, atol=1e-2)
    if all(spec.rate == 1 for spec in model.latents):
        torch.testing.assert_close(computed, torch.stack([*log_p.values()]).sum(0), rtol=1e-5, atol=1e-3)


def test_the_bound_subtracts_the_divergence_of_the_posterior_from_the_prior(elbo_model):
    model, batch = elbo_model, utterances(LONG)
    inferred, kls = model.infer(batch, 100), [model(batch, Schedule(epoch=1000)).kl for _ in range(9)]
    for spec in model.latents:
        z, q, p = (side[spec.name] for side in (inferred.z, inferred.q, inferred.p))
        steps = -(-LONG // spec.rate) if isinstance(model, WaveformModel) else None  # the others hold silence alone
        gain_K = (density(q, z) - density(p, z))[..., :steps].sum((1, 2))
        kl = torch.stack([each[spec.name] for each in kls]).mean()
        assert (gain_K.mean() - kl).abs() < 5 * gain_K.std() / 10 + 0.02 * gain_K.mean().abs(), spec.name


def test_draws_from_the_prior_are_draws_from_its_density(latent_model):
    """By Stein's identities, E[slope] = 0 and E[slope * z] = -1 in every dimension for slope = d ln p(z) / dz."""
    model, batch = latent_model, utterances(LONG)
    with torch.no_grad():
        context = model.context(batch)
        drawn = model.sample_prior(context, 50)
    z = {name: value.requires_grad_() for name, value in drawn.items()}
    slopes = torch.autograd.grad(model.log_prior(z, context).sum(), list(z.values()))
    for name, slope in zip(z, slopes, strict=True):
        several = 6 / slope.numel() ** 0.5
        assert slope.mean().abs() < several * slope.std(), name
        assert ((slope * z[name]).mean() + 1).abs() < several * (slope * z[name]).std(), name


@torch.no_grad()
def test_the_prior_needs_nothing_of_what_the_model_observes(latent_model, batch):
    model = latent_model
    context = model.context(batch.only(*(set(model.sees) - {model.observes})))
    assert torch.equal(context.mask.sum(1), model.context(batch).mask.sum(1))
    whole, again = (model.sample_prior(context, 2) for _ in range(2))
    for spec in model.latents:
        z = whole[spec.name]
        assert z.isfinite().all() and (len(z), *z.shape[1::2]) == (2, 2, spec.dim)
        assert (z[0] != z[1]).any() and (z != again[spec.name]).any(), spec.name
    one = model.latents[0].name
    kept = model.sample_prior(context, 3, {one: whole[one][:1]})  # of one latent, a draw for all
    assert torch.equal(kept[one], whole[one][:1].expand(3, -1, -1, -1))


@torch.no_grad()
def test_draws_go_on_from_what_is_given_whatever_follows(latent_model, batch, monkeypatch):
    model = latent_model
    given = model.infer(first(batch, 5), mode="mean").z
    drawn = model.sample_prior(model.context(batch), 3, given)
    for name, z in given.items():
        frames = z.shape[2]
        assert torch.equal(drawn[name][:, :, :frames], z.expand(3, -1, -1, -1)), name
        assert frames == 1 or (drawn[name][0, :, frames:] != drawn[name][1, :, frames:]).any(), name
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: 0.6 * torch.ones(*shape))  # whatever the shape
    long, short = (model.sample_prior(model.context(first(batch, n)), 1, given) for n in (12, 8))
    for name, z in short.items():
        torch.testing.assert_close(long[name][:, :, : z.shape[2]], z, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_past_may_be_the_own_one(autoregressive, batch):
    """`own_past` gives, and `feedback` takes, what `context.past` is."""
    model, context = autoregressive, autoregressive.context(batch)
    z = model.infer(batch, 3).z
    none, half = ([n >= own for n in range(context.mask.shape[1])] for own in (1e9, context.mask.shape[1] // 2))
    past = model.own_past(z, context, none)
    assert torch.equal(past, context.past.expand_as(past)) and past.shape[:3] == (3, *context.mask.shape)
    other = model.own_past(z, context, half)
    assert torch.equal(other[:, :, : sum(none) - sum(half)], past[:, :, : sum(none) - sum(half)])
    assert (other[:, :, -sum(half) :] != past[:, :, -sum(half) :]).any()


@torch.no_grad()
def test_decoding_gives_a_likelihood_of_what_the_model_observes(latent_model, batch):
    model, observed = latent_model, batch.need(latent_model.observes, latent_model)
    z, context = model.infer(batch, 3).z, model.context(batch)
    true, own = model.decode(z, context), decode_free_running(model, z, context)
    fed = model.decode(z, replace(context, past=None), feedback=context.past)
    values = [_log_prob(likelihoods[model.observes], observed) for likelihoods in (true, fed, own)]
    assert values[0].shape == (3, *observed.shape[:2]) and values[0].isfinite().all() and torch.equal(*values[:2])
    assert values[2].isfinite().all()


def _log_prob(likelihood, observed):
    """Of a mixture, its potential."""
    return (likelihood.log_potential if isinstance(likelihood, Mixture) else likelihood.log_prob)(observed)


def test_decoding_gives_a_likelihood_that_can_take_noise(speech_prior, batch):
    likelihood, power = decode(speech_prior, batch, 3), batch.need("power", speech_prior)
    variance, precision, weights, *_ = likelihood.components(power)
    assert (likelihood.expected > 0).all() and likelihood.expected.shape == (3, *power.shape)
    assert variance.shape[1:] == power.shape and variance.isfinite().all() and (variance > 0).all()
    torch.testing.assert_close(precision, 1 / (variance + VARIANCE_FLOOR))
    if isinstance(likelihood, ComplexGaussian):
        assert likelihood.log_var.shape == (3, *power.shape)
    if weights is not None:
        assert weights.shape == (len(variance), *power.shape[:2], 1)
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
    noisy = likelihood.add_noise(torch.ones_like(power[..., :1]), torch.full_like(power, 1e8))
    for value in (likelihood.log_potential(power), noisy.log_potential(power)):
        assert value.shape == (3, 2, 12) and value.isfinite().all()
    drowned = ComplexGaussian(torch.full((3, *power.shape), 1e8).log()).log_prob(power)
    components = len(likelihood.parts) if isinstance(likelihood, Mixture) else 1
    torch.testing.assert_close(noisy.log_potential(power), components * drowned, rtol=1e-3, atol=0)
    assert isinstance(likelihood, SpeechLikelihood)


def test_it_enhances(speech_prior, batch):
    """By the Wiener filter of what the model makes of the last latents: less of the frames in which speech fades."""
    model, ends = speech_prior, []

    class Watched(FreeGaussian):
        def final(self, target, state, random):
            ends.append((target, super().final(target, state, random)))
            return ends[-1][1]

    before = modes(model)
    enhanced = enhance(model, batch, Vem(Watched(steps=1), iterations=8))
    assert modes(model) == before
    filters = []
    for target, likelihood in ends:  # two, of models that can do without the lips: an utterance keeps the better
        speech, _, weight, *_ = likelihood.components(batch.need("noisy", model))
        clean = target.gain_BTJ * speech
        share = clean / (clean + target.noise_BTF)
        filters.append(share.mean(0) if weight is None else (weight * share).sum(0))
    kept = [
        min(range(len(filters)), key=lambda n, b=b: (filters[n][b] - f).abs().sum())
        for b, f in enumerate(enhanced.filter)
    ]
    torch.testing.assert_close(enhanced.filter, torch.stack([filters[n][b] for b, n in enumerate(kept)]))
    assert (enhanced.filter >= 0).all() and (enhanced.filter <= 1).all() and enhanced.cost.isfinite().all()
    assert (enhanced.cost[-1] < enhanced.cost[0]).all()
    power, gain = batch.need("power", model).sum(-1), enhanced.filter.mean(-1)
    for b, frames in enumerate(batch.mask.sum(1).tolist()):
        order = power[b, :frames].argsort()
        assert gain[b, order[-3:]].mean() > 1.1 * gain[b, order[:3]].mean()


@pytest.fixture
def same_noise(monkeypatch) -> None:
    """Draws of noise that do not depend on the shape of the batch."""
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: 0.6 * torch.ones(*shape))
    monkeypatch.setattr(torch, "randn_like", lambda like, **_: torch.full_like(like, 0.6))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: 0.3 * torch.ones(*shape))


def one_in_batches() -> list[tuple[Batch, int]]:
    """The same utterance alone, padded, and in batches with another; and its index in each."""
    return [
        (utterances(*samples, frames=frames), samples.index(SHORT))
        for samples, frames in (((SHORT,), None), ((SHORT,), 15), ((SHORT, LONG), None), ((LONG, SHORT), None))
    ]


@torch.no_grad()
@pytest.mark.usefixtures("same_noise")
def test_padding_and_company_change_no_bound(model):
    alone, *others = (
        (torch.stack([part[b] for part in elbo.parts().values()]), elbo.n[b])
        for elbo, b in ((model(batch, Schedule()), b) for batch, b in one_in_batches())
    )
    rounding = 1e-6 * alone[0].abs().max().item()  # a part may be the difference of large ones
    for found in others:
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=rounding)


def found_of_latents(model: Any, batch: Batch, b: int) -> dict[str, Tensor]:
    """Of one utterance: means of its latents, their prior, and the likelihood of each step."""
    inferred, context = model.infer(batch, mode="mean"), model.context(batch)
    frames, samples = int(batch.mask[b].sum()), int(batch.need("lengths", model)[b])
    found = {}
    for spec in model.latents:
        steps = {None: 1, 1: frames}.get(spec.rate) or -(-samples // spec.rate)
        found[spec.name] = inferred.z[spec.name][:, b, :steps]
    found["prior"] = model.log_prior(inferred.z, context)[:, b, : int(context.mask[b].sum())]
    for modality, likelihood in model.decode(inferred.z, context).items():
        log_p = _log_prob(likelihood, batch.need(modality, model))
        found[modality] = log_p[:, b, : samples if modality == "waveform" else frames]
    return found


@torch.no_grad()
@pytest.mark.usefixtures("same_noise")
def test_padding_and_company_change_no_latent(latent_model):
    alone, *others = (found_of_latents(latent_model, batch, b) for batch, b in one_in_batches())
    for found in others:
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


def test_an_e_step_is_learned_for_it(speech_prior, batch):
    """An utterance gets the same alone and in any batch, and the encoder needs power."""
    if "power" not in speech_prior.sees:
        with pytest.raises(UserError, match="a learned E-step is for a model with an encoder of noisy speech"):
            LearnedPosterior(speech_prior)
        return
    network = LearnedPosterior(speech_prior, width=8)
    losses(network.train(), batch).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.heads.parameters())
    assert all(p.grad is None for p in network.model.parameters())
    vem = Vem(Learned(network=network.eval().requires_grad_(False)), iterations=2, rank=2)
    both, alone = (enhance(network.model, these, vem).filter for these in (batch, utterances(SHORT)))
    torch.testing.assert_close(both[:1, :7], alone, rtol=1e-3, atol=1e-4)
    assert (both >= 0).all() and (both <= 1).all()


@torch.no_grad()
@pytest.mark.usefixtures("same_noise")
def test_padding_and_company_change_no_component_of_the_speech(speech_prior):
    alone, *others = (
        decode(speech_prior, batch).components(batch.need("power", speech_prior)).speech[:, b, :7]
        for batch, b in one_in_batches()
    )
    for found in others:
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


def test_it_declares_what_it_takes_and_takes_nothing_else(latent_model, batch):
    model = latent_model
    some = batch.only(*model.sees)
    whole, part = (model.infer(b, mode="mean").z for b in (batch, some))
    assert all(torch.equal(z, part[name]) for name, z in whole.items())
    model.decode(part, model.context(some))
    for modality in set(model.sees) - indispensable(model):
        model.infer(batch.only(modality))
    for modality in indispensable(model):
        blind = batch.only(*(name for name in model.sees if name != modality))
        need = "video" if modality == "lips" else modality
        with pytest.raises(UserError, match=f"{type(model).__name__} needs {need}.* got none: give it"):
            model.infer(blind)
        if modality == "lips":
            with pytest.raises(UserError, match="needs video"):
                model(batch.only("power", "waveform"), Schedule())


def modes(model: Any) -> dict[str, bool]:
    """Which layers are in training mode, and which parameters are trained."""
    layers = {name: layer.training for name, layer in model.named_modules()}
    return layers | {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_a_step_changes_no_mode(model, batch, training):
    before = modes(model.train(training))
    losses(model, batch).sum().backward()
    assert modes(model) == before


def test_inference_changes_no_mode(latent_model, batch):
    before = modes(latent_model)
    decode_free_running(latent_model, latent_model.infer(batch).z, latent_model.context(batch))
    latent_model.sample_prior(latent_model.context(batch))
    assert modes(latent_model) == before


def test_digital_silence_is_finite(model, batch):
    silent = {name: torch.zeros_like(getattr(batch, name)) for name in ("waveform", "mixture", "power", "noisy")}
    hush = replace(batch, **silent)
    loss = losses(model, hush)
    loss.sum().backward()
    assert loss.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_latents_of_digital_silence_are_finite(latent_model, batch):
    silent = {name: torch.zeros_like(getattr(batch, name)) for name in ("waveform", "mixture", "power", "noisy")}
    assert all(z.isfinite().all() for z in latent_model.infer(replace(batch, **silent)).z.values())


def bound(model: Any, batch: Batch, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(batch, Schedule()).bound


def test_a_seed_gives_the_same_bound_again(model, batch):
    assert torch.equal(bound(model, batch, 1), bound(model, batch, 1))


def test_another_seed_draws_other_latents(latent_model, batch):
    assert (bound(latent_model, batch, 1) != bound(latent_model, batch, 2)).all()


def test_generated_samples_are_pcm_codes_that_the_seed_decides(waveform_model, batch):
    def generated(seed: int, first: int) -> Tensor:
        torch.manual_seed(seed)
        return waveform_model.generate(batch.need("waveform", waveform_model)[:, :first], 700)

    for first in (0, 1024):
        x_BN = generated(1, first)
        assert x_BN.shape == (2, 700) and x_BN.abs().max() <= 1 and torch.equal(x_BN, (x_BN * CODES).round() / CODES)
        assert torch.equal(x_BN, generated(1, first)) and not torch.equal(x_BN, generated(2, first))


@torch.no_grad()
@pytest.mark.usefixtures("same_noise")
def test_a_whole_utterance_may_be_one_piece(waveform_model, batch):
    elbo, _ = waveform_model.carry(batch, Schedule(), None)
    torch.testing.assert_close(elbo.bound, waveform_model(batch, Schedule()).bound)
