"""The command line and settings files: what they give, what they refuse and how, and what --help says."""

from __future__ import annotations

import dataclasses
import json
import re
import typing

import pytest

from hanorec.errors import DataError, exit_on_user_error
from hanorec.training.command_line import parse
from hanorec.training.dpo_options import DPOOptions, complete_dpo
from hanorec.training.evaluation_options import EvaluationOptions
from hanorec.training.options import SFTOptions, cache_folder, complete_sft, lora_trains
from tests.conftest import ROOT

KINDS = [SFTOptions, DPOOptions, EvaluationOptions]
SFT = SFTOptions(data="movies", task="top3", history=3, candidates=7, list_candidates=True)


@pytest.fixture
def call(monkeypatch):
    """Parses options of a kind from the given arguments, as a script does."""

    def call(kind, *arguments):
        monkeypatch.setattr("sys.argv", ["/some/where/script.py", *map(str, arguments)])
        with exit_on_user_error():
            return parse(kind)

    return call


@pytest.fixture
def error(call, capsys):
    """Parses options that must be refused with exit status 2; the error, which is the last line of stderr."""

    def error(kind, *arguments) -> str:
        with pytest.raises(SystemExit) as exit:
            call(kind, *arguments)
        assert exit.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return error


@pytest.fixture
def settings(tmp_path):
    def settings(text: str, name: str = "settings.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return settings


# Command line


@pytest.mark.parametrize("kind", KINDS)
def test_without_arguments_every_option_has_its_default(call, kind):
    assert call(kind) == kind()


def test_defaults_of_the_two_stages_and_of_evaluation(call):
    sft, dpo, evaluation = (call(kind) for kind in KINDS)
    assert (sft.epochs, sft.learning_rate, sft.windows, sft.output) == (1.5, 1e-3, None, "runs/sft")
    assert (dpo.epochs, dpo.learning_rate, dpo.windows, dpo.output) == (1.0, 1e-4, "last", "runs/hanorec")
    assert (sft.task, sft.protocol, sft.candidates, sft.list_candidates) == ("next", "standard", None, None)
    assert (sft.batch_size, sft.lora_rank, sft.lora_alpha, sft.seed) == (16, 8, 32, 2025)
    assert (dpo.beta, dpo.neighbours, dpo.noise, dpo.noise_std, dpo.temperature) == (None, 10, None, 0.1, None)
    assert (evaluation.runs, evaluation.modality, evaluation.candidates) == (
        ["runs/sft", "runs/hanorec"],
        ["full"],
        None,
    )


def test_options_have_their_types_in_both_spellings(call):
    options = call(
        SFTOptions, "--learning-rate", "1e-3", "--batch_size", 4, "--remote-code", "--history=7", "--task", "yesno"
    )
    assert (options.learning_rate, options.batch_size, options.history) == (0.001, 4, 7)
    assert options.remote_code is True and options.overwrite is False and options.task == "yesno"


def test_a_switch_takes_a_bare_name_or_true_or_false(call):
    for kind in (SFTOptions, DPOOptions):
        assert call(kind, "--remote-code", "--seed", 1).remote_code is True
        assert call(kind, "--remote-code", "true").remote_code is True
        assert call(kind, "--remote-code", "false").remote_code is False


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (SFTOptions, ["--batch-size", 0], "--batch-size 0: must be a number of at least 1"),
        (SFTOptions, ["--candidates", 1], "--candidates 1: must be a number of at least 2"),
        (SFTOptions, ["--epochs", "nan"], "--epochs nan: must be a number above 0 and at most 1000000"),
        (SFTOptions, ["--epochs", 0], "--epochs 0.0: must be a number above 0"),
        (SFTOptions, ["--epochs", "inf"], "--epochs inf: must be a number"),
        (SFTOptions, ["--lora-dropout", "1.5"], "--lora-dropout 1.5: must be a number of at least 0 and at most 0.9"),
        (SFTOptions, ["--history", -1], "--history -1: must be a number of at least 1"),
        (DPOOptions, ["--beta", 0], "--beta 0.0: must be a number of at least 1e-09"),
        (DPOOptions, ["--noise-std", "-0.1"], "--noise-std -0.1: must be a number of at least 0"),
        (DPOOptions, ["--warmup", 2], "--warmup 2.0: must be a number of at least 0 and at most 1"),
        (EvaluationOptions, ["--users", 0], "--users 0: must be a number of at least 1"),
        (SFTOptions, ["--epochs", "many"], "argument --epochs: invalid float value: 'many'"),
        (SFTOptions, ["--max-steps", "1.5"], "argument --max-steps: invalid int value: '1.5'"),
        (SFTOptions, ["--task", "last"], "argument --task: invalid choice: 'last'"),
        (DPOOptions, ["--task", "next"], "unrecognized arguments: --task next"),
        (SFTOptions, ["--resume", "perhaps"], "argument --resume: Truthy value expected"),
        (SFTOptions, ["--epoch-count", 3], "unrecognized arguments: --epoch-count 3"),
        (SFTOptions, ["--epoch", 3], "unrecognized arguments: --epoch 3"),
        (SFTOptions, ["--seed", 3, "settings.yaml"], "unrecognized arguments: settings.yaml"),
        (EvaluationOptions, ["--modality", "full", "sideways"], "argument --modality: invalid choice: 'sideways'"),
    ],
)
def test_what_is_refused(error, kind, arguments, message):
    assert message in error(kind, *arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_bounds(error, kind):
    """Of each option that is a number: what is negative, is none, has no end, or is longer than torch counts."""
    types = typing.get_type_hints(kind)
    numbers = [name for name, type in types.items() if {int, float} & {type, *typing.get_args(type)}]
    assert len(numbers) > 4
    for name in numbers:
        flag = f"--{name.replace('_', '-')}"
        whole = int in (types[name], *typing.get_args(types[name]))
        for value in ("-1", 10**30) if whole else ("-1", "nan", "inf", "-inf"):
            assert f"{flag} {value}".removesuffix("-1") in error(kind, f"{flag}={value}"), name


def test_bounds_are_included(call):
    options = call(DPOOptions, "--batch-size", 1, "--rejected", 1, "--warmup", 1, "--noise-std", 0)
    assert (options.batch_size, options.rejected, options.warmup) == (1, 1, 1.0)
    assert options.noise_std == 0.0


def test_candidates_of_an_evaluation_are_a_number_or_all(call, error):
    assert call(EvaluationOptions, "--candidates", "all").candidates == "all"
    assert call(EvaluationOptions, "--candidates", 2).candidates == "2"
    for refused in ("1", "some", "2.5", "-3", "ALL"):
        message = f"--candidates {refused}: must be a number of at least 2, or all"
        assert message in error(EvaluationOptions, f"--candidates={refused}")


def test_a_list_takes_several_values(call):
    options = call(EvaluationOptions, "--runs", "a", "b", "c", "--modality", "full", "no-titles")
    assert options.runs == ["a", "b", "c"] and options.modality == ["full", "no-titles"]


def test_a_list_of_one_call_does_not_change_the_default_of_the_next(call):
    call(EvaluationOptions).runs.append("another")
    assert call(EvaluationOptions).runs == ["runs/sft", "runs/hanorec"]


# Settings files


def test_options_win_over_the_settings_file_and_both_over_the_defaults(call, settings):
    file = settings("seed: 4\nbatch_size: 2\nresume: true\n")
    options = call(SFTOptions, file, "--seed", 3, "--resume", "false")
    assert (options.seed, options.batch_size, options.resume) == (3, 2, False)
    assert options == dataclasses.replace(SFTOptions(), seed=3, batch_size=2)
    assert call(SFTOptions, file).seed == 4


def test_an_option_given_with_its_default_wins_over_the_file(call, settings):
    assert call(SFTOptions, settings("seed: 4\n"), "--seed", 2025).seed == 2025


def test_values_in_yaml_mean_what_they_mean_on_the_command_line(call, settings):
    text = "learning_rate: 1e-3\nlora: on\nimage_pixels: 262_144\nresume: yes\ncheckpoint-every: 5\noutput: '12'\ndata: ~\n"
    options = call(SFTOptions, settings(text + "list_candidates: false\nhistory: null\ncache:\n"))
    assert (options.learning_rate, options.lora, options.image_pixels) == (0.001, "on", 262144)
    assert options.resume is True and options.list_candidates is False
    assert (options.checkpoint_every, options.output) == (5, "12")
    assert (options.data, options.history, options.cache) == (None, None, None)


def test_null_leaves_the_default_and_none_is_a_word(call, settings):
    options = call(DPOOptions, settings("noise: none\nepochs: null\nbeta: null\n"))
    assert (options.noise, options.epochs, options.beta) == ("none", 1.0, None)


def test_json_is_read_too(call, settings):
    values = {"runs": ["a", "b"], "candidates": 50, "users": None, "split": "cold", "modality": "blank", "cache": "é😀"}
    for indent in (None, "\t"):
        options = call(EvaluationOptions, settings(json.dumps(values, indent=indent), "settings.json"))
        assert (options.runs, options.candidates, options.users) == (["a", "b"], "50", None)
        assert (options.split, options.modality, options.cache) == ("cold", ["blank"], "é😀")
    text = '{"overwrite": true, "resume": false, "learning_rate": 1e-3}'
    options = call(SFTOptions, settings(text, "settings.json"))
    assert (options.overwrite, options.resume, options.learning_rate) == (True, False, 0.001)


def test_a_list_in_a_file(call, settings):
    options = call(EvaluationOptions, settings("runs: [a, b]\nmodality:\n- full\n- no-titles\ncandidates: all\n"))
    assert (options.runs, options.modality, options.candidates) == (["a", "b"], ["full", "no-titles"], "all")
    assert call(EvaluationOptions, settings("runs: a\n"), "--modality", "blank").runs == ["a"]


def test_an_empty_file_gives_the_defaults(call, settings):
    assert call(SFTOptions, settings("# nothing\n")) == SFTOptions()


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (SFTOptions, "epochs: many", "argument --epochs: invalid float value: 'many'"),
        (SFTOptions, "batch_size: 16.0", "argument --batch-size: invalid int value: '16.0'"),
        (SFTOptions, "batch_size: 0", "--batch-size 0: must be a number of at least 1"),
        (SFTOptions, "learning_rate: -1e-3", "--learning-rate -0.001: must be a number of at least 0"),
        (SFTOptions, "task: last", "argument --task: invalid choice: 'last'"),
        (SFTOptions, "resume: perhaps", "argument --resume: Truthy value expected"),
        (SFTOptions, "max_stepz: 1", "there is no option max_stepz; the closest is max_steps"),
        (SFTOptions, "beta: 0.1", "there is no option beta"),
        (DPOOptions, "backbone: tiny", "there is no option backbone"),
        (SFTOptions, "epoch: 1", "there is no option epoch; the closest is epochs"),
        (SFTOptions, "help: true", "there is no option help"),
        (SFTOptions, "3: 1", "there is no option 3"),
        (SFTOptions, "seed: [1, 2]", "seed takes a single value, not"),
        (SFTOptions, "seed: {a: 1}", "seed takes a single value, not"),
        (EvaluationOptions, "runs: {a: 1}", "runs takes"),
        (EvaluationOptions, "runs: []", "argument --runs: expected at least one argument"),
        (EvaluationOptions, "candidates: some", "--candidates some: must be a number of at least 2, or all"),
        (EvaluationOptions, "modality: [full, sideways]", "argument --modality: invalid choice: 'sideways'"),
        (SFTOptions, "- seed", "must be a mapping"),
        (SFTOptions, "seed", "must be a mapping"),
        (SFTOptions, "seed: [1", "cannot be read as settings"),
    ],
)
def test_what_is_refused_in_a_file_names_the_file(error, settings, kind, text, message):
    file = settings(text)
    line = error(kind, file)
    assert str(file) in line and message in line


