"""Models of waveforms: sizes, dependences, pieces, fused and plain recursions, generation."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_contract import utterances
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.latents.likelihood import bound_bits
from avdvae.models.cw_vae import CWVAE
from avdvae.models.lstm import LSTM
from avdvae.models.srnn_wave import SRNNWave
from avdvae.models.stcn import STCN
from avdvae.models.vrnn_wave import VRNNWave
from avdvae.models.wavenet import WaveNet
from avdvae.nn.ladder import Block
from avdvae.nn.sliding import Sliding, SlidingBack
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Schedule, divergence
from avdvae.protocols import Batch, Context

SMALL: dict[Any, dict[str, Any]] = {
    WaveNet: {"stride": 16, "channels": 6, "stacks": 2, "layers": 3},
    LSTM: {"stride": 16, "hidden": 6},
    VRNNWave: {"stride": 16, "dim": 3, "wide": 6, "hidden": 8},
    SRNNWave: {"stride": 16, "dim": 3, "wide": 6, "hidden": 8},
    STCN: {"stride": 16, "channels": 6, "dims": (4, 3, 2), "layers": 2},
    CWVAE: {"stride": 16, "layers": 2, "channels": 4, "dim": [3, 2]},
}
EVERY = pytest.mark.parametrize("kind", SMALL)


def small(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    model = kind(**SMALL[kind], **options)
    for parameter in model.parameters():  # at the usual start, dependences are too weak to show
        parameter.data *= 1.5
    return model.eval().requires_grad_(False)


@pytest.fixture
def same_noise(monkeypatch) -> None:
    """Draws that do not depend on the shape of what is drawn."""
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: 0.6 * torch.ones(*shape))
    monkeypatch.setattr(torch, "rand_like", lambda like, **_: torch.full_like(like, 0.3))


def sound(waveform_BN: Tensor) -> Batch:
    lengths = torch.full((len(waveform_BN),), waveform_BN.shape[1])
    mask = torch.ones(len(waveform_BN), 1, dtype=torch.bool)
    return Batch(("",) * len(waveform_BN), mask, waveform=waveform_BN, lengths=lengths)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (WaveNet(1, 96), 2.81),
        (WaveNet(64, 96), 3.40),
        (WaveNet(1, 32), 0.32),
        (CWVAE(64, 1), 1.45),
        (CWVAE(64, 2), 2.89),
        (CWVAE(64, 3), 4.33),
    ],
)
def test_they_have_as_many_parameters_as_published(model, millions):
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def linear(*sizes: int) -> int:
    """Weights and biases of layers one after another."""
    return sum((a + 1) * b for a, b in pairwise(sizes))


def recurrent(gates: int, inputs: int, hidden: int) -> int:
    return gates * hidden * (inputs + hidden + 2)


S, H, R, Z = 64, 256, 512, 256  # samples of a step, width, recurrent width, latents
CODES = 30 * S  # 10 logistics a sample, of a weight, a place and a scale each
DIMS = (16, 32, 64, 128, 256)  # of STCN, from the top down
GATED = linear(2 * H, 2 * H) + linear(H, 2 * H)  # two taps to content and gate; to what is left and what is skipped


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (LSTM(), [linear(S, H, H, H), recurrent(4, H, H), linear(H, H, H, CODES)]),
        (
            VRNNWave(),
            [
                *(linear(S, H, H, H), linear(Z, H, H, H, H), recurrent(3, 2 * H, R)),  # of x, of z, of both
                *(linear(R, H, H, H, 2 * Z), linear(R + H, H, H, H, 2 * Z), linear(R + H, H, H, CODES)),  # p, q, out
            ],
        ),
        (
            SRNNWave(),
            [
                *(linear(S, H, H, H), recurrent(3, H, R), recurrent(3, R + H, R)),  # of x, forward, backward
                *(2 * linear(R + Z, H, H, H, 2 * Z), linear(R + Z, H, H, CODES)),  # p and q, out
            ],
        ),
        (
            STCN(),
            [
                *(linear(2 * S, H), 25 * GATED, linear(sum(DIMS), H), 5 * GATED, linear(H, CODES)),
                *(4 * linear(H + above, H, H, dim) for above, dim in pairwise((0, *DIMS))),  # mean, deviation; p, q
            ],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_their_layers_are_the_published_ones(model, parts):
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(parts)


def test_a_sample_depends_on_those_that_the_published_models_reach():
    torch.manual_seed(0)
    model = WaveNet(1, 2).double()
    x = torch.randn(1, 5300, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model.predict(x, None)[0][:, -1].square().sum(), x)
    assert (slope[0, :, 0] != 0).nonzero().min() == 5300 - 5117 == 5300 - model.reach
    stcn = STCN(1, 4, (2, 2, 2, 2, 2)).double()
    x = torch.randn(1, 200, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(stcn.encode(x, None)[0][-1][:, -1].square().sum(), x)
    assert (slope[0, :, 0] != 0).nonzero().min() == 200 - 157 == 200 - stcn.reach


@pytest.mark.parametrize(("stride", "reach"), [(64, [765, 12_797, 109_053]), (256, [1021, 49_149, 434_173])])
def test_the_clockwork_looks_ahead_as_far_as_published(stride, reach):
    rate, total = 1, 1
    for level, published in zip(CWVAE(stride, 3, 2, 2).levels, reach, strict=True):
        total += rate * (level.encoder.reach - 1)  # type: ignore[union-attr,operator]
        rate *= level.encoder.stride  # type: ignore[union-attr,operator]
        assert total == published


@EVERY
def test_a_sample_depends_on_later_ones_through_latents_alone(kind):
    """Given latents, the likelihood of x_t and the prior of z_t depend on the past alone."""
    model, g = small(kind), torch.Generator().manual_seed(0)
    one = 0.3 * torch.randn((1, 640), generator=g)
    other = torch.cat([one[:, :320], one[:, 320:].flip(1)], 1)
    if kind in (WaveNet, LSTM):
        found = [
            model.likelihood(model.predict(torch.nn.functional.pad(model.stacks(x), (0, 0, 1, -1)), None)[0]).loc
            for x in (one, other)
        ]
        last = 336
    else:
        z = model.infer(sound(one), mode="mean").z
        changed = {
            name: torch.cat([value[:, :, : value.shape[2] // 2], value[:, :, value.shape[2] // 2 :] + 1], 2)
            for name, value in z.items()
        }
        found = [
            model.decode(path, model.context(sound(x)))["waveform"].loc[0] for path, x in ((z, one), (changed, other))
        ]
        priors = [model.log_prior(path, model.context(sound(x)))[..., :16] for path, x in ((z, one), (changed, other))]
        torch.testing.assert_close(*priors)
        last = 256 if kind is CWVAE else 320  # its upper level has steps of 128
    torch.testing.assert_close(found[0][:, :last], found[1][:, :last])
    assert not torch.allclose(found[0][:, last + 32 :], found[1][:, last + 32 :])


@pytest.mark.usefixtures("same_noise")
@EVERY
def test_pieces_one_after_another_cost_the_bits_of_the_whole(kind, monkeypatch):
    """Those whose posterior depends on later samples take an utterance as one piece."""
    model, batch = small(kind), utterances(3300, 5900)
    monkeypatch.setattr("avdvae.latents.likelihood.PIECE", 640)
    pieces: list[int] = []
    whole, carry = -model(batch, Schedule()).bound / math.log(2), model.carry
    monkeypatch.setattr(model, "carry", lambda part, *rest: pieces.append(1) or carry(part, *rest))
    torch.testing.assert_close(bound_bits(model, batch), whole, rtol=1e-5, atol=0)
    assert len(pieces) == (10 if kind in (WaveNet, LSTM, STCN) else 1)


@pytest.mark.usefixtures("same_noise")
def test_the_clockwork_is_the_same_piece_by_piece():
    batch = utterances(3300, 5900)
    whole, pieces = small(CWVAE), small(CWVAE, piece=512)
    torch.testing.assert_close(pieces(batch, Schedule()).bound, whole(batch, Schedule()).bound, rtol=1e-5, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [5, 23, 300])
def test_sliding_is_the_convolution_of_torch_and_so_are_its_slopes(stride, frames):
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=g, dtype=torch.double) for shape in ((2, frames, 3), (3, 1, 5), (3,))]
    x, weight, bias = (value.requires_grad_() for value in given)
    how: Any = {"bias": bias, "stride": stride, "groups": 3}
    for own, published in (
        (Sliding, nn.functional.conv1d(x.mT, weight, **how).mT),
        (SlidingBack, nn.functional.conv_transpose1d(x.mT, weight, **how).mT[:, : frames * stride]),
    ):
        output: Any = own.apply(x, weight[:, 0].t(), bias, stride)
        torch.testing.assert_close(output, published)
        slope = torch.randn(output.shape, generator=g, dtype=torch.double)
        torch.testing.assert_close(*(torch.autograd.grad(y, (x, weight, bias), slope) for y in (output, published)))


@pytest.mark.parametrize("rises", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [5, 11, 12, 40])
def test_a_block_in_parts_is_the_block_and_so_are_its_slopes(stride, rises, frames, monkeypatch):
    block = Block(3, stride, rises).double()
    x = torch.randn(2, frames, 3, dtype=torch.double, requires_grad=True)
    whole = block(x)
    monkeypatch.setattr("avdvae.nn.ladder.SPAN", 1)
    parts = block(x)
    torch.testing.assert_close(parts, whole)
    slope, given = torch.randn_like(whole), (x, *block.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(y, given, slope) for y in (whole, parts)))


# The networks, written out with the functions of torch


def convolved(layer: Any, x_BTC: Tensor, dilation: int) -> Tensor:
    taps = torch.stack(layer.weight.chunk(2, 1), -1)  # the sample before, now
    return nn.functional.conv1d(nn.functional.pad(x_BTC.mT, (dilation, 0)), taps, layer.bias, dilation=dilation).mT


def gated(layers: Any, x: Tensor, dilations: list[int]) -> tuple[Tensor, list[Tensor]]:
    """What is left in the end, and all that was skipped."""
    skips = []
    for layer, dilation in zip(layers, dilations, strict=True):
        content, gate = convolved(layer.conv, x, dilation).chunk(2, -1)
        left, skip = nn.functional.linear(content.tanh() * gate.sigmoid(), layer.out.weight, layer.out.bias).chunk(
            2, -1
        )
        x, skips = (x + left) / 2**0.5, [*skips, skip]
    return x, skips


@pytest.fixture
def x() -> Tensor:
    return torch.randn((2, 40, 16), generator=torch.Generator().manual_seed(0))


def test_wavenet_is_its_formula(x):
    model = small(WaveNet)
    _, skips = gated(model.layers, model.conv_1x1(convolved(model.causal_conv, x, 1)), 2 * [1, 2, 4])
    features = model.decoder_net[1](torch.stack(skips).sum(0).div(6**0.5).relu()).relu()
    torch.testing.assert_close(model.predict(x, None)[0], model.decoder_head(features.view(2, 40, 16, 6)).flatten(-2))


def test_stcn_is_its_formula(x):
    model = small(STCN)
    wave = sound(0.3 * x.flatten(1))
    inferred, context = model.infer(wave, mode="mean"), model.context(wave)
    _, skips = gated(model.tcn, convolved(model.audio_in, context.past, 1), 3 * [1, 2])
    above = torch.zeros(2, 40, 0)
    for level, name in ((2, "z3"), (1, "z2"), (0, "z1")):
        d = skips[2 * level + 1]
        moments = []
        for nets, features in ((model.prior_nets, nn.functional.pad(d, (0, 0, 1, -1))), (model.posterior_nets, d)):
            values = []
            for layers in (nets[level].mean, nets[level].deviation):
                y = torch.cat([features, above], -1)
                for layer in (layers[0], layers[2]):
                    y = nn.functional.leaky_relu(layer(y))
                values.append(layers[4](y))
            moments.append((values[0], nn.functional.softplus(values[1]) + 1e-3))
        (mean_p, deviation_p), (mean, deviation) = moments
        torch.testing.assert_close(inferred.p[name].mean[0], mean_p)
        torch.testing.assert_close(inferred.p[name].log_var[0].exp().sqrt(), deviation_p)
        precision = deviation**-2 + deviation_p**-2
        above = (mean / deviation**2 + mean_p / deviation_p**2) / precision
        torch.testing.assert_close(inferred.q[name].log_var[0].exp(), 1 / precision)
        torch.testing.assert_close(inferred.z[name][0], above)
    z = torch.cat([inferred.z[f"z{n}"][0] for n in (1, 2, 3)], -1)
    y, skips = gated(model.decoder_tcn, model.latent_in(z), [1, 1])
    likelihood = model.likelihood(model.decoder_head((torch.stack(skips).sum(0) + y).relu()))
    torch.testing.assert_close(model.decode(inferred.z, context)["waveform"].loc[0], likelihood.loc)


def test_the_clockwork_is_its_formula(x):
    model, c = small(CWVAE), torch.zeros(2, 5, 0)
    wave = sound(0.3 * x.flatten(1))
    z, context = model.infer(wave).z, model.context(wave)
    log_p = torch.zeros(2)
    for level, name, steps in ((model.levels[1], "z2", 40), (model.levels[0], "z1", 640)):
        z_now, cell, states = z[name][0], nn.GRUCell(4, 4), []
        cell.load_state_dict({key[:-3]: value for key, value in level.cell.rnn.state_dict().items()})
        inputs = level.cell.rnn_in(torch.cat([nn.functional.pad(z_now, (0, 0, 1, -1)), c], -1)).relu()
        h = torch.zeros(2, 4)
        for t in range(inputs.shape[1]):
            h = cell(inputs[:, t], h)
            states.append(h)
        y = torch.stack(states, 1)
        for linear in list(level.cell.prior_net)[:-1:2]:
            y = linear(y).relu()
        head = level.cell.prior_net[-1]
        p = torch.distributions.Normal(head.mean(y), (head.log_var(y) / 2).exp())
        log_p = log_p + p.log_prob(z_now).sum((1, 2))
        c = level.decoder(level.latent_in(torch.cat([z_now, torch.stack(states, 1)], -1)).relu())[:, :steps]
    torch.testing.assert_close(model.log_prior(z, context)[0].sum(1), log_p)
    likelihood = model.likelihood(model.decoder_net(c))
    torch.testing.assert_close(model.decode(z, context)["waveform"].loc[0], likelihood.loc)


@pytest.mark.parametrize("encoded", [9, 6, 0])
@pytest.mark.parametrize("given", [0, 2])
@pytest.mark.parametrize("level", [0, 1])
def test_the_fused_clockwork_is_its_recursion_in_value_and_gradient(level, encoded, given):
    cell = small(CWVAE).levels[level].cell.requires_grad_()
    c, e, noise = (
        torch.randn(2, steps, size, requires_grad=True)
        for steps, size in ((9, 4), (encoded, 4), (9, cell.prior_net[-1].mean.out_features))
    )
    z_given = noise[:, :given] + 1 if given else None
    found = []
    for draw in (cell.recursion, cell.draw):
        path = draw(None if level else c, e, noise, z_given)
        values = [path.z, path.h, path.q.mean, path.q.log_var, path.p.mean, path.p.log_var]
        loss = torch.cat([(n + 1) * value.sin().flatten() for n, value in enumerate(values)]).sum()
        inputs = [noise, *cell.parameters(), *([] if level else [c])]
        found.append((values, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    z, h, q_mean, _, p_mean, _ = found[0][0]
    assert h.shape == (2, 9, 4) and torch.equal(z[:, :given], noise[:, :given] + 1)
    assert torch.equal(q_mean[:, encoded:], p_mean[:, encoded:]) and not (q_mean == p_mean)[:, :encoded].any()
    torch.testing.assert_close(cell.follow(z, None if level else c)[0], h)


@pytest.mark.usefixtures("same_noise")
@EVERY
def test_generated_samples_are_those_of_the_model_given_them_as_the_past(kind):
    model = small(kind)
    generated = model.generate(torch.zeros(2, 0), 160)
    assert generated.shape == (2, 160) and generated.any()
    assert torch.equal(generated, (generated * 32768).round() / 32768)
    if kind in (WaveNet, LSTM):
        x = model.stacks(generated)
        output = model.predict(torch.nn.functional.pad(x, (0, 0, 1, -1)), None)[0]
        again = model.likelihood(output).sample()
        torch.testing.assert_close(model.generate(generated[:, :64], 96), generated[:, 64:], rtol=0, atol=1e-4)
    else:
        context = model.context(sound(generated))
        again = model.decode(model.sample_prior(context), context)["waveform"].sample()[0]
        alone = Context(torch.ones(2, -(-160 // model.stride), dtype=torch.bool))
        drawn = model.sample_prior(alone, 2)  # without a true past
        torch.testing.assert_close(drawn, {k: z.expand(2, -1, -1, -1) for k, z in model.sample_prior(context).items()})
    torch.testing.assert_close(again, generated, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("kind", [VRNNWave, SRNNWave, STCN])
def test_samples_after_a_waveform_follow_its_inferred_latents(kind):
    """As it would from the prior of what follows, with its own sound as the past."""
    model, begun = small(kind), 0.3 * torch.randn((2, 64), generator=torch.Generator().manual_seed(0))
    generated = model.generate(begun, 96)
    whole, given = model.context(sound(torch.cat([begun, generated], 1))), model.infer(sound(begun)).z
    if kind is STCN:
        z = model._prior(
            whole, lambda name, p: torch.cat([given[name], p.moved(0.6 * torch.ones_like(p.mean))[:, :, 4:]], 2)
        ).z
    else:
        z = model.sample_prior(whole, 1, given)
    again = model.decode(z, whole)["waveform"].sample()[0]
    torch.testing.assert_close(again[:, 64:], generated, rtol=0, atol=1e-4)
    assert not torch.allclose(generated, model.generate(torch.zeros(2, 0), 96), atol=1e-2)


def test_free_nats_cost_no_more_than_none():
    mask = torch.tensor([[True, True, False]])
    mean = torch.tensor([[[0.1, 2.0], [0.2, 0.3], [5.0, 5.0]]])[None].requires_grad_()
    q, p = Gaussian(mean, torch.zeros_like(mean)), Gaussian(torch.zeros_like(mean), torch.zeros_like(mean))
    schedule = Schedule(beta=0.5, free=1.0)
    kl_B, aux_B = divergence(q, p, mask, schedule)
    assert kl_B.item() == pytest.approx((0.01 + 4 + 0.04 + 0.09) / 2)
    loss = schedule.beta * kl_B - aux_B  # as Elbo.loss has them
    assert loss.item() == pytest.approx(0.5 * (0.5 + 2 + 0.5 + 0.5))
    (slope,) = torch.autograd.grad(loss.sum(), mean)
    torch.testing.assert_close(slope, torch.tensor([[[[0, 1.0], [0, 0], [0, 0]]]]))


def test_wrong_settings_are_named():
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"coding": "a-law"}, "model.coding=a-law: choose mu-law or linear"),
        ({"scoring": "seed"}, "model.scoring=seed: choose exact or paper"),
        ({"stride": 48}, "the stride is a power of 2"),
        ({"layers": 2, "dim": [3]}, "dim is a number or one for each layer"),
    ]
    for wrong, message in wrongs:
        with pytest.raises(UserError, match=message):
            CWVAE(**wrong)
    with pytest.raises(UserError, match="stride=0: give the samples of a step"):
        LSTM(stride=0)
