"""What the user types, and what they read: every command on a tiny model, every mistake as one sentence."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from accord import cli, config
from accord.cli import look, train
from accord.data import checks
from accord.data.chat import Chat
from accord.data.records import Message, Record, Response
from accord.objectives import table
from tests.conftest import make_tokenizer, mixed_records, pair_records


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with pairs, mixed feedback, prompts, and a file of odd rows."""
    folder = tmp_path_factory.mktemp("data")
    for name, records in (("pairs", pair_records()), ("mixed", mixed_records(6))):
        (folder / f"{name}.jsonl").write_text("".join(r.to_json() + "\n" for r in records), encoding="utf-8")
    (folder / "prompts.txt").write_text("hello fox\n\nhello 😀 dog\n", encoding="utf-8")
    odd = [
        '{"prompt": "a b c", "chosen": "yes", "rejected": "yes"}',
        '{"prompt": "a b c", "chosen": "yes", "rejected": "no"}',
        '{"prompt": "a b c", "chosen": "no", "rejected": "yes"}',
        '{"prompt": "q", "chosen": "a\\u0000b", "rejected": "yes", "score_chosen": 1, "score_rejected": 3}',
        '{"prompt": "q"}',
        "not json",
        '{"prompt": "a b c", "chosen": "yes", "rejected": "no"}',
    ]
    (folder / "odd.jsonl").write_text("\n".join(odd), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def options(model_folder, data) -> dict[str, str]:
    return {
        "model": str(model_folder), "data": str(data / "pairs.jsonl"), "max_steps": "3", "batch_size": "4",
        "learning_rate": "1e-3", "precision": "fp32", "device": "cpu",
    }  # fmt: skip


def typed(options: dict[str, str], **changes: str | None) -> list[str]:
    """Settings as options of the command line; None leaves one out."""
    found = {k.replace("_", "-"): v for k, v in {**options, **changes}.items() if v is not None}
    return [word for key, value in found.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "dpo-1"
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *typed(options, output=str(folder), beta="0.2"), "--quiet"])
    assert not end.value.code
    return folder


# -- light commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["objectives"], ["objectives", "dpo"], ["report"]])
def test_light_commands_import_no_torch_and_answer_at_once(words, finished):
    reads_tables = {"numpy", "pyarrow"} if words == ["report"] else set()
    words = [*words, str(finished)] if words == ["report"] else words
    code = (
        "import sys\nfrom accord.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nheavy = {'torch', 'transformers', 'scipy', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "sys.stderr.write(' '.join(sorted(heavy)))"
    )
    best = 9.0
    for _ in range(2):
        began = processor_seconds()
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        best = min(best, processor_seconds() - began)
        assert done.returncode == 0, done.stderr
        assert set(done.stderr.split()) <= reads_tables
        assert done.stdout
    assert best < 2.5  # a quarter of a second where nothing else runs, one for a report


