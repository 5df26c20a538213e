"""Dynamical VAEs: sizes, what depends on what, and exact cases."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from avdvae.enhancement.esteps import build_estep
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.latents.resynthesis import reconstruct_poses
from avdvae.models import dkf, rvae, srnn, vrnn
from avdvae.models.av_dkf import AVDKF
from avdvae.models.av_rvae import AVRVAE
from avdvae.models.dkf import DKF
from avdvae.models.dsae import DSAE
from avdvae.models.dynamical_vae import AutoregressiveVAE, DynamicalVAE, Path, sample_path
from avdvae.models.hit_dvae import HiTDVAE
from avdvae.models.rvae import RVAE
from avdvae.models.srnn import SRNN
from avdvae.models.srnn_wave import SRNNWave
from avdvae.models.storn import STORN
from avdvae.models.vae import VAE
from avdvae.models.vrnn import VRNN
from avdvae.models.vrnn_wave import VRNNWave
from avdvae.nn.blocks import Recurrent, reverse_frames
from avdvae.probability.gaussian import VARIANCE_FLOOR, Gaussian
from avdvae.probability.objectives import Schedule
from avdvae.protocols import Batch

SMALL: Any = {"features": 17, "hidden": 8, "dim": 3}
SMALLER: Any = {HiTDVAE: {"wide": 8, "heads": 2, "layers": 2, "inner": 16, "hidden_w": 8, "dim_w": 3}}
MODELS: list[type[DynamicalVAE]] = [DKF, STORN, VRNN, SRNN, RVAE, DSAE, HiTDVAE]
T = 9


def small(kind: type[DynamicalVAE], **options: Any) -> Any:
    torch.manual_seed(0)
    model = kind(**SMALL, **SMALLER.get(kind, {}), **options)
    for parameter in model.parameters() if kind is not HiTDVAE else ():  # larger than usual, so that dependencies show
        parameter.data *= 2
    return model.eval().requires_grad_(False)


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    power, noisy = (torch.randn((2, T, 17), generator=g).exp() for _ in range(2))
    lips = torch.randint(0, 256, (2, T, 16, 16), generator=g, dtype=torch.uint8)
    return Batch(("a", "b"), torch.ones(2, T, dtype=torch.bool), power=power, noisy=noisy, lips=lips)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (VAE(dim=16), 138_273),
        (DKF(), 516_641),
        (STORN(), 870_113),
        (VRNN(), 480_097),
        (SRNN(), 884_993),
        (RVAE(causal=True), 553_121),
        (RVAE(causal=False), 1_026_849),
        (DSAE(), 1_650_241),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_they_have_as_many_parameters_as_the_reference_models(model, count):
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def reach(outputs: Tensor, inputs: Tensor) -> Tensor:
    """T x T: whether the outputs at a time, the first axis, depend on the inputs at another."""
    rows = [
        torch.autograd.grad(outputs[..., t, :].square().sum(), inputs, retain_graph=True, allow_unused=True)[0]
        for t in range(T)
    ]
    found = [
        torch.zeros(inputs.shape[-2]) if row is None else row.abs().movedim(-2, 0).flatten(1).sum(1) for row in rows
    ]
    return torch.stack(found) > 0


NOW, PAST, SO_FAR = torch.eye(T) > 0, torch.ones(T, T).tril(-1) > 0, torch.ones(T, T).tril() > 0
NEXT, ALL, NONE = torch.eye(T).roll(1, 0).tril(-1) > 0, torch.ones(T, T) > 0, torch.zeros(T, T) > 0


FUTURE = SO_FAR.T  # and now


@pytest.mark.parametrize(
    ("model", "x_of_z", "x_of_x", "p_of_z", "p_of_x", "q_of_x", "q_of_z", "q_of_x_alone"),
    [
        (small(DKF), NOW, NONE, NEXT, NONE, ALL, NEXT, FUTURE),  # q(z_t) depends on the past of x through z_t-1
        (small(STORN), SO_FAR, PAST, NONE, NONE, SO_FAR, NONE, SO_FAR),
        (small(VRNN), SO_FAR, PAST, PAST, PAST, SO_FAR, PAST, NOW),
        (small(SRNN), NOW, PAST, NEXT, PAST, ALL, NEXT, FUTURE),
        (small(RVAE, causal=True), SO_FAR, NONE, NONE, NONE, ALL, PAST, FUTURE),
        (small(RVAE, causal=False), ALL, NONE, NONE, NONE, ALL, PAST, ALL),
        (small(DSAE), NOW, NONE, PAST, NONE, ALL, NONE, ALL),
        (small(HiTDVAE), SO_FAR, PAST, PAST, PAST, ALL, NONE, ALL),
        (small(HiTDVAE, light=True), SO_FAR, PAST, PAST, PAST, ALL, NONE, ALL),
        (small(HiTDVAE, query="x"), SO_FAR, PAST, PAST, PAST, ALL, NONE, ALL),
        (small(HiTDVAE, past_in_prior=False), SO_FAR, PAST, PAST, NONE, ALL, NONE, ALL),
        (small(HiTDVAE, light=True, past_in_prior=False), SO_FAR, PAST, PAST, NONE, ALL, NONE, ALL),
        (small(AVDKF, pixels=256), NOW, NONE, NEXT, NONE, ALL, NEXT, FUTURE),
        (small(AVRVAE, pixels=256, causal=True), SO_FAR, NONE, NONE, NONE, ALL, PAST, FUTURE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DynamicalVAE) else "",
)
def test_each_depends_on_what_its_paper_says(
    model, x_of_z, x_of_x, p_of_z, p_of_x, q_of_x, q_of_z, q_of_x_alone, batch, monkeypatch
):
    """The last two are of q(z_t | z_1:t-1, x_1:T) alone: x, but not through the state h, and z_t-1, but not the frames
    that led to it."""
    torch.manual_seed(1)
    x = batch.power.requires_grad_()
    context = model.context(batch)
    inferred = model.infer(batch, mode="mean")
    z = {name: value.detach().requires_grad_() for name, value in inferred.z.items()}
    output = model.decode(z, context)["power"].log_var
    p = model.prior(z, context)["z"]
    moments = torch.cat([p.mean, p.log_var], -1)
    assert torch.equal(reach(output, z["z"]), x_of_z)
    assert torch.equal(reach(output, x), x_of_x)
    assert torch.equal(reach(moments, z["z"]) if moments.requires_grad else NONE, p_of_z)
    assert torch.equal(reach(moments, x) if moments.requires_grad else NONE, p_of_x)
    assert torch.equal(reach(inferred.q["z"].mean, x), q_of_x)

    steps: list[Tensor] = []

    def detached(inputs: Tensor, noise: Tensor, step: Any) -> Path:
        def step_from(inputs_NM: Tensor, z_NL: Tensor) -> Tensor:
            steps.append(z_NL.detach().requires_grad_())
            return step(inputs_NM, steps[-1])

        return sample_path(inputs, noise, step_from)

    for module in (dkf, rvae, srnn, vrnn):
        monkeypatch.setattr(module, "sample_path", detached)
    past = context.past if context.past is None else context.past.detach()
    noise = {name: torch.zeros_like(value) for name, value in z.items()}
    q = model.posterior(x, replace(context, past=past), noise).q["z"]
    moments = torch.cat([q.mean, q.log_var], -1)
    assert torch.equal(reach(moments, x), q_of_x_alone)
    earlier = [reach(moments, z_NL).any(1) for z_NL in steps]  # z_t-1, which step t is given
    assert torch.equal(torch.stack(earlier[1:], 1) if steps else NONE[:, 1:], q_of_z[:, :-1])


@pytest.mark.parametrize(
    ("model", "x_of_v", "p_of_v", "q_of_v"),
    [
        (small(AVDKF, pixels=256), NOW, NOW, FUTURE),
        (small(AVRVAE, pixels=256, causal=True), NONE, SO_FAR, NONE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DynamicalVAE) else "",
)
def test_what_depends_on_the_lips(model, x_of_v, p_of_v, q_of_v, batch, monkeypatch):
    features = model.lip_encoder(batch.lips).requires_grad_()
    model.lip_encoder.register_forward_hook(lambda *_: features)
    monkeypatch.setattr(
        dkf, "sample_path", lambda inputs, noise, step: sample_path(inputs, noise, lambda m, z: step(m, z.detach()))
    )
    context, inferred = model.context(batch), model.infer(batch, mode="mean")
    z = {"z": inferred.z["z"].detach()}
    outputs = model.output(z, context), model.prior(z, context)["z"].mean, inferred.q["z"].mean
    for output, expected in zip(outputs, (x_of_v, p_of_v, q_of_v), strict=True):
        assert torch.equal(reach(output, features) if output.requires_grad else NONE, expected)


def test_a_recurrence_backward_starts_at_the_last_frame_of_each_utterance():
    torch.manual_seed(0)
    mask = torch.arange(T) < torch.tensor([[T], [4]])
    x = torch.randn(2, T, 3)
    layer = Recurrent(3, 5, "both")
    alone = torch.cat([layer.forward_rnn(x[1:, :4])[0], layer.backward_rnn(x[1:, :4].flip(1))[0].flip(1)], -1)
    torch.testing.assert_close(layer(x[None], mask)[0, 1, :4], alone[0])
    torch.testing.assert_close(reverse_frames(reverse_frames(x, mask), mask), x)


def residual(kind: Any) -> Any:
    model = small(kind)
    model.residual = True
    return model


def small_wave(kind: Any) -> Any:
    torch.manual_seed(0)
    return kind(stride=16, dim=3, wide=6, hidden=8).eval()


@pytest.mark.parametrize(
    "model",
    [
        *(small(kind) for kind in MODELS),  # RVAE causal
        *(small(kind, pixels=256) for kind in (AVDKF, AVRVAE)),
        *(small(RVAE, causal=False), small(AVRVAE, pixels=256, causal=True)),
        *(small(HiTDVAE, **options) for options in ({"light": True}, {"query": "x"}, {"past_in_prior": False})),
        *(residual(VRNN), residual(SRNN), small_wave(VRNNWave), small_wave(SRNNWave)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_computed_for_all_frames_at_once_is_the_recursion_of_the_paper(model: Any, batch: Batch) -> None:
    """In value, and in the gradients of all parameters and inputs; of two draws, and of an utterance that is padded."""
    model.requires_grad_(True)
    lengths = torch.tensor([T, T - 4])
    power = batch.need("power", model).requires_grad_()
    waveform = torch.randn(2, 16 * T).mul(0.1).requires_grad_()
    batch = replace(batch, mask=torch.arange(T) < lengths[:, None], waveform=waveform, lengths=16 * lengths)
    context = model.context(batch)
    observed = model.network_input(model.observed(batch))
    noise = {s.name: torch.randn(2, 2, 1 if s.rate is None else T, s.dim, requires_grad=True) for s in model.latents}
    leaves = [*model.parameters(), power, waveform, *noise.values()]

    def parts(z: Tensor, q: Gaussian, p: Gaussian, output: Tensor) -> list[Tensor]:
        moments = (moment.expand_as(z) for pdf in (q, p) for moment in (pdf.mean, pdf.log_var))
        return [part[:, batch.mask] for part in (z, *moments, output)]

    path = model.posterior(observed, context, noise)
    p, output = model.prior_and_output(path, context, Schedule())
    at_once = parts(path.z["z"], path.q["z"], p["z"], output)
    frame_by_frame = parts(*model.recursion(observed, context, noise))
    torch.testing.assert_close(at_once, frame_by_frame)
    weights, slopes = [torch.randn_like(part) for part in at_once], []
    for values in (at_once, frame_by_frame):
        total = torch.stack([(part * weight).sum() for part, weight in zip(values, weights, strict=True)]).sum()
        slopes.append(torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True))
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)
    unused = sum(slope is None for slope in slopes[0])
    assert unused == 1 and at_once[0].shape == (2, 2 * T - 4, 3)  # of power and waveform, a model takes one


@pytest.mark.parametrize("kind", MODELS)
def test_draws_from_the_prior_are_distributed_as_the_prior(kind, batch):
    """Of many draws, each latent given those before it has mean 0 and variance 1 when it is standardised."""
    model, context = small(kind), small(kind).context(batch)
    z = model.sample_prior(context, 600)
    for name, p in model.prior(z, context).items():
        standard = (z[name] - p.mean) / torch.exp(p.log_var / 2)
        assert standard.shape == z[name].shape
        assert standard.mean(0).abs().max() < 0.25 and (standard.var(0) - 1).abs().max() < 0.35


@pytest.mark.parametrize("kind", MODELS)
def test_the_bound_is_below_the_likelihood(kind, batch):
    """Which importance sampling estimates: with many draws it lies above the bound."""
    model = small(kind)
    torch.manual_seed(0)
    bound = torch.stack([model(batch, Schedule()).bound for _ in range(40)]).mean(0)
    inferred, context = model.infer(batch, 2000), model.context(batch)
    log_q = sum(q.log_prob(inferred.z[name]).sum(-1) for name, q in inferred.q.items())
    log_p = model.log_prior(inferred.z, context).sum(-1)
    log_x = model.decode(inferred.z, context)["power"].log_prob(batch.power).sum(-1)
    likely = (log_x + log_p - log_q).logsumexp(0) - torch.tensor(2000.0).log()
    assert (bound < likely).all()


def test_the_estimate_of_speech_is_the_past_of_an_autoregressive_model(batch):
    """In enhancement the past is the mixture at first, as published, and then the present estimate."""
    model, pasts = small(SRNN), []
    states = model.states
    model.states = lambda z, context: pasts.append(context.past) or states(z, context)
    enhance(model, batch, Vem(build_estep("point", steps=1), iterations=4, paper=True))
    assert torch.equal(pasts[0], batch.noisy) and not torch.isclose(pasts[-1], pasts[0]).any()


AUTOREGRESSIVE: list[type[AutoregressiveVAE]] = [STORN, VRNN, SRNN, HiTDVAE]


@pytest.mark.parametrize("kind", AUTOREGRESSIVE)
def test_with_its_own_output_as_the_past_the_output_is_the_same(kind, batch):
    model, context = small(kind), small(kind).context(batch)
    z = model.infer(batch, k=2).z
    past = model.own_past(z, context)
    again = model.decode(z, context, feedback=past)["power"].expected
    torch.testing.assert_close(again, past)
    # Where a part of the past is true, that part is unchanged, and the own output after it depends on it.
    own = [t % 3 > 0 for t in range(T)]
    mixed = model.own_past(z, context, own)
    output = model.decode(z, context, feedback=mixed)["power"].expected
    for t in range(T):
        torch.testing.assert_close(
            mixed[:, :, t], output[:, :, t] if own[t] else batch.power[:, t].expand_as(output[:, :, t])
        )
    assert not torch.allclose(mixed, past)


@pytest.mark.parametrize("kind", AUTOREGRESSIVE)
def test_scheduled_sampling_goes_from_the_true_past_to_its_own(kind, batch):
    model = small(kind).requires_grad_(True)

    def bound(own: float) -> Tensor:
        torch.manual_seed(3)
        return model(batch, Schedule(own=own)).bound

    def expected(own: bool) -> Tensor:
        torch.manual_seed(3)
        context = model.context(batch)
        inferred = model.infer(batch)
        past = model.own_past(inferred.z, context) if own else None
        likelihood = model.decode(inferred.z, context, feedback=past)["power"]
        p = model.prior(inferred.z, replace(context, past=past) if own else context)
        kl_B = sum(q.kl(p[name])[0].sum(1) for name, q in inferred.q.items())
        return likelihood.log_prob(batch.power)[0].sum(1) - kl_B

    for own in (False, True):
        torch.testing.assert_close(bound(float(own)), expected(own))
        slopes = [torch.autograd.grad(value.sum(), list(model.parameters())) for value in (bound(own), expected(own))]
        rtol, atol = (1e-4, 1e-4) if kind is VRNN else (1.3e-6, 1e-5)  # its loop does not round as its layer does
        torch.testing.assert_close(*slopes, rtol=rtol, atol=atol)
    assert not torch.allclose(bound(0.0), bound(1.0)) and not torch.allclose(bound(0.5), bound(1.0))


@pytest.mark.parametrize(
    ("model", "key"), [(VAE(51, observes="pose"), "frequencies"), (RVAE(51, observes="pose"), "features")]
)
def test_poses_of_another_figure_are_refused_in_a_sentence(model, key):
    batch = Batch(("a",), torch.ones(1, T, dtype=torch.bool), pose=torch.randn(1, T, 96))
    with pytest.raises(UserError, match=f"a frame of pose has 96 numbers here: give model.{key}=96"):
        model.infer(batch)


def learn(model: Any, batch: Batch, steps: int) -> None:
    """Overfits, as it can on so small a batch."""
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        adam.zero_grad()
        model(batch, Schedule()).loss(Schedule()).sum().backward()
        adam.step()


def tiny(kind: Any, observes: Any) -> Any:
    torch.manual_seed(0)
    key = "frequencies" if kind is VAE else "features"
    return kind(**{key: 9}, hidden=16, dim=3, observes=observes, **SMALLER.get(kind, {}))


@pytest.mark.parametrize("kind", [*MODELS, VAE])
def test_each_learns_a_pose(kind):
    """A wave of the hand: the joints come near, and the distance that is measured is that of the loss."""
    model = tiny(kind, "pose")
    pose = (torch.linspace(0, 6.28, 12)[:, None] + torch.arange(9)).sin()[None]
    batch = Batch(("a",), torch.ones(1, 12, dtype=torch.bool), pose=pose)

    def error() -> float:
        return (reconstruct_poses(model, batch, true_past=True) - pose).unflatten(-1, (3, 3)).norm(dim=-1).mean().item()

    before = error()
    learn(model, batch, 150)
    assert error() < 0.4 * before and model.latents[-1].modality == "motion"


@pytest.mark.parametrize("kind", [*MODELS, VAE])
def test_each_learns_a_sound(kind):
    """A ripple of 26 dB that glides up: its level is found in each bin of each frame."""
    model = tiny(kind, "power")
    level = 3 * (torch.linspace(0, 6.28, 12)[:, None] + torch.arange(9)).sin()[None]
    batch = Batch(("a",), torch.ones(1, 12, dtype=torch.bool), power=level.exp())

    def error() -> float:
        z, context = model.infer(batch, mode="mean").z, model.context(batch)
        return (model.decode(z, context)["power"].log_var - level).abs().mean().item()

    before = error()
    learn(model, batch, 200)
    assert error() < 0.4 * before


@pytest.mark.parametrize("kind", [AVDKF, AVRVAE])
def test_the_lips_matter_however_large_their_features_grow(kind, batch):
    model = small(kind, pixels=256)
    g = torch.Generator().manual_seed(0)
    crops = [torch.randint(0, 256, (2, T, 16, 16), generator=g, dtype=torch.uint8) for _ in range(2)]
    z = {"z": torch.randn((1, 2, T, 3), generator=g)}

    def difference() -> Tensor:
        contexts = (model.context(replace(batch, lips=lips)) for lips in crops)
        one, other = (model.output(z, c) + model.log_prior(z, c)[..., None] for c in contexts)
        return (one - other).abs().mean()

    before = difference()
    assert before > 0
    model.lip_encoder[0].features.weight *= 1000
    model.lip_encoder[0].features.bias *= 1000
    torch.testing.assert_close(difference(), before, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("alone", "model", "error"),
    [(small(RVAE), small(AVRVAE, pixels=256, causal=True), 1e-6), (small(DKF), small(AVDKF, pixels=256), 5e-3)],
)
def test_an_audio_visual_model_starts_as_the_audio_model_that_it_is_made_of(alone, model, error, batch):
    model.start_from(alone)
    bounds = []
    for own in (model, alone):
        torch.manual_seed(1)
        bounds.append(own.elbo(batch, own.context(batch), Schedule()).bound)
    torch.testing.assert_close(*bounds, rtol=error, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_the_av_dkf_trains_on_the_bound_and_on_the_likelihood_given_the_lips_alone(alpha, batch):
    model = small(AVDKF, pixels=256, alpha=alpha)
    torch.manual_seed(1)
    loss = model(batch, Schedule()).loss(Schedule())
    torch.manual_seed(1)
    context = model.context(batch)
    bound = model.elbo(batch, context, Schedule()).bound
    variance = model.output(model.sample_prior(context), context)[0].exp() + VARIANCE_FLOOR
    from_lips = -((torch.pi * variance).log() + batch.power / variance).sum((1, 2))
    torch.testing.assert_close(loss, -alpha * bound - (1 - alpha) * from_lips)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_starts_as_one_of_its_own_kind(kind):
    trained, model = small(kind), kind(**SMALL, **SMALLER.get(kind, {}))
    model.start_from(trained)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_walk_frame_by_frame_is_refused_for_a_latent_of_the_utterance(batch):
    with pytest.raises(UserError, match="moves frame by frame and v is one latent for all frames: choose"):
        enhance(small(DSAE), batch, Vem(build_estep("metropolis_hastings"), iterations=1))
