"""VQ-VAE against plain NumPy, MDVAE against its paper, and VQ-MDVAE."""

# What a test reads of a batch is there, or the test fails.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from avdvae.errors import UserError
from avdvae.models.mdvae import MDVAE, mean_over_frames
from avdvae.models.vq_mdvae import VQMDVAE, Standardisation
from avdvae.models.vqvae import Codebook, FaceVQ, SoundVQ, codebook_use
from avdvae.nn.blocks import zero_init
from avdvae.probability.objectives import Schedule
from avdvae.protocols import Batch


def noise(frames: int = 5, utterances: int = 2, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        ids=tuple(map(str, range(utterances))),
        mask=torch.arange(frames) < torch.tensor([frames, frames - 2])[:utterances, None],
        power=torch.rand(utterances, frames, 513, generator=g),
        face=torch.randint(0, 256, (utterances, frames, 64, 64, 3), generator=g, dtype=torch.uint8),
    )


def tokenised() -> VQMDVAE:
    return VQMDVAE(SoundVQ(width=8), FaceVQ(width=16, codes=32, dim=4), size=16, memory=8)


def test_codes_and_codebook_are_those_of_plain_numpy():
    torch.manual_seed(0)
    book, rng = Codebook(7, 3), np.random.default_rng(0)
    words, count, total = book.words_CL.numpy().astype(np.float64), np.full(7, 2.0), np.zeros((7, 3))
    total += 2 * words
    book.count_C.fill_(2.0)
    book.sum_CL.copy_(2 * book.words_CL)
    for _ in range(20):
        u = rng.normal(size=(50, 3)).astype(np.float32)
        nearest = np.square(u[:, None].astype(np.float64) - words).sum(-1).argmin(1)
        np.testing.assert_array_equal(book.nearest(torch.from_numpy(u)), nearest)
        weight = rng.integers(0, 2, 50)
        chosen = np.eye(7)[nearest] * weight[:, None]
        book.update(torch.from_numpy(u), torch.from_numpy(chosen).float())
        count = 0.99 * count + 0.01 * chosen.sum(0)
        total = 0.99 * total + 0.01 * chosen.T @ u
        words = total / ((count + 1e-5) / (count.sum() + 7e-5) * count.sum())[:, None]
        np.testing.assert_allclose(book.words_CL, words, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_words_is_passed_to_the_features():
    torch.manual_seed(0)
    book, u = Codebook(7, 3), torch.randn(2, 5, 3, requires_grad=True)
    wanted = torch.randn(2, 5, 3)
    quantised = book(u)
    torch.testing.assert_close(quantised, book.words_CL[book.nearest(u)])
    (quantised * wanted).sum().backward()
    assert torch.equal(u.grad, wanted)


def test_dead_codes_restart_at_vectors_of_the_batch_and_live_ones_stay():
    torch.manual_seed(0)
    book = Codebook(4, 2)
    u, weight = torch.randn(30, 2), torch.cat([torch.ones(10), torch.zeros(20)])
    book.restart_dead(u, weight)  # at first all are dead
    assert all((word == u[:10]).all(-1).any() for word in book.words_CL)
    many = Codebook(50, 2)  # more than there are vectors
    many.restart_dead(u, weight)
    assert all((word == u[:10]).all(-1).any() for word in many.words_CL)
    before = book.words_CL.clone()
    book.count_C.copy_(torch.tensor([1.0, 1.0, 0.001, 1.0]))
    book.restart_dead(u, weight)
    alive = [0, 1, 3]
    assert torch.equal(book.words_CL[alive], before[alive]) and book.count_C[2] == pytest.approx(0.05 * 10 / 4)
    assert (book.words_CL[2] == u[:10]).all(-1).any()
    assert codebook_use(torch.tensor([5.0, 5.0, 0.0, 0.0])) == {"usage": 0.5, "perplexity": pytest.approx(2.0)}


def test_processes_move_the_codebook_together(monkeypatch):
    one, two = Codebook(5, 2), Codebook(5, 2)
    u, chosen = torch.randn(20, 2), torch.eye(5)[torch.randint(0, 5, (20,))]
    one.update(u.repeat(2, 1), chosen.repeat(2, 1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))  # another with the same batch
    two.update(u, chosen)
    for name in ("words_CL", "count_C", "sum_CL"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name))


