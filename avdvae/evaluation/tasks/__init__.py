"""The evaluation tasks, by name."""

from __future__ import annotations

from functools import cache

from avdvae.data.talker.vowels import FACTORS
from avdvae.entry_points import find_class
from avdvae.errors import UserError
from avdvae.evaluation.tasks.calibration import Calibration
from avdvae.evaluation.tasks.control import Control
from avdvae.evaluation.tasks.denoising import Denoising
from avdvae.evaluation.tasks.emotion import EmotionOfFew
from avdvae.evaluation.tasks.enhancement import Enhancement
from avdvae.evaluation.tasks.f0 import F0
from avdvae.evaluation.tasks.inpainting import Inpainting
from avdvae.evaluation.tasks.latent_use import LatentUse
from avdvae.evaluation.tasks.likelihood import Likelihood
from avdvae.evaluation.tasks.motion import Motion
from avdvae.evaluation.tasks.prediction import Prediction
from avdvae.evaluation.tasks.probe import Probe
from avdvae.evaluation.tasks.resynthesis import Resynthesis
from avdvae.evaluation.tasks.separation import Separation
from avdvae.evaluation.tasks.streaming import StreamingEnhancement
from avdvae.evaluation.tasks.task import Task
from avdvae.evaluation.tasks.tracking import Tracking
from avdvae.evaluation.tasks.transfer import Transfer

TASKS: dict[str, Task] = {
    "enhancement": Enhancement(),
    "streaming": StreamingEnhancement(),
    "separation": Separation(),
    "resynthesis": Resynthesis(true_past=False),
    "resynthesis_true_past": Resynthesis(true_past=True),
    "calibration": Calibration(),
    "transfer": Transfer(),
    "denoising": Denoising(),
    "inpainting": Inpainting(),
    "emotion": EmotionOfFew(),
    "likelihood": Likelihood(),
    "probe": Probe(),
    "motion": Motion(true_past=False),
    "motion_true_past": Motion(true_past=True),
    "prediction": Prediction(),
    "latent_use": LatentUse("sound", "latent_use"),
    "motion_latent_use": LatentUse("poses", "motion_latent_use"),
    **{f"control_{factor}": Control(factor) for factor in FACTORS},
    "f0": F0(),
    "tracking": Tracking(),
}


@cache
def find_task(name: str) -> Task:
    """One of TASKS, or an instance of a class of the user or of another package."""
    if name in TASKS:
        return TASKS[name]
    task = find_class("tasks", name, TASKS)()
    if not isinstance(task, Task):
        raise UserError(f"evaluate.tasks={name} is no task: it needs `takes`, `check`, `parts` and `measure`")
    return task