def test_a_wrong_value_in_a_file_is_an_error_even_where_an_option_replaces_it(error, settings):
    file = settings("epochs: many")
    assert str(file) in error(SFTOptions, file, "--epochs", 1)


def test_an_error_in_an_option_after_a_file_does_not_blame_the_file(error, settings):
    file = settings("epochs: 1")
    assert str(file) not in error(SFTOptions, file, "--epochs", "many")


def test_a_file_that_cannot_be_read(error, tmp_path):
    (tmp_path / "latin.yaml").write_bytes("cache: é".encode("latin-1"))
    (tmp_path / "folder.yml").mkdir()
    for name in ("missing.yaml", "latin.yaml", "folder.yml"):
        assert f"{name}: cannot be read as settings" in error(SFTOptions, tmp_path / name)
    (tmp_path / "broken.json").write_text("{")
    assert "broken.json: cannot be read as settings" in error(SFTOptions, tmp_path / "broken.json")


# Settings of the paper


@pytest.mark.parametrize("name, noise_std", [("paper-dpo", 0.1), ("paper-dpo-microlens", 0.05)])
def test_settings_of_the_paper(call, name, noise_std):
    sft = call(SFTOptions, ROOT / "configs" / "paper-sft.yaml")
    dpo = call(DPOOptions, ROOT / "configs" / f"{name}.yaml")
    assert (sft.backbone, sft.lora) == ("Qwen/Qwen2.5-VL-3B-Instruct", "on")
    assert (sft.task, sft.history, sft.list_candidates, sft.image_pixels) == ("next", 5, True, 262_144)
    for options in (sft, dpo):
        assert (options.lora_rank, options.lora_alpha, options.lora_dropout) == (8, 32, 0.05)
        assert (options.learning_rate, options.weight_decay, options.warmup) == (1e-4, 0, 0)
        assert (options.epochs, options.seed, options.windows, options.layers) == (5, 2025, "last", "language")
    assert (sft.batch_size, dpo.batch_size) == (16, 32)
    assert (dpo.loss, dpo.recipe, dpo.beta, dpo.neighbours) == ("hanorec", "paper", 0.1, 10)
    assert (dpo.noise, dpo.noise_std) == ("logits", noise_std)