def test_frames_that_pad_move_no_code():
    torch.manual_seed(0)
    batch, model = noise(), FaceVQ(width=16, codes=8, dim=4).train()
    odd = batch.face.clone()
    odd[1, 3:] = 255
    books = []
    for face in (batch.face, odd):
        torch.manual_seed(1)
        model.codebook.count_C.zero_()
        model(Batch(ids=batch.ids, mask=batch.mask, face=face), Schedule())
        books.append(model.codebook.words_CL.clone())
    assert torch.equal(*books)


def test_sizes_are_the_published_ones():
    model = VQMDVAE(SoundVQ(), FaceVQ(), variance="unit", paper=True)
    assert (model.vqvae_a.size, model.vqvae_v.size) == (512, 2048)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 8_484_568  # 8.48 million
    assert [(spec.name, spec.dim) for spec in model.latents] == [("w", 84), ("z_av", 16), ("z_a", 8), ("z_v", 4)]


def test_the_kl_of_w_counts_once_or_as_published_once_a_frame():
    batch = noise()
    torch.manual_seed(0)
    for paper, times in ((False, torch.ones(2)), (True, torch.tensor([5.0, 3.0]))):
        model = MDVAE(size=16, memory=8, width=16, dim=4, paper=paper)
        inferred = model.infer(batch)
        torch.testing.assert_close(
            model(batch, Schedule()).kl["w"], times * inferred.q["w"].kl(inferred.p["w"])[0, :, 0]
        )


def test_the_vqvaes_are_trained_before_and_stay_frozen():
    torch.manual_seed(0)
    ear, eye = SoundVQ(width=8).train(), FaceVQ(width=16, codes=32, dim=4).train()
    for part in (ear, eye):
        part(noise(), Schedule())
    model = tokenised().train()
    model.start_from(ear, eye)
    model.requires_grad_(True)
    for part in (model.vqvae_a, model.vqvae_v):  # as train.freeze does
        part.requires_grad_(False)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    model(noise(), Schedule()).loss(Schedule()).sum().backward()
    adam.step()
    for own, trained in ((model.vqvae_a, ear), (model.vqvae_v, eye)):
        for name, value in trained.state_dict().items():
            assert torch.equal(own.state_dict()[name], value), name
    said = model.decode(model.infer(noise()).z, model.context(noise()))
    words = model.vqvae_v.codebook.words_CL
    assert said["face"].expected.shape == (1, 2, 5, 64, 64, 3) and len(words) == 32


def test_features_of_a_frame_are_computed_once_and_are_those_of_the_vqvaes():
    torch.manual_seed(0)
    whole, model, found = noise(12, utterances=1), tokenised().train(), []
    model.standard_a.update = model.standard_v.update = lambda u_NM: found.append(len(u_NM))
    plain = torch.cat([model.vqvae_a.features(whole.power), model.vqvae_v.features(whole.face)], -1)
    find, seen = model.vqvae_a.features, []
    model.vqvae_a.features = lambda observed: (seen.append(observed.shape[1]), find(observed))[1]

    def window(*starts: int) -> Batch:
        part = {k: torch.cat([getattr(whole, k)[:, i : i + 5] for i in starts]) for k in ("power", "face")}
        return Batch(whole.ids * len(starts), torch.ones(len(starts), 5).bool(), starts=torch.tensor(starts), **part)

    def check(*starts: int) -> None:
        a, v = model.observed(window(*starts))
        expected = torch.cat([plain[:, i : i + 5] for i in starts]).split([model.vqvae_a.size, model.vqvae_v.size], -1)
        torch.testing.assert_close((a, v), expected)  # brought to mean 0 and variance 1 by moments that are just that

    for starts, new in (((0,), 5), ((0,), 0), ((2,), 2), ((6, 7), 9), ((7,), 0)):
        seen.clear()
        check(*starts)
        assert sum(seen) == new  # a batch may hold a new frame twice
    assert not copy.deepcopy(model).cache.cached and model.cache.cached
    model.start_from(model.vqvae_a, model.vqvae_v)
    assert not model.cache.cached
    model.cache.room = 0
    check(0)
    assert not model.cache.cached
    seen.clear()
    model.eval()
    check(0)
    assert seen == [5]  # in evaluation, frames of other corpora may have these numbers


