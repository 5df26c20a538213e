"""Predictors of the speaker, the emotion and the opening of the mouth, fitted to real recordings and applied to decoded
ones.

Letters: N examples of M features, T frames, F frequencies, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

BANDS, CEPSTRA = 40, 12
MOUTH, EYES = (slice(36, 58), slice(14, 50)), (slice(14, 30), slice(8, 56))  # rows and columns of faces of 64 x 64


@dataclass(frozen=True)
class Classes:
    """Multinomial logistic regression."""

    names: tuple[str, ...]
    mean: Float[Tensor, " M"]
    scale: Float[Tensor, " M"]
    weight: Float[Tensor, "M C"]
    bias: Float[Tensor, " C"]

    @classmethod
    def fit(cls, x_NM: Float[Tensor, "N M"], labels: Sequence[str], penalty: float = 0.01) -> Classes:
        """On features normalised to mean 0 and variance 1, with an L2 penalty on the weights."""
        names = tuple(sorted(set(labels)))
        target_N = torch.tensor([names.index(label) for label in labels])
        mean_M, scale_M = x_NM.mean(0), x_NM.std(0) + 1e-3
        x_NM = (x_NM - mean_M) / scale_M
        weight = torch.zeros(x_NM.shape[1], len(names), requires_grad=True)
        bias = torch.zeros(len(names), requires_grad=True)
        lbfgs = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            lbfgs.zero_grad()
            value = nn.functional.cross_entropy(x_NM @ weight + bias, target_N) + penalty * weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            lbfgs.step(loss)
        return cls(names, mean_M, scale_M, weight.detach(), bias.detach())

    def log_probs(self, x: Float[Tensor, "*some M"]) -> Float[Tensor, "*some C"]:
        return (((x - self.mean) / self.scale) @ self.weight + self.bias).log_softmax(-1)

    def name(self, x: Float[Tensor, " M"]) -> str:
        return self.names[int(self.log_probs(x).argmax())]


@dataclass(frozen=True)
class Speakers:
    """Probabilistic linear discriminant analysis (S. Ioffe, ECCV 2006): the features of a clip are a speaker variable
    plus a clip variable, both normal. Their covariances are fitted to many speakers; then other speakers are `enrolled`
    with one or more clips, and further clips of them identified.

        x = mean + A (speaker + clip)        speaker ~ N(0, diag between_D), clip ~ N(0, I), in D dimensions
    """

    mean_M: Float[Tensor, " M"]
    discriminants_MD: Float[Tensor, "M D"]
    between_D: Float[Tensor, " D"]

    @classmethod
    def fit(cls, x_NM: Float[Tensor, "N M"], speakers: Sequence[str], dims: int = 10) -> Speakers:
        """To speakers of whom many have two clips or more."""
        clips = _by_speaker(x_NM, speakers)
        means_SM = torch.stack([clips_NM.mean(0) for clips_NM in clips.values()])
        rest_NM = torch.cat([clips_NM - clips_NM.mean(0) for clips_NM in clips.values()])
        within_MM = rest_NM.T @ rest_NM / (len(x_NM) - len(clips))
        within_MM += torch.diag(1e-3 * within_MM.diag() + 1e-6)
        means_MM = torch.cov(means_SM.T) - within_MM * len(clips) / len(x_NM)  # without the variance of clips
        whitening_MM = torch.linalg.inv(torch.linalg.cholesky(within_MM))
        between_M, vectors_MM = torch.linalg.eigh(whitening_MM @ means_MM @ whitening_MM.T)
        discriminants_MD = whitening_MM.T @ vectors_MM[:, -dims:]
        return cls(means_SM.mean(0), discriminants_MD, between_M[-dims:].clamp_min(1e-3))

    def enrolled(self, x_NM: Float[Tensor, "N M"], speakers: Sequence[str]) -> Callable[[Float[Tensor, " M"]], str]:
        """A function that returns the most probable of these speakers."""
        clips = _by_speaker((x_NM - self.mean_M) @ self.discriminants_MD, speakers)
        counts_S1 = torch.tensor([[float(len(clips_ND))] for clips_ND in clips.values()])
        gain_SD = counts_S1 * self.between_D / (1 + counts_S1 * self.between_D)
        expected_SD = gain_SD * torch.stack([clips_ND.mean(0) for clips_ND in clips.values()])
        variance_SD = 1 + self.between_D * (1 - gain_SD)

        def name(x_M: Float[Tensor, " M"]) -> str:
            z_D = (x_M - self.mean_M) @ self.discriminants_MD
            log_p_S = -((z_D - expected_SD).square() / variance_SD + variance_SD.log()).sum(-1)
            return [*clips][int(log_p_S.argmax())]

        return name


def _by_speaker(x_NM: Float[Tensor, "N M"], speakers: Sequence[str]) -> dict[str, Float[Tensor, "n M"]]:
    rows = {name: [n for n, speaker in enumerate(speakers) if speaker == name] for name in dict.fromkeys(speakers)}
    return {name: x_NM[chosen] for name, chosen in rows.items()}


@dataclass(frozen=True)
class Line:
    """Linear regression."""

    weight: Float[Tensor, " M"]

    @classmethod
    def fit(cls, x_NM: Float[Tensor, "N M"], y_N: Float[Tensor, " N"], penalty: float = 1.0) -> Line:
        """Of centred variables, with an L2 penalty on the weights."""
        x_NM, y_N = x_NM.double(), y_N.double()
        gram_MM = x_NM.t() @ x_NM + penalty * torch.eye(x_NM.shape[1], dtype=torch.double)
        return cls(torch.linalg.solve(gram_MM, x_NM.t() @ y_N).float())

    def __call__(self, x_NM: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
        return x_NM @ self.weight


def voice_of(power_TF: Float[Tensor, "T F"]) -> Float[Tensor, " M"]:
    """Mean and deviation of the log-energies in mel bands."""
    return torch.cat([*torch.std_mean(loudness(power_TF), 0)])


def face_of(face_THW3: Shaped[Tensor, "T H W 3"]) -> Float[Tensor, " M"]:
    """The mean face at 8 x 8 pixels; pictures in 0..1, or bytes in 0..255."""
    return nn.functional.avg_pool2d(_pixels(face_THW3).mean(0), 8).flatten()


def mouth_of(face_THW3: Shaped[Tensor, "T H W 3"]) -> Float[Tensor, "T M"]:
    """Pixels of the mouth minus their mean over the clip: `Line` predicts the opening from them."""
    mouth_TP = nn.functional.avg_pool2d(_pixels(face_THW3)[:, :, *MOUTH], 2).flatten(1)
    return mouth_TP - mouth_TP.mean(0)


def cepstra_of(power_TF: Float[Tensor, "T F"]) -> Float[Tensor, "T C"]:
    """Cepstral coefficients without the energy: the spectral envelope, which depends on the phoneme."""
    centre = torch.arange(BANDS) + 0.5
    cosine_MC = torch.cos(torch.pi / BANDS * centre[:, None] * torch.arange(1, CEPSTRA + 1))
    return loudness(power_TF) @ cosine_MC


def loudness(power_TF: Float[Tensor, "T F"]) -> Float[Tensor, "T M"]:
    return (power_TF @ _filters(power_TF.shape[1]) + 1e-4).log()


@cache
def _filters(frequencies: int) -> Float[Tensor, "F M"]:
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(frequencies, 0.0, 8000.0, BANDS, 16_000)


def _pixels(face_THW3: Shaped[Tensor, "T H W 3"]) -> Float[Tensor, "T 3 H W"]:
    bytes_ = face_THW3.dtype == torch.uint8
    return (face_THW3 / 255 if bytes_ else face_THW3.clamp(0, 1)).movedim(-1, 1)


def correlation(x_TC: Float[Tensor, "T C"], y_TC: Float[Tensor, "T C"]) -> float:
    """Over the frames, averaged over the features."""
    x_TC, y_TC = x_TC - x_TC.mean(0), y_TC - y_TC.mean(0)
    norms_C = (x_TC.square().sum(0) * y_TC.square().sum(0)).sqrt()
    return float(((x_TC * y_TC).sum(0) / norms_C.clamp_min(1e-9)).mean())
