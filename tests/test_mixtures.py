"""Mixtures: switches with and without memory, and the models that have them."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from avdvae.enhancement.esteps import build_estep
from avdvae.enhancement.variational import FreeGaussian, PointEstimate
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.models.av_vae import AVVAE
from avdvae.models.min_vae import MINVAE
from avdvae.models.mvae import MVAE, product_of_experts
from avdvae.models.sw_vae import SwVAE
from avdvae.models.v_vae import VVAE
from avdvae.models.vae import VAE
from avdvae.models.vae_mm import VAEMM
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.mixture import MarkovMixture, Mixture
from avdvae.probability.objectives import Schedule, mixture_elbo, responsibilities
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context

SMALL: Any = {"frequencies": 33, "hidden": 12, "dim": 4}
SIZES: Any = {**SMALL, "pixels": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    power, noisy = (torch.randn((2, 9, 33), generator=g).exp() for _ in range(2))
    lips = torch.randint(0, 256, (2, 9, 4, 4), generator=g, dtype=torch.uint8)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    return Batch(("a", "b"), mask, power=power, noisy=noisy * mask[..., None], lips=lips)


def parts() -> tuple[VAE, AVVAE]:
    torch.manual_seed(0)
    return VAE(**SMALL), AVVAE(**SIZES)


@pytest.mark.parametrize(("components", "frames"), [(2, 1), (2, 2), (2, 7), (3, 5)])
def test_forward_backward_is_what_a_sum_over_all_paths_gives(components, frames):
    g = torch.Generator().manual_seed(frames)
    rows = torch.rand((2, components + 1, components), generator=g).softmax(-1)
    evidence = 3 * torch.randn((2, frames + 2, components), generator=g)
    mask = torch.arange(frames + 2) < torch.tensor([[frames], [frames + 2]])
    switch = MarkovMixture((), torch.zeros(components, 1, *mask.shape), rows, mask).infer(evidence)
    for b, count in enumerate((frames, frames + 2)):
        weights, single = {}, torch.zeros(count, components)
        pairs = torch.zeros(max(count - 1, 0), components, components)
        for path in itertools.product(range(components), repeat=count):
            log = rows[b, 0, path[0]].log() + sum(evidence[b, t, m] for t, m in enumerate(path))
            weights[path] = log + sum(rows[b, 1 + i, j].log() for i, j in itertools.pairwise(path))
        total = torch.stack([*weights.values()]).logsumexp(0)
        for path, log in weights.items():
            share = (log - total).exp()
            for t, m in enumerate(path):
                single[t, m] += share
            for t, (i, j) in enumerate(itertools.pairwise(path)):
                pairs[t, i, j] += share
        torch.testing.assert_close(switch.frames[b, :count], single, rtol=1e-4, atol=1e-5)
        assert switch.pairs is not None
        torch.testing.assert_close(switch.pairs[b, : count - 1], pairs, rtol=1e-4, atol=1e-5)
        seen = torch.cat([single[:1], pairs.sum(0)]) + 0.1  # each move as if seen in a tenth of a frame before
        torch.testing.assert_close(switch.learned()[b], seen / seen.sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_a_switch_without_memory_is_a_markov_chain_with_equal_rows():
    g = torch.Generator().manual_seed(0)
    evidence, pi = 5 * torch.randn((2, 9, 2), generator=g), torch.tensor([[0.3, 0.7]])
    mask = torch.ones(2, 9, dtype=torch.bool)
    lone = Mixture((), torch.zeros(2, 1, 2, 9), pi.expand(2, 1, 2), mask).infer(evidence)
    chain = MarkovMixture((), torch.zeros(2, 1, 2, 9), pi.expand(2, 3, 2), mask).infer(evidence)
    torch.testing.assert_close(chain.frames, lone.frames)
    torch.testing.assert_close(lone.learned()[:, 0], (lone.frames.sum(1) + 0.1) / 9.2)


@pytest.mark.parametrize("padding", [0, 40])
def test_a_component_that_was_off_for_long_is_inferred_once_it_is_on(padding):
    """Learned from an utterance in which it was never on, its row of transitions still sums to 1."""
    mask = (torch.arange(60 + padding) < 60)[None]
    quiet = MarkovMixture(
        (), torch.zeros(2, 1, *mask.shape), torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]]]), mask
    )
    evidence = torch.zeros(1, 60 + padding, 2)
    evidence[..., 1] = -50
    learned = quiet.infer(evidence).learned()
    torch.testing.assert_close(learned.sum(-1), torch.ones(1, 3))
    evidence[:, 30:60, 1] = 3  # on, with a likelihood higher by three nats in each frame
    evidence[:, 30:60, 0] = 0
    found = replace(quiet, switch=learned).infer(evidence).frames
    assert found[0, 35:55, 1].min() > 0.99


def test_sw_vae_with_uniform_transitions_answers_as_vae_mm(batch):
    sound, both = parts()
    single, chain = VAEMM(sound, both, pi=0.5), SwVAE(sound, both, stay=0.5, learn=False)
    answers = [enhance(model, batch, Vem(build_estep("langevin"), iterations=5)) for model in (single, chain)]
    one, other = ([a.filter[batch.mask], a.switch[batch.mask], a.cost] for a in answers if a.switch is not None)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert answers[0].switch is not None and answers[0].switch[batch.mask].std() > 0.02


@pytest.mark.parametrize(("pi", "which"), [(1.0, 0), (0.0, 1)])
def test_vae_mm_is_the_part_that_is_on(batch, pi, which):
    part = parts()[which]

    class Decided(PointEstimate):  # with a certain switch, a point estimate is allowed
        def start(self, model: Any, batch, random):
            return (
                super()
                .start(part, batch, random)
                ._replace(z={n: z for n, z in model.infer(batch, mode="mean").z.items()})
            )

    vem = Vem(Decided(lr=0.05), iterations=8)
    alone, mixed = (enhance(model.requires_grad_(False), batch, vem) for model in (part, VAEMM(*parts(), pi=pi)))
    torch.testing.assert_close(mixed.filter, alone.filter, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.cost, alone.cost, rtol=1e-4, atol=1e-4)
    assert mixed.switch is not None and (mixed.switch[..., which] == 1).all()
    with pytest.raises(UserError, match=r"model\.pi=1\.5: give .* from 0 to 1"):
        VAEMM(*parts(), pi=1.5)


@pytest.mark.parametrize("kind", [VAEMM, SwVAE])
@pytest.mark.parametrize("estep", ["free_gaussian", "langevin", "mala", "metropolis_hastings"])
def test_the_switch_infers_the_component_of_each_frame(kind, estep, batch):
    """The components generate frames in turn, with spectra that the other cannot generate."""
    made: Any = [part.requires_grad_(False) for part in parts()]
    sound, both = made
    sound.decoder[-1].bias.copy_(torch.linspace(3, -6, 33))
    both.decoder_head.bias.copy_(torch.linspace(-6, 3, 33))
    whose = torch.arange(9) // 3 % 2 == 0  # sound, both, sound
    spectra = [torch.linspace(*ends, 33).exp().expand(2, 9, 33) for ends in ((3, -6), (-6, 3))]
    noisy = torch.where(whose[:, None], *spectra) * batch.mask[..., None]
    heard = Batch(batch.ids, batch.mask, power=batch.power, noisy=noisy, lips=batch.lips)
    short = {"draws": 4, "burn_in": 2, "final_draws": 4, "final_burn_in": 2} if estep == "metropolis_hastings" else {}
    found = enhance(kind(sound, both), heard, Vem(build_estep(estep, **short), iterations=6, rank=1)).switch
    assert found is not None
    said = torch.where(whose[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).expand(2, 9, 2)
    torch.testing.assert_close(found[batch.mask], said[batch.mask], rtol=0, atol=0.2)


class Narrow(VAE):
    def prior(self, context: Context) -> Gaussian:
        return Gaussian(super().prior(context).mean, torch.tensor(0.1).log().expand(*context.mask.shape, 4))


@pytest.mark.parametrize(
    ("estep", "iterations", "settings"),
    [
        ("free_gaussian", 150, {"draws": 8, "final_draws": 64}),
        ("metropolis_hastings", 60, {"step_size": 0.6, "final_draws": 139}),
        ("langevin", 400, {"chains": 64, "step_size": 0.05}),
        ("mala", 150, {"chains": 32}),
        ("encoder", 400, {"lr": 0.02, "final_draws": 64}),
    ],
)
def test_the_switch_does_not_prefer_a_prior_for_its_width(estep, iterations, settings):
    """Both components give the same likelihood for all latents, so that neither is preferable."""
    torch.manual_seed(0)
    wide, narrow = VAE(**SMALL), Narrow(**SMALL)
    part: Any
    for part in (wide, narrow):
        part.load_state_dict(wide.state_dict())
        part.requires_grad_(False).decoder[-1].weight.zero_()
    mask = torch.ones(1, 40, dtype=torch.bool)
    noisy = torch.randn((1, 40, 33), generator=torch.Generator().manual_seed(1)).exp()
    heard = Batch(("a",), mask, noisy=noisy, lips=torch.zeros(1, 40, 4, 4, dtype=torch.uint8))
    vem = Vem(build_estep(estep, **settings), iterations=iterations)
    switch = enhance(VAEMM(wide, narrow, pi=0.5), heard, vem).switch
    assert switch is not None and abs(switch[..., 0].mean() - 0.5) < 0.03
    with pytest.raises(UserError, match="VAEMM weights its components by the variances of their posteriors, and"):
        enhance(VAEMM(wide, narrow), heard, Vem(PointEstimate(), iterations=1))


def test_the_bound_of_a_mixture_is_the_best_there_is(batch):
    torch.manual_seed(0)
    recon, kl = (torch.randn(2, 9, 2, requires_grad=True) for _ in range(2))
    pi = torch.tensor([0.2, 0.8])
    terms = list(zip(recon.unbind(-1), kl.unbind(-1), strict=True))
    best = ((recon - kl + pi.log()).logsumexp(-1) * batch.mask).sum(1)
    r = responsibilities(terms, pi.log())
    elbo = mixture_elbo(["a", "b"], terms, r, pi.log(), batch.mask)
    torch.testing.assert_close(elbo.bound, best)
    for wanted in (recon, kl):
        slopes = [torch.autograd.grad(bound.sum(), wanted, retain_graph=True)[0] for bound in (elbo.bound, best)]
        torch.testing.assert_close(*slopes)
    worse = mixture_elbo(["a", "b"], terms, torch.full_like(r, 0.5), pi.log(), batch.mask)
    assert (worse.bound < best).all() and set(worse.kl) == {"a", "b", "switch"}
    certain = mixture_elbo(
        ["a", "b"], terms, torch.tensor([1.0, 0.0]).expand(2, 9, 2), torch.tensor([0.0, -math.inf]), batch.mask
    )
    torch.testing.assert_close(certain.bound, ((recon - kl)[..., 0] * batch.mask).sum(1))


def test_min_vae_is_as_published(batch):
    assert sum(p.numel() for p in MINVAE().parameters()) == 2_517_315
    torch.manual_seed(0)
    model, vae, v_vae = MINVAE(**SIZES).eval(), VAE(**SMALL), VVAE(**SIZES)
    model.start_from(vae, v_vae)
    model.prior_mean_CL.data.normal_()
    model.prior_log_var_C1.data.normal_()
    model.pi_C = torch.tensor([0.3, 0.7])
    torch.manual_seed(1)
    bound = model(batch, Schedule()).bound

    torch.manual_seed(1)
    terms = []
    for m, q in enumerate((vae.encoder(batch.power), v_vae.encoder(batch.lips))):
        z = q.mean + torch.randn(1, *q.mean.shape)[0] * torch.exp(q.log_var / 2)
        said = ComplexGaussian(vae.decoder(z)[None]).log_prob(batch.need("power", model))[0]
        p = Normal(model.prior_mean_CL[m], torch.exp(model.prior_log_var_C1[m] / 2))
        terms.append(said - kl_divergence(Normal(q.mean, torch.exp(q.log_var / 2)), p).sum(-1) + model.pi_C[m].log())
    torch.testing.assert_close(bound, (torch.stack(terms).logsumexp(0) * batch.mask).sum(1))

    means = {"sound": vae.encoder(batch.power).mean, "lips": v_vae.encoder(batch.lips).mean}
    for given, missing in ((("power", "lips"), ""), (("power",), "lips"), (("lips",), "sound")):
        for name, z in model.infer(batch.only(*given), mode="mean").z.items():
            torch.testing.assert_close(
                z[0], means[name if name != missing else {"lips": "sound", "sound": "lips"}[name]]
            )
        off = {"sound": [0.0, 1.0], "lips": [1.0, 0.0]}.get(missing, [0.3, 0.7])
        torch.testing.assert_close(model.context(batch.only(*given)).switch, torch.tensor(off).expand(2, 1, 2))


@pytest.mark.parametrize("begin", [None, ["power"], ["lips"]])
def test_enhancement_begins_from_the_given_modalities_or_keeps_the_better_of_two(batch, begin, monkeypatch):
    torch.manual_seed(0)
    model, seen = MINVAE(**SIZES).requires_grad_(False), []
    start = FreeGaussian.start
    monkeypatch.setattr(FreeGaussian, "start", lambda *all: seen.append(all[1].infer(all[2]).q) or start(*all))
    ids, mask = tuple("abcdef"), batch.mask[:1].expand(6, -1)
    noisy = Batch(ids, mask, noisy=torch.randn(6, 9, 33).exp(), lips=batch.lips.repeat(3, 1, 1, 1))
    vem = Vem(FreeGaussian(), iterations=5, paper=True)
    enhanced = enhance(model, noisy, replace(vem, begin_from=begin))
    given = [("power", "lips"), ("power",)] if begin is None else [begin]
    for q, modalities in zip(seen, given, strict=True):
        expected = model.infer(replace(noisy, power=noisy.noisy).only(*modalities)).q
        assert all(torch.equal(q[name].mean, expected[name].mean) for name in model.components)
    assert enhanced.switch is not None and enhanced.switch[mask].mean(0).min() > 0  # all is seen later on
    if begin is None:
        ends = [enhance(model, noisy, replace(vem, begin_from=each)) for each in given]
        best_B = torch.stack([end.cost[-1] for end in ends]).argmin(0)
        assert set(best_B.tolist()) == {0, 1}  # each start is the better one of some utterance
        for b, best in enumerate(best_B.tolist()):
            assert torch.equal(enhanced.filter[b], ends[best].filter[b])
            assert torch.equal(enhanced.switch[b], ends[best].switch[b])
            assert torch.equal(enhanced.cost[:, b], ends[best].cost[:, b])
    with pytest.raises(UserError, match=r"begin_from: no modality is called lip: choose from .*lips"):
        Vem(PointEstimate(), begin_from=["lip"])


def test_with_noise_on_the_sound_the_lips_explain_frames_and_pi_follows(batch):
    torch.manual_seed(0)
    model = MINVAE(**SIZES, spoilt=1.0, loudness=1e6).train()
    with torch.no_grad():
        for name, parameter in model.audio_encoder[-1].named_parameters():
            parameter.mul_(50 if "weight" in name else 1)  # what loud noise does to a trained network
    for _ in range(40):
        model(batch, Schedule())
    assert model.pi_C[1] > 0.6


def test_responsibilities_of_an_epoch_are_those_of_its_first_weights(batch):
    def bound(model: MINVAE, epoch: int) -> Tensor:
        torch.manual_seed(3)
        return model.train()(batch, Schedule(epoch=epoch)).bound.detach()

    torch.manual_seed(0)
    model = MINVAE(**SIZES, responsibilities="per_epoch")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        p.numel() for p in MINVAE(**SIZES).parameters()
    )
    bound(model, 0)
    start: Any = model.epoch_start
    held = {name: value.clone() for name, value in start.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.requires_grad)
    bound(model, 0)
    assert all(torch.equal(value, held[name]) for name, value in start.named_parameters())
    bound(model, 1)
    assert not all(torch.equal(value, held[name]) for name, value in start.named_parameters())
    with pytest.raises(UserError, match="choose optimal or per_epoch"):
        MINVAE(responsibilities="sometimes")


def test_a_product_of_experts_is_the_product_of_their_densities():
    g = torch.Generator().manual_seed(0)
    experts = [Gaussian(*torch.randn((2, 1, 3), generator=g)) for _ in range(2)]
    z = torch.randn((5, 3), generator=g)
    for some in (experts, experts[:1], []):
        joint = product_of_experts(some) if some else Gaussian.standard(1, 3, like=z)
        wanted = sum(e.log_prob(z) for e in (*some, Gaussian.standard(1, 3, like=z)))
        rest = joint.log_prob(z) - wanted
        torch.testing.assert_close(rest, rest[:1].expand(5))  # up to a constant


@pytest.mark.parametrize("joint", ["poe", "moe", "mopoe"])
def test_mvae_bounds_the_joint_likelihood_and_does_without_either(batch, joint):
    """With one latent, a grid of its values integrates over it."""
    torch.manual_seed(0)
    model = MVAE(frequencies=33, hidden=12, dim=1, pixels=16, joint=joint).eval()
    z_K = torch.linspace(-8, 8, 8001)
    step = (z_K[1] - z_K[0]).item()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        model(batch, Schedule()).loss(Schedule()).sum().backward()
        optimiser.step()
    families = {"poe": ["both"], "moe": ["sound", "lips"], "mopoe": ["sound", "lips", "both"]}[joint]
    with torch.no_grad():
        power, lips = model._log_likelihoods(batch, z_K[:, None, None, None].expand(-1, 2, 9, 1))
        log_joint = power + lips + Normal(0, 1).log_prob(z_K)[:, None, None]
        exact, bound = log_joint.logsumexp(0) + math.log(step), torch.zeros(2, 9)
        for name in families:
            q = model.posterior_given(name, batch)
            log_q = Normal(q.mean[..., 0], (q.log_var[..., 0] / 2).exp()).log_prob(z_K[:, None, None])
            bound += (log_q.exp() * (log_joint - log_q)).sum(0) * step / len(families)
        drawn = torch.stack([model(batch, Schedule()).bound for _ in range(400)])
        off = (model.log_joint_likelihood(batch, 3000) - exact)[batch.mask]
    assert (bound < exact + 0.02)[batch.mask].all()
    assert off.median().abs() < 0.1 and (off < 0.5).all()  # weights of rare draws may be large, and missed
    several = 4 * drawn.std(0) / 400**0.5
    assert ((drawn.mean(0) - (bound * batch.mask).sum(1)).abs() < several).all() and (several < 5).all()
    for name, family in (("power", "sound"), ("lips", "lips")):
        torch.testing.assert_close(model.infer(batch.only(name)).q["z"].mean, model.posterior_given(family, batch).mean)
    both = model.infer(batch).q["z"]
    alone = [model.posterior_given(subset, batch).log_var for subset in ("sound", "lips")]
    assert (both.log_var <= torch.minimum(*alone) + 1e-5).all()
    with pytest.raises(UserError, match="MVAE needs power"):
        model(batch.only("lips"), Schedule())
    with pytest.raises(UserError, match="choose from poe, moe, mopoe"):
        MVAE(joint="any")
