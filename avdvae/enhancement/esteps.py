"""The E-steps by name."""

from __future__ import annotations

from typing import Any

from avdvae.enhancement.contract import EStep
from avdvae.enhancement.markov_chains import Langevin, MetropolisHastings, MetropolisLangevin
from avdvae.enhancement.variational import FineTunedEncoder, FreeGaussian, PointEstimate
from avdvae.errors import UserError, known_settings, nearest

ESTEPS: dict[str, type] = {
    "metropolis_hastings": MetropolisHastings,
    "langevin": Langevin,
    "mala": MetropolisLangevin,
    "point": PointEstimate,
    "free_gaussian": FreeGaussian,
    "encoder": FineTunedEncoder,
}


def build_estep(name: str, **settings: Any) -> EStep:
    if name not in ESTEPS:
        raise UserError(f"no E-step is called {name}: {nearest(name, ESTEPS)}")
    return known_settings(ESTEPS[name], "enhance.estep", **settings)
