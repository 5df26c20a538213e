"""The base of mixtures of VAEs: a switch m_t chooses one of C components in each frame.

    p(s, z, m | v) = prod_t pi_{m_t} p(s_t | z^{m_t}_t, v_t, m_t) prod_m p(z^m_t | v_t)

Each component has a latent of its own. A subclass gives `context`, `posteriors`, `prior` and `component`.

    m     component                  index into components
    z^m   latent of component m      z_KBTL by the name of the component
    pi    prior of the switch        context.switch_BSC
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.nn.blocks import keep_given
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.mixture import Mixture
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Inferred, Latents, Observed


class MixtureVAE(nn.Module):
    observes: Observed = "power"
    sees: tuple[str, ...] = ("power", "lips")
    can_miss: tuple[str, ...] = ()
    components: tuple[str, ...]
    likelihood: type[Mixture] = Mixture

    def context(self, batch: Batch) -> Context:
        """With pi."""
        raise NotImplementedError

    def posteriors(self, batch: Batch, context: Context) -> Mapping[str, Gaussian]:
        """q(z^m | s, v) by the name of m."""
        raise NotImplementedError

    def prior(self, name: str, context: Context) -> Gaussian:
        """p(z^m | v)"""
        raise NotImplementedError

    def component(self, name: str, z_KBTL: Float[Tensor, "K B T L"], context: Context) -> ComplexGaussian:
        """p(s | z^m, v, m)"""
        raise NotImplementedError

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        context = self.context(batch)
        q = self.posteriors(batch, context)
        z = {name: gaussian.draw(k, mode) for name, gaussian in q.items()}
        return Inferred(z, q, {name: self.prior(name, context) for name in q})

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Mixture]:
        assert context.switch is not None
        components = tuple(self.component(name, z[name], context) for name in self.components)
        return {"power": self.likelihood(components, self._log_priors(z, context), context.switch, context.mask)}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        return self._log_priors(z, context).sum(0)

    def _log_priors(self, z: Latents, context: Context) -> Float[Tensor, "C K B T"]:
        return torch.stack([self.prior(name, context).log_prob(z[name]) for name in self.components])

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        return keep_given(given, {name: self.prior(name, context).sample(k) for name in self.components})
