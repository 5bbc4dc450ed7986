"""Settings: read from one place, checked, and every one of them used."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from accord import config
from accord.errors import ConfigError

MINIMAL: dict[Any, Any] = {"model": "m", "data": "d"}


def body_names() -> set[str]:
    """Names that the body of `train` reads."""
    tree = ast.parse(config.TRAIN.read_text(encoding="utf-8"))
    train = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    return {
        n.id for part in train.body for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }


@pytest.mark.parametrize("name", config.settings())
def test_every_setting_is_read_and_explained(name):
    setting = config.settings()[name]
    assert name in body_names(), "nothing reads it"
    assert len(setting.help) > 5, "it has no help in train's docstring"
    assert not setting.help.endswith((",", ":"))


def test_settings_are_those_of_the_signature():
    from accord.training.run import train

    found = {n: p for n, p in inspect.signature(train).parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert list(found) == list(config.settings())
    for name, p in found.items():
        setting = config.settings()[name]
        assert setting.required == (p.default is p.empty)
        assert setting.required or setting.default == p.default
        assert setting.annotation == str(p.annotation)


def test_what_may_be_written():
    forms = {n: s.form for n, s in config.settings().items()}
    assert forms["schedule"] == "cosine|linear|constant"
    assert forms["tokens_per_micro_batch"] == "int|auto"
    assert forms["max_steps"] == "int"
    assert forms["lora"] == "bool|{...}"


def test_types_are_made_right_and_only_what_was_given_comes_back():
    checked = config.check({**MINIMAL, "max-steps": "10", "learning_rate": "1e-6", "output": 5, "beta": 0.2})
    assert checked == {**MINIMAL, "max_steps": 10, "learning_rate": 1e-6, "output": "5", "beta": 0.2}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"modle": "m"}, "'modle' is no setting; did you mean 'model'"),
        ({**MINIMAL, "betta": 1}, "did you mean 'beta'"),
        ({**MINIMAL, "zzzzz": 1}, "accord train --help"),
        ({**MINIMAL, "tokenizer": "t"}, "'tokenizer' is no setting"),
        ({**MINIMAL, 3: 1}, "'3' is no setting"),
        ({"data": "d"}, "model is missing: a folder"),
        ({"model": "m"}, "data is missing: a file"),
        ({**MINIMAL, "batch_size": 2.5}, "batch_size=2.5: input should be a valid integer"),
        ({**MINIMAL, "batch_size": "many"}, "batch_size='many'"),
        ({**MINIMAL, "batch_size": True}, "batch_size needs a value: examples of one update"),
        ({**MINIMAL, "output": ""}, "output needs a value"),
        ({**MINIMAL, "schedule": "cosin"}, "'cosine', 'linear' or 'constant'"),
        ({**MINIMAL, "tokens_per_micro_batch": "few"}, "valid integer.* or input should be 'auto'"),
        ({**MINIMAL, "view": "ties"}, "view='ties'"),
    ],
)
def test_what_is_wrong_is_named(given, says):
    with pytest.raises(ConfigError, match=says):
        config.check(given)


def test_words_of_the_command_line():
    words = "--max-steps 10 beta=0.2 --save-best --view.ties half view.threshold=7 --weight-decay -1 --data a --data=b"
    assert config.parse(words.split()) == {
        "max_steps": 10, "beta": 0.2, "save_best": True, "view": {"ties": "half", "threshold": 7}, "weight_decay": -1,
        "data": ["a", "b"],
    }  # fmt: skip
    assert config.parse(["--objective", "[dpo, {name: sft, weight: 1e-1}]"]) == {
        "objective": ["dpo", {"name": "sft", "weight": 0.1}]
    }
    assert config.parse(["learning_rate=1e-6"]) == {"learning_rate": 1e-6}
    assert config.parse(["objective.pairs=dpo", "objective.labels=kto"]) == {
        "objective": {"pairs": "dpo", "labels": "kto"}
    }
    assert config.parse(["chat_template={% if"]) == {"chat_template": "{% if"}  # no YAML: it is a text


@pytest.mark.parametrize(
    "words", [["--lora", "--lora.rank", "8"], ["lora.rank=8", "lora=true"], ["lora={rank: 8}", "--lora"]]
)
def test_a_switch_and_a_key_within_are_one_wish(words):
    assert config.parse(words) == {"lora": {"rank": 8}}


@pytest.mark.parametrize("words", [["lora=false", "lora.rank=8"], ["objective.pairs=dpo", "objective=ipo"]])
def test_what_contradicts_itself_is_refused(words):
    with pytest.raises(ConfigError, match="contradict each other"):
        config.parse(words)


def test_a_bare_word_is_no_setting():
    with pytest.raises(ConfigError, match="'dpo': write a setting as key=value or --key value"):
        config.parse(["dpo"])


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_numbers_of_a_file(tmp_path):
    text = "a: 1e-6\nb: 1.5E3\nc: -2e+1\nd: e5\ne: 'x'\nf: 1_000\ng: null\n"
    found = config.read(written(tmp_path, text))
    assert found == {"a": 1e-6, "b": 1500.0, "c": -20.0, "d": "e5", "e": "x", "f": 1000, "g": None}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: m\n  data: [\n", r"c\.yaml, line 2: not YAML \(mapping values"),
        ("model: m\nbeta: 1\nbeta: 2\n", r"c\.yaml, line 3: 'beta' is set twice"),
        ("objective:\n  pairs: dpo\n  pairs: ipo\n", r"c\.yaml, line 3: 'pairs' is set twice"),
        ("- a\n", "a map of settings is expected"),
        ("", "a map of settings is expected"),
        (b"\xff\xfea", "not YAML"),
        ("a: !!python/object:os.system x\n", r"c\.yaml, line 1: could not determine a constructor"),
    ],
)
def test_a_file_that_is_none(text, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        config.read(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        config.read(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match=r"is a folder; name the file, like .*config\.yaml"):
        config.read(tmp_path)
