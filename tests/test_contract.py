"""What every model of configs/model must offer, whatever it is; `pytest tests/test_contract.py --model=my_file.MyModel`
checks a class of your own, made with its default arguments, instead."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from avdvae.enhancement.esteps import FreeGaussian
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.probability.distributions import VARIANCE_FLOOR, ComplexGaussian, Mixture, SpeechLikelihood
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, LatentModel, Model, indispensable, is_speech_prior
from avdvae.runs import build_model
from avdvae.signals.audio import Stft

STFT = Stft(533)
SHORT, LONG = 3300, 5900  # samples of the utterances; 7 and 12 frames
CONFIGS = Path(__file__).parent.parent / "configs/model"
LISTED = {
    path.stem: OmegaConf.create({"floor": 0.03, "model": OmegaConf.load(path)}).model
    for path in sorted(CONFIGS.glob("*.yaml"))
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if own := metafunc.config.getoption("--model"):
        sys.path.insert(0, str(Path.cwd()))  # as when Python runs a file there
    models = (
        {own: {"target": own}} if own else {k: v for k, v in LISTED.items() if not OmegaConf.is_missing(v, "target")}
    )
    metafunc.parametrize("config", models.values(), ids=models.keys())


@pytest.fixture
def model(config: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    return build_model(config).eval()


def utterances(*samples: int, frames: int | None = None) -> Batch:
    """Soft noise that swells and fades, another for each length, padded as the loader pads."""
    count = frames or max(STFT.frames(n) for n in samples)
    tensors: dict[str, Tensor] = {
        "mask": torch.zeros(len(samples), count, dtype=torch.bool),
        "waveform": torch.zeros(len(samples), count * STFT.hop),
        "mixture": torch.zeros(len(samples), count * STFT.hop),
        "power": torch.zeros(len(samples), count, 513),
        "noisy": torch.zeros(len(samples), count, 513),
        "lips": torch.zeros(len(samples), count, 67, 67, dtype=torch.uint8),
        "sure": torch.zeros(len(samples), count),
        "face": torch.zeros(len(samples), count, 64, 64, 3, dtype=torch.uint8),
        "lengths": torch.tensor(samples),
    }
    for b, n in enumerate(samples):
        g, t = torch.Generator().manual_seed(n), STFT.frames(n)
        waveform = torch.randn(n, generator=g) * torch.linspace(0, 9, n).sin()
        mixture = waveform + 0.5 * torch.randn(n, generator=g)
        for sound, spectrum, values in (("waveform", "power", waveform), ("mixture", "noisy", mixture)):
            tensors[sound][b, :n] = 0.1 * values / values.abs().max()
            tensors[spectrum][b, :t] = STFT.power(tensors[sound][b : b + 1, :n])[0]
        tensors["mask"][b, :t] = True
        tensors["lips"][b, :t] = torch.randint(0, 256, (t, 67, 67), generator=g)
        tensors["sure"][b, :t] = torch.rand(t, generator=g)
        tensors["face"][b, :t] = torch.randint(0, 256, (t, 64, 64, 3), generator=g)
    labels = tuple({"speaker": f"speaker {n}"} for n in samples)
    return Batch(ids=tuple(map(str, samples)), labels=labels, **tensors)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return utterances(SHORT, LONG)


def losses(model: Any, batch: Batch) -> Tensor:
    schedule = Schedule(epoch=1000)  # some models learn by and by
    return model(batch, schedule).loss(schedule)


def latent(model: Any) -> Any:
    if not isinstance(model, LatentModel):
        pytest.skip("it has no latents")
    return model


def first_samples(batch: Batch, steps: int) -> Batch:
    """Of each utterance; a step of 512 is a whole one of all levels of the models."""
    waveform, lengths = batch.need("waveform", batch)[:, : 512 * steps], batch.need("lengths", batch)
    return replace(batch.only("waveform"), waveform=waveform, lengths=lengths.clamp(max=512 * steps))


def past(model: Any, batch: Batch) -> Tensor:
    """The true one, for models that hear it."""
    return batch.need("waveform" if observes_waveforms(model) else "power", model)


def observes_waveforms(model: Any) -> bool:
    return getattr(model, "observes", "power") == "waveform"


def decode(model: Any, batch: Batch, k: int = 1) -> tuple[SpeechLikelihood, Tensor]:
    """The likelihood of speech, and its power."""
    model = latent(model)
    likelihoods = model.decode(model.infer(batch, k).z, model.context(batch), feedback=past(model, batch))
    if "power" not in likelihoods:
        pytest.skip("it does not explain the power")
    return likelihoods["power"], batch.need("power", model)


def test_it_offers_all_that_its_kind_must(config, model, batch):
    assert isinstance(model, Model)
    if isinstance(model, LatentModel):
        assert model.latents and set(model.sees) <= set(Batch.MODALITIES)
        assert len({spec.name for spec in model.latents}) == len(model.latents)
    elif own := {"latents", "infer", "decode"} & set(dir(model)):
        missing = {"observes", "latents", "sees", "context", "infer", "decode", "log_prior", "sample_prior"} - set(
            dir(model)
        )
        pytest.fail(f"it has {', '.join(own)} but not {', '.join(missing)}")
    if "avdvae" in config["target"] and isinstance(model, LatentModel):
        assert is_speech_prior(model) != observes_waveforms(model)
        if is_speech_prior(model):
            assert isinstance(decode(model, batch)[0], SpeechLikelihood)


def test_the_bound_comes_in_finite_parts_of_each_utterance(model, batch):
    elbo = model(batch, Schedule())
    assert isinstance(elbo, Elbo) and elbo.recon and set(elbo.recon) <= set(Batch.MODALITIES)
    if isinstance(model, LatentModel):
        assert set(elbo.kl) <= {spec.name for spec in model.latents} | {"switch"}
    for part in (*elbo.parts().values(), elbo.n, elbo.loss(Schedule(beta=0.1))):
        assert part.shape == (2,) and part.isfinite().all() and part.dtype == torch.float32
    assert elbo.n.tolist() in ([7, 12], [SHORT, LONG])  # frames or samples


def test_the_loss_trains_every_parameter(model, batch):
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


def test_shapes_are_those_that_the_latents_declare(model, batch):
    model, context = latent(model), latent(model).context(batch)
    inferred, drawn = model.infer(batch, 3), model.sample_prior(context, 3)
    named, steps = {spec.name for spec in model.latents}, context.mask.shape[1]
    assert steps == 12 or observes_waveforms(model)
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


def test_draws_are_from_the_posterior_and_means_are_its_means(model, batch):
    model = latent(model)
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


def test_the_prior_declared_is_the_prior_computed(model):
    """By torch's own density; it is N(0, I) where it depends on nothing, and that from which the bound diverges."""
    model, batch = latent(model), utterances(LONG)
    inferred, context = model.infer(batch, 100), model.context(batch)
    log_p, gains = {}, {}
    for spec in model.latents:
        z, q, p = (side[spec.name] for side in (inferred.z, inferred.q, inferred.p))
        if len(p.mean.unique()) == len(p.log_var.unique()) == 1 and not p.log_var.requires_grad:
            assert (p.mean == 0).all() and (p.log_var == 0).all(), spec.name
        q, p = (torch.distributions.Normal(side.mean, (side.log_var / 2).exp()) for side in (q, p))
        log_p[spec.name] = p.log_prob(z).sum(-1)
        steps = -(-LONG // spec.rate) if observes_waveforms(model) else z.shape[2]  # the others hold silence alone
        gains[spec.name] = (q.log_prob(z).sum(-1) - log_p[spec.name])[..., :steps].sum((1, 2))
    computed = model.log_prior(inferred.z, context)
    total = sum(value.flatten(2).sum(-1) for value in log_p.values())
    torch.testing.assert_close(computed.sum(-1), total, rtol=1e-5, atol=1e-2)
    if all(spec.rate == 1 for spec in model.latents):
        torch.testing.assert_close(computed, torch.stack([*log_p.values()]).sum(0), rtol=1e-5, atol=1e-3)
    kl = model(batch, Schedule(epoch=1000)).kl
    if "switch" in kl or getattr(model, "can_miss", ()):
        return  # its bound weights them, or enhancement has a prior of its own
    for name, gain_K in gains.items():
        assert (gain_K.mean() - kl[name]).abs() < 5 * gain_K.std() / 10 + 0.02 * gain_K.mean().abs(), name


def test_draws_from_the_prior_are_draws_from_its_density(model):
    """By Stein's identities, E[slope] = 0 and E[slope * z] = -1 in every dimension for slope = d ln p(z) / dz."""
    model, batch = latent(model), utterances(LONG)
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
def test_draws_go_on_from_what_is_given_without_knowing_what_follows(model, batch, monkeypatch):
    model, first = latent(model), first_samples if observes_waveforms(model) else Batch.first
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


def test_decoding_gives_a_likelihood_that_can_take_noise(model, batch):
    likelihood: Any
    likelihood, power = decode(model, batch, 3)
    variance, precision, weights, _ = likelihood.components(power)
    assert (likelihood.expected > 0).all() and likelihood.expected.shape == (3, *power.shape)
    assert variance.shape[1:] == power.shape and variance.isfinite().all() and (variance > 0).all()
    torch.testing.assert_close(precision, 1 / (variance + VARIANCE_FLOOR))
    if isinstance(likelihood, ComplexGaussian):
        assert likelihood.log_var.shape == (3, *power.shape)
    if weights is not None:
        assert weights.shape == (len(variance), *power.shape[:2], 1)
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
    noisy = likelihood.add_noise(torch.ones_like(power[..., :1]), torch.full_like(power, 1e8))
    for value in (likelihood.log_prob(power), noisy.log_prob(power)):
        assert value.shape == (3, 2, 12) and value.isfinite().all()
    drowned = ComplexGaussian(torch.full((3, *power.shape), 1e8).log()).log_prob(power)
    components = len(likelihood.parts) if isinstance(likelihood, Mixture) else 1
    torch.testing.assert_close(noisy.log_prob(power), components * drowned, rtol=1e-3, atol=0)


def test_it_enhances(model, batch):
    """By the Wiener filter of what the model makes of the last latents: less of the frames in which speech fades."""
    decode(model, batch)
    ends = []

    class Watched(FreeGaussian):
        def final(self, target, state, draws):
            ends.append((target, super().final(target, state, draws)))
            return ends[-1][1]

    enhanced = enhance(latent(model), batch, Vem(Watched(steps=1), iterations=8))
    filters = []
    for target, likelihood in ends:  # two, of models that can do without the lips: an utterance keeps the better
        speech, _, weight, _ = likelihood.components(batch.need("noisy", model))
        clean = target.gain_BT1 * speech
        share = clean / (clean + target.noise_BTF)
        filters.append(share.mean(0) if weight is None else (weight * share).sum(0))
    kept = [
        min(range(len(filters)), key=lambda n, b=b: (filters[n][b] - f).abs().sum())
        for b, f in enumerate(enhanced.filter)
    ]
    torch.testing.assert_close(enhanced.filter, torch.stack([filters[n][b] for b, n in enumerate(kept)]))
    assert (enhanced.filter >= 0).all() and (enhanced.filter <= 1).all() and enhanced.cost.isfinite().all()
    assert (enhanced.cost[-1] < enhanced.cost[0]).all()
    power, heard = batch.need("power", model).sum(-1), enhanced.filter.mean(-1)
    for b, frames in enumerate(batch.mask.sum(1).tolist()):
        order = power[b, :frames].argsort()
        assert heard[b, order[-3:]].mean() > 1.1 * heard[b, order[:3]].mean()


def shown(model: Any, batch: Batch, b: int) -> tuple[Tensor, dict[str, Tensor]]:
    """All that can be seen of one utterance: the parts of its bound, and the rest."""
    elbo = model(batch, Schedule())
    parts, seen = torch.stack([part[b] for part in elbo.parts().values()]), {"n": elbo.n[b]}
    if isinstance(model, LatentModel):
        inferred, context = model.infer(batch, mode="mean"), model.context(batch)
        frames, samples = int(context.mask[b].sum()), int(elbo.n[b])
        for spec in model.latents:
            stop = None if spec.rate is None else frames if spec.rate == 1 else -(-samples // spec.rate)
            seen[f"z_{spec.name}"] = inferred.z[spec.name][:, b, :stop]
        seen["prior"] = model.log_prior(inferred.z, context)[:, b, :frames]
        likelihoods = model.decode(inferred.z, context, feedback=past(model, batch))
        if "power" in likelihoods:
            seen["speech"] = likelihoods["power"].components(batch.need("power", model)).speech[:, b, :frames]
        if "waveform" in likelihoods:
            seen["sound"] = likelihoods["waveform"].log_prob(batch.need("waveform", model))[:, b, :samples]
    return parts, seen


@torch.no_grad()
def test_padding_and_company_change_nothing(model, monkeypatch):
    lone, padded, first, second = (
        (utterances(*samples, frames=frames), samples.index(SHORT))
        for samples, frames in (((SHORT,), None), ((SHORT,), 15), ((SHORT, LONG), None), ((LONG, SHORT), None))
    )
    # Draws of noise that do not depend on the shape of the batch.
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: 0.6 * torch.ones(*shape))
    monkeypatch.setattr(torch, "randn_like", lambda like, **_: torch.full_like(like, 0.6))
    parts_alone, seen_alone = shown(model, *lone)
    rounding = 1e-6 * parts_alone.abs().max().item()  # a part may be the difference of large ones
    for batch, b in (padded, first, second):
        parts, seen = shown(model, batch, b)
        torch.testing.assert_close(parts, parts_alone, rtol=1e-5, atol=rounding)
        torch.testing.assert_close(seen, seen_alone, rtol=1e-5, atol=1e-5)


def test_it_says_what_it_sees_and_sees_nothing_else(model, batch):
    model = latent(model)
    some = batch.only(*model.sees)
    whole, part = (model.infer(b, mode="mean").z for b in (batch, some))
    assert all(torch.equal(z, part[name]) for name, z in whole.items())
    model.decode(part, model.context(some), feedback=past(model, batch))
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


def test_digital_silence_is_finite(model, batch):
    silent = {name: torch.zeros_like(getattr(batch, name)) for name in ("waveform", "mixture", "power", "noisy")}
    hush = replace(batch, **silent)
    loss = losses(model, hush)
    loss.sum().backward()
    assert loss.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if isinstance(model, LatentModel):
        assert all(z.isfinite().all() for z in model.infer(hush).z.values())


def test_the_seed_decides(model, batch):
    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(batch, Schedule()).bound

    assert torch.equal(run(1), run(1))
    assert not isinstance(model, LatentModel) or (run(1) != run(2)).all()