@pytest.mark.parametrize("task, history", [("top3", 3), ("yesno", 5)])
def test_settings_of_the_paper_go_with_the_protocol_of_the_release(call, task, history):
    file = ROOT / "configs" / "paper-sft.yaml"
    sft = call(SFTOptions, file, "--protocol", "release", "--task", task, "--history", history)
    complete_sft(sft)
    assert (sft.history, sft.list_candidates, sft.windows) == (history, True, "last")
    dpo = call(DPOOptions, ROOT / "configs" / "paper-dpo.yaml")
    complete_dpo(dpo, sft)
    assert (dpo.windows, dpo.negatives, dpo.rejected) == ("last", "random", 1)


# Defaults that depend on something else


def test_dpo_reads_its_data_where_the_sft_run_did_unless_told_otherwise(call):
    options = call(DPOOptions)
    complete_dpo(options, SFT)
    assert options.data == "movies"
    options = call(DPOOptions, "--data", "books")
    complete_dpo(options, SFT)
    assert options.data == "books"


def test_what_the_stages_share_is_an_option_of_the_first_alone(call):
    first, second = vars(call(SFTOptions)), vars(call(DPOOptions))
    shared = {
        "task",
        "protocol",
        "history",
        "candidates",
        "list_candidates",
        "item_view",
        "image_pixels",
        "image_views",
    }
    assert shared <= first.keys() and not shared & second.keys()


