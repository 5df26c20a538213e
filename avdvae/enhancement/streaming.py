"""Enhancement as the sound arrives: the EM of vem.py in a block of frames that slides along the sound.

A move takes the next frames into the block, and the oldest out of it, runs some iterations, and gives out the frame
that is `look_ahead` frames older than the newest.

    latents         those of frames that stay keep their state; new ones start at the encoder's posterior, given the
                    mixture less twice the present noise estimate
    W               of all frames so far: those that have left the block are forgotten exponentially (noise.Past)
    H, gains        of the frames in the block; new frames start at the H of the frame before them
    level           the block is scaled so that its speech peaks at 1 as in training, estimated from its loudest frame
    model           any: a recursion starts with the block, in frames that came out long ago
    new noise       where the noise has risen far above its estimate, the EM begins anew from the newest frames
    silent frames   of digital silence do not enter the block, and come out silent
    lips            of a film, or of a camera: a frame then waits for the picture nearest to it

The state has a constant size. What comes out does not depend on the pieces in which sound and pictures come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Complex, Float, UInt8
from torch import Tensor

from avdvae.enhancement.contract import MovingEStep, RandomNumbers
from avdvae.enhancement.noise import EPSILON, THINNED, Noise, Past, StationaryNoise, subtraction, weighted_mean
from avdvae.enhancement.vem import NoisySpeech, Vem, iterate, recurrent_layers_training
from avdvae.errors import UserError, whole_numbers
from avdvae.protocols import PICTURES, Batch, LatentModel, SpeechPrior, indispensable
from avdvae.signals.arriving import Frames, Lips, OverlapAdd, Resampler
from avdvae.signals.audio import WINDOW, Stft
from avdvae.signals.clock import FASTEST_SOUND, RATE, SLOWEST_SOUND

ENCODED = 16  # frames, the new ones included, that the encoder takes to start the new ones
CREST = 3.0  # of the peak of speech, relative to the deviation in its loudest frame
FALL_DB = 6.0  # a second: how fast the level follows speech that gets quieter
FLOOR_FRAMES, FLOOR_RANK = 16, 4  # the noise is not below the power that is the fourth from below in 16 frames,
RISE_DB = 6.0  # and where that is this far above V, it has changed
SILENT = 1e-11  # power of a frame
LOUDEST = 1e3  # samples beyond count as gaps, as those do that are no numbers


@dataclass(frozen=True)
class Streaming:
    """The settings of a stream, beside those of its EM.

    block        seconds of sound in which the EM runs
    look_ahead   frames that must have arrived after the one that comes out
    iterations   of the EM in each move; None: 2, or 1 with the E-step `learned`
    move         frames by which the block moves at a time
    forgetting   factor by which the statistics of W of frames that have left the block shrink in each frame
    synthesis    samples at the end of a frame that are given out; fewer than 1024: less latency, and more artefacts
    """

    block: float = 0.5
    look_ahead: int = 2
    iterations: int | None = None
    move: int = 1
    forgetting: float = 0.97
    synthesis: int = WINDOW

    def __post_init__(self) -> None:
        iterations = {} if self.iterations is None else {"iterations": 1}
        whole_numbers("streaming.", vars(self), look_ahead=0, move=1, synthesis=2, **iterations)
        for name, low, high in (("block", 0.1, 60), ("forgetting", 0, 1)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise UserError(f"streaming.{name}={value}: give {low:g} to {high:g}")

    def frames(self, stft: Stft) -> int:
        """Of the block."""
        count, least = round(self.block * RATE / stft.hop), self.look_ahead + 2 * self.move
        if count < least:
            raise UserError(
                f"streaming.block={self.block}: {count} frames do not hold look_ahead={self.look_ahead} and twice "
                f"move={self.move}: give {least * stft.hop / RATE:.2f} seconds or more"
            )
        if self.synthesis != WINDOW and not 2 * stft.hop <= self.synthesis <= WINDOW:
            raise UserError(
                f"streaming.synthesis={self.synthesis}: give {2 * stft.hop} to {WINDOW} samples, or {WINDOW}"
            )
        return count


@runtime_checkable
class MovingPictures(Protocol):
    """Pictures of the talker, as separation.Pictures of a film: the nearest to each time of the sound, by modality."""

    def at(self, seconds: np.ndarray) -> Mapping[str, Tensor]: ...


@dataclass
class Block:
    """The state of the EM in the block, at the present level.

    given    the encoder's input, or the past of autoregressive models
    latents  state of the E-step, by the name of the latent
    filter   of the frames that have not come out
    oldest   precision and weight of the frames that leave next, for the statistics of W
    """

    noisy_BTF: Float[Tensor, "B T F"]
    given_BTF: Float[Tensor, "B T F"]
    pictures: dict[str, Tensor]
    noise: Noise
    latents: Mapping[str, Sequence[Tensor]]
    switch: Tensor | None = None
    filter_TF: Tensor | None = None
    oldest: tuple[Tensor, Tensor | None] | None = None

    def state(self) -> dict[str, Any]:
        noise = self.noise
        factors = [noise.W_BFK, noise.H_BTK, noise.gain_BTJ]
        past = noise.past and [noise.past.above_BFK, noise.past.below_BFK, noise.past.H_B1K]
        latents = {name: [*values] for name, values in self.latents.items()}
        return vars(self) | {"noise": factors, "past": past, "latents": latents}

    @classmethod
    def of(cls, state: dict[str, Any], smoothness: float) -> Block:
        past = state["past"] and Past(*state["past"])
        kept: dict[str, Any] = {name: value for name, value in state.items() if name != "past"}
        W_BFK, H_BTK, gain_BTJ = state["noise"]
        kept["noise"] = Noise(W_BFK, H_BTK, gain_BTJ, smoothness, past)
        return cls(**kept)


class Stream:
    """Samples in, samples out, at `rate`: `push` gives those that are finished, `finish` the rest.

    >>> stream = Stream(model, stft, vem)
    >>> clean = np.concatenate([*(stream.push(piece) for piece in pieces), stream.finish()])

    Models that are conditioned on the lips take those of a film as `pictures`, or those of a camera as they arrive:

    >>> stream = Stream(model, stft, vem, pictures=Lips(fps=25))
    >>> clean = stream.push(piece, lips, confidence)
    """

    def __init__(
        self,
        model: SpeechPrior,
        stft: Stft,
        vem: Vem,
        settings: Streaming = Streaming(),
        rate: int = RATE,
        pictures: MovingPictures | None = None,
        device: str = "cpu",
    ):
        if not isinstance(vem.estep, MovingEStep) or vem.estep.cannot_move:
            name = vem.estep.cannot_move if isinstance(vem.estep, MovingEStep) else type(vem.estep).__name__
            raise UserError(
                f"the state of the E-step {name} cannot follow a sound: give enhance.estep.name=free_gaussian "
                "or learned"
            )
        if vem.paper:
            raise UserError("enhance.paper=true starts the EM on a whole recording: a stream takes enhance.paper=false")
        if isinstance(model, LatentModel) and any(spec.rate not in (1, None) for spec in model.latents):
            raise UserError(
                f"{type(model).__name__} has a latent for several frames, which do not slide: choose another"
            )
        shown = {"lips"} if isinstance(pictures, Lips) else PICTURES if pictures else set()
        if needed := (PICTURES & indispensable(model)) - shown:
            what = "of sound" if pictures is None else "with lips"
            raise UserError(
                f"{type(model).__name__} needs the {' and the '.join(needed)}, and a stream {what} has none"
            )
        if not SLOWEST_SOUND <= rate <= FASTEST_SOUND:
            raise UserError(f"a sample rate of {rate} Hz: give {SLOWEST_SOUND} to {FASTEST_SOUND} Hz")
        self.model, self.stft, self.vem, self.settings, self.device = model, stft, vem, settings, device
        self.estep: MovingEStep = vem.estep
        self.most, self.rate, self.pictures = settings.frames(stft), rate, pictures
        self.resampled, self.back = Resampler(rate, RATE), Resampler(RATE, rate)
        self.frames, self.added = Frames(stft), OverlapAdd(stft, settings.synthesis)
        self.random = RandomNumbers.seeded(("stream",), [1], vem.seed)
        self.block: Block | None = None
        self.pending: list[
            tuple[Tensor, bool]
        ] = []  # spectra that have not come out, and whether they are in the block
        self.level, self.moved = 0.0, 0  # power of the peak of speech; frames so far
        self.given, self.came_out, self.finished = 0, 0, False  # samples

    @property
    def latency(self) -> float:
        """Milliseconds from a sample to its enhanced one, without the time to compute it: the look-ahead, the window,
        and the filters of another rate."""
        frames = self.settings.look_ahead + self.settings.move - 1
        filters = self.resampled.delay / self.rate + self.back.delay / RATE
        return 1000 * ((frames * self.stft.hop + self.settings.synthesis) / RATE + filters)

    def push(
        self,
        samples_N: np.ndarray,
        lips: UInt8[np.ndarray, "M H W"] | None = None,
        confidence: Float[np.ndarray, " M"] | None = None,
    ) -> Float[np.ndarray, " n"]:
        """The samples that are finished after these, and after the next crops of the lips, with a confidence of 1 by
        default. Samples that are no finite numbers count as gaps of silence."""
        if self.finished:
            raise UserError("the stream is finished: begin another for more sound")
        if lips is not None:
            if not isinstance(self.pictures, Lips):
                raise UserError("this stream was begun without a camera: give Stream(..., pictures=Lips(fps=25))")
            self.pictures.push(lips, np.ones(len(lips)) if confidence is None else confidence)
        samples_N = np.asarray(samples_N, np.float32)
        if samples_N.ndim != 1:
            raise UserError(f"samples of shape {samples_N.shape}: a stream takes one channel, (samples,)")
        with np.errstate(invalid="ignore"):
            samples_N = np.where(np.abs(samples_N) <= LOUDEST, samples_N, np.float32(0))
        self.given += len(samples_N)
        self.frames.push(self.resampled.push(torch.from_numpy(samples_N)))
        pieces, move = [torch.zeros(0)], self.settings.move
        while self.frames.ready >= move and self._pictured(move):
            pieces.append(self._move(self.frames.take(move)))
        return self._out(self.back.push(torch.cat(pieces)))

    def finish(self) -> Float[np.ndarray, " M"]:
        """The rest: as many samples have then come out as went in."""
        if self.finished:
            return np.zeros(0, np.float32)
        self.finished = True
        if isinstance(self.pictures, Lips):
            self.pictures.end()
        self.frames.push(self.resampled.finish())
        self.added.length = self.frames.given
        self.frames.end()
        pieces = [torch.zeros(0)]
        while ready := self.frames.ready:
            pieces.append(self._move(self.frames.take(min(ready, self.settings.move))))
        pieces += [self._come_out(0), self.added.finish()]
        last_N = self._out(torch.cat([self.back.push(torch.cat(pieces)), self.back.finish()]))
        missing = self.given - self.came_out
        return np.concatenate([last_N, np.zeros(max(0, missing), np.float32)])

    def _out(self, samples_N: Tensor) -> np.ndarray:
        chosen_N = samples_N[: self.given - self.came_out].numpy()
        self.came_out += len(chosen_N)
        return chosen_N

    def _pictured(self, count: int) -> bool:
        """Whether the pictures of the next frames have arrived."""
        last = self.moved + count - 1
        return not isinstance(self.pictures, Lips) or self.pictures.has(self.stft.hop * last / RATE)

    @torch.no_grad()
    def _move(self, spectrum_TF: Complex[Tensor, "T F"]) -> Float[Tensor, " N"]:
        power_TF = spectrum_TF.real.square() + spectrum_TF.imag.square()
        sounds_T = power_TF.sum(-1) > SILENT
        self.pending += [(frame, bool(sounds)) for frame, sounds in zip(spectrum_TF, sounds_T, strict=True)]
        seconds_T = self.stft.hop * np.arange(self.moved, self.moved + len(power_TF)) / RATE
        self.moved += len(power_TF)
        if sounds_T.any():
            self._enter(power_TF[sounds_T].to(self.device)[None], seconds_T[sounds_T.numpy()])
        if isinstance(self.pictures, Lips):
            self.pictures.forget(self.stft.hop * self.moved / RATE)
        return self._come_out(self.settings.look_ahead)

    def _come_out(self, keep: int) -> Float[Tensor, " N"]:
        """The sound of all frames but the newest, `keep` of them."""
        count = len(self.pending) - keep
        if count <= 0:
            return torch.zeros(0)
        spectrum_TF = torch.stack([frame_F for frame_F, _ in self.pending[:count]])
        if self.block:
            assert self.block.filter_TF is not None
            number = len(self.block.filter_TF) - sum(sounds for _, sounds in self.pending)
            for frame_F, (_, sounds) in zip(spectrum_TF, self.pending, strict=False):
                if sounds:
                    frame_F *= self.block.filter_TF[number].cpu()
                    number += 1
        self.pending = self.pending[count:]
        return self.added.add(spectrum_TF)

    def _enter(self, new_BTF: Float[Tensor, "1 T F"], seconds_T: np.ndarray) -> None:
        """Frames enter the block, others leave it, and the EM goes on."""
        count, block = new_BTF.shape[1], self.block
        leave, pictures = 0, dict[str, Tensor]()
        if block and self._noise_rose(block):
            kept = max(FLOOR_FRAMES, self.settings.look_ahead + self.settings.move)
            new_BTF = torch.cat([block.noisy_BTF[:, -kept:] * self.level, new_BTF], 1)
            pictures = {name: values[:, -kept:] for name, values in block.pictures.items()}
            block, count, self.level = None, new_BTF.shape[1], 0.0
        if block is None:  # the first frames are taken for noise
            level_B1F = StationaryNoise.of(new_BTF, torch.ones(1, count, dtype=torch.bool).to(self.device)).level_B1F
            noise = Noise.drawn(new_BTF, self.vem.rank, self._random(count), self.vem.smoothness)
            block = Block(new_BTF, new_BTF, pictures, noise.at_level(level_B1F), {})
        else:
            new_BTF = new_BTF / self.level
            leave = max(0, block.noisy_BTF.shape[1] + count - self.most)
            block.noise = self._slid(block, leave, count)
            block.noisy_BTF = torch.cat([block.noisy_BTF[:, leave:], new_BTF], 1)
        filter_BTF = subtraction(block.noisy_BTF, block.noise.variance_BTF)
        speech_BTF = filter_BTF.square_().mul_(block.noisy_BTF)
        stay = block.noisy_BTF.shape[1] - count
        block.given_BTF = torch.cat([block.given_BTF[:, leave : leave + stay], speech_BTF[:, stay:]], 1)
        for name, values in (self.pictures.at(seconds_T) if self.pictures else {}).items():
            before = block.pictures.get(name, values[None, :0].to(self.device))[:, leave:]
            block.pictures[name] = torch.cat([before, values[None].to(self.device)], 1)
        self._rescale(block, speech_BTF, count)
        with recurrent_layers_training(self.model):
            self._improve(block, leave, count)
        self.block = block

    def _noise_rose(self, block: Block) -> bool:
        """Whether the quieter frames of each frequency, among the newest, are far above V on average.

        The EM would not find that out: where speech accounts for a noise, the slope of the cost in V is small.
        """
        if block.noisy_BTF.shape[1] < FLOOR_FRAMES:
            return False
        floor_BF = block.noisy_BTF[:, -FLOOR_FRAMES:].kthvalue(FLOOR_RANK, 1).values
        expected = sum(1 / (FLOOR_FRAMES - rank) for rank in range(FLOOR_RANK))  # of noise, relative to its mean
        V_BF = expected * block.noise.variance_BTF[:, -FLOOR_FRAMES:].mean(1)
        return 10 * (floor_BF.clamp_min(EPSILON) / V_BF).log10().mean().item() > RISE_DB

    def _slid(self, block: Block, leave: int, count: int) -> Noise:
        """The noise of the frames that stay and of new ones. Its past then holds those that leave."""
        noise, past = block.noise, block.noise.past
        if leave:
            assert block.oldest
            past = noise.left(leave, block.noisy_BTF, *block.oldest, self.settings.forgetting)
        H_BTK = torch.cat([noise.H_BTK[:, leave:], noise.H_BTK[:, -1:].expand(-1, count, -1)], 1)
        gain_BTJ = torch.cat([noise.gain_BTJ[:, leave:], noise.gain_BTJ.new_ones(1, count, 1)], 1)
        return Noise(noise.W_BFK, H_BTK, gain_BTJ, noise.smoothness, past)

    def _rescale(self, block: Block, speech_BTF: Float[Tensor, "B T F"], count: int) -> None:
        """The speech peaks at 1. The level rises with it at once and falls slowly: a pause is no change of level."""
        loudest = (CREST * 2 / WINDOW) ** 2 * speech_BTF.sum(-1).max().item()
        fallen = 10 ** (-FALL_DB / 10 * count * self.stft.hop / RATE) if self.level else 0.0
        rise = max(loudest, fallen, EPSILON)
        noise = block.noise
        gain_BTJ = noise.gain_BTJ / rise
        gain_BTJ[:, -count:] = 1
        past = noise.past and noise.past.scaled(1 / rise)
        block.noise = Noise(noise.W_BFK / rise, noise.H_BTK, gain_BTJ, noise.smoothness, past)
        block.noisy_BTF, block.given_BTF = block.noisy_BTF / rise, block.given_BTF / rise
        self.level = rise * (self.level or 1.0)

    def _improve(self, block: Block, leave: int, count: int) -> None:
        """Some iterations of the EM, and its result for the frames that have not come out."""
        frames, settings = block.noisy_BTF.shape[1], self.settings
        mask_BT = torch.ones(1, frames, dtype=torch.bool, device=self.device)
        pictures: dict[str, Any] = block.pictures
        batch = Batch(("stream",), mask_BT, power=block.given_BTF, **pictures)
        context, random = self.model.context(batch).tempered(self.vem.temper), self._random(frames)
        if block.switch is not None and context.learns:
            context = replace(context, switch=block.switch)
        target = NoisySpeech(self.model, context, block.noisy_BTF, block.noise.variance_BTF, block.noise.gain_BTJ)
        entering = self._entering(batch, target, max(count, ENCODED))
        saved = self._joined(block.latents, entering, leave, count)
        state = self.estep.restored(saved, self.model, batch)
        rounds = self.vem.schedule  # a block is too short to be thinned
        rounds = rounds._replace(updates=rounds.updates + rounds.thinned // THINNED, thinned=0)
        for _ in range(settings.iterations or self.estep.each_move):
            target, state, _ = iterate(self.estep, target, block.noise, state, random, rounds)
        likely = self.estep.final(target, state, random).components(block.noisy_BTF)

        block.latents, block.switch = self.estep.saved(state), target.context.switch
        if target.context.past is not None:
            block.given_BTF = target.context.past
        rows = slice(-settings.look_ahead - settings.move, None)  # the Wiener filter, of these frames alone
        precision_RBTF, weight_RBT1 = likely.precision[..., rows, :], likely.weight
        speech_RBTF = target.gain_BTJ[:, rows] * likely.speech[..., rows, :]
        weight_RBT1 = None if weight_RBT1 is None else weight_RBT1[..., rows, :]
        block.filter_TF = weighted_mean(speech_RBTF * precision_RBTF, weight_RBT1)[0]
        oldest = slice(None, settings.move)
        weight = None if likely.weight is None else likely.weight[..., oldest, :].clone()
        block.oldest = likely.precision[..., oldest, :].clone(), weight

    def _entering(self, batch: Batch, target: NoisySpeech, count: int) -> Mapping[str, Sequence[Tensor]]:
        """The state of the E-step in the newest frames, which the encoder takes."""

        def newest(of: Any, *names: str) -> Any:
            return replace(of, **{name: getattr(of, name)[:, -count:] for name in names})

        batch, target = newest(batch, "mask", *batch.present), newest(target, "noisy_BTF", "noise_BTF", "gain_BTJ")
        return self.estep.entering(self.model, batch, target, self._random(batch.mask.shape[1]))

    def _joined(
        self, before: Mapping[str, Sequence[Tensor]], new: Mapping[str, Sequence[Tensor]], leave: int, count: int
    ) -> dict[str, list[Tensor]]:
        """The state of the E-step for frames that stay and for new ones. A latent of the whole utterance stays."""
        if not before:
            return {name: [*values] for name, values in new.items()}
        whole = {spec.name for spec in self.model.latents if spec.rate is None}
        return {
            name: [
                old if name in whole else torch.cat([old[..., leave:, :], fresh[..., -count:, :]], -2)
                for old, fresh in zip(before[name], values, strict=True)
            ]
            for name, values in new.items()
        }

    def _random(self, frames: int) -> RandomNumbers:
        return replace(self.random, frames=[frames])

    HELD = ("pending", "level", "moved", "given", "came_out", "finished")

    @property
    def parts(self) -> list[str]:
        """Those that have a state of their own."""
        pictures = ["pictures"] if isinstance(self.pictures, Lips) else []
        return ["resampled", "back", "frames", "added", *pictures]

    def state_dict(self) -> dict[str, Any]:
        """All that a stream of the same model and settings needs to go on: numbers and tensors."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self.HELD}
        state |= {name: getattr(self, name).state for name in self.parts}
        state |= {"settings": asdict(self.settings), "rate": self.rate, "block": self.block and self.block.state()}
        return deepcopy(state) | {"random": self.random.generators[0].get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the stream was of which this is the `state_dict`."""
        for name, own in (("settings", asdict(self.settings)), ("rate", self.rate)):
            if state[name] != own:
                raise UserError(f"the saved stream has {name}={state[name]} and this one {own}: give the same")
        state = deepcopy(dict(state))
        for name in self.HELD:
            setattr(self, name, state[name])
        for name in self.parts:
            getattr(self, name).state = state[name]
        self.block = state["block"] and Block.of(state["block"], self.vem.smoothness)
        self.random.generators[0].set_state(state["random"])
