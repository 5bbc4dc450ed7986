"""The doctor says what is here, with a remedy for whatever is not well, and breaks for nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os

import pytest

from accord import cli, doctor


def lines(check) -> list[doctor.Line]:
    return list(check())


def test_this_machine_is_examined():
    found = {line.name: line for line in doctor.examine()}
    assert {
        "accord",
        "libraries",
        "extras",
        "processor",
        "threads",
        "memory",
        "disk here",
        "cache",
        "processes",
    } <= set(found)
    assert found["attention"].status == "ok"
    assert "shared prompts give the log-probs of the plain forward" in found["attention"].says
    assert importlib.metadata.version("torch") in found["libraries"].says
    assert "gloo" in found["processes"].says
    for line in found.values():
        assert line.status == "ok" or line.remedy, line


def test_versions_are_held_against_the_ranges_of_the_package(monkeypatch):
    wanted = ["torch>=99", "nonesuch>=1", "numpy>=1", "wandb>=0.20; extra == 'wandb'", "pytest; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = {line.name: line for line in lines(doctor.versions)}
    assert found["torch"].status == "warn"
    assert "Accord is made for >=99" in found["torch"].says
    assert found["nonesuch"].status == "fail"
    assert found["nonesuch"].remedy == "pip install 'nonesuch>=1'"
    assert "numpy" in found["libraries"].says
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    (extras,) = lines(doctor.extras)
    assert (extras.status, extras.says) == ("ok", "none; not installed: wandb")


def test_a_check_that_breaks_is_a_line(monkeypatch):
    def breaks():
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "memory", breaks)
    (line,) = [line for line in doctor.examine() if line.name == "breaks"]
    assert line.status == "fail"
    assert "RuntimeError: no such thing" in line.says


def test_a_cache_that_cannot_be_written_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "file" / "cache"))
    (line,) = lines(doctor.cache)
    assert line.status == "fail"
    assert "ACCORD_CACHE" in line.remedy
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "new"))
    (line,) = lines(doctor.cache)
    assert line.status == "ok"


def test_little_room_and_spinning_threads_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 10**15)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 10**18)
    assert {line.status for check in (doctor.memory, doctor.disk) for line in lines(check)} == {"warn"}
    monkeypatch.setattr(doctor, "cores", lambda: 0)
    assert "more than cores" in lines(doctor.threads)[0].says
    monkeypatch.setattr(doctor, "cores", lambda: os.cpu_count() or 1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "spin" in lines(doctor.threads)[0].says


def test_a_layout_that_is_not_shared_is_a_warning(monkeypatch):
    from accord.engine import models

    def choose(policy, layout="auto"):
        policy.told.append("prompts are laid out 'padded'")

    monkeypatch.setattr(models, "choose_layout", choose)
    (line,) = lines(doctor.attention)
    assert (line.status, line.remedy) == ("warn", "use the versions of constraints.txt")


@pytest.mark.parametrize("status", ["ok", "fail"])
def test_the_command_ends_with_1_if_something_fails(status, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Line("thing", status, "it is so", "mend it")]))
    for words in (["doctor"], ["doctor", "--json"]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert bool(end.value.code) == (status == "fail")
        out = capsys.readouterr().out
        if "--json" in words:
            assert json.loads(out) == [{"name": "thing", "status": status, "says": "it is so", "remedy": "mend it"}]
        else:
            assert out == f"{status:<5} thing: it is so\n      -> mend it\n"
