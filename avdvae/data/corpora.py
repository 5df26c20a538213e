"""The corpora by name, and the folders of their prepared forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from avdvae.data.clips import Corpus
from avdvae.data.flute import Flute
from avdvae.data.gait import Gait
from avdvae.data.gait_futures import GaitFutures
from avdvae.data.prepare import prepare
from avdvae.data.readers.crema_d import CremaD
from avdvae.data.readers.folder import Folder
from avdvae.data.readers.grid import Grid
from avdvae.data.readers.h36m import H36m
from avdvae.data.readers.librispeech import LibriSpeech
from avdvae.data.readers.lombard_grid import LombardGrid
from avdvae.data.readers.mead import Mead
from avdvae.data.readers.ntcd_timit import NtcdTimit
from avdvae.data.readers.tcd_timit import TcdTimit
from avdvae.data.readers.timit import Timit
from avdvae.data.readers.tree import Tree
from avdvae.data.readers.voicebank_demand import VoicebankDemand
from avdvae.data.readers.wsj0 import Wsj0
from avdvae.data.talker.corpus import Talker
from avdvae.data.tracks import Tracks
from avdvae.entry_points import find_class
from avdvae.errors import UserError, known_settings
from avdvae.files import locked

_TREES: tuple[type[Tree], ...] = (
    NtcdTimit,
    TcdTimit,
    Timit,
    Grid,
    LombardGrid,
    Mead,
    CremaD,
    VoicebankDemand,
    Wsj0,
    LibriSpeech,
    H36m,
)
READERS: dict[str, Callable[..., Any]] = {
    "talker": Talker,
    "gait": Gait,
    "flute": Flute,
    "gait_futures": GaitFutures,
    "tracks": Tracks,
    "folder": Folder,
    **{tree.NAME: tree for tree in _TREES},
}


def open_corpus(config: Mapping[str, Any]) -> Corpus:
    """The reader that `config` names, with the rest of it as the reader's parameters."""
    name = config["reader"]
    kind = find_class("readers", name, READERS)
    if not is_dataclass(kind):
        raise UserError(f"data.reader={name} is no dataclass: its fields are the settings of data, root among them")
    if not config["root"]:
        raise UserError(f"data.root is not given: give the folder of the corpus, as in data={name} data.root=DIR")
    parameters = {key: value for key, value in config.items() if key != "reader"}
    corpus = known_settings(kind, "data", **parameters | {"root": Path(str(config["root"]))})
    if not isinstance(corpus, Corpus):
        raise UserError(f"data.reader={name} is no reader: it needs `key` and `clips`, as avdvae.data.clips.Corpus has")
    return corpus


def prepared_folder(corpus: Corpus, root: Path | None = None, face: int | None = None) -> Path:
    """The default folder of a prepared corpus, below `root` or else data/prepared. With faces beside the mouths, which
    take four times the space, it has a folder of its own."""
    return (root or Path("data/prepared")) / (f"{corpus.key}-face{face}" if face else corpus.key)


def ensure_prepared(
    config: Mapping[str, Any],
    root: Path | None = None,
    size: int = 67,
    workers: int | None = None,
    face: int | None = None,
) -> Path:
    """The folder of the prepared corpus; clips that are missing there are prepared first."""
    corpus = open_corpus(config)
    out = prepared_folder(corpus, root, face)
    with locked(out.with_name(f".{out.name}.lock"), f"prepares {out}"):
        return prepare(corpus, out, size=size, workers=workers, face=face).usable()


def find_corpus(config: Mapping[str, Any]) -> Path:
    """The folder of the prepared corpus that a run's configuration asks for; it is prepared if it is not yet."""
    if config.get("prepared"):
        return Path(config["prepared"])
    return ensure_prepared(config["data"], size=config["lips"]["size"], face=config["lips"].get("face"))
