"""Damaged files, given to the real programs: each is used, or named in a sentence, and nothing else is lost.

python -m tests.fuzz                                   1000 films, 500 sounds, 300 files of runs and of prepared corpora
python -m tests.fuzz films=50 sounds=0 files=0 seed=3
python -m tests.fuzz only=films/0017 seed=3            one case again, alone
python -m tests.fuzz ... keep=DIR                      where cases that fail are left; /tmp/fuzz unless given

Case n of a seed is always the same. What is damaged are clips of Talker, and a run that was trained for a moment.
"""

from __future__ import annotations

import csv
import importlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from av.container import OutputContainer

from avdvae.data.readers.folder import SOUNDS, VIDEOS
from avdvae.data.shards import PreparedCorpus
from avdvae.data.talker.corpus import Talker
from avdvae.signals.video import read_mono, read_pictures

PROJECT = Path(__file__).parent.parent
BATCH = 100  # files that a program is given at a time
RATE = 16_000
TITLE = b"A title of sixty letters, in which to put other encodings..."
FILMS = {  # suffix: container, codec of the pictures, codec of the sound
    ".mp4": ("mp4", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx", "libopus"),
    ".avi": ("avi", "mpeg4", "libmp3lame"),
    ".mpg": ("mpeg", "mpeg1video", "mp2"),
    ".mpeg": ("vob", "mpeg2video", "mp2"),
    ".m4v": ("mp4", "mpeg4", "aac"),
    ".mov": ("mov", "libx264", "pcm_s16le"),
    ".flv": ("flv", "flv1", "aac"),
    ".wmv": ("asf", "msmpeg4v3", "libmp3lame"),
    ".3gp": ("3gp", "mpeg4", "aac"),
    ".ts": ("mpegts", "mpeg2video", "mp2"),
}
OTHERS = {
    "text": b"this is neither a film nor a sound\n" * 40,
    "JSON": b'{"a": [1, 2, {"b": null}]}\n',
    "YAML": b"- one\n- two: [three, 4]\n",
    "picture": bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489") + bytes(60),
    "archive": b"PK\x03\x04" + bytes(range(200)),
    "zeros": bytes(3000),
    "nothing": b"",
}
Mutation = Callable[[np.random.Generator, bytes], bytes]


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flipped(rng: np.random.Generator, content: bytes, low: int, high: int, most: int) -> bytes:
    """Up to `most` bytes between `low` and `high` become others."""
    changed = bytearray(content)
    for place in rng.integers(low, max(high, low + 1), int(rng.integers(1, most + 1))):
        if place < len(changed):
            changed[place] = int(rng.integers(256))
    return bytes(changed)


def in_index(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes of the tables that say where the rest lies, or of the last tenth."""
    names = (b"moov", b"stbl", b"stts", b"idx1", b"Cues", b"hdrl", b"fmt ", b"OggS", b"fLaC", b"elst")
    places = [place for name in names if (place := content.find(name)) >= 0]
    low = int(rng.choice(places)) if places else len(content) * 9 // 10
    return flipped(rng, content, low, min(low + 600, len(content)), 12)


def span(rng: np.random.Generator, content: bytes) -> tuple[int, int]:
    start = int(rng.integers(len(content) + 1))
    return start, start + int(rng.integers(1, max(len(content) // 4, 2)))


def cut_out(rng: np.random.Generator, content: bytes) -> bytes:
    start, stop = span(rng, content)
    return content[:start] + content[stop:]


def zeroed(rng: np.random.Generator, content: bytes) -> bytes:
    start, stop = span(rng, content)
    return content[:start] + bytes(len(content[start:stop])) + content[stop:]


def foreign_metadata(rng: np.random.Generator, content: bytes) -> bytes:
    """The title in bytes of another encoding, or none."""
    strange = bytes(rng.integers(1, 256, len(TITLE), dtype=np.uint8))
    latin = "Žluťoučký kůň, Fräulein Müller, garçon".encode("utf-16" if rng.random() < 0.5 else "iso8859-2")
    return content.replace(TITLE, strange if rng.random() < 0.5 else (latin * 3)[: len(TITLE)])


MUTATIONS: dict[str, Mutation] = {
    "cut": lambda rng, content: content[: int(rng.integers(len(content)))],
    "header": lambda rng, content: flipped(rng, content, 0, min(300, len(content)), 6),
    "index": in_index,
    "data": lambda rng, content: flipped(rng, content, 0, len(content), int(rng.choice([1, 10, 100, 1000]))),
    "cut out": cut_out,
    "zeroed": zeroed,
    "metadata": foreign_metadata,
    "other kind": lambda rng, content: OTHERS[str(rng.choice(list(OTHERS)))],
    "wrong suffix": lambda rng, content: content,
}


# ---------------------------------------------------------------------------------------------------------------------
# Films and sounds


def write_film(path: Path, pictures: Sequence[np.ndarray], sound: np.ndarray, fps: Fraction) -> None:
    container, seen, heard = FILMS[path.suffix]
    with av.open(str(path), "w", format=container) as file:
        file.metadata["title"] = TITLE.decode()
        video: Any = file.add_stream(seen, rate=fps)
        add_sound = sound_of(file, heard, 44_100 if container == "flv" else RATE, sound)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt, video.thread_count = "yuv420p", 1
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / fps
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        add_sound()


def sound_of(file: OutputContainer, codec: str, rate: int, sound: np.ndarray) -> Callable[[], None]:
    """A stream of `file`; what is returned writes it."""
    rate = 48_000 if codec in ("libopus", "pcm_s16le") else rate
    audio: Any = file.add_stream(codec, rate=rate, layout="mono")

    def write() -> None:
        resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=rate)
        samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = RATE, 0
        for piece in (*resampler.resample(samples), *resampler.resample(None)):
            file.mux(audio.encode(piece))
        file.mux(audio.encode(None))

    return write


def write_seeds(root: Path) -> tuple[list[Path], list[Path]]:
    """A film of a second in each container, and its sound in each format."""
    clips, _ = Talker(root / "talker", speakers=3, utterances=1, seconds=1.0).clips(workers=1)
    films, sounds = root / "films", root / "sounds"
    for folder in (films, sounds):
        folder.mkdir()
    for number, suffix in enumerate(FILMS):
        video = clips[number % len(clips)].video
        assert video
        pictures = [picture for _, picture in read_pictures(video, 256)][:24]
        write_film(films / f"seed{suffix}", pictures, read_mono(video, RATE)[0][:RATE], Fraction(25))
    samples, _ = read_mono(films / "seed.mp4", RATE)
    for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff"):
        with soundfile.SoundFile(sounds / f"seed{suffix}", "w", RATE, 1) as file:
            file.title = TITLE.decode()
            file.write(samples)
    for suffix, kind, codec in ((".m4a", "mp4", "aac"), (".opus", "ogg", "libopus"), (".g722", "g722", "g722")):
        with av.open(str(sounds / f"seed{suffix}"), "w", format=kind) as file:
            file.metadata["title"] = TITLE.decode()
            sound_of(file, codec, RATE, samples)()
    return sorted(films.iterdir()), sorted(sounds.iterdir())


@dataclass(frozen=True)
class Case:
    """A damaged file: `kind` of its damage, its `suffix` and what it holds."""

    name: str  # films/0017
    kind: str
    suffix: str
    content: bytes


def random_of(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def media_case(seed: int, name: str, seeds: Sequence[Path]) -> Case:
    rng = random_of(seed, name)
    source, kind = seeds[int(rng.integers(len(seeds)))], str(rng.choice(list(MUTATIONS)))
    others = [*VIDEOS, *SOUNDS, ".txt", ".dat", "", ".MP4", ".jpg"]
    suffix = str(rng.choice(others)) if kind == "wrong suffix" else source.suffix
    content = MUTATIONS[kind](rng, source.read_bytes())
    for _ in range(int(rng.choice(3, p=[0.7, 0.2, 0.1]))):  # misfortunes come together
        content = MUTATIONS[str(rng.choice(list(MUTATIONS)))](rng, content or b"x")
    return Case(name, kind, suffix, content)


def prepare_cases(cases: Sequence[Case], seeds: Sequence[Path], folder: Path, words: Sequence[str]) -> str | Counter:
    """Give a folder of damaged and whole files to lips.py: what went wrong, or how many cases were kept, left out and
    passed over."""
    root, out = folder / "in", folder / "out"
    root.mkdir(parents=True)
    for case in cases:
        (root / f"case{case.name[-4:]}{case.suffix}").write_bytes(case.content)
    for path in seeds:
        shutil.copy(path, root / f"whole_{path.suffix[1:]}{path.suffix}")
    program = [sys.executable, str(PROJECT / "preprocessing" / "lips.py"), "data=folder", f"data.root={root}"]
    try:
        done = subprocess.run(
            [*program, f"out={out}", *words], capture_output=True, text=True, cwd=folder, timeout=120 + 4 * len(cases)
        )
    except subprocess.TimeoutExpired:
        return "it does not end"
    if done.returncode != 0 or "Traceback" in done.stdout + done.stderr:
        return f"exit code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}"
    with (out / "quality.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(file)}
    kept = {row.id for row in PreparedCorpus(out).utterances}
    if bad := [name for name, row in rows.items() if row["kept"] == "no" and len(row["why_not"]) < 8]:
        return f"left out without a reason: {bad}"
    if bad := [name for name, row in rows.items() if (row["kept"] == "yes") != (row["id"] in kept)]:
        return f"quality.csv and manifest.csv do not agree on {bad}"
    if lost := [p.name for p in root.glob("whole*") if rows.get(p.name, {}).get("kept") != "yes"]:
        return f"whole files are lost: {lost}"
    passed = [path.name for path in root.iterdir() if path.name not in rows]
    told = next((line for line in done.stdout.splitlines() if line.startswith("passed by")), "passed by  0 files")
    if int(told.split()[2]) != len(passed) or any(Path(name).suffix in SUFFIXES[words[-1]] for name in passed):
        return f"these are neither kept nor named: {passed}, and it says: {told}"
    counts: Counter[str] = Counter()
    for case in cases:
        row = rows.get(f"case{case.name[-4:]}{case.suffix}")
        counts["passed over" if row is None else "kept" if row["kept"] == "yes" else "left out"] += 1
        if row and row["why_not"].startswith("damaged: it cannot be prepared"):
            counts["unforeseen"] += 1
            print(f"unforeseen {case.name} ({case.kind}{case.suffix}): {row['why_not']}", flush=True)
    return counts


SUFFIXES = {"data.modalities=[audio,lips]": VIDEOS, "data.modalities=[audio]": SOUNDS}


# ---------------------------------------------------------------------------------------------------------------------
# Runs and prepared corpora


def program(name: str, words: Sequence[str], folder: Path, limit: int = 120) -> tuple[int, str]:
    """The exit code of a program of ours, and what it prints. It runs in a fork, which has the libraries loaded."""
    printed = folder / "printed.txt"
    if (child := os.fork()) == 0:
        signal.alarm(limit)
        file = printed.open("w")  # for what Python prints and for what libraries print
        sys.stdout = sys.stderr = file
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        os.chdir(folder)
        sys.argv = [str(PROJECT / name), *words]
        code = 70
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            file.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), printed.read_text(errors="replace")


def load_libraries() -> None:
    """What programs import, so that their forks need not."""
    programs = [f"avdvae.programs.{name}" for name in ("evaluate", "enhance", "train", "transfer")]
    for name in (*programs, "lightning_fabric", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"):
        importlib.import_module(name)
    importlib.import_module("torch.utils.tensorboard")


MEASURE = (
    *("evaluate.noises=[White]", "evaluate.snrs=[0]", "evaluate.metrics=[si_sdr]", "evaluate.per_speaker=1"),
    *("evaluate.workers=1", "evaluate.examples=1", "evaluate.min_seconds=0.3", "enhance.iterations=2"),
)


@dataclass(frozen=True)
class Made:
    """A prepared corpus of Talker, an interrupted copy of it, and a run."""

    corpus: Path
    begun: Path
    run: Path
    sound: Path
    talker: Path


def make(root: Path) -> Made:
    root.mkdir(exist_ok=True)
    words = [f"data.root={root / 'talker'}", "data.speakers=3", "data.utterances=1", "data.seconds=1"]
    done = [program("preprocessing/lips.py", [*words, f"out={root / 'corpus'}", "workers=1"], root)]
    run = root / "run"
    train = ["exp=vae", "train=debug", "model.hidden=16", f"prepared={root / 'corpus'}", f"run_dir={run}", *MEASURE]
    done.append(program("experiments/run.py", train, root))
    if failed := [printed for code, printed in done if code]:
        raise RuntimeError(failed[0])
    begun = root / "begun"
    (begun / "staging").mkdir(parents=True)
    (begun / "shards").mkdir()
    sound = next(root.glob("talker/**/*.wav"))
    return Made(root / "corpus", begun, run, sound, root / "talker")


def file_cases(made: Made, seed: int, count: int) -> Iterator[Case]:
    """Of each file in turn, but the pictures and logs that no program reads."""
    skipped = (".png", ".html", ".wav")
    places = [
        path
        for folder in (made.run, made.corpus)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in skipped and "tensorboard" not in path.parts
    ]
    kinds = [kind for kind in MUTATIONS if kind not in ("metadata", "wrong suffix", "index")]
    for number in range(count):
        name = f"files/{number:04d}"
        rng, path = random_of(seed, name), places[number % len(places)]
        kind = str(rng.choice(kinds))
        content = path.read_bytes()
        if rng.random() < 0.2:  # a file of another kind that is whole
            kind, content = "another file", places[int(rng.integers(len(places)))].read_bytes()
        else:
            content = MUTATIONS[kind](rng, content)
        yield Case(name, kind, str(path), content)


def check_file(case: Case, made: Made, folder: Path, seed: int) -> tuple[str, str | None]:
    """What a program makes of a run or a corpus with one damaged file, and what is wrong with that."""
    path = Path(case.suffix)
    folder.mkdir(parents=True)
    run, corpus = folder / "run", folder / "corpus"
    shutil.copytree(made.run, run)
    shutil.copytree(made.corpus, corpus)
    here = folder / ("run" if path.is_relative_to(made.run) else "corpus")
    home = made.run if here == run else made.corpus
    damaged = here / path.relative_to(home)
    damaged.write_bytes(case.content)
    settings = (run / "config.yaml").read_bytes()
    if damaged != run / "config.yaml":
        (run / "config.yaml").write_bytes(settings.replace(bytes(made.corpus), bytes(corpus)))
    talker = [f"data.root={made.talker}", "data.speakers=3", "data.utterances=1", "data.seconds=1"]
    programs = {
        "evaluate": ("experiments/evaluate.py", [f"run={run}", f"prepared={corpus}", f"out={folder / 'out'}"]),
        "again": ("experiments/evaluate.py", [f"run={made.run}", f"prepared={corpus}", f"out={run}", *MEASURE]),
        "compare": (
            "experiments/evaluate.py",
            [f"run={made.run}", f"prepared={corpus}", f"out={folder / 'out'}", f"compare=[{run}]", *MEASURE],
        ),
        "enhance": (
            "experiments/enhance.py",
            [f"run={run}", f"input={made.sound}", f"output={folder / 'clean.wav'}", "enhance.iterations=2"],
        ),
        "resume": ("experiments/run.py", [f"resume={run}"]),
        "start": (
            "experiments/run.py",
            [
                *("exp=av_vae", "train=debug", "model.hidden=16", f"start=[{run}]", f"prepared={corpus}"),
                *(f"run_dir={folder / 'started'}", *MEASURE),
            ],
        ),
        "transfer": ("experiments/transfer.py", [f"run={run}", "source=01M/tk001", "target=02F/tk001", "latents=[z]"]),
        "prepare": ("preprocessing/lips.py", [*talker, f"out={corpus}", "workers=1"]),
    }
    fitting = (
        ["evaluate", "prepare", "transfer", "evaluate"]
        if here == corpus
        else [
            *{
                "config.yaml": ["evaluate", "enhance", "resume", "start", "transfer"],
                "weights.safetensors": ["evaluate", "enhance", "start", "transfer"],
                "results.csv": ["compare", "resume"],
                "state.pt": ["resume"],
                "run.json": ["resume", "start"],
            }.get(path.name, ["resume"])
        ]
    )
    name = fitting[int(random_of(seed, case.name).integers(1000)) % len(fitting)]
    code, printed = program(*programs[name], folder)
    told = [line for line in printed.splitlines() if line.startswith(f"{Path(programs[name][0]).name}: ")]
    if code not in (0, 1) or "Traceback" in printed:
        return name, f"exit code {code}: {printed[-1500:]}"
    if code == 1 and not (len(told) == 1 and path.name.split(".")[0] in told[0] and ": " in told[0][12:]):
        return name, f"it does not say which file is damaged, and what to do: {printed[-1500:]}"
    if code == 0 and path.name == "weights.safetensors" and name != "compare" and case.content != path.read_bytes():
        return name, "damaged weights were taken for good ones"
    return name, None


# ---------------------------------------------------------------------------------------------------------------------
# The command


def fuzz_media(part: str, count: int, seed: int, seeds: Sequence[Path], scratch: Path, keep: Path, only: str) -> int:
    modalities = f"data.modalities=[{'audio,lips' if part == 'films' else 'audio'}]"
    names = [f"{part}/{number:04d}" for number in range(count)]
    names = [only] if only else names
    failures, total, kinds = 0, Counter[str](), Counter[str]()
    waiting = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
    while waiting:
        batch = waiting.pop(0)
        cases = [media_case(seed, name, seeds) for name in batch]
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            found = prepare_cases(cases, seeds, Path(folder), [f"workers={WORKERS}", modalities])
        if isinstance(found, Counter):
            total += found
            kinds.update(case.kind for case in cases)
            print(f"{part:<10} {sum(kinds.values())} of {len(names)}: {dict(total)}", flush=True)
        elif len(batch) > 1:  # whose fault it is
            waiting[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        else:
            failures += 1
            case = cases[0]
            left = keep / case.name / f"case{case.name[-4:]}{case.suffix}"
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(case.content)
            print(
                f"failure    {case.name} ({case.kind}), kept as {left}\n{found}\n{again(case.name, seed)}", flush=True
            )
    print(f"{part:<10} {dict(total)}; damage: {dict(kinds)}; {failures} failures", flush=True)
    return failures


def fuzz_files(count: int, seed: int, made: Made, scratch: Path, keep: Path, only: str) -> int:
    failures, used = 0, Counter[str]()
    for case in file_cases(made, seed, int(only[-4:]) + 1 if only else count):
        if only and case.name != only:
            continue
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            name, wrong = check_file(case, made, Path(folder) / "case", seed)
        used[name] += 1
        if used.total() % 20 == 0:
            print(f"files      {used.total()} of {count}", flush=True)
        if wrong:
            failures += 1
            left = keep / case.name / Path(case.suffix).name
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(case.content)
            print(f"failure    {case.name}, {case.kind} of {Path(case.suffix).name}, {name}: kept as {left}\n{wrong}")
            print(again(case.name, seed), flush=True)
    print(f"files      {dict(used)}; {failures} failures", flush=True)
    return failures


def again(name: str, seed: int) -> str:
    return f"repeat     python -m tests.fuzz only={name} seed={seed}"


WORKERS = 2


def main(words: Sequence[str]) -> int:
    given = {"films": "1000", "sounds": "500", "files": "300", "seed": "0", "only": "", "keep": "/tmp/fuzz"}
    asked = {name: value for name, _, value in (word.partition("=") for word in words)}
    if unknown := asked.keys() - given.keys():
        sys.exit(f"fuzz: no setting is called {', '.join(sorted(unknown))}: choose from {', '.join(given)}")
    given |= asked
    seed, only, keep, start, failures = int(given["seed"]), given["only"], Path(given["keep"]), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wanted = {
            part: int(given[part]) and (not only or only.startswith(f"{part}/"))
            for part in ("films", "sounds", "files")
        }
        if wanted["films"] or wanted["sounds"]:
            films, sounds = write_seeds(scratch)
            for part, seeds in (("films", films), ("sounds", sounds)):
                if wanted[part]:
                    failures += fuzz_media(part, int(given[part]), seed, seeds, scratch, keep, only)
        if wanted["files"]:
            load_libraries()
            failures += fuzz_files(int(given["files"]), seed, make(scratch / "made"), scratch, keep, only)
    print(f"{failures} failures in {time.monotonic() - start:.0f} s")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
