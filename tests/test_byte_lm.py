"""The byte LM: its code, its recursion written out, dependences, pieces, generation."""

import math

import pytest
import torch
from test_contract import utterances
from test_waveforms import sound
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.latents.likelihood import bound_bits
from avdvae.models.byte_lm import BYTES, ByteLM, tokens_of, waveform_of
from avdvae.probability.objectives import Schedule
from avdvae.probability.pcm import CODES

W, LAYERS, HEADS = 4, 2, 2


@pytest.fixture
def model() -> ByteLM:
    torch.manual_seed(0)
    model = ByteLM(dim=8, heads=HEADS, layers=LAYERS, context=W)
    for parameter in model.parameters():  # at the usual start, dependences are too weak to show
        parameter.data *= 1.5
    return model.eval().requires_grad_(False)


def every_code() -> Tensor:
    return (torch.arange(-CODES, CODES) / CODES)[:, None]


def test_bytes_are_the_sample_and_silence_is_in_their_middle():
    tokens = tokens_of(every_code())
    assert torch.equal(waveform_of(tokens), every_code())
    assert tokens.unique(dim=0).shape == (2 * CODES, 2) and (tokens // BYTES == torch.tensor([0, 1])).all()
    assert tokens[CODES].tolist() == [128, BYTES]


def test_probabilities_of_all_values_of_a_sample_sum_to_1(model):
    after = torch.tensor([0.3, -0.01]).expand(2 * CODES, -1)
    both, before = (model(sound(x), Schedule()).bound for x in (torch.cat([after, every_code()], 1), after[:1]))
    assert (both - before).double().logsumexp(0).item() == pytest.approx(0, abs=1e-5)
    assert (both - before).std() > 0.1  # not uniform


def test_a_byte_depends_on_those_within_reach_and_on_no_later_one(model):
    embedded: list[Tensor] = []
    model.double().embedding.register_forward_hook(
        lambda module, given, output: embedded.append(output.requires_grad_()) or output
    )
    tokens = tokens_of(0.3 * torch.randn((1, 15), generator=torch.Generator().manual_seed(0)))
    log_p_BIC, _ = model.predict(tokens, None)
    reach = LAYERS * (W - 1) + 1
    for i in range(30):
        (slope,) = torch.autograd.grad(log_p_BIC[0, i, 0], embedded[0], retain_graph=True)
        assert slope[0].any(-1).nonzero()[:, 0].tolist() == [*range(max(0, i - reach + 1), i + 1)]


@pytest.mark.parametrize("bytes_given", [3, 4, 30])
def test_it_is_its_formula(model, bytes_given):
    """Attention byte by byte, and rotations as products of complex numbers."""
    model.double()
    tokens = torch.randint(0, 2 * BYTES, (2, bytes_given), generator=torch.Generator().manual_seed(0))
    y = model.embedding(tokens)
    speed = 10_000.0 ** (-torch.arange(2) / 2)

    def turned(x: Tensor, position: int) -> Tensor:
        return torch.complex(*x.unflatten(-1, (HEADS, -1)).chunk(2, -1)) * torch.exp(1j * position * speed)

    for layer in model.layers:
        q, k, v = (nn.functional.pad(x, (0, 0, W - 1, 0)) for x in layer.qkv(layer.norm(y)).chunk(3, -1))
        mixed = []
        for i in range(W - 1, W - 1 + bytes_given):
            window = range(i - W + 1, i + 1)
            fit = torch.stack([(turned(q[:, i], i) * turned(k[:, j], j).conj()).real.sum(-1) for j in window])
            weight = (fit / 4**0.5).softmax(0)
            values = torch.stack([v[:, j].unflatten(-1, (HEADS, -1)) for j in window])
            mixed.append((weight[..., None] * values).sum(0).flatten(1))
        y = y + layer.out(torch.stack(mixed, 1))
        y = y + layer.mlp(y)
    torch.testing.assert_close(model.predict(tokens, None)[0], model.head(y).log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_pieces_one_after_another_cost_the_bits_of_the_whole(model, monkeypatch):
    batch = utterances(330, 590, frames=2)
    whole = -model(batch, Schedule()).bound / math.log(2)
    for piece in (1, 7, 640):
        monkeypatch.setattr("avdvae.latents.likelihood.PIECE", piece)
        torch.testing.assert_close(bound_bits(model, batch), whole, rtol=1e-5, atol=0)


def test_generated_bytes_are_those_of_the_model_given_them_as_the_past(model, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda like, **_: torch.full_like(like, 0.3))  # the most probable byte
    generated = model.generate(torch.tensor([[0.3], [-0.2]]), 20)
    tokens = tokens_of(torch.cat([torch.tensor([[0.3], [-0.2]]), generated], 1))
    log_p_BIC, _ = model.predict(nn.functional.pad(tokens[:, :-1], (1, 0), value=BYTES), None)
    assert torch.equal(log_p_BIC.argmax(-1)[:, 2:], tokens[:, 2:] % BYTES) and len(tokens.unique()) > 5


def test_draws_have_the_probabilities_of_the_model(model):
    torch.manual_seed(0)
    high = tokens_of(model.generate(torch.zeros(20_000, 0), 1))[:, 0]
    expected = model.predict(torch.tensor([[BYTES]]), None)[0][0, 0].exp()
    found = torch.bincount(high, minlength=BYTES) / 20_000
    assert ((found - expected).abs() < 5 * (expected / 20_000).sqrt()).all() and expected.max() > 3 / BYTES


def test_wrong_sizes_are_named():
    for wrong, message in (
        ({"dim": 6, "heads": 2}, r"model\.dim=6 model\.heads=2 .* a multiple of twice the heads"),
        ({"context": 1}, r"model\.context=1: give the bytes that a layer attends to, 2 or more"),
    ):
        with pytest.raises(UserError, match=message):
            ByteLM(**wrong)
