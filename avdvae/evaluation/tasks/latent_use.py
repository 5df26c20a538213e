"""Latent use: what each latent encodes, and the share of the output's variance that depends on it.

The past of autoregressive models is the true one. A latent is exchanged for that of an utterance of another speaker, if
there is one; both utterances are cut to the length of the shorter. With the output a, a' after the exchange, and b of
the other utterance, each the logarithm of the expected power, or the expected pose or face:

    kl_<latent>      KL(q || p), nats a frame
    share_<latent>   100 E|a - a'|^2 / (2 Var(a, b)), in %: 0 where the model ignores the latent. The total effect of
                     sensitivity analysis (Jansen's estimator), as if latents did not depend on the past
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.data.shard_files import Utterance
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.evaluation.tasks.transfer import FAINT
from avdvae.protocols import Batch, LatentModel, Latents


class LatentUse:
    def __init__(self, takes: Literal["sound", "poses"], name: str):
        self.takes: Literal["sound", "poses"] = takes
        self.name = name

    def check(self, subject: Subject) -> None:
        model, fit = subject.model, ("pose",) if self.takes == "poses" else ("power", "face")
        if not isinstance(model, LatentModel) or model.observes not in fit:
            raise UserError(
                f"{type(model).__name__} has no latents that frames of {' or '.join(fit)} are decoded from: choose "
                "another task, or a model that has some"
            )
        if len(subject.chosen.utterances) < 2:
            raise UserError(f"task {self.name}: there is one utterance, and latents are exchanged: give two or more")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts(self.name)

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, model, rows = Measured(), subject.model, subject.chosen.utterances
        lips = "clean" if "lips" in model.sees else ""
        torch.manual_seed(subject.settings.seed)

        def batch_of(utterance: Utterance) -> Batch:
            return next(iter(subject.loader(subject.corpus.only([utterance]))))

        for number, source in enumerate(subject.items(part).utterances, start=part.first):
            others = [*rows[number + 1 :], *rows[:number]]
            other = next((u for u in others if u.speaker != source.speaker), others[0])
            batches = batch_of(source), batch_of(other)
            inferred, frames = model.infer(batches[0]), batches[0].mask.shape[1]
            scores = {f"kl_{n}": (q.kl(inferred.p[n]).sum() / frames).item() for n, q in inferred.q.items()}
            shortest = min(batch.mask.shape[1] for batch in batches)
            shares = shares_of(model, *(batch.first(shortest) for batch in batches))
            scores |= {f"share_{name}": 100 * share for name, share in shares.items()}
            measured.rows += subject.rows(part, source.id, lips, scores)
        return measured


def shares_of(model: Any, source: Batch, other: Batch) -> dict[str, float]:
    """Of each latent, of two utterances of the same length."""
    own, others = (model.infer(batch).z for batch in (source, other))
    a_TF, b_TF = _output(model, own, source), _output(model, others, other)
    variance = torch.cat([a_TF, b_TF]).var(0, correction=0).sum()
    shares = {}
    for name, z in others.items():
        moved_TF = _output(model, {**own, name: z}, source) - a_TF
        shares[name] = (moved_TF.square().sum(1).mean() / (2 * variance)).item()
    return shares


def _output(model: Any, z: Latents, batch: Batch) -> Float[Tensor, "T F"]:
    likelihood = model.decode(z, model.context(batch))[model.observes]
    expected_TF = likelihood.expected[0, 0].flatten(1)
    return (expected_TF + FAINT).log() if model.observes == "power" else expected_TF