def test_a_page_of_help_can_be_read(call):
    """How many options each script has, at most."""
    assert [len(vars(call(kind))) <= most for kind, most in zip(KINDS, (38, 41, 24))] == [True] * 3


@pytest.mark.parametrize("task, history, candidates", [("top3", 3, 7), ("yesno", 5, 20)])
def test_the_releases_protocol_fixes_what_is_not_given(call, task, history, candidates):
    options = call(SFTOptions, "--protocol", "release", "--task", task)
    complete_sft(options)
    assert (options.history, options.candidates) == (history, candidates)
    assert (options.list_candidates, options.windows) == (True, "last")
    options = call(SFTOptions)
    complete_sft(options)
    assert (options.history, options.candidates) == (None, 20)
    assert (options.list_candidates, options.windows) == (False, "nested")


@pytest.mark.parametrize(
    "kind, given, fixed",
    [
        (SFTOptions, "--candidates 20", 7),
        (SFTOptions, "--history 7", 3),
        (SFTOptions, "--windows every", "last"),
        (SFTOptions, "--list-candidates false", "true"),
        (DPOOptions, "--windows every", "last"),
        (DPOOptions, "--negatives popularity", "random"),
        (DPOOptions, "--rejected 3", 1),
    ],
)
def test_what_contradicts_the_releases_protocol_is_an_error(call, kind, given, fixed):
    release = ["--protocol", "release", "--task", "top3"]
    with pytest.raises(DataError, match=f"^{given}: the protocol release has {fixed} for this task$"):
        if kind is SFTOptions:
            complete_sft(call(SFTOptions, *release, *given.split()))
        else:
            complete_dpo(call(DPOOptions, *given.split()), call(SFTOptions, *release))


