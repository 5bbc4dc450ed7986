"""A dialogue remembers its turns, streams what it keeps, and is saved as records that training reads."""

from __future__ import annotations

import pytest

from accord.data import sources
from accord.data.chat import Chat
from accord.engine import models
from accord.sampling.talk import COMMANDS, Talk


@pytest.fixture(scope="module")
def policy(model_folder):
    return models.load(str(model_folder), device="cpu", precision="fp32")


def talk(policy, **options) -> Talk:
    return Talk(policy, Chat(policy.tokenizer, max_length=256), max_new_tokens=8, temperature=1.0, **options)


def conversation(one: Talk, *lines: str) -> tuple[str, list[str]]:
    written: list[str] = []
    notes: list[str] = []
    one.converse(lines, written.append, notes.append)
    return "".join(written), notes


def test_what_is_streamed_is_the_answer(policy):
    one = talk(policy)
    out, notes = conversation(one, "hello fox", "", "and you?")
    assert notes == []
    assert [question for question, _ in one.turns] == ["hello fox", "and you?"]
    pieces: list[str] = []
    again = talk(policy)
    again.max_new_tokens = 60
    answer = again.ask("hello fox", pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert len([p for p in pieces if p]) > 1, "it came at once"
    again = talk(policy)
    heard: list[str] = []
    for question, response in one.turns:
        assert again.ask(question, heard.append).token_ids == response.token_ids
        heard.append("\n")
    assert out == "".join(heard)


def test_later_answers_see_the_turns_before_them(policy):
    one = talk(policy, system="be brief")
    conversation(one, "hello", "why?")
    messages = one.messages("and now?")
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[2].content == one.turns[0][1].plain_text
    seen = [m.role for m in one.messages("why?", 1)]
    assert seen == ["system", "user", "assistant", "user"]
    other = talk(policy, system="be brief", seed=9)
    conversation(other, "hello")
    assert other.turns[0][1].token_ids != one.turns[0][1].token_ids


def test_commands(policy, tmp_path):
    one = talk(policy)
    file = tmp_path / "kept" / "chat.jsonl"
    _, notes = conversation(
        one, "hello", f"/save {file}", "why?", f"/save {file}", "/system be kind", "hello", f"/save {file}", "/reset",
        "/nonsense", "/save", f"/save {tmp_path}", "/quit", "never asked",
    )  # fmt: skip
    assert notes[0] == f"1 answers added to {file}"
    assert notes[1] == f"1 answers added to {file}"
    assert notes[2] == "a new dialogue under: be kind"
    assert notes[4] == "all turns are forgotten"
    assert notes[5] == f"/nonsense is no command; there are {', '.join(COMMANDS)}"
    assert notes[6].startswith("/save is no command")
    assert notes[7] == f"{tmp_path}: Is a directory"
    assert one.turns == []
    records = sources.load(file).records
    assert [len(r.messages) for r in records] == [1, 3, 2]
    assert records[2].messages[0].role == "system"
    for record in records:
        (response,) = record.responses
        assert response.token_ids
        assert response.sampler.temperature == 1.0
        assert len(response.sampling_logprobs) == len(response.token_ids)


def test_an_answer_may_be_stopped_and_a_long_dialogue_is_said(policy, monkeypatch):
    one = talk(policy)

    def stopped(text):
        raise KeyboardInterrupt

    notes: list[str] = []
    one.converse(["hello"], stopped, notes.append)
    assert one.turns == []
    assert notes == ["\nstopped; this turn is forgotten"]
    short = Talk(policy, Chat(policy.tokenizer, max_length=48), max_new_tokens=4)
    _, notes = conversation(short, "the quick brown fox " * 4, "the lazy dog " * 4)
    assert notes == ["(longer than 48 tokens by now: the oldest turns are cut off)"]