def test_networks_get_features_of_mean_0_and_variance_1():
    torch.manual_seed(0)
    model, batch = tokenised().train(), noise()
    for _ in range(3):
        model.observed(batch)
    u_NM, a_NM = (features[batch.mask] for features in (model.vqvae_a.features(batch.power), model.observed(batch)[0]))
    moves = u_NM.std(0) > 0.02
    torch.testing.assert_close(a_NM[:, moves].mean(0), torch.zeros(int(moves.sum())), atol=1e-2, rtol=0)
    torch.testing.assert_close(a_NM[:, moves].var(0, correction=0), torch.ones(int(moves.sum())), atol=0.05, rtol=0)
    torch.testing.assert_close(model.standard_a.inverse(a_NM), u_NM)
    model.eval()
    known = model.standard_a.moments_2M.clone()
    model.observed(batch)
    assert torch.equal(model.standard_a.moments_2M, known)


def test_standardisation_averages_all_batches_and_later_the_recent_ones():
    torch.manual_seed(0)
    standard, batches = Standardisation(3), [torch.randn(n, 3) * n + n for n in (5, 9, 7)]
    for u in batches:
        standard.update(u)
    moments = [torch.stack([u.mean(0), u.square().mean(0)]) for u in batches]
    torch.testing.assert_close(standard.moments_2M, torch.stack(moments).mean(0))
    standard.updates.fill_(1000)
    standard.update(batches[0])
    torch.testing.assert_close(standard.moments_2M, 0.99 * torch.stack(moments).mean(0) + 0.01 * moments[0])
    a = standard(batches[1])
    deviation = (standard.moments_2M[1] - standard.moments_2M[0] ** 2).sqrt()
    torch.testing.assert_close(a * deviation + standard.moments_2M[0], batches[1])
    torch.testing.assert_close(standard.inverse(a), batches[1])


def test_what_is_static_is_contained_in_w_alone():
    torch.manual_seed(0)
    batch, other_voice = noise(), torch.randn(2, 1, 513)
    for paper in (False, True):
        model, found = MDVAE(size=16, memory=8, width=16, dim=4, paper=paper), []
        zero_init(model.w_posterior)
        a_BTA, v_BTV = model.observed(batch)
        for heard_BTA in (a_BTA, a_BTA + other_voice):
            model.observed = partial(lambda *given: given[:2], heard_BTA, v_BTV)  # type: ignore[method-assign]
            found.append(model.infer(batch, mode="mean").z)
        for name in ("z_av", "z_a"):
            assert torch.allclose(found[0][name], found[1][name], atol=1e-5) != paper, name
        w = torch.randn(1, 2, 1, 84)
        z = [{**found[0], "w": w}, {name: torch.randn_like(value) for name, value in found[0].items()} | {"w": w}]
        for one, two in zip(*(model.decoded(latents, batch.mask) for latents in z), strict=True):
            one, two = (mean_over_frames(x, batch.mask) for x in (one, two))
            assert torch.allclose(one, two, atol=1e-5) != paper