def test_the_releases_protocol_leaves_alone_what_its_task_has_no_use_for(call):
    options = call(SFTOptions, "--protocol", "release", "--task", "yesno", "--candidates", 9, "--history", 5)
    complete_sft(options)  # yes/no ranks no candidates
    assert (options.candidates, options.history) == (9, 5)


def test_the_releases_protocol_has_no_next_item(call):
    with pytest.raises(DataError, match="^the protocol release has the tasks top3 and yesno; the task is next$"):
        complete_sft(call(SFTOptions, "--protocol", "release"))


@pytest.mark.parametrize(
    "arguments, noise, temperature",
    [
        ([], "logits", 1.0),
        (["--loss", "dpo"], "none", 1.0),
        (["--recipe", "calibrated"], "logits", 0.05),
        (["--loss", "dpo", "--noise", "lora"], "lora", 1.0),
        (["--noise", "none", "--recipe", "calibrated", "--temperature", "0.5"], "none", 0.5),
    ],
)
def test_noise_follows_the_loss_and_temperature_the_recipe(call, arguments, noise, temperature):
    options = call(DPOOptions, *arguments)
    complete_dpo(options, SFT)
    assert (options.noise, options.temperature) == (noise, temperature)


@pytest.mark.parametrize("loss, beta", [("hanorec", 0.1), ("dpo", 0.1), ("simpo", 2.0), ("s-dpo", 1.0), ("grpo", 0.04)])
def test_beta_is_that_of_the_objectives_paper_unless_given(call, loss, beta):
    options = call(DPOOptions, "--loss", loss)
    complete_dpo(options, SFT)
    assert options.beta == beta
    options = call(DPOOptions, "--loss", loss, "--beta", 3)
    complete_dpo(options, SFT)
    assert options.beta == 3


