"""Gait futures, figures whose next movement is not determined, and the law of what follows: generated, not recorded.

A subject of Gait stands or does one of its movements, then another. All draws are independent:

    dwell      exponential, 1.5 s on average, from the end of a blend; then each other movement is equally probable
    blend      0.3 to 0.6 s, uniform: the angles go from the old movement to the new one by smoothstep
    tempo, reach   exp of Ornstein-Uhlenbeck processes of deviation 0.15 that forget in 2 s (1 / e)
    phase      of all swings; its speed is that of the movement, blended alike, times both tempos

With the subject, the State of a frame determines the distribution of all later frames. So the corpus gives, beside the
one future that was generated, draws from the true distribution: `true_futures`.

Letters: W windows, K futures of each, N frames of any kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from avdvae.data.gait import MOVEMENTS, Gait, Movement, Subject, angles_of, figure, subject
from avdvae.data.poses import PoseFormat
from avdvae.data.shard_files import PREPARE
from avdvae.errors import UserError

FPS = 50
DWELL = 1.5  # seconds, on average
BLEND = 0.3, 0.6  # seconds, the least and the most
DEVIATION, MEMORY = 0.15, 2.0  # of the logarithms of tempo and reach; seconds

_SWAY = {"lean": (0.02, 0.02, 0.0), "twist": (0.0, 0.04, 1.0), "elbow": (0.15, 0.03, 0.5), "nod": (0.03, 0.05, 2.0)}
CHAIN = {**MOVEMENTS, "standing": Movement(0.25, _SWAY, alternating=False)}
_CYCLES = np.array([movement.cycles for movement in CHAIN.values()])


class State(NamedTuple):
    """Of any number of frames, alike shaped.

    before, now    indices of CHAIN: the movement that is left, and the one that begins or goes on
    since, blend   frames since it began, and of the blend; from since = blend on, `before` has no weight
    phase          radians
    tempo, reach   logarithms
    """

    before: np.ndarray
    now: np.ndarray
    since: np.ndarray
    blend: np.ndarray
    phase: np.ndarray
    tempo: np.ndarray
    reach: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """The weight of the movement `now`, by smoothstep."""
        done = np.clip(self.since / self.blend, 0, 1)
        return done**2 * (3 - 2 * done)


def begin(rng: np.random.Generator) -> State:
    """One first state, in the middle of a movement."""
    now, settled = np.array([rng.integers(len(CHAIN))]), np.ones(1)
    tempo, reach = DEVIATION * rng.standard_normal((2, 1))
    return State(now, now, settled, settled, rng.uniform(0, 2 * np.pi, 1), tempo, reach)


def go_on(person: Subject, state_N: State, frames: int, rng: np.random.Generator) -> State:
    """Draws of the states of the frames that follow, frames x N."""
    size = frames, len(state_N.now)
    leaves, steps = rng.random(size) < 1 / (FPS * DWELL), rng.integers(1, len(CHAIN), size)
    blends, noise = FPS * rng.uniform(*BLEND, size), rng.standard_normal((2, *size))
    kept = np.exp(-1 / (FPS * MEMORY))
    noise *= DEVIATION * np.sqrt(1 - kept**2)
    before, now, since, blend, phase, tempo, reach = state_N
    path = []
    for t in range(frames):
        cycles = _CYCLES[before] + State(before, now, since, blend, phase, tempo, reach).share * (
            _CYCLES[now] - _CYCLES[before]
        )
        phase = phase + 2 * np.pi / FPS * person.tempo * np.exp(tempo) * cycles
        turns = leaves[t] & (since >= blend)
        before = np.where(turns, now, before)
        now = np.where(turns, (now + steps[t]) % len(CHAIN), now)
        since, blend = np.where(turns, 0.0, since + 1), np.where(turns, blends[t], blend)
        tempo, reach = kept * tempo + noise[0, t], kept * reach + noise[1, t]
        path.append((before, now, since, blend, phase, tempo, reach))
    return State(*map(np.stack, zip(*path, strict=True)))


def poses_of(person: Subject, states: State) -> Float32[np.ndarray, "*shape 17 3"]:
    flat = State(*(part.reshape(-1) for part in states))
    angles, share_N = _angles(person, flat, flat.now), flat.share
    blending = share_N < 1
    before = _angles(person, State(*(part[blending] for part in flat)), flat.before[blending])
    for name, angle_N in angles.items():
        angle_N[blending] += (1 - share_N[blending]) * (before[name] - angle_N[blending])
    return figure(person.lengths, angles).reshape(*states.now.shape, 17, 3)


def _angles(person: Subject, states: State, movement_N: np.ndarray) -> dict[str, Float[np.ndarray, " N"]]:
    """Of a movement of each frame."""
    angles: dict[str, np.ndarray] = {}
    for index, movement in enumerate(CHAIN.values()):
        here = movement_N == index
        for name, angle in angles_of(person, movement, states.phase[here], np.exp(states.reach[here])).items():
            angles.setdefault(name, np.empty(len(movement_N)))[here] = angle
    return angles


@lru_cache(maxsize=16)
def sequence_of(seed: int, number: int, index: int, frames: int) -> tuple[Subject, State]:
    """A sequence of the corpus: its subject, and the states of its frames."""
    person, rng = subject(seed, number), np.random.default_rng([seed, number, index])
    return person, State(*(part[:, 0] for part in go_on(person, begin(rng), frames, rng)))


def movements(labels: Mapping[str, Any], frames: int) -> list[str]:
    """The movement of each frame of a clip of `frames`; the new one, from the beginning of a blend."""
    names = list(CHAIN)
    return [names[index] for index in sequence_of(*labels["generated"], frames)[1].now]


def true_futures(
    poses_TJ3: Float32[np.ndarray, "T 17 3"],
    labels: Mapping[str, Any],
    last_W: Sequence[int],
    frames: int,
    draws: int,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "W K t 17 3"]:
    """Draws from the law of the corpus of the `frames` poses after each of the frames `last_W` of a clip, given the
    state there."""
    person, states = sequence_of(*labels["generated"], len(poses_TJ3))
    at_W = State(*(part[list(last_W)] for part in states))
    if not np.allclose(poses_of(person, at_W), poses_TJ3[list(last_W)], atol=1e-5):
        raise UserError(
            "the corpus gait_futures was prepared by another version, so its law does not fit its poses: delete it and "
            f"run `{PREPARE} data=gait_futures` again"
        )
    states = go_on(person, State(*(part.repeat(draws) for part in at_W)), frames, rng)
    return np.moveaxis(poses_of(person, states), 0, 1).reshape(len(last_W), draws, frames, 17, 3)


@dataclass(frozen=True)
class GaitFutures(Gait):
    """`sequences` of `seconds` by each of `subjects`."""

    NAME: ClassVar[str] = "gait_futures"
    FORMAT: ClassVar[PoseFormat] = PoseFormat(fps=FPS)

    subjects: int = 120
    sequences: int = 8
    seconds: float = 10.0

    def described(self, number: int, sequence: int) -> tuple[str, dict[str, Any]]:
        return f"{sequence + 1}", {"generated": [self.seed, number, sequence]}

    def generated(self, number: int, sequence: int) -> Float32[np.ndarray, "T 17 3"]:
        return poses_of(*sequence_of(self.seed, number, sequence, round(self.seconds * FPS)))