@pytest.mark.parametrize("delayed", [("z_a", "z_v"), ("z_v",)])
def test_delayed_latents_are_learned_after_z_av(delayed):
    torch.manual_seed(0)
    model, batch = MDVAE(size=16, memory=8, width=16, dim=4, together=2, delayed=delayed).train(), noise()
    for training, epoch in ((True, 1), (True, 2), (False, 0)):
        model.train(training).zero_grad()
        elbo = model(batch, Schedule(epoch=epoch))
        elbo.bound.sum().backward()
        for name in ("z_a", "z_v"):
            learns = any(p.grad is not None and p.grad.any() for p in model.latent(name).parameters())
            late = name in delayed and (training, epoch) == (True, 1)
            assert learns == elbo.kl[name].any() == (not late), (name, training, epoch)
        assert elbo.kl["z_av"].all() and elbo.kl["w"].all()


def test_each_latent_changes_the_modalities_that_depend_on_it():
    torch.manual_seed(0)
    model, batch = MDVAE(size=16, memory=8, width=16, dim=4), noise()
    z, context = dict(model.infer(batch, mode="mean").z), model.context(batch)
    before = model.decode(z, context)
    for name, moved in (("z_a", (True, False)), ("z_v", (False, True)), ("z_av", (True, True)), ("w", (True, True))):
        after = model.decode(z | {name: z[name] + 1}, context)
        same = (
            torch.equal(after["power"].log_var, before["power"].log_var),
            torch.equal(after["face"].expected, before["face"].expected),
        )
        assert same == tuple(not m for m in moved), name


@pytest.mark.parametrize("paper", [False, True])
def test_z_a_does_not_depend_on_the_face_nor_z_v_on_the_sound(paper):
    """Given w and z_av, which depend on both, and are 0 here."""
    torch.manual_seed(0)
    model, batch, other = MDVAE(size=16, memory=8, width=16, dim=4, paper=paper), noise(), noise(seed=1)
    zero_init(model.w_posterior)
    zero_init(model.latent("z_av").posterior_net[-1])
    before = model.infer(batch, mode="mean").q
    for name, changes, stays in (("power", "z_a", "z_v"), ("face", "z_v", "z_a")):
        after = model.infer(replace(batch, **{name: getattr(other, name)}), mode="mean").q
        assert torch.equal(after[stays].mean, before[stays].mean), (name, stays)
        assert torch.equal(after[stays].log_var, before[stays].log_var), (name, stays)
        assert (after[changes].mean != before[changes].mean)[batch.mask[None]].all(), (name, changes)


@pytest.mark.parametrize("name", ["z_av", "z_a", "z_v"])
def test_what_is_computed_for_all_frames_at_once_is_the_recursion_of_the_paper(name):
    """In value, and in the gradients of all parameters and inputs; of two draws."""
    torch.manual_seed(0)
    latent = MDVAE(size=16, memory=8, width=16, dim=4).latent(name)
    inputs = latent.posterior_net[0].in_features - latent.rnn.hidden_size  # type: ignore[operator]
    y, noise = torch.randn(2, 3, 5, inputs, requires_grad=True), torch.randn(2, 3, 5, latent.rnn.input_size)
    z, q = latent.posterior(y, noise)
    values_and_slopes = []
    for path_z, path_q, path_p in ((z, q, latent.prior(z)), latent.recursion(y, noise)):
        values = [path_z, path_q.mean, path_q.log_var, path_p.mean, path_p.log_var]
        total = sum((value * noise.roll(n, 2)).sum() for n, value in enumerate(values))
        values_and_slopes.append([*values, *torch.autograd.grad(total, [y, *latent.parameters()])])
    for at_once, frame_by_frame in zip(*values_and_slopes, strict=True):
        torch.testing.assert_close(at_once, frame_by_frame, rtol=1e-4, atol=1e-5)


def test_faces_of_another_size_are_refused():
    with pytest.raises(UserError, match="faces of 32 x 32 pixels, not 64 x 64"):
        FaceVQ(16)(Batch(("a",), torch.ones(1, 1).bool(), face=torch.zeros(1, 1, 32, 32, 3).byte()), Schedule())