@pytest.mark.parametrize(
    "task, arguments, message",
    [
        ("yesno", ["--rejected", 2], "--rejected 2: a yes/no pair has one rejected response"),
        ("top3", ["--loss", "dpo", "--recipe", "calibrated"], "--recipe calibrated: the loss dpo has none"),
        ("top3", ["--loss", "simpo", "--temperature", 1], "--temperature 1.0: the loss simpo has none"),
        ("next", ["--rejected", 7], "--rejected 7: the rejected and the chosen titles are 8, and prompts of runs/sft"),
        ("top3", ["--rejected", 2], "--rejected 2: the rejected and the chosen titles are 9"),
        ("top3", ["--loss", "dpo", "--noise-std", 0.05], "--noise-std 0.05: no noise is added"),
        ("top3", ["--loss", "dpo", "--hardness", "off"], "--hardness off: the loss dpo has none"),
        ("top3", ["--negatives", "policy"], "--negatives policy: draws titles of the task next; the task is top3"),
        ("next", ["--layers", "all"], "--layers all: preference optimization keeps the vision tower as it is"),
    ],
)
def test_what_would_be_without_effect_or_not_fit_is_refused(call, task, arguments, message):
    with pytest.raises(DataError, match=message):
        complete_dpo(call(DPOOptions, *arguments), dataclasses.replace(SFT, task=task))


def test_a_model_trains_whole_or_by_an_adapter(call):
    assert not lora_trains(call(SFTOptions), 3_000_000) and lora_trains(call(SFTOptions), 300_000_000)
    assert lora_trains(call(SFTOptions, "--lora", "on"), 1) and not lora_trains(
        call(SFTOptions, "--lora", "off"), 10**9
    )
    assert not lora_trains(call(SFTOptions, "--layers", "all"), 1)
    assert lora_trains(call(SFTOptions, "--lora", "on", "--layers", "q_proj", "--lora-rank", 4), 1)
    with pytest.raises(DataError, match="--lora-rank: is of an adapter"):
        lora_trains(call(SFTOptions, "--lora-rank", 32), 1)
    with pytest.raises(DataError, match="--layers q_proj: a model that trains without LoRA takes language or all"):
        lora_trains(call(SFTOptions, "--layers", "q_proj"), 1)


def test_cache_folder_is_beside_the_run_unless_given():
    assert str(cache_folder(None, "there/run")) == "there/cache"
    assert str(cache_folder("elsewhere", "there/run")) == "elsewhere"


# --help


@pytest.fixture
def help_of(call, capsys, monkeypatch):
    def help_of(kind) -> str:
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as exit:
            call(kind, "--help")
        assert exit.value.code == 0
        return capsys.readouterr().out

    return help_of


@pytest.mark.parametrize("kind", KINDS)
def test_help_fits_100_columns_and_tells_every_option_with_its_default(help_of, kind):
    text = help_of(kind)
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("usage: script.py [settings.yaml] [--option value ...]\n")
    assert "None" not in text and "False" not in text
    entries = re.split(r"\n  (?=-)", text)[2:]  # after usage and -h
    assert [entry.split()[0] for entry in entries] == [
        f"--{field.name.replace('_', '-')}" for base in kind.__bases__ for field in dataclasses.fields(base)
    ]
    for entry in entries:
        assert re.search(r"\(default:\s", entry), entry


@pytest.mark.parametrize(
    "kind, groups",
    [
        (
            SFTOptions,
            ["data", "model", "what trains", "precision and memory", "optimization", "run, checkpoints and log"],
        ),
        (
            DPOOptions,
            ["HaNoRec (arXiv 2511.18740)", "what trains", "optimization", "related work (docs/objectives.md)"],
        ),
        (EvaluationOptions, ["what is evaluated", "data and candidates", "memory and cache"]),
    ],
)
def test_help_has_named_groups(help_of, kind, groups):
    titles = re.findall(r"^(\S.*):$", help_of(kind), flags=re.MULTILINE)
    assert [title for title in titles if title in groups] == groups


def test_help_says_defaults_as_they_are_typed(help_of):
    text = " ".join(help_of(EvaluationOptions).split())
    assert "(default: runs/sft runs/hanorec)" in text and "(default: full)" in text
    text = " ".join(help_of(SFTOptions).split())
    assert "--resume [true|false]" in text and "(default: false)" in text and "(default: 0.001)" in text
