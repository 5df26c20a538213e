"""The E-steps by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avdvae.enhancement.contract import EStep
from avdvae.enhancement.denoising import Denoising
from avdvae.enhancement.diffuseen import DiffUSEEN
from avdvae.enhancement.learned import Learned
from avdvae.enhancement.markov_chains import Langevin, MetropolisHastings, MetropolisLangevin
from avdvae.enhancement.udiffse import UDiffSE
from avdvae.enhancement.variational import FineTunedEncoder, FreeGaussian, PointEstimate
from avdvae.errors import UserError, known_settings, nearest

ESTEPS: dict[str, type] = {
    "metropolis_hastings": MetropolisHastings,
    "langevin": Langevin,
    "mala": MetropolisLangevin,
    "point": PointEstimate,
    "free_gaussian": FreeGaussian,
    "encoder": FineTunedEncoder,
    "learned": Learned,
    "denoising": Denoising,
    "udiffse": UDiffSE,
    "diffuseen": DiffUSEEN,
}
SCHEDULED = frozenset(name for name, kind in ESTEPS.items() if hasattr(kind, "schedule"))  # contract.Scheduled


def build_estep(name: str, **settings: Any) -> EStep:
    if name not in ESTEPS:
        raise UserError(f"no E-step is called {name}: {nearest(name, ESTEPS)}")
    if isinstance(then := settings.get("then"), Mapping):
        settings["then"] = build_estep(**then)
    return known_settings(ESTEPS[name], "enhance.estep", **settings)