def processor_seconds() -> float:
    """Of the processes that were waited for: what else the machine does hardly counts."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_names_every_setting(accord):
    code, out, _ = accord("train", "--help")
    assert code == 0
    for name in config.settings().keys() - set(config.PYTHON_ONLY):
        assert f"--{name.replace('_', '-')}" in out
    assert "cosine|linear|constant" in out
    assert "--tokenizer" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_objectives_as_json_are_the_table(accord):
    code, out, _ = accord("objectives", "--json")
    assert code == 0
    listed = {r["name"]: r for r in json.loads(out)}
    assert list(listed) == list(table.rows())
    dpo = listed["dpo"]
    assert dpo["feeds_on"] == "Pairs"
    assert dpo["needs_reference"] is True
    assert dpo["paper"] == "2305.18290"
    assert dpo["options"] == {"beta": 0.1}
    assert listed["sft"]["needs_reference"] is False


def test_objectives_are_listed_and_explained(accord):
    code, out, _ = accord("objectives")
    assert code == 0
    head, *families = out.split("\n\n")
    assert head.startswith("name ")
    listed = [[line.split()[0] for line in family.splitlines()] for family in families]
    modules = [{table.rows()[name].module for name in names} for names in listed]
    assert all(len(names) == 1 for names in modules)
    assert len(modules) == len(set(map(frozenset, modules))) == len(look.FAMILIES)
    assert sorted(name for names in listed for name in names) == sorted(table.rows())
    assert listed[0][0] == "sft"
    code, out, _ = accord("objectives", "dpo")
    assert code == 0
    assert "L = -log sigmoid(beta * Delta)" in out
    assert "beta: float = 0.1" in out
    assert "arXiv 2305.18290" in out
    assert json.loads(accord("objectives", "dpo", "--json")[1])[0]["name"] == "dpo"


def test_a_misspelt_objective(accord):
    code, out, err = accord("objectives", "dop")
    assert (code, out) == (2, "")
    assert err == "accord: no objective is called 'dop'; did you mean 'dpop' or 'dpo' or 'dco'?\n"


def test_an_objective_like_no_other(accord):
    assert accord("objectives", "qqqq")[2] == "accord: no objective is called 'qqqq'; see `accord objectives`\n"


def test_words_that_are_no_command(accord):
    assert accord("objectvies")[0] == 2
    assert accord("sample", "--modle", "x")[0] == 2
    assert accord("report")[0] == 2


# -- train ------------------------------------------------------------------------------------------------------------


def test_train_by_options_alone(finished):
    held = yaml.safe_load((finished / "config.yaml").read_text())
    assert held["beta"] == 0.2
    assert held["learning_rate"] == 1e-3
    assert held["max_steps"] == 3
    assert {"model", "metrics.jsonl", "summary.json", "data.json", "report.html"} <= {
        p.name for p in finished.iterdir()
    }


def test_train_by_a_file_and_overrides(accord, options, finished):
    text = "\n".join(f"{k}: {v}" for k, v in {**options, "beta": 0.1, "output": "run"}.items())
    Path("c.yaml").write_text(text)
    code, out, err = accord("train", "c.yaml", "beta=0.2", "--view.ties", "half")
    assert (code, err) == (0, "")
    held = yaml.safe_load(Path("run/config.yaml").read_text())
    assert held["beta"] == 0.2
    assert held["view"] == {"ties": "half"}
    assert Path("run/metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    for line in (
        "24 pairs",
        "chat template",
        "3 updates of 4 examples",
        "step 1/3",
        "step 3/3",
        "held out",
        "done after",
    ):
        assert line in out
    for noise in ("it/s", "Warning", "Loading weights", "Writing model"):
        assert noise not in out
    code, _, err = accord("train", "c.yaml")
    assert code == 2
    assert "run holds a finished run; choose another output, or overwrite: true" in err


def test_a_finished_runs_config_repeats_it_into_the_next_free_folder(accord, finished):
    code, out, err = accord("train", finished / "config.yaml")
    again = finished.with_name("dpo-2")
    assert (code, err) == (0, "")
    assert f"{finished} is finished; it is repeated in {again}" in out
    assert (again / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    mine, theirs = (yaml.safe_load((f / "config.yaml").read_text()) for f in (finished, again))
    assert {**mine, "output": ""} == {**theirs, "output": ""}


def test_a_runs_config_repeats_it_from_any_folder(accord, options, data, model_folder, monkeypatch):
    """Its relative paths are those of the folder that the run was started in; words are of the folder one is in."""
    home, away = Path("home").resolve(), Path("away").resolve()
    for folder, source in ((home, "pairs"), (away, "mixed")):
        folder.mkdir()
        (folder / "pairs.jsonl").write_bytes((data / f"{source}.jsonl").read_bytes())
    (home / "tiny").symlink_to(model_folder)
    monkeypatch.chdir(home)
    words = typed(options, model="tiny", data="pairs.jsonl", max_steps="1", output="runs/dpo-1")
    assert accord("train", *words, "--quiet")[0] == 0
    monkeypatch.chdir(away)
    assert accord("train", home / "runs/dpo-1/config.yaml", "--quiet")[0] == 0
    told, again = (json.loads((home / f"runs/dpo-{n}/data.json").read_text()) for n in (1, 2))
    assert again["content"] == told["content"]
    kept = config.read(home / "runs/dpo-2/config.yaml")
    assert (kept["data"], kept["model"], kept["output"]) == ("pairs.jsonl", "tiny", "runs/dpo-2")
    assert Path.cwd() == away
    assert accord("train", home / "runs/dpo-1/config.yaml", "output=mine", "data=pairs.jsonl", "--quiet")[0] == 0
    assert config.read(away / "mine/config.yaml")["data"] == str(away / "pairs.jsonl")
    assert not (home / "mine").exists()


def test_a_file_of_settings_finds_what_lies_beside_it(accord, options, data, tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "pairs.jsonl").write_bytes((data / "pairs.jsonl").read_bytes())
    file = tmp_path / "conf" / "run.yaml"
    held = {k: config.parse([f"{k}={v}"])[k] for k, v in options.items()}
    file.write_text(yaml.safe_dump(held | {"data": [{"path": "pairs.jsonl"}], "max_steps": 1, "output": "out"}))
    assert accord("train", "conf/run.yaml", "--quiet")[0] == 0
    assert config.read(Path("out/config.yaml"))["data"] == [{"path": "conf/pairs.jsonl"}]
    file.write_text(yaml.safe_dump(held | {"data": "./other.jsonl"}))
    code, _, err = accord("train", "conf/run.yaml", "--quiet")
    assert code == 2
    assert err == f"accord: conf/run.yaml: data: ./other.jsonl is neither in {tmp_path} nor beside the file, in conf\n"


def test_a_repeated_run_that_never_clips_never_clips_again(accord, options):
    assert accord("train", *typed(options, max_grad_norm="null", output="run"), "--quiet")[0] == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["max_grad_norm"] is None
    code, out, _ = accord("train", "run/config.yaml", "--quiet")
    assert (code, out) == (0, "")
    assert Path("run-2/metrics.jsonl").read_bytes() == Path("run/metrics.jsonl").read_bytes()


def test_the_next_free_folder(tmp_path):
    for name in ("dpo-1", "dpo-2", "run", "a-b"):
        (tmp_path / name).mkdir()
    assert [Path(train._next_to(tmp_path / n)).name for n in ("dpo-1", "run", "a-b", "7")] == [
        "dpo-3",
        "run-2",
        "a-b-2",
        "7-2",
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modle": "x"}, "'modle' is no setting; did you mean 'model'?"),
        ({"model": None}, "model is missing: a folder"),
        ({"data": None}, "data is missing: a file"),
        ({"batch_size": "many"}, "batch_size='many': input should be a valid integer"),
        ({"schedule": "cosin"}, "schedule='cosin': input should be 'cosine', 'linear' or 'constant'"),
        ({"objective": "dop"}, "no objective is called 'dop'; did you mean 'dpop' or 'dpo'"),
        ({"tau": "1"}, "'tau' is not an option of dpo"),
        ({"data": "nope.jsonl"}, "nope.jsonl: there is no such file"),
        ({"model": "./nope"}, "model './nope': there is no such folder"),
    ],
)
def test_mistakes_in_options_are_one_sentence(changes, says, accord, options):
    code, _, err = accord("train", *typed(options, **changes))
    assert code == 2
    assert err.startswith("accord: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "model is missing: a folder"),
        (["nope.yaml"], "nope.yaml: there is no such file"),
        (["bad.yaml"], "bad.yaml, line 2: not YAML"),
        (["good.yaml", "bad.yaml"], "'bad.yaml': write a setting as key=value"),
        (["good.yaml", "--batch-size"], "batch_size needs a value"),
        (["."], ". is a folder; name the file, like config.yaml"),
    ],
)
def test_mistakes_in_files_are_one_sentence(words, says, accord):
    Path("good.yaml").write_text("model: m\ndata: d\n")
    Path("bad.yaml").write_text("model: m\n  data: [\n")
    code, out, err = accord("train", *words)
    assert (code, out) == (2, "")
    assert err.startswith("accord: ")
    assert says in err
    assert err.count("\n") == 1


# -- sample -----------------------------------------------------------------------------------------------------------


def test_sample_prints_answers_to_the_lines_of_a_text(accord, finished, data):
    code, out, err = accord("sample", "--model", finished, "--prompts", data / "prompts.txt", "--max-new-tokens", 4)
    assert (code, err) == (0, "")
    assert out.startswith("> hello fox\n  ")
    assert "> hello 😀 dog\n" in out


def test_sample_as_records_that_train_reads(accord, model_folder, data, options):
    words = ["sample", "--model", model_folder, "--prompts", data / "pairs.jsonl", "--max-prompts", 3, "--samples", 2]
    words += ["--max-new-tokens", 5, "--precision", "fp32"]
    code, out, err = accord(*words, "--json")
    assert (code, err) == (0, "")
    printed = [Record.from_json(line) for line in out.splitlines()]
    assert [len(r.responses) for r in printed] == [2, 2, 2]
    assert all(a.token_ids and a.sampling_logprobs and a.tokenizer for r in printed for a in r.responses)
    code, out, _ = accord(*words, "--output", "made/answers.jsonl")
    assert (code, out) == (0, "3 prompts, 6 answers: made/answers.jsonl\n")
    assert Path("made/answers.jsonl").read_text(encoding="utf-8").splitlines() == [r.to_json() for r in printed]
    assert json.loads(accord(*words, "--output", "made/answers.jsonl", "--json")[1])["answers"] == 6
    assert (
        accord("train", *typed(options, data="made/answers.jsonl", objective="sft", max_steps="1"), "--quiet")[0] == 0
    )


@pytest.mark.parametrize("typed", ["hello fox\n\nhello dog\n", '{"prompt": "hello fox"}\n{"prompt": "hello dog"}\n'])
def test_sample_reads_prompts_or_records_from_standard_input(typed, accord, model_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(typed.encode()))))
    code, out, err = accord("sample", "--model", model_folder, "--prompts", "-", "--max-new-tokens", 2, "--json")
    assert (code, err) == (0, "")
    made = [Record.from_json(line) for line in out.splitlines()]
    assert [(r.prompt, r.source) for r in made] == [("hello fox", "stdin"), ("hello dog", "stdin")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompts", "nope.txt"], "nope.txt: No such file"),
        (["--prompts", "nope.jsonl"], "nope.jsonl: there is no such file"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt"),
        (["--prompts", "Name a colour."], "a prompt itself is given by standard input: echo"),
        (["--prompts", "one.txt", "--model", "run/checkpoints/step-2"], "name the run, run, when it has ended"),
        (["--prompts", "latin.txt"], "latin.txt: this is not UTF-8; iconv"),
        (["--prompts", "one.txt", "--model", "./nope"], "model './nope': there is no such folder"),
        (["--prompts", "one.txt", "--device", "tpu"], "device='tpu' is none of auto, cpu, cuda, mps"),
        (["--prompts", "one.txt", "--top-p", "2"], "0 < top_p <= 1"),
    ],
)
def test_mistakes_in_sample(words, says, accord, model_folder):
    Path("empty.txt").write_text("\n")
    Path("one.txt").write_text("hi\n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("run/checkpoints/step-2").mkdir(parents=True)
    Path("run/checkpoints/step-2/progress.json").touch()
    code, out, err = accord("sample", "--model", model_folder, *words)
    assert (code, out) == (2, "")
    assert says in err


# -- data -------------------------------------------------------------------------------------------------------------


def test_check_tells_what_a_file_is_and_what_it_gives(accord, data):
    code, out, err = accord("data", "check", data / "mixed.jsonl", "--strict")
    assert (code, err) == (0, "")
    assert "mixed.jsonl: accord records, 6 pairs, 6 demonstrations, 6 rated responses, 6 ranked lists" in out
    assert "24 of 24 prompts" in out
    assert "demonstrations 6, ratings 6, pairs 6, rankings 6" in out
    assert "Pairs          24  rankings 18, pairs 6" in out
    assert out.endswith("nothing odd\n")


def test_check_names_everything_odd_by_file_and_line(accord, data):
    file = data / "odd.jsonl"
    code, out, _ = accord("data", "check", file)
    assert code == 0
    assert accord("data", "check", file, "--strict")[0] == 1
    for line in (
        f"cannot be read: this field is missing or null in 'chosen': 1 ({file}:5)",
        f"cannot be read: the line is not JSON (Expecting value): 1 ({file}:6)",
        f"dropped: chosen equals rejected: 1 ({file}:1)",
        f"pair whose scores say the opposite: 1 ({file}:4)",
        f"contradiction: the same pair in both directions: 1 ({file}:3)",
        f"duplicate pair dropped: 1 ({file}:7)",
        f"the same record again: 1 ({file}:7)",
        f"control characters (NUL and such) in a text: 1 ({file}:4)",
    ):
        assert line in out


def test_check_as_json(accord, data):
    code, out, _ = accord("data", "check", data / "odd.jsonl", "--json", "--strict")
    assert code == 1
    story = json.loads(out)
    assert story["odd"] is True
    assert story["records"] == 5
    assert story["uses"]["Pairs"]["examples"] == 1
    assert {"what", "count", "places", "remedy"} == set(story["oddities"][0])


def test_check_renames_columns(accord):
    Path("q.csv").write_text("question,good,bad\nhi,hello,no\n")
    assert accord("data", "check", "q.csv")[0] == 2
    code, out, _ = accord("data", "check", "q.csv", "--columns", "prompt=question,chosen=good,rejected=bad")
    assert code == 0
    assert "1 pair" in out
    code, _, err = accord("data", "check", "q.csv", "--columns", "question")
    assert code == 2
    assert "write it as prompt=question,chosen=good" in err


def test_check_of_nothing(accord):
    code, _, err = accord("data", "check", "nope.jsonl")
    assert code == 2
    assert "nope.jsonl: there is no such file" in err


def test_show_prints_every_response_as_tokens(accord, data, model_folder):
    code, out, err = accord("data", "show", data / "pairs.jsonl", "--model", model_folder, "--records", 2)
    assert (code, err) == (0, "")
    assert out.count("response 0:") == out.count("response 1:") == 2
    assert "context  [[trained]]  seen, not trained" in out
    assert "<|im_start|>assistant↵\n[[the fox is quick and brown<|im_end|>]]" in out


def test_what_is_shown_is_coloured_by_what_is_trained():
    tokenizer = make_tokenizer()
    chat = Chat(tokenizer, max_length=64)
    turns = (
        Message(role="assistant", content="hello"), Message(role="user", content="the fox"),
        Message(role="assistant", content="world"),
    )  # fmt: skip
    record = Record(prompt="hi", responses=(Response(messages=turns), Response(text="the lazy dog " * 30)))
    head, body, cut, _ = checks.shown(record, chat)
    assert "response 0: " in head.plain
    assert "its end is cut off" in cut.plain
    found = {(body.plain[s.start : s.end], str(s.style)) for s in body.spans}
    assert ("<|im_start|>", "dim reverse") in found
    assert ("hello", "bold green") in found
    assert ("<|im_end|>", "bold green reverse") in found
    assert ("the fox", "yellow") in {(t.split("↵\n")[-1], s) for t, s in found}
    prompt_only = checks.shown(Record(prompt="hi"), chat)
    assert "no response" in prompt_only[0].plain
    dropped = checks.shown(record, Chat(tokenizer, max_length=64, overlong="drop"))
    assert "dropped: longer than max_length=64" in dropped[0].plain


# -- report -----------------------------------------------------------------------------------------------------------


def test_report_writes_again_what_it_is_given(accord, finished):
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    code, out, _ = accord("report", finished)
    assert (code, out) == (0, f"{finished / 'report.html'}\n")
    assert (finished / "report.html").read_bytes() == before
    code, _, err = accord("report", "nope")
    assert code == 2
    assert "nope is no run folder" in err


def test_the_command_itself():
    """As installed: exit status 2 and one sentence."""
    words = [sys.executable, "-m", "accord", "objectives", "dop"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "accord: no objective is called 'dop'; did you mean 'dpop' or 'dpo' or 'dco'?\n"


# -- habits of the field ----------------------------------------------------------------------------------------------


def test_help_shows_commands_in_groups(accord):
    code, out, _ = accord("--help")
    assert code == 0
    for panel, names in (
        ("Data and training", ["train", "data"]),
        ("Models", ["chat", "export"]),
        ("Look things up", ["doctor"]),
    ):
        part = out.partition(f"{panel}:")[2].partition("\n\n")[0]
        assert [n for n in names if f"\n  {n} " not in part] == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", ["train"]),
        ("train max_s", ["max_steps="]),
        ("train --max-s", ["--max-steps"]),
        ("train max_steps=5 label_s", ["label_smoothing="]),
        ("train --objective kt", ["kto"]),
        ("train objective=simp", ["objective=simpo"]),  # shells that leave a word whole
        ("train objective = simp", ["simpo"]),  # those that part it
        ("train schedule =", ["cosine", "linear", "constant"]),
        ("train data = slogans", ["slogans"]),
        ("train model = ru", ["runs/dpo-7"]),
        ("train trackers = mlf", ["mlflow"]),
        ("objectives simp", ["simpo"]),
        ("report runs/", ["runs/dpo-7"]),
        ("chat runs/", ["runs/dpo-7"]),
        ("export runs/dpo-7 --dt", ["--dtype"]),
    ],
)
def test_the_shell_completes(typed, offered, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "dpo-7"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    words = f"accord {typed}"
    asked = {"_ACCORD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = (
        "import sys\nfrom accord.cli import main\nsys.argv = ['accord']\ntry:\n    main()\nfinally:\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    path = os.pathsep.join([str(Path(cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked | {"PYTHONPATH": path}, capture_output=True, text=True,
        cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == offered, done.stderr


def test_the_script_that_is_shown_completes_in_bash(tmp_path):
    """Also where Accord was started as `python -m accord`."""
    path = os.pathsep.join([str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    words = [sys.executable, "-m", "accord", "--show-completion", "bash"]
    script = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    command = tmp_path / "accord"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m accord "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    typed = (
        script + "\nCOMP_WORDS=(accord train label_s); COMP_CWORD=2; COMP_LINE='accord train label_s'"
        '\n$(complete -p accord | sed "s/.*-F \\([^ ]*\\) .*/\\1/") accord\necho "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "--norc", "-c", typed], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["label_smoothing="], done.stderr
    assert done.stderr == ""


def test_chat_answers_the_lines_of_a_pipe(accord, model_folder, monkeypatch):
    lines = "hello fox\n\n/save chat.jsonl\n/what\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    words = ["chat", model_folder, "--max-new-tokens", 5, "--seed", 3, "--system", "be brief", "--device", "cpu"]
    code, out, err = accord(*words)
    assert code == 0
    (record,) = [Record.from_json(line) for line in Path("chat.jsonl").read_text().splitlines()]
    assert [m.role for m in record.messages] == ["system", "user"]
    assert out.strip() == record.responses[0].text
    assert (
        err == "1 answers added to chat.jsonl\n/what is no command; there are /reset, /system TEXT, /save FILE, /quit\n"
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello fox\n")))
    assert accord(*words)[1] == out
    code, _, err = accord("chat", "./nope")
    assert code == 2
    assert "there is no such folder" in err


def test_export_writes_a_folder_that_samples_alike(accord, finished, data):
    code, out, _ = accord("export", finished, "--output", "whole/model")
    assert (code, out) == (0, "whole/model\n")
    words = ["--prompts", data / "prompts.txt", "--max-new-tokens", 4, "--device", "cpu", "--precision", "fp32"]
    answers = [accord("sample", "--model", m, *words)[1] for m in (finished, "whole/model")]
    assert answers[0] == answers[1] != ""
    code, _, err = accord("export", finished, "--output", "whole/model")
    assert code == 2
    assert "whole/model holds something" in err


def test_settings_of_another_toolkit_train(accord, model_folder, data):
    theirs = {
        "model_name_or_path": str(model_folder), "dataset_name": str(data / "pairs.jsonl"), "loss_type": "sigmoid",
        "beta": 0.2, "per_device_train_batch_size": 4, "max_steps": 2, "output_dir": "run", "logging_steps": 5,
    }  # fmt: skip
    Path("theirs.yaml").write_text(yaml.safe_dump(theirs))
    code, out, _ = accord("convert-config", "theirs.yaml", "--output", "ours/dpo.yaml")
    assert (code, out) == (0, "ours/dpo.yaml: read its comments; 1 key without a counterpart\n")
    assert accord("train", "ours/dpo.yaml", "--quiet", "--precision", "fp32", "--device", "cpu")[0] == 0
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 2
    assert "# logging_steps: 5 -- meaningless here" in accord("convert-config", "theirs.yaml", "--from", "trl")[1]
    code, _, err = accord("convert-config", "theirs.yaml", "--output", "ours/dpo.yaml")
    assert code == 2
    assert "ours/dpo.yaml is there already" in err


def test_doctor_runs(accord):
    code, out, _ = accord("doctor")
    assert code == 0
    assert "ok    attention: shared prompts" in out
    told = json.loads(accord("doctor", "--json")[1])
    assert {"name", "status", "says", "remedy"} == set(told[0])


def test_a_pipe_that_is_not_utf_8_is_one_sentence(accord, model_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\ncaf\xe9\n")))
    code, _, err = accord("chat", model_folder, "--max-new-tokens", 2, "--device", "cpu")
    assert code == 2
    assert "standard input, line 2: this is not UTF-8; pass it through iconv" in err
