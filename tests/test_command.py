"""The command `avdvae`: its lists, completions and refusals; one of several processes trains what all start from."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import avdvae
from avdvae.configurations import CONFIGS, choices, compose, word
from avdvae.data.prepare import Summary
from avdvae.orchestration.keywords import request_of
from avdvae.programs.command import COMMANDS
from avdvae.programs.completion import completions, config_of
from avdvae.runs import find_runs, open_run

AVDVAE = [sys.executable, "-c", "from avdvae.programs.command import main; main()"]
PROJECT = Path(__file__).parent.parent


@pytest.fixture
def here(avdvae_command, capsys):
    """The sentence with which the command ends, or what it prints."""
    return lambda *words: avdvae_command(*words) or capsys.readouterr().out


def test_all_experiments_corpora_tasks_and_esteps_are_listed_with_a_line(here):
    def lines_of(*kinds: str) -> dict[str, str]:
        return dict(re.findall(r"^  (\w+) +(\S.*)$", here("list", *kinds), re.MULTILINE))

    lines, experiments = lines_of(), lines_of("experiments")
    assert {*choices("exp"), *choices("data"), *choices("train")} <= lines.keys()
    assert {"enhancement", "probe", "langevin", "free_gaussian"} <= lines.keys()
    assert lines["rvae"].endswith("(Leglaive 2020, arXiv 1910.10942)") and lines["grid"].endswith("(Cooke 2006)")
    assert lines["vq_mdvae"].endswith("(Sadok 2024, arXiv 2305.03582)"), "of the file to which its own refers"
    uncited = {name for name in choices("exp") if not re.search(r"\(.+ \d{4}(, arXiv [\d.]+)?\)$", experiments[name])}
    several = {"dvae_benchmark", "motion_benchmark", "motion_prediction", "likelihood_benchmark"}
    several |= {"odd_attention", "odd_attention_gait"}
    assert uncited == {"own", "robustness", "learned_estep", *several}
    assert here("list", "esteps").count("\n") < 14


def test_a_mistake_ends_a_program_with_a_sentence_and_a_status(tmp_path):
    for words in (["trian"], ["train", "exp=vea"], ["import"]):
        done = subprocess.run([*AVDVAE, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("avdvae")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_the_settings_of_a_command_and_nothing_of_hydra(command, here, tmp_path):
    shown = here(command, "--help")
    assert f"avdvae {command}" in shown and "hydra" not in shown.replace("hydra/", "").lower()
    if config := config_of(command):
        text = (CONFIGS / f"{config}.yaml").read_text()
        comments = re.findall(r"^ *\w+:.*#.*$", text.partition("\nhydra:")[0], re.MULTILINE)
        assert comments and all(comment in shown for comment in comments)
    assert not [*tmp_path.iterdir()]


def test_the_version_is_that_of_the_package(here):
    assert here("--version") == f"avdvae {avdvae.__version__}\n"


def test_a_script_shows_itself_in_its_help(tmp_path):
    for script, setting in (("experiments/run.py", "epochs: 60"), ("preprocessing/lips.py", "check_only: false")):
        command = [sys.executable, str(PROJECT / script), "-h"]
        shown = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout
        assert f"\npython {script} " in shown and "\navdvae" not in shown and setting in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "avdvae: no command is called trian: did you mean train or"),
        (["train", "exp=vea"], "avdvae train: exp=vea: did you mean vae"),
        (["train", "-m", "exp=vea,vae"], "avdvae train: exp=vea: did you mean vae"),
        (["train", "data=talker_tyni"], "avdvae train: data=talker_tyni: did you mean talker_tiny"),
        (["train", "epochs=3"], "avdvae train: there is no setting epochs: did you mean train.epochs? --help shows"),
        (["train", "train.epoch=3"], "there is no setting train.epoch: did you mean train.epochs? --help shows"),
        (["train", "model.hiden=3"], "there is no setting model.hiden: did you mean model.hidden or"),
        (["train", "qqq=3"], "avdvae train: there is no setting qqq: --help shows them all"),
        (["train", "train.lr=[1"], "avdvae train: train.lr=[1 cannot be read (no viable alternative at input '[1')"),
        (["train", "exp=own"], "avdvae train: model.target has no value: give model.target="),
        (["train", "vae"], "avdvae train: vae: settings are written name=value, as exp=vae"),
        (["mixtures", "runs/vae"], "runs/vae: settings are written name=value, as run=runs/vae"),
        (["enhance", "noisy.wav", "x.wav", "y.wav"], "y.wav: settings are written name=value, as input=y.wav"),
        (["enhance", "noisy.wav"], "output= missing: give NOISY.wav CLEAN.wav"),
        (["enhance", "no.wav", "x.wav", "run=vea"], "vea is no run, for it has no config.yaml: give a folder made by"),
        (["list", "task"], "avdvae list: there is no list of task: did you mean tasks"),
        (["import", "source=x"], "avdvae import: run_dir= missing: give source=FOLDER run_dir=RUN"),
    ],
)
def test_a_wrong_word_gets_a_sentence_with_the_nearest_names(words, sentence, here, tmp_path):
    assert sentence in here(*words)
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"} & {"runs" for word in words if word == "-m"}


def test_shells_complete_commands_settings_and_names(tmp_path):
    assert completions("avdvae en") == ["enhance "] and completions("avdvae nothing ") == []
    assert completions("avdvae train seed=1 exp=cvae_") == ["exp=cvae_plain "]
    assert completions("avdvae enhance inp") == ["input="] and completions("avdvae train seed=") == []
    assert completions("avdvae train model.alph") == ["model.alpha="]
    assert all(completions(f"avdvae {command} ") for command in COMMANDS if config_of(command))
    command = tmp_path / "avdvae"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{AVDVAE[2]}' \"$@\"\n")
    command.chmod(0o755)
    script = 'eval "$(avdvae completion)"; COMP_LINE="avdvae train exp=cva"; COMP_POINT=${#COMP_LINE}; _avdvae; '
    shell = ["bash", "-c", script + 'printf "<%s>" "${COMPREPLY[@]}"']
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(shell, env=environment, capture_output=True, text=True)
    assert done.stdout == "<exp=cvae ><exp=cvae_plain >", done.stderr


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(VALUES)
def test_a_setting_in_python_is_the_same_as_a_word(value):
    """Whatever characters it has; only ${} keeps its meaning."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(word("key", value)).value()
    assert OmegaConf.to_container(OmegaConf.create({"x": parsed})) == {"x": value} or "${" in str(value)


