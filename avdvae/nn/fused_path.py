"""The recursion of a level of CW-VAE (`Cell.recursion` in models/cw_vae.py) with fewer and larger products.

What c and e add to the first layers is computed for all steps before the loop. Prior and posterior networks have layers
of equal widths, so each pair of layers is one batched product.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from avdvae.probability.gaussian import Gaussian


def fused_path(
    rnn_in: nn.Linear,
    rnn: nn.GRU,
    prior_net: nn.Sequential,
    posterior_net: nn.Sequential,
    c_NTM: Float[Tensor, "N T M"] | None,
    e_NTM: Float[Tensor, "N t M"],
    noise_NTL: Float[Tensor, "N T L"],
    given_NTL: Float[Tensor, "N _ L"] | None,
) -> tuple[Float[Tensor, "N T L"], Float[Tensor, "N T M"], Gaussian, Gaussian]:
    """z, h, q and p."""
    (count, steps, dim), encoded = noise_NTL.shape, e_NTM.shape[1]
    given = [] if given_NTL is None else given_NTL.unbind(1)
    z_weight, c_weight = rnn_in.weight.t().split([dim, rnn_in.in_features - dim])
    from_c = rnn_in.bias if c_NTM is None else torch.addmm(rnn_in.bias, c_NTM.flatten(0, 1), c_weight)
    from_c_NTM = from_c.expand(count * steps, -1).unflatten(0, (count, steps))
    (first_p, *later_p, head_p), (first_q, *later_q, head_q) = _linear(prior_net), _linear(posterior_net)
    h_weight, e_weight = first_q.weight.t().split(rnn.hidden_size)
    h_weight = torch.cat([first_p.weight.t(), h_weight], 1)
    from_e = pad(e_NTM, (0, 0, 0, steps - encoded)) @ e_weight + first_q.bias
    from_e_NTM = torch.cat([first_p.bias.expand_as(from_e), from_e], -1)
    layers = [_pair((p.bias, p.weight.t()), (q.bias, q.weight.t())) for p, q in zip(later_p, later_q, strict=True)]
    head_bias, head_weight = _pair(head_p.bias_and_weight(), head_q.bias_and_weight())
    gru, path = rnn.all_weights[0], []
    z_NL, h_NM = noise_NTL.new_zeros(count, dim), noise_NTL.new_zeros(count, rnn.hidden_size)
    per_step = zip(from_c_NTM.unbind(1), from_e_NTM.unbind(1), noise_NTL.unbind(1), strict=True)
    for t, (from_c_NM, from_e_NM, noise_NL) in enumerate(per_step):
        inputs_NM = torch.relu(torch.addmm(from_c_NM, z_NL, z_weight))
        h_NM = torch.gru_cell(inputs_NM, h_NM, *gru)
        both_2NM = torch.relu(torch.addmm(from_e_NM, h_NM, h_weight)).unflatten(1, (2, -1)).transpose(0, 1)
        for bias, weight in layers:
            both_2NM = torch.relu(torch.baddbmm(bias, both_2NM, weight))
        moments_2NM = torch.baddbmm(head_bias, both_2NM, head_weight)
        p, q = (Gaussian(*side.chunk(2, -1)) for side in moments_2NM)
        z_NL = given[t] if t < len(given) else (q.times(p) if t < encoded else p).moved(noise_NL)
        path.append((z_NL, h_NM, moments_2NM))
    z_NTL, h_NTM, moments_2NTM = (torch.stack(part, -2) for part in zip(*path, strict=True))
    p, q = (Gaussian.floored(*side.chunk(2, -1)) for side in moments_2NTM)
    q = q.times(p)
    if encoded < steps:
        pairs = (q.mean, p.mean), (q.log_var, p.log_var)
        q = Gaussian(*(torch.cat([of_q[:, :encoded], of_p[:, encoded:]], 1) for of_q, of_p in pairs))
    return z_NTL, h_NTM, q, p


def _linear(network: nn.Sequential) -> list[Any]:
    return [layer for layer in network if not isinstance(layer, nn.ReLU)]


def _pair(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> tuple[Float[Tensor, "2 1 N"], Float[Tensor, "2 M N"]]:
    """Biases and weights of a layer of each network, for torch.baddbmm."""
    return torch.stack([p[0], q[0]])[:, None], torch.stack([p[1], q[1]])
