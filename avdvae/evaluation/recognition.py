"""A network that recognises the movement of a future: its features give FID, its classes the accuracy of predictions.

Two layers of GRU with 128 units, from a state of zeros; 30 tanh units, the features, from the last state; a layer of
classes. It is trained on true futures of the train split, and kept beside the prepared corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.data.gait_futures import CHAIN, GaitFutures, movements
from avdvae.data.shards import PreparedCorpus, Utterance
from avdvae.errors import UserError, reading
from avdvae.files import locked, replacing
from avdvae.randomness import seeded

BATCH, STEPS, MOST_EPOCHS = 64, 600, 20
_VERSION = 1  # goes up when the same futures give other weights


class Recognition(nn.Module):
    def __init__(self, coordinates: int, classes: Sequence[str]):
        super().__init__()
        self.classes = list(classes)
        self.rnn = nn.GRU(coordinates, 128, 2, batch_first=True)
        self.features = nn.Sequential(nn.Linear(128, 30), nn.Tanh())
        self.head = nn.Linear(30, len(classes))

    def forward(self, futures_NTD: Float[Tensor, "N T D"]) -> Float[Tensor, "N M"]:
        """The features."""
        return self.features(self.rnn(futures_NTD)[0][:, -1])

    def share(self, features_NM: Float[Tensor, "N M"], movement: str | None) -> float:
        """Of features in which this movement is recognised."""
        found_N = self.head(features_NM).argmax(1).tolist()
        return sum(self.classes[n] == movement for n in found_N) / len(found_N)


Window = tuple[Utterance, int]  # and its first frame


def movement_of(utterance: Utterance, first: int, frames: int) -> str | None:
    """That of most frames; None where the corpus has no labels of it."""
    if utterance.corpus != GaitFutures.NAME:
        return utterance.labels.get("action")
    during = movements(utterance.labels, utterance.pose_stop - utterance.pose_start)[first : first + frames]
    return max(CHAIN, key=during.count)


def recognition_of(root: Path, observed: int, frames: int, device: str) -> Recognition | None:
    """The network of a prepared corpus, trained if it is not there. None where the corpus has no labels of movements.
    A future has `frames`, after `observed` ones."""
    corpus = PreparedCorpus(root, "train", verify=False)
    windows = windows_of(corpus.utterances, observed, frames)
    law = corpus.utterances[0].corpus == GaitFutures.NAME
    classes = list(CHAIN) if law else sorted({str(u.labels.get("action", "")) for u, _ in windows})
    if not windows or "" in classes:
        return None
    with seeded(0):
        network = Recognition(corpus.poses(windows[0][0])[0].size - 3, classes)
    known = [_VERSION, observed, frames, [utterance.sha256 for utterance in corpus.utterances]]
    path = root / f"recognition-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]}.safetensors"
    try:
        with locked(root / ".recognition.lock", "trains the network that recognises movements"):
            if not path.exists():
                with seeded(0), torch.enable_grad():
                    _train(network.to(device), corpus, [(item, first + observed) for item, first in windows], frames)
                with replacing(path) as new:
                    safetensors.torch.save_file(network.state_dict(), new)
    except OSError as error:
        raise UserError(
            f"cannot write to {root} ({error.strerror}), where the network that recognises movements is kept: give a "
            "prepared corpus that can be written to"
        ) from error
    with reading(path, "network that recognises movements", "delete it and evaluate again"):
        network.load_state_dict(safetensors.torch.load_file(path))
    return network.to(device).eval().requires_grad_(False)


def _train(network: Recognition, corpus: PreparedCorpus, futures: Sequence[Window], frames: int) -> None:
    classes = [network.classes.index(str(movement_of(item, first, frames))) for item, first in futures]
    numbers_N, device = torch.tensor(classes), network.head.weight.device
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(min(STEPS, MOST_EPOCHS * -(-len(futures) // BATCH))):
        chosen_B = torch.randint(len(futures), (BATCH,))
        chosen = [futures[n] for n in chosen_B.tolist()]
        futures_BTD = torch.stack([cut(corpus, item, first, frames) for item, first in chosen]).to(device)
        loss = nn.functional.cross_entropy(network.head(network(futures_BTD)), numbers_N[chosen_B].to(device))
        adam.zero_grad()
        loss.backward()
        adam.step()


def windows_of(utterances: Sequence[Utterance], observed: int, frames: int) -> list[Window]:
    """All windows that fit, one every `observed` frames."""
    lengths = [(u, u.pose_stop - u.pose_start) for u in utterances]
    return [(u, first) for u, length in lengths for first in range(0, length - observed - frames + 1, observed)]


def cut(corpus: PreparedCorpus, utterance: Utterance, first: int, frames: int) -> Float[Tensor, "T D"]:
    """Poses without the hips, which are the origin."""
    return torch.from_numpy(np.array(corpus.poses(utterance)[first : first + frames, 1:])).flatten(1)