def test_keywords_are_the_settings_of_the_command(tmp_path):
    (tmp_path / "my clips").mkdir()
    asked = request_of(
        "rvae",
        tmp_path / "my clips",
        tmp_path / "it's",
        {
            "epochs": 3,
            "hop": 512,
            "train": "debug",
            "model": {"causal": True},
            "enhance": {"estep": {"name": "langevin", "chains": 2}},
        },
    )
    data, run_dir = f"data.root='{tmp_path / 'my clips'}'", f'run_dir="{tmp_path / "it"}\'s"'
    words = ["exp=rvae", "data=folder", data, run_dir, "train.epochs=3", "hop=512", "train=debug", "model.causal=true"]
    assert asked.config == compose("config", [*words, "enhance.estep.name=langevin", "+enhance.estep.chains=2"])
    assert asked.config["run_dir"] == str(tmp_path / "it's") and asked.config["train"]["epochs"] == 3
    assert request_of("vae", "talker_tiny", None, {}).config["data"]["reader"] == "talker"
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.csv").touch()
    assert request_of("vae", tmp_path / "prepared", None, {}).config["prepared"] == str(tmp_path / "prepared")


def test_configs_are_composed_as_ever_within_another_program_of_hydra(tmp_path):
    import hydra

    (tmp_path / "config.yaml").write_text("theirs: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("config", ["exp=vae"])["exp"] == "vae"
        assert hydra.compose("config").theirs == 1


def test_one_of_two_processes_trains_what_both_start_from(prepared: Summary, tmp_path):
    words = ["train=debug", f"prepared={prepared.out}", f"runs={tmp_path / 'runs'}", "evaluate.noises=[White]"]
    both = [
        subprocess.Popen([*AVDVAE, "train", f"exp={name}", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for name in ("cvae", "av_vae")
    ]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    starts = {yaml.safe_load(path.read_text())["exp"] for path in tmp_path.glob("runs/*/*/config.yaml")}
    assert starts == {"vae", "cvae", "av_vae"} and len([*tmp_path.glob("runs/vae/*/weights.safetensors")]) == 1
    assert sum("start      vae, trained first" in text for text in printed) == 1
    assert sum("start      vae, found in" in text for text in printed) == 1
    run = open_run(next(tmp_path.glob("runs/vae/*/")))
    assert find_runs(tmp_path, run.config) == [run] and run.trained
