"""Change the pitch of a recording, shift its formants, or whisper it, with a trained model.

avdvae control run=RUN input=speech.wav f0=180            constant pitch of 180 Hz
avdvae control run=RUN input=speech.wav f0=x1.5           1.5 times the pitch
avdvae control run=RUN input=speech.wav f0=contour.csv    lines of seconds,Hz, interpolated
avdvae control run=RUN input=speech.wav f1=700 f2=x1.1    formants, with or without the pitch
avdvae control run=RUN input=speech.wav whisper=true
avdvae control run=RUN input=speech.wav f1=700 method=discriminants   by discriminants in place of subspaces
avdvae control run=RUN f0=140 f1=500 f2=1500 f3=2500      speech from trajectories alone

Only frames that the model finds voiced are changed. The output, controlled.wav by default, has one channel at 16 kHz; a
picture of before and after is written beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avdvae.data.talker.vowels import FACTORS
from avdvae.errors import UserError
from avdvae.files import replacing
from avdvae.latents.control import Controller
from avdvae.latents.subspaces import nearest
from avdvae.pictures.stills import triptych
from avdvae.programs.program import Program
from avdvae.protocols import is_speech_prior
from avdvae.runs import open_run
from avdvae.signals.audio import read_wav, write_wav
from avdvae.signals.clock import RATE


def read_target(factor: str, asked: str, seconds_T: Tensor, was_T: Tensor | None) -> Tensor:
    """The target of a factor in each frame, in Hz."""
    try:
        if asked.endswith(".csv"):
            times, hertz = np.loadtxt(asked, delimiter=",", ndmin=2).T
            return torch.from_numpy(np.interp(seconds_T, times, hertz)).float()
        if asked.startswith("x") and was_T is not None:
            return was_T * float(asked[1:])
        return torch.full_like(seconds_T, float(asked))
    except OSError as error:
        raise UserError(
            f"{factor}={asked} cannot be read ({error.strerror}): give lines with seconds and Hz"
        ) from error
    except ValueError as error:
        allowed = "180, x1.5 or a csv file of lines with seconds and Hz, as 0.5,180"
        raise UserError(f"{factor}={asked} is no frequency ({error}): give one such as {allowed}") from error


def control(config: Mapping[str, Any]) -> None:
    if config["run"] is None:
        raise UserError("run= is missing: give run=RUN input=FILE and a change such as f0=180")
    asked = {factor: str(config[factor]) for factor in FACTORS if config[factor] is not None}
    output = Path(str(config["output"]))
    if output.suffix.lower() != ".wav" or output.is_dir():
        raise UserError(f"output={output}: give the name of a wav file")
    if config["whisper"] and "f0" in asked:
        raise UserError(f"whisper=true and f0={asked['f0']}: a whisper has no pitch, so give one of them")
    if config["phase"] not in (None, "input", "griffin_lim"):
        raise UserError(f"phase={config['phase']}: give input, griffin_lim or null")
    if config["share"] is not None and not 0 < config["share"] < 1:
        raise UserError(f"share={config['share']}: give a number between 0 and 1, such as 0.9, or null")
    generated = config["input"] is None
    if generated and len(asked) < len(FACTORS):
        raise UserError(f"input= is missing: without it {', '.join(f'{f}=' for f in FACTORS)} are all needed")
    if not asked and not config["whisper"]:
        raise UserError("nothing is to change: give f0=, f1=, f2=, f3= or whisper=true")
    run = open_run(Path(str(config["run"])))
    wave_N = None if generated else read_wav(Path(str(config["input"])), RATE)
    model = run.load_model()
    if not is_speech_prior(model):
        raise UserError(f"{type(model).__name__} has no latents of power spectra to move: choose another model")
    controller = Controller.of(model, run.stft, config["share"], config["method"])
    signals: dict[str, np.ndarray] = {}
    if wave_N is None:
        seconds_T = torch.arange(run.stft.frames(int(config["seconds"] * RATE))) * run.stft.hop / RATE
        targets = {factor: read_target(factor, value, seconds_T, None) for factor, value in asked.items()}
        changed_N = controller.synthesise(controller.generate(targets))
        changed_N *= 0.9 / changed_N.abs().max()
    else:
        encoded = controller.encode(wave_N)
        voiced_T = (controller.pitch(encoded) > 0) | bool(config["everywhere"])
        if not voiced_T.any():
            raise UserError(f"{type(model).__name__} finds no voice in {config['input']}: give everywhere=true")
        seconds_T = torch.arange(len(encoded.z)) * run.stft.hop / RATE
        subspaces = controller.space_to_move_in(encoded.level).subspaces
        targets = {
            factor: read_target(factor, value, seconds_T, nearest(subspaces[factor], encoded.z)[0])
            for factor, value in asked.items()
        }
        if config["whisper"]:
            targets["f0"] = torch.zeros_like(seconds_T)
        targets = {factor: target_T.where(voiced_T, torch.nan) for factor, target_T in targets.items()}
        keep_phase = "f0" not in targets if config["phase"] is None else config["phase"] == "input"
        changed_N = controller.synthesise(controller.move(encoded, targets), encoded, griffin_lim=not keep_phase)
        signals["before"] = wave_N.numpy()
        print(
            f"moved      {', '.join(targets)} in {100 * voiced_T.float().mean():.0f} % of the frames, the voiced ones"
        )
    signals["after"] = changed_N.numpy()
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as new:
        write_wav(new, changed_N, RATE)
    with replacing(output.with_suffix(".png")) as new:
        triptych(signals, RATE, run.stft.hop).savefig(new, format="png", dpi=150)
    print(f"controlled {output}\npicture    {output.with_suffix('.png')}")


main = Program("control_file", control, interrupted="interrupted; nothing was written")

if __name__ == "__main__":
    main()
