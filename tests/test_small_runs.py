"""The same seed gives the same numbers: a table of small runs of every model, made before its code was rearranged.

Where numbers are meant to change, this writes the table anew:
PYTHONPATH=tests python -c "import conftest, test_small_runs; test_small_runs.write()"
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import LISTED, LONG, SHORT, utterances

from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem, enhance
from avdvae.models.rvae import RVAE
from avdvae.models.vae import VAE
from avdvae.probability.objectives import Schedule
from avdvae.protocols import LatentModel, is_speech_prior
from avdvae.runs import build_model
from avdvae.signals.audio import Stft
from avdvae.training.loop import train
from avdvae.training.settings import Training

TABLE = Path(__file__).with_suffix(".json")
NAMES = sorted(name for name in LISTED if name != "own")


def small_run(name: str) -> dict[str, float]:
    """Losses in nats of three steps of Adam, then latents, prior, draws from it, and Wiener filters."""
    torch.manual_seed(0)
    model: Any = build_model(LISTED[name])
    own = 0.5 if name in ("srnn", "vrnn", "hit_dvae") else 0.0
    batch, schedule = utterances(SHORT, LONG), Schedule(epoch=1000, own=own)
    adam, numbers = torch.optim.Adam(model.parameters(), 1e-4), {}
    for step in range(3):
        loss = model(batch, schedule).loss(schedule).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        numbers[f"loss {step}"] = loss.item()
    model.eval()
    if isinstance(model, LatentModel):
        with torch.no_grad():
            context, inferred = model.context(batch), model.infer(batch, 2)
            for latent, z in inferred.z.items():
                numbers[f"z {latent}"] = z.square().mean().item()
            numbers["log prior"] = model.log_prior(inferred.z, context).mean().item()
            for latent, z in model.sample_prior(context).items():
                numbers[f"drawn {latent}"] = z.square().mean().item()
    if is_speech_prior(model):
        enhanced = enhance(model, batch, Vem(FreeGaussian(steps=2), iterations=3))
        numbers["filter"] = enhanced.filter.mean().item()
        numbers["cost"] = enhanced.cost[-1].mean().item()
    return numbers


def write() -> None:
    TABLE.write_text(json.dumps({name: small_run(name) for name in NAMES}, indent=1) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_small_run_gives_the_numbers_of_the_table(name: str) -> None:
    assert small_run(name) == pytest.approx(json.loads(TABLE.read_text())[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "frames", "expected"), [(VAE, 1, 1522.2), (RVAE, 20, 6732.9)], ids=["frames", "sequences"]
)
def test_a_short_training_gives_the_loss_that_it_gave(model, frames, expected, prepared, tmp_path) -> None:
    corpora = [PreparedCorpus(prepared.out, split) for split in ("train", "valid")]
    torch.manual_seed(0)
    settings = Training(epochs=5, frames=frames, batch_size=16, accelerator="cpu")
    trained = train(model(floor=0.03), corpora[0], corpora[1], Stft(533), settings, tmp_path)
    assert trained.best_loss == pytest.approx(expected, rel=1e-2)
