"""The claims of configs/claims, tested: models are trained or found, measured in the tasks of the claims, and judged.

A place is a corpus with models that are trained on it, or with published weights. Trainings are found again by
starts.py. The evaluations of a run lie in its folder, one for each task, by their settings.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from avdvae.configurations import CONFIGS, choices, compose, word
from avdvae.data.corpora import find_corpus
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, in_file, known_settings, nearest
from avdvae.evaluation.claims_page import add_to_page, write_page
from avdvae.evaluation.measure import check_tasks, evaluate_run, subject_of
from avdvae.evaluation.results import read_results
from avdvae.evaluation.tasks import find_task
from avdvae.evaluation.verdicts import Claim, Contrast, Outcome, Rows, Side, Tested, gains, judge, read_claim
from avdvae.files import locked
from avdvae.orchestration.importing import import_weights
from avdvae.orchestration.request import Request
from avdvae.orchestration.resuming import epochs_of
from avdvae.orchestration.starts import find_training
from avdvae.orchestration.training import check
from avdvae.runs import Run, create_run, deciding_settings, open_run

OWN_DATA = "talker"  # the corpus of the experiments themselves
# Experiments whose models DVAE_SE has trained; its SRNN is trained by scheduled sampling.
PUBLISHED = {"vae_sequences": "wsj_vae", "rvae": "wsj_rvae", "dkf": "wsj_dkf", "srnn_gm": "wsj_srnn"}
OF_EVALUATIONS = ("evaluate.", "enhance.")  # begin settings without effect on the weights


@dataclass(frozen=True)
class Settings:
    """configs/claims.yaml"""

    only: Sequence[str] = ()
    budget: str = "quick"
    corpora: Mapping | None = None
    peer: str | None = None
    settings: Sequence[str] = ()
    runs: str = "runs"
    out: str = "claims"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        return known_settings(cls, "", **given)

    def command(self, name: str, place: Place) -> str:
        """The command that tests one claim at one place with these settings."""
        words = [f"only=[{name}]", f"budget={self.budget}"]
        words += [] if self.corpora is None else [word("corpora", {place.corpus: self.corpora[place.corpus]})]
        words += [] if place.peer is None else [f"peer={place.peer.name}"]
        return shlex.join(["avdvae", "claims", *words, *self.settings])


@dataclass(frozen=True)
class Place:
    """`words`: of all trainings and evaluations there; `peer`: the checkout with the published weights."""

    corpus: str
    words: Sequence[str]
    peer: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.corpus}, published weights" if self.peer else self.corpus

    def has(self, claim: Claim, contrast: Contrast) -> bool:
        """Whether the models are there; all are, where they are trained."""
        words = [*claim.settings, *(word for side in contrast.sides for word in (*side.settings, *side.beside))]
        others = [word for word in words if not _key(word).startswith(OF_EVALUATIONS)]
        return not self.peer or (not others and all(side.model in PUBLISHED for side in contrast.sides))


def run_claims(settings: Settings) -> Path:
    """Test claims and add them to the page in the folder `out`, which is returned."""
    claims = {path.stem: _checked(path) for path in _files(settings.only)}
    budget, out, tested = _budget(settings.budget), Path(settings.out), list[Tested]()
    for place in _places(settings):
        models = Models(place, budget, settings.settings)
        asked = {name: [c for c in claim.contrasts if place.has(claim, c)] for name, claim in claims.items()}
        for name, contrasts in asked.items():  # wrong settings are refused before anything is trained
            for side in (side for contrast in contrasts for side in contrast.sides):
                models.requests_of(side, claims[name])
        for name, contrasts in asked.items():
            if contrasts:
                claim = claims[name]
                print(f"claim      {name}, {place.name}", flush=True)
                outcomes = [models.outcome(contrast, claim) for contrast in contrasts]
                protocol, command = models.protocol(contrasts, claim), settings.command(name, place)
                tested.append(Tested(name, claim, place.name, outcomes, protocol, command))
                add_to_page(tested[-1:], out)
                print(f"verdict    {name}, {place.name}: {tested[-1].verdict}", flush=True)
    write_page(out)
    width = max(len(each.name) for each in tested) + 2
    print("\n" + "\n".join(f"{each.name:<{width}}{each.verdict:<14}{each.place}" for each in tested) + "\n")
    return out


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


def _files(only: Sequence[str]) -> list[Path]:
    known = choices("claims")
    if unknown := [name for name in only if name not in known and not Path(name).is_file()]:
        raise UserError(f"only=[{','.join(only)}]: no claim is called {unknown[0]}: {nearest(unknown[0], known)}")
    return [CONFIGS / "claims" / f"{name}.yaml" if name in known else Path(name) for name in only or known]


def _checked(path: Path) -> Claim:
    """A claim whose experiments and tasks exist."""
    claim, known = read_claim(path), choices("exp")
    with in_file(path):
        for side in (side for contrast in claim.contrasts for side in contrast.sides):
            if side.model not in known:
                raise UserError(f"no experiment is called {side.model}: {nearest(side.model, known)}")
            find_task(side.task)
    return claim


def _budget(name: str) -> Sequence[str]:
    if name not in (known := choices("budgets")):
        raise UserError(f"no budget is called {name}: {nearest(name, known)}")
    return yaml.safe_load((CONFIGS / "budgets" / f"{name}.yaml").read_text(encoding="utf-8"))["settings"]


def _places(settings: Settings) -> list[Place]:
    corpora = {OWN_DATA: None} if settings.corpora is None else settings.corpora
    places = []
    for name, given in corpora.items():
        own = given if isinstance(given, Mapping) else {"prepared": given}
        if (folder := own.get("prepared")) is None and own is not given and name != OWN_DATA:
            raise UserError(f"corpora={{{name}}}: give the folder of the prepared corpus, as {{{name}:FOLDER}}")
        if folder is not None and not (Path(str(folder)) / "manifest.csv").is_file():
            raise UserError(f"corpora={{{name}:{folder}}}: there is no manifest.csv: prepare it with avdvae prepare")
        words = {"runs": settings.runs} | {str(key): value for key, value in own.items() if value is not None}
        places.append(Place(str(name), [word(key, value) for key, value in words.items()]))
    peer = Path(settings.peer) if settings.peer else None
    if peer and not (peer / "trained_models").is_dir():
        raise UserError(f"peer={peer} has no trained_models: give a checkout of github.com/XiaoyuBIE1994/DVAE_SE")
    return places + [replace(place, peer=peer) for place in places if peer]


def _training(config: dict[str, Any]) -> str:
    """The same for the same training."""
    return json.dumps(deciding_settings(config), sort_keys=True)


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


# ---------------------------------------------------------------------------------------------------------------------
# Trained and measured


@dataclass
class Models:
    """The models at a place: trained or found, and measured, each once. `first` and `last`: words of all of them, which
    those of claims override, and which override those."""

    place: Place
    first: Sequence[str]
    last: Sequence[str]
    requests: dict[tuple[str, ...], Request] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    rows: dict[tuple[str, str], Rows] = field(default_factory=dict)
    corpora: dict[str, Path] = field(default_factory=dict)

    def outcome(self, contrast: Contrast, claim: Claim) -> Outcome:
        try:
            for side in contrast.sides:
                self.check(self.requests_of(side, claim)[0], side.task)
            return judge(contrast, self.rows_of(contrast.left, claim), self.rows_of(contrast.right, claim))
        except UserError as error:
            print(f"not done   {contrast.in_words}: {error}", flush=True)
            return Outcome(contrast, "not measured", reason=str(error))

    def rows_of(self, side: Side | float | None, claim: Claim) -> Rows | None:
        """None where nothing is measured, as of a number."""
        if not isinstance(side, Side):
            return None
        rows, over = self.measured(*self.requests_of(side, claim), side.task), self.rows_of(side.over, claim)
        return rows if over is None else gains(side, rows, over)

    def requests_of(self, side: Side, claim: Claim) -> tuple[Request, Request | None]:
        """Of the training, and of that of the model beside it, which may be of another corpus."""
        place = self.place.words
        given = *self.first, *place, *claim.settings, *side.settings, *self.last, f"exp={side.model}"
        if not side.beside:
            return self._request(given), None
        if "data" in map(_key, side.beside):
            place = [word for word in place if _key(word) != "prepared"]
        return self._request(given), self._request((*self.first, *place, *claim.settings, *self.last, *side.beside))

    def _request(self, given: Sequence[str]) -> Request:
        """Of words with the same key, the last stands."""
        words = (*{_key(word): word for word in given}.values(),)
        if words not in self.requests:
            command = shlex.join(["avdvae", "train", *words])
            self.requests[words] = Request(compose("config", words), words, command)
        return self.requests[words]

    def prepared(self, config: Mapping[str, Any]) -> Path:
        key = json.dumps([config[part] for part in ("prepared", "data", "lips")])
        if key not in self.corpora:
            self.corpora[key] = find_corpus(config)
        return self.corpora[key]

    def check(self, request: Request, task: str) -> None:
        """Refuse before hours of training what could not be measured after them."""
        config = request.config
        evaluated = {**config, "evaluate": {**config["evaluate"], "tasks": [task]}}
        check_tasks(subject_of(Run(Path(), evaluated), check(config), self.prepared(config), Path()))

    def run(self, request: Request) -> Run:
        """Trained or imported, unless it is there."""
        config, name = request.config, request.config["exp"]
        if (key := _training(config)) in self.runs:
            return self.runs[key]
        if self.place.peer:
            path = Path(config["runs"], "published", PUBLISHED[name])
            with locked(path.with_name(f".{path.name}.lock"), f"imports {path.name}"):
                if not path.exists():
                    import_weights(self.place.peer / "trained_models" / path.name, path)
            self.runs[key] = open_run(path)
        else:
            splits = {split: PreparedCorpus(self.prepared(config), split) for split in ("train", "valid")}
            self.runs[key] = find_training(request, splits)
        return self.runs[key]

    def measured(self, request: Request, beside: Request | None, task: str) -> Rows:
        """The rows of a task, which is measured unless it is complete."""
        run, config = self.run(request), request.config
        prepared = self.prepared(config)
        evaluated = {**config["evaluate"], "tasks": [task]}
        if beside:
            evaluated["beside"] = str(self.run(beside).path)
        # a setting that is null may be missing from an older evaluation
        given = {k: v for k, v in evaluated.items() if k != "workers" and v is not None}
        deciding = str(prepared), config["enhance"], given
        key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
        out = run.path / "evaluations" / f"{task}-{key}"
        if (str(out), task) not in self.rows:
            with locked(out.with_name(f".{out.name}.lock"), f"measures {config['exp']}, {task}"):
                if not Run(out, config).noted.get("complete"):
                    print(f"measure    {config['exp']}, {task.replace('_', ' ')}, in {out}", flush=True)
                    asked = {
                        **run.config,
                        "prepared": str(prepared),
                        "enhance": config["enhance"],
                        "evaluate": evaluated,
                    }
                    with nullcontext() if out.exists() else Run(out, asked).undone_unless("results.csv"):
                        evaluate_run(Run(run.path, asked), create_run(out, asked).path, prepared, [])
                    Run(out, asked).note(complete=True)
            self.rows[str(out), task] = Rows(run.config["exp"], read_results(out / "results.csv"))
        return self.rows[str(out), task]

    def protocol(self, contrasts: Sequence[Contrast], claim: Claim) -> list[str]:
        """A sentence for each model that could be trained."""
        sentences = set[str]()
        for side in (side for contrast in contrasts for side in contrast.sides):
            names = [" ".join([side.model, *side.settings]), " ".join(side.beside)]
            for name, request in zip(names, self.requests_of(side, claim), strict=True):
                if request and (run := self.runs.get(_training(request.config))):
                    sentences.add(self._about(name, request.config, run))
        return sorted(sentences)

    def _about(self, name: str, config: Mapping[str, Any], run: Run) -> str:
        noted = run.noted
        size = f"{noted['parameters']:,} parameters"
        if self.place.peer:
            return f"{name}: {size}, the published weights {Path(noted['imported']).parent.name}."
        corpus = PreparedCorpus(self.prepared(config), "train", verify=False)
        epochs, minutes = epochs_of(run), noted["seconds"]["train"] / 60
        trained = f"{epochs} epochs in {minutes:.1f} min, seed {config['seed']}" if epochs else "not trained further"
        return f"{name}: {size}, {corpus.hours:.2f} hours of {len(corpus.speakers)} speakers, {trained}."
