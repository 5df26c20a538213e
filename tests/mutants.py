"""Do the tests notice? Small errors put into the code, one at a time, each of which some test has to catch.

    python -m tests.mutants --count 150 --seed 0
    python -m tests.mutants --count 20 --seed 3 --only avdvae/models/stcn.py

Lines are drawn at random from those that compute in MODULES, and on each of them one mutant: + for -, a factor dropped,
another axis, `exp` for `log`, a slice one off, ... It is written into a copy of the tree and meets those tests that run
its line, the cheapest first, until one fails, hangs, or they have taken `--seconds`. Which tests run which lines is
measured first, a test file at a time, and again where that file or what it runs has changed.

A line a mutant and the share that was caught are printed. All of it is kept in build/mutants: a run that was
interrupted goes on, and one that is repeated measures what has changed since, and survivors where any test has.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build/mutants"
MODULES = (
    "avdvae/enhancement/*.py",
    "avdvae/latents/*.py",
    "avdvae/models/*.py",
    "avdvae/probability/*.py",
    "avdvae/tracking/*.py",
    "avdvae/evaluation/results.py",
)
# Test files of what comes before a batch, and of programs, which run in processes of their own
ELSEWHERE = {"audio", "conditions", "corpora", "demo", "lips", "loader", "mixing", "prepare", "project", "shards"}
ELSEWHERE |= {"bench", "live", "run", "talker", "video", "voices"}
# Imported once, before mutants are made: each of them is run in a fork of this process
HEAVY = ("torch", "torch.optim", "scipy.signal", "hypothesis", "beartype", "jaxtyping", "omegaconf", "av", "soundfile")


# Mutants


@dataclass(frozen=True)
class Mutant:
    """The bytes `start` to `stop` of a file become `after`."""

    file: str
    line: int
    start: int
    stop: int
    before: str
    after: str

    def __str__(self) -> str:
        line = (ROOT / self.file).read_text().splitlines()[self.line - 1].strip()
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file}:{self.line}: {before}  ->  {after}  in  {line}"


OPERATORS: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
PAIRS = """min max, clamp_min clamp_max, clamp_min_ clamp_max_, amin amax, argmin argmax, sum mean, exp log, any all,
zeros ones, zeros_like ones_like, new_zeros new_ones, tanh sigmoid, sqrt square, rand randn"""
SWAPPED = {a: b for pair in PAIRS.split(",") for a, b in (pair.split(), reversed(pair.split()))}
LEFT_OUT = {"square", "sqrt", "exp", "log", "abs", "tanh", "sigmoid", "relu", "softplus", "flip", "detach", "cumsum"}
LEFT_OUT |= {"clamp", "clamp_min", "clamp_max", "masked_fill", "reversed", "sorted"}


class Source:
    def __init__(self, file: str):
        self.file, self.bytes = file, (ROOT / file).read_bytes()
        lengths = [len(line) for line in self.bytes.splitlines(keepends=True)]
        self.starts = [sum(lengths[:n]) for n in range(len(lengths))]

    def span(self, node: Any) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, start: int, stop: int) -> str:
        return self.bytes[start:stop].decode()

    def mutants(self) -> list[Mutant]:
        return [
            Mutant(self.file, node.lineno, start, stop, self.text(start, stop), after)
            for node in self._computing(ast.parse(self.bytes))
            for start, stop, after in self._changes(node)
        ]

    def mutated(self, mutant: Mutant) -> bytes:
        return self.bytes[: mutant.start] + mutant.after.encode() + self.bytes[mutant.stop :]

    def _computing(self, node: ast.AST) -> Iterator[Any]:
        """All nodes but annotations, messages, checks and what only shows."""
        match node:
            case ast.keyword(arg="strict"):
                return
            case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.FunctionDef(name="__repr__" | "__str__"):
                return
            case ast.FunctionDef():
                parts = [*node.args.defaults, *(d for d in node.args.kw_defaults if d), *node.body]
            case ast.ClassDef():
                parts = node.body
            case ast.AnnAssign():
                parts = [node.value] if node.value else []
            case ast.Call(func=ast.Name(id=name)) if name.endswith("Error") or name in ("cast", "isinstance"):
                return
            case _:
                parts = [*ast.iter_child_nodes(node)]
        yield node
        for part in parts:
            yield from self._computing(part)

    def _changes(self, node: Any) -> Iterator[tuple[int, int, str]]:
        """(from, to, what is there instead)"""
        match node:
            case ast.BinOp():
                yield from self._operator(node.left, node.op, node.right)
                yield self._instead(node, node.left)
                yield self._instead(node, node.right)
            case ast.BoolOp():
                yield from self._operator(node.values[0], node.op, node.values[1])
            case ast.Compare():
                yield from self._operator(node.left, node.ops[0], node.comparators[0])
            case ast.AugAssign():
                yield from self._operator(node.target, node.op, node.value)
            case ast.UnaryOp():
                yield self._instead(node, node.operand)
            case ast.If() | ast.IfExp():
                start, stop = self.span(node.test)
                yield start, stop, f"(not ({self.text(start, stop)}))"
            case ast.Constant(value=bool(value)):
                yield *self.span(node), str(not value)
            case ast.Constant(value=int(value)):
                yield *self.span(node), str(value + 1)
            case ast.Constant(value=float(value)):
                yield *self.span(node), str(2 * value or 1.0)
            case ast.Slice():
                for bound in (node.lower, node.upper):
                    if bound and not isinstance(bound, ast.Constant):
                        yield *self.span(bound), f"{self.text(*self.span(bound))} + 1"
            case ast.Expr(value=ast.Call()) if not self.text(*self.span(node)).startswith("super()"):
                yield *self.span(node), "pass"
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                stop = self.span(node.func)[1]
                if name in SWAPPED:
                    yield stop - len(name), stop, SWAPPED[name]
                if name.rstrip("_") in LEFT_OUT:
                    owner = getattr(node.func, "value", None)
                    if owner is not None and getattr(owner, "id", "") != "torch":  # a method
                        yield self._instead(node, owner)
                    elif node.args:
                        yield self._instead(node, node.args[0])

    def _instead(self, node: Any, part: Any) -> tuple[int, int, str]:
        return *self.span(node), f"({self.text(*self.span(part))})"

    def _operator(self, left: Any, operator: ast.AST, right: Any) -> Iterator[tuple[int, int, str]]:
        if type(operator) not in OPERATORS:
            return
        own, other = OPERATORS[type(operator)]
        start, stop = self.span(left)[1], self.span(right)[0]
        at = start + self.text(start, stop).index(own)
        for instead in filter(None, (other, TURNED.get(own))):
            yield at, at + len(own), instead


def drawn(count: int, seed: int, only: str) -> list[Mutant]:
    """One on each of as many lines."""
    files = sorted(path.relative_to(ROOT).as_posix() for pattern in MODULES for path in ROOT.glob(pattern))
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for file in files:
        for mutant in Source(file).mutants() if file.startswith(only) else ():
            lines.setdefault((file, mutant.line), []).append(mutant)
    rng = random.Random(seed)
    chosen = (rng.choice(lines[line]) for line in rng.sample(sorted(lines), len(lines)))
    return [*islice(filter(compiles, chosen), count)]


def compiles(mutant: Mutant) -> bool:
    try:
        return bool(compile(Source(mutant.file).mutated(mutant), mutant.file, "exec"))
    except SyntaxError:
        return False


# Tests, in a fork of this process and a copy of the tree


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def copied_tree(tree: Path) -> Path:
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "runs", "__pycache__", "*.egg-info")
    for part in ("avdvae", "tests", "configs", "experiments", "preprocessing"):
        shutil.rmtree(tree / part, ignore_errors=True)
        shutil.copytree(ROOT / part, tree / part, ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def forked(tree: Path, limit: float, plugin: Any, *words: str) -> int | None:
    """The exit status of pytest there, or None where it took longer than the limit."""
    if child := os.fork():
        deadline = time.monotonic() + limit
        try:
            while time.monotonic() < deadline:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
        except BaseException:  # Ctrl-C reaches this process alone
            os.killpg(child, signal.SIGKILL)
            raise
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    status = 70
    try:
        os.setsid()
        os.chdir(tree)
        output = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path[:] = [str(tree), *(path for path in sys.path if Path(path).resolve() != ROOT)]
        os.environ["PYTHONPATH"] = str(tree)
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # what fails need not be made smaller
        hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
        hypothesis.settings.load_profile("mutants")
        own = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        own += [f"--rootdir={tree}", f"--basetemp={tree}/tmp"]
        status = int(pytest.main([*own, *words], plugins=[plugin]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


IMPORT = "import of the file"


class Recorder:
    """Which lines each test of a file runs, and how long that takes; and the same of fixtures that tests share."""

    def __init__(self, tree: Path, files: set[str]):
        self.tree, self.files = tree, files
        self.tests: dict[str, Any] = {}
        self.fixtures: dict[str, Any] = {}
        self.passed: set[str] = set()
        self.seen: dict[CodeType, set[int]] = {}
        self.known: dict[CodeType, set[int]] = {}
        self.aside = 0.0

    def file(self, code: CodeType) -> str:
        return code.co_filename.removeprefix(f"{self.tree}/")

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self.known:
            function = code.co_flags & inspect.CO_OPTIMIZED and self.file(code) in self.files  # not a module, a class
            self.known[code] = {line for _, _, line in code.co_lines() if line} if function else set()
        if not self.known[code]:
            return None
        seen = self.seen.setdefault(code, set())

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            seen.add(frame.f_lineno)
            return line

        return None if seen >= self.known[code] else line

    def pytest_sessionstart(self) -> None:
        sys.settrace(self.trace)
        threading.settrace(self.trace)

    def pytest_collection_finish(self) -> None:
        """What importing the file has run, such as the models in its parameters, counts for all of its tests."""
        self.fixtures[IMPORT] = {"seconds": 0.0, "lines": self._lines()}

    def _lines(self) -> dict[str, list[int]]:
        lines: dict[str, set[int]] = {}
        for code, seen in self.seen.items():
            lines.setdefault(self.file(code), set()).update(seen)
        return {file: sorted(numbers) for file, numbers in lines.items()}

    def _measured(self) -> Generator[None, Any, tuple[Any, dict[str, Any]]]:
        outer, self.seen, aside, begun = self.seen, {}, self.aside, time.monotonic()
        result = yield
        whole = time.monotonic() - begun
        own = {"seconds": round(whole - (self.aside - aside), 3), "lines": self._lines()}
        self.seen, self.aside = outer, aside + whole
        return result, own

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        result, own = yield from self._measured()
        shared = [name for name in (IMPORT, *getattr(item, "fixturenames", ())) if name in self.fixtures]
        self.tests[item.nodeid] = own | {"fixtures": shared}
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        result, self.fixtures[fixturedef.argname] = yield from self._measured()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        tests = {name: test for name, test in self.tests.items() if name in self.passed}
        (self.tree / "recorded.json").write_text(json.dumps({"tests": tests, "fixtures": self.fixtures}))


def recorded(tree: Path, modules: list[str]) -> dict[str, Any]:
    """Of each test file what its tests and fixtures run, measured again where the file or what it runs has changed."""
    path, table = KEPT / "coverage.json", {}
    if path.exists():
        table = json.loads(path.read_text())
    names = [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py"))]
    for name in names:
        if name[len("tests/test_") : -len(".py")] in ELSEWHERE:
            continue
        if name in table and table[name]["sums"] == sums(tree, table[name]["sums"]):
            continue
        (tree / "recorded.json").unlink(missing_ok=True)
        print(f"measuring which lines {name} runs", end="", flush=True)
        begun = time.monotonic()
        status = forked(tree, 3600, Recorder(tree, set(modules)), name)
        if status not in (0, 1):
            raise SystemExit(f": pytest ended with {status}: {(tree / 'output.txt').read_text()[-2000:]}")
        found = json.loads((tree / "recorded.json").read_text())
        print(f": {len(found['tests'])} tests, {time.monotonic() - begun:.0f} s", flush=True)
        run = {file for test in (*found["tests"].values(), *found["fixtures"].values()) for file in test["lines"]}
        table[name] = found | {"sums": sums(tree, [name, *sorted(run)])}
        path.write_text(json.dumps(table))
    return {name: table[name] for name in names if name in table}


def sums(tree: Path, files: Iterable[str]) -> dict[str, str]:
    return {file: digest(tree / file) if (tree / file).is_file() else "" for file in files}


@dataclass(frozen=True)
class Test:
    name: str
    seconds: float  # with its fixtures
    fixtures: Mapping[str, float]


def concerned(mutant: Mutant, table: Mapping[str, Any], seconds: float) -> list[Test]:
    """The tests that run the mutant's statement, the cheapest first, as many as take so long."""
    first, last = lines_of(mutant)
    found = []
    for part in table.values():
        cost = {name: fixture["seconds"] for name, fixture in part["fixtures"].items()}
        for name, test in part["tests"].items():
            parts = [test, *(part["fixtures"][fixture] for fixture in test["fixtures"])]
            if any(first <= line <= last for p in parts for line in p["lines"].get(mutant.file, ())):
                fixtures = {fixture: cost[fixture] for fixture in test["fixtures"]}
                found.append(Test(name, test["seconds"] + sum(fixtures.values()), fixtures))
    chosen: list[Test] = []
    for test in sorted(found, key=lambda test: test.seconds):
        if expected([*chosen, test]) <= seconds or not chosen:
            chosen.append(test)
    return chosen


