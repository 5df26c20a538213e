"""The E-step `diffuseen`: as `udiffse`, with the noise as a second latent.

J.-E. Ayilo, M. Sadeghi, R. Serizel, X. Alameda-Pineda, "Diffusion-based frameworks for unsupervised speech
enhancement", 2026 (DiffUSEEN, arXiv 2601.09931).

    x = sqrt(g) s + b + e        b ~ Nc(0, V)        e ~ Nc(0, w), a small remainder

    noise        b^ = V / (V + u) (x - sqrt(g) D),  u = g v_i + w        the mean of p(b | x, s = D)
    likelihood   s <- s + lambda (1 - q) v_i grad ln Nc(x - b^; sqrt(g) s, u), in every step

in udiffse.py's notation. There, M-steps fit V to |b^|^2 + V u / (V + u), the second moment of the noise where s is
known up to the variance v_i; here they fit g S + V to the power of the mixture, with S = |D|^2 + v_i for the same
reason. What else differs is as there, and w is in units of c^2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from avdvae.enhancement.contract import Target
from avdvae.enhancement.udiffse import Reversed, UDiffSE
from avdvae.errors import UserError


@dataclass(frozen=True)
class DiffUSEEN(UDiffSE):
    """As udiffse, with the noise as a second latent: J.-E. Ayilo, M. Sadeghi, R. Serizel, X. Alameda-Pineda,
    "Diffusion-based frameworks for unsupervised speech enhancement", 2026 (arXiv 2601.09931).

    remainder   w / c^2
    """

    every: int = 1
    remainder: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.remainder) not in (int, float) or not self.remainder > 0:
            raise UserError(f"enhance.estep.remainder={self.remainder}: give a number above 0")

    def slope(self, target: Target, state: Reversed, estimate_KBTF: Tensor, v_F: Tensor) -> Tensor:
        V_BTF, root_BT1 = target.noise_BTF, target.gain_BTJ.sqrt()
        u_BTF = target.gain_BTJ * v_F + self.remainder * state.prior.scale_F.square()
        noise_KBTF = V_BTF / (V_BTF + u_BTF) * (state.mixture_BTF - root_BT1 * estimate_KBTF)
        return root_BT1 * (state.mixture_BTF - noise_KBTF - root_BT1 * state.reversed_KBTF) / u_BTF

    def power(self, estimate_KBTF: Tensor, v_F: Tensor) -> Tensor:
        return estimate_KBTF.abs().square() + v_F