def expected(tests: Sequence[Test]) -> float:
    """Seconds; fixtures are made once."""
    fixtures = {name: seconds for test in tests for name, seconds in test.fixtures.items()}
    return sum(test.seconds - sum(test.fixtures.values()) for test in tests) + sum(fixtures.values())


def lines_of(mutant: Mutant) -> tuple[int, int]:
    """What is to be run for the mutant to count: its statement; of a default, the function; of a constant, anything."""
    found = (1, 10**6)
    for node in ast.walk(ast.parse((ROOT / mutant.file).read_bytes())):  # from the outside in
        if not isinstance(node, ast.stmt) or not node.lineno <= mutant.line <= (node.end_lineno or 0):
            continue
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef):
            found = node.body[0].lineno, node.body[-1].end_lineno or 0
        elif not isinstance(node, ast.ClassDef) and found != (1, 10**6):
            found = node.lineno, body[0].lineno - 1 if body else node.end_lineno or 0
    return found


class Chosen:
    """Runs the tests that were chosen, in their order, and keeps the name of the first that fails."""

    def __init__(self, tests: Sequence[Test], tree: Path):
        self.order, self.to = {test.name: n for n, test in enumerate(tests)}, tree / "caught_by"
        self.to.write_text("")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.to.write_text(nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.to.write_text(f"importing {report.nodeid}")


def judged(mutant: Mutant, table: Mapping[str, Any], tree: Path, seconds: float) -> dict[str, Any]:
    tests = concerned(mutant, table, seconds)
    outcome: dict[str, Any] = {"verdict": "survived", "by": "", "tests": len(tests), "seconds": 0.0}
    if not tests:
        return outcome
    path, begun = tree / mutant.file, time.monotonic()
    path.write_bytes(Source(mutant.file).mutated(mutant))
    os.utime(path, (0, mutant.start))  # a time of its own, by which Python knows compiled files
    try:
        files = dict.fromkeys(test.name.split("::")[0] for test in tests)
        status = forked(tree, 30 + 3 * expected(tests), Chosen(tests, tree), "-x", *files)
    finally:
        shutil.copy2(ROOT / mutant.file, path)
    outcome["seconds"] = round(time.monotonic() - begun, 1)
    if status != 0:
        by = (tree / "caught_by").read_text()
        assert by or status is None, (tree / "output.txt").read_text()[-2000:]
        outcome |= {"verdict": "hung" if status is None else "caught", "by": by}
    return outcome


def main() -> None:
    words = argparse.ArgumentParser("python -m tests.mutants")
    words.add_argument("--count", type=int, default=150)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", default="", help="files whose names begin so")
    words.add_argument("--seconds", type=float, default=60.0, help="of tests that a mutant meets")
    words.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    asked = words.parse_args()
    mutants = drawn(asked.count, asked.seed, asked.only)
    if asked.list:
        print(*mutants, sep="\n")
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    log = KEPT / "log.jsonl"
    known = {}
    for entry in map(json.loads, log.read_text().splitlines() if log.exists() else ()):
        known[json.dumps(entry["mutant"])] = entry
    for name in HEAVY:
        import_module(name)
    tree = copied_tree(KEPT / "tree")
    modules = sorted({p.relative_to(ROOT).as_posix() for pattern in MODULES for p in ROOT.glob(pattern)})
    table = recorded(tree, modules)
    every_test = digest(*sorted((tree / "tests").glob("*.py")))
    survived = []
    for number, mutant in enumerate(mutants, start=1):
        state = {"source": digest(ROOT / mutant.file), "suite": every_test}
        entry = known.get(json.dumps(asdict(mutant)), {"state": {}, "verdict": ""})
        current = entry["state"] == state or (
            entry["verdict"] in ("caught", "hung") and entry["state"]["source"] == state["source"]
        )
        if not current:
            entry = {"mutant": asdict(mutant), "state": state, **judged(mutant, table, tree, asked.seconds)}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if entry["verdict"] == "survived":
            survived.append(f"{mutant}  ({entry['tests']} tests run it)")
        by = f" by {entry['by']}" if entry["by"] else ""
        print(f"{number:3d} {mutant}  {entry['verdict']}{by}, {entry['seconds']} s", flush=True)
    caught = len(mutants) - len(survived)
    print(f"\n{caught} of {len(mutants)} caught, {caught / max(1, len(mutants)):.0%}. Survivors:", *survived, sep="\n")


if __name__ == "__main__":
    main()
