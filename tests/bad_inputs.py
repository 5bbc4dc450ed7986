"""Inputs that are wrong, and what has to be said about each: used by `test_bad_inputs.py`.

A `Bad` row is a good one of its layout with some fields changed; fields are named by their path. A `Ruined` file is bad
as a whole. Most cases are the product of a table of faults and the fields that can have them, in each layout: a fault
that one layout names well is easily missed in another.
"""

from __future__ import annotations

import bz2
import copy
import csv
import gzip
import io
import json
import lzma
import math
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GONE = object()
SKIP = "on_bad_record"
HALF = "\ud83d"


def turns(*said: str) -> list[dict[str, str]]:
    """Turns of user and assistant in alternation."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def share(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]


REVIEW = {"worker_id": "3", "correctness-rating": 10, "selection-rating": 20, "overall-rating": 30, "overall-rank": 1}
GOOD: dict[str, dict[str, Any]] = {  # layout to a good row; several of one layout are told apart behind a "#"
    "record": {
        "prompt": "p",
        "responses": [{"text": "a"}, {"text": "b"}],
        "judgements": [{"kind": "preference", "pair": [0, 1], "value": 1},
                       {"kind": "label", "response": 0, "value": 1}],
    },
    "prompt/chosen/rejected": {
        "prompt": "p", "chosen": "a", "rejected": "b", "strength": 0.8, "margin": 2, "score_chosen": 5,
        "scale": [0, 10], "metadata": {"score_rejected": 3}, "system": "s",
    },
    "rewardbench": {
        "prompt": "p", "chosen": "a", "chosen_model": "x", "rejected": "b", "rejected_model": "y", "subset": "s",
    },
    "rewardbench2": {
        "id": "1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "models": ["x", "y", "z"], "subset": "s",
    },
    "conversations/chosen/rejected": {"conversations": share("p"), "chosen": share("", "a")[1], "rejected": "b"},
    "alpaca/chosen/rejected": {
        "instruction": "i", "input": "x", "history": [["q", "a"]], "chosen": "a", "rejected": "b", "margin": "0.5",
    },
    "hh": {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
    "chosen/rejected": {"chosen": turns("p", "a"), "rejected": turns("p", "b")},
    "messages/rejected_response": {"messages": turns("p", "a"), "rejected_response": "b"},
    "messages/rejected_response#messages": {"messages": turns("p", "a"), "rejected_messages": turns("p", "b")},
    "prompt/completions/labels": {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
    "question/answers/scores": {"question": "p", "answers": ["a", "b"], "scores": [1.5, 0.5]},
    "prompt/responses/scores": {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "scale": [0, 5]},
    "prompt/responses/scores#labels": {"prompt": "p", "responses": ["a", "b"], "labels": [True, False]},
    "prompt/responses/scores#ranks": {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]},
    "prompt/responses/scores#ranking": {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 0]},
    "prompt/completion/label": {"prompt": "p", "completion": "a", "label": True},
    "prompt/completion/label#kto": {"instruction": "p", "output": "a", "kto_tag": True},
    "prompt/completion/label#turns": {"messages": turns("p", "a"), "label": False},
    "prompt/response/rating": {"prompt": "p", "response": "a", "rating": 3, "scale": [0, 5]},
    "prompt/response/rating#score": {"conversations": share("p", "a"), "score": 0.5},
    "messages": {"messages": turns("p", "a"), "tools": [{"type": "function", "function": {"name": "now"}}]},
    "sharegpt": {"conversations": share("p", "a"), "system": "s", "tools": "[]"},
    "prompt/completion": {"prompt": "p", "completion": "a"},
    "alpaca": {"instruction": "i", "input": "", "output": "a", "history": [], "system": ""},
    "question/answer": {"question": "p", "answer": "a"},
    "prompt": {"prompt": "p"},
    "oasst": {
        "message_tree_id": "t",
        "prompt": {
            "role": "prompter",
            "text": "p",
            "replies": [
                {"role": "assistant", "text": "a", "rank": 0, "replies": []},
                {"role": "assistant", "text": "b", "rank": 1, "replies": [
                    {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "c", "replies": []}]}]},
            ],
        },
    },
    "squality": {
        "question": "p",
        "systems": {"x": {"response": "a", "reviews": [{**REVIEW}]}, "y": {"response": "b", "reviews": [{**REVIEW}]}},
    },
    "qa-feedback": {
        "question": "p", "passages": [["T", "s"]], "prediction 1": "abcdef", "prediction 2": "b", "preference": [1],
        "feedback": {"errors": [{"error type": "Redundant", "start": 0, "end": 6}], "missing-info": [],
                     "corrected-prediction": "abc"},
    },
    "dsp": {"query": "p", "responses": {"law": "a", "verse": "b"}},
    "red-team": {"transcript": "\n\nHuman: p\n\nAssistant: a", "rating": 2.0},
    "gsm8k-solutions": {
        "question": "p", "x": {"solution": "a", "is_correct": True}, "y": {"solution": "b", "is_correct": False},
    },
    "messages/rejected_response#query": {"query": "p", "response": "a", "rejected_response": "b", "history": []},
    "nectar": {
        "prompt": "\n\nHuman: p\n\nAssistant: ",
        "answers": [{"answer": "a", "model": "x", "rank": 1.0}, {"answer": "b", "model": "y", "rank": 2.0}],
    },
    "helpsteer": {
        "prompt": "p", "response": "a", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2,
        "verbosity": 1,
    },
    "helpsteer-preference": {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": -1},
    "pku-saferlhf": {
        "prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1,
        "is_response_0_safe": False,
    },
    "arena": {
        "model_a": "x", "model_b": "y", "winner": "tie", "conversation_a": turns("p", "a"),
        "conversation_b": turns("p", "b"),
    },
    "lmsys-55k": {
        "id": 1, "model_a": "x", "model_b": "y", "prompt": '["p"]', "response_a": '["a"]', "response_b": '["b"]',
        "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0,
    },
    "ultrafeedback": {
        "instruction": "p", "completions": [
            {"model": "x", "response": "a", "overall_score": 7.5, "annotations": {"honesty": {"Rating": "4"}}},
            {"model": "y", "response": "b", "overall_score": 3, "annotations": {"honesty": {"Rating": "N/A"}}},
        ],
    },
    "shp": {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 5, "score_B": 2},
    "openai-preference": {
        "input": {"messages": turns("p"), "tools": [], "parallel_tool_calls": True},
        "preferred_output": turns("", "a")[1:], "non_preferred_output": turns("", "b")[1:],
    },
    "stack-exchange": {"qid": 1, "question": "p", "response_j": "a", "response_k": "b"},
    "prompt/chosen_response/rejected_response": {"prompt": "p", "chosen_response": "a", "rejected_response": "b"},
    "alpaca/ranked": {"instruction": "p", "input": "", "output": ["a", "b"]},
    "input/output": {"input": "p", "output": "a"},
    "input/output#problem": {"problem": "p", "solution": "a", "level": 1},
    "step-dpo": {
        "prompt": "p", "initial_reason_steps": "s", "chosen": "a", "rejected": "b", "full_chosen": "a",
        "full_rejected": "bc",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Bad:
    """A row of `good` with `change`; what is said of it. `form` is the file it stands in."""

    good: str
    change: dict[str, Any]
    field: str | None
    what: str
    remedy: str = SKIP
    form: str = ".jsonl"
    base: dict[str, Any] | None = None

    @property
    def layout(self) -> str:
        return self.good.partition("#")[0]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A good row, the bad one, and the good one again."""
        good = self.base or GOOD[self.good]
        return [good, changed(good, self.change), good]

    def __str__(self) -> str:
        said = ",".join(f"{k}={'gone' if v is GONE else ascii(v)[:200]}" for k, v in self.change.items())
        return f"{self.good}{self.form}-{said}".encode("ascii", "replace").decode()


@dataclass(frozen=True)
class Ruined:
    """A file that is bad as a whole: whatever `on_error` says, it is refused. `options` are those of `load`."""

    name: str
    raw: bytes
    line: int | None
    what: str
    remedy: str
    field: str | None = None
    options: dict[str, Any] | None = None


def changed(row: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A copy of a row in which the fields at these paths have other values, or are gone."""
    row = copy.deepcopy(row)
    for path, value in change.items():
        inner: Any = row
        *above, last = path.split(".")
        for step in above:
            inner = inner[int(step) if isinstance(inner, list) else step]
        if value is GONE:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value
    return row


# -- faults that a field of one kind can have: (value, what is added to the field's name, what, remedy) ----------------

MISSING = [(GONE, "", "missing or null", SKIP), (None, "", "missing or null", SKIP)]
NO_TURNS = [
    (3, "", "a list is expected, not a number", SKIP),
    (True, "", "a list is expected, not true or false", SKIP),
    ([], "", "there are no turns", SKIP),
    (["x"], ".0", "a turn with role and content is expected, not text", SKIP),
    ([{"role": "asistant", "content": "x"}], ".0.role", "the role is 'asistant'", "'assistant'"),
    ([{"content": "x"}], ".0.role", "a turn without a role", "assistant"),
    ([{"role": "user"}], ".0.content", "a turn without content", SKIP),
    ([{"role": "user", "content": 3}], ".0.content", "text or a list of parts is expected, not a number", SKIP),
    *[
        ([{"role": "user", "content": [part, {"type": "text", "text": "x"}]}], ".0.content.0", what, remedy)
        for part, what, remedy in (
            ({"type": "image", "url": "x"}, "a part of type 'image' is no text", "Take the part out"),
            ({"type": "input_audio", "text": "x"}, "type 'input_audio' is no text", "Take the part out"),
            ({"type": "file", "file": {"file_id": "x"}}, "type 'file' is no text", "Take the part out"),
            ({"type": "text", "text": None}, "type 'text' without a text", "Take the part out"),
            ("x", "a part with type and text is expected, not text", SKIP),
        )
    ],
    (HALF, "", "half a character", SKIP),
]
NO_ANSWER = [
    ("", "", "the response is empty", SKIP),
    (" \n\t", "", "the response is empty", SKIP),
    ([{"role": "user", "content": "x"}], "", "begins with a user turn", SKIP),
    (turns("x", "y")[1:] + turns("x"), "", "ends with a user turn", SKIP),
    ([{"role": "assistant", "content": " "}], "", "the response is empty", SKIP),
]
NO_DIALOGUE = [
    ("x", "", "a list is expected, not text", SKIP),
    (turns("p"), "", "no assistant turn", SKIP),
    (turns("p", "a", "q"), "", "a user turn that nobody answers", SKIP),
    (turns("", "a")[1:], "", "opens with the assistant", SKIP),
    (turns("p", ""), "", "the response is empty", SKIP),
    ([*turns("p"), {"role": "assistant", "content": "x", "function_call": HALF}], "", "half a character", SKIP),
    ([{"from": "human", "value": "p"}, {"from": "bot", "value": "a"}], ".1.role", "the role is 'bot'", "assistant"),
    ([{"from": "human", "value": "p"}, {"from": "gpt", "value": None}], ".1.content", "without content", SKIP),
    (
        [{"from": "human", "value": "p"}, {"from": "function_call", "value": "now("}],
        ".1.value",
        "expected as JSON",
        SKIP,
    ),
]
NO_TEXT = [
    (3, "", "text is expected, not a number", SKIP),
    (["x"], "", "text is expected, not a list", SKIP),
    ({"x": 1}, "", "text is expected, not an object", SKIP),
]
NO_LABEL = [
    ("good", "", "true or false", "'rating'".replace("'", '"')),
    (2, "", "true or false", '"rating"'),
    (0.5, "", "true or false", '"rating"'),
    ([True], "", "true or false", '"rating"'),
    ("", "", "true or false", '"rating"'),
]
NO_NUMBER = [
    ("great", "", "not the text 'great'", SKIP),
    (True, "", "not true or false", SKIP),
    ([1], "", "a number is expected, not a list", SKIP),
    ({"value": 1}, "", "a number is expected, not an object", SKIP),
    (math.nan, "", "nan", SKIP),
    (math.inf, "", "inf", SKIP),
    ("-Infinity", "", "-inf", SKIP),
]
NO_LIST = [
    ("x", "", "a list is expected, not text", SKIP),
    (3, "", "a list is expected, not a number", SKIP),
    ({"x": 1}, "", "a list is expected, not an object", SKIP),
    ("[1,", "", "this text is no JSON list", SKIP),
]
NO_OBJECT = [
    ("x", "", "an object is expected, not text", SKIP),
    (3, "", "an object is expected, not a number", SKIP),
    ([1], "", "an object is expected, not a list", SKIP),
]


def every(good: str, name: str, *faults: Iterable[tuple[Any, str, str, str]]) -> list[Bad]:
    """One field of a layout with each of these faults."""
    return [Bad(good, {name: v}, name + more, what, remedy) for table in faults for v, more, what, remedy in table]


def bad(good: str, change: dict[str, Any], field: str | None, what: str, remedy: str = SKIP) -> Bad:
    return Bad(good, change, field, what, remedy)


PAIRED = "prompt/chosen/rejected"
DEEP = "prompt.replies.1.replies.0.replies.0.text"
REVIEWED = "systems.x.reviews.0."
ROWS: list[Bad] = [
    # a prompt, an answer
    *every("prompt/completion", "prompt", MISSING, NO_TURNS),
    *every("prompt/completion", "completion", MISSING, NO_TURNS, NO_ANSWER),
    *every("question/answer", "question", MISSING, NO_TURNS),
    *every("question/answer", "answer", MISSING, NO_TURNS, NO_ANSWER),
    *every("prompt", "prompt", MISSING, NO_TURNS),
    *every("alpaca", "instruction", NO_TEXT),
    bad("alpaca", {"instruction": None}, "instruction", "missing or null"),
    bad("alpaca", {"instruction": GONE}, "instruction", "missing or null"),
    *every("alpaca", "input", NO_TEXT),
    *every("alpaca", "output", MISSING, NO_ANSWER),
    *every("alpaca", "history", NO_LIST),
    bad("alpaca", {"history": [["q"]]}, "history.0", "a question and its answer"),
    bad("alpaca", {"history": [["q", "a"], "x"]}, "history.1", "a list is expected, not text"),
    bad("alpaca", {"history": [["q", 3]]}, "history.0.1", "text is expected, not a number"),
    *every("alpaca", "system", NO_TEXT),
    # dialogues
    *every("messages", "messages", MISSING, NO_TURNS[:2], NO_TURNS[8:-1], NO_DIALOGUE),
    *every("sharegpt", "conversations", MISSING, NO_DIALOGUE),
    *every("messages", "tools", NO_LIST[:2], NO_LIST[3:]),
    bad("messages", {"tools": {"name": "now"}}, "tools", "a list is expected, not an object"),
    bad("messages", {"tools": ["now"]}, "tools.0", "valid dictionary"),
    *every("sharegpt", "system", NO_TEXT),
    bad("sharegpt", {"conversations": [{"from": "system", "value": "t"}, *share("p", "a")]}, "system", "of its own",
        "Keep one"),
    # labels
    *every("prompt/completion/label", "label", MISSING, NO_LABEL),
    *every("prompt/completion/label", "completion", MISSING, NO_ANSWER),
    *every("prompt/completion/label#kto", "kto_tag", MISSING, NO_LABEL),
    *every("prompt/completion/label#turns", "label", MISSING, NO_LABEL[:2]),
    *every("prompt/completion/label#turns", "messages", MISSING, NO_DIALOGUE),
    # ratings
    *every("prompt/response/rating", "rating", MISSING, NO_NUMBER),
    *every("prompt/response/rating", "response", MISSING, NO_ANSWER),
    bad("prompt/response/rating", {"rating": 6}, "rating", "6 lies outside its scale 0 to 5"),
    bad("prompt/response/rating", {"rating": -1}, "rating", "-1 lies outside its scale 0 to 5"),
    bad("prompt/response/rating", {"scale": [5]}, "scale", "a scale is [lowest, highest]"),
    bad("prompt/response/rating", {"scale": [5, 0]}, "scale", "a scale is [lowest, highest]"),
    bad("prompt/response/rating", {"scale": [0, "high"]}, "scale", "not the text 'high'"),
    bad("prompt/response/rating", {"scale": 5}, "scale", "a list is expected, not a number"),
    *every("prompt/response/rating#score", "score", MISSING, NO_NUMBER),
    # pairs
    *every(PAIRED, "prompt", MISSING, NO_TURNS),
    *every(PAIRED, "chosen", MISSING, NO_TURNS, NO_ANSWER),
    *every(PAIRED, "rejected", MISSING, NO_TURNS, NO_ANSWER),
    *every(PAIRED, "strength", NO_NUMBER),
    bad(PAIRED, {"strength": 1.2}, "strength", "no probability", "'margin'"),
    bad(PAIRED, {"strength": -0.1}, "strength", "no probability", "'margin'"),
    *every(PAIRED, "margin", NO_NUMBER),
    *every(PAIRED, "score_chosen", NO_NUMBER),
    bad(PAIRED, {"score_chosen": 11}, "score_chosen", "outside its scale 0 to 10"),
    bad(PAIRED, {"metadata.score_rejected": "bad"}, "metadata.score_rejected", "not the text 'bad'"),
    bad(PAIRED, {"metadata.score_rejected": 11}, "metadata.score_rejected", "outside its scale"),
    bad(PAIRED, {"system": 3}, "system", "text is expected, not a number"),
    bad(PAIRED, {"prompt": [{"role": "system", "content": "t"}, *turns("p")]}, "system", "of its own", "Keep one"),
    bad(PAIRED, {"system": None, "chosen": turns("x", "a"), "rejected": turns("x", "b")}, "chosen", "another prompt"),
    bad(PAIRED, {"system": None, "chosen": turns("x", "a"), "rejected": turns("y", "b")}, "rejected", "share no turn",
        "'prompt' column"),
    *every("rewardbench", "prompt", MISSING, NO_TURNS),
    *every("rewardbench", "chosen", MISSING, NO_TURNS, NO_ANSWER),
    *every("rewardbench", "rejected", MISSING, NO_ANSWER),
    *every("rewardbench", "subset", MISSING, NO_TEXT),
    *every("rewardbench2", "prompt", MISSING, NO_TURNS),
    *every("rewardbench2", "chosen.0", NO_ANSWER),
    *every("rewardbench2", "rejected.1", NO_ANSWER),
    *every("rewardbench2", "models", NO_LIST),
    *every("rewardbench2", "subset", MISSING, NO_TEXT),
    *every("conversations/chosen/rejected", "conversations", MISSING, NO_TURNS[:-1]),
    *every("conversations/chosen/rejected", "chosen", MISSING, NO_TURNS[:2], NO_ANSWER),
    *every("conversations/chosen/rejected", "rejected", MISSING, NO_TURNS[:2], NO_ANSWER),
    bad("conversations/chosen/rejected", {"chosen.value": None}, "chosen.0.content", "without content"),
    bad("conversations/chosen/rejected", {"chosen.from": "robot"}, "chosen.0.role", "the role is 'robot'", "assistant"),
    *every("alpaca/chosen/rejected", "instruction", NO_TEXT),
    *every("alpaca/chosen/rejected", "chosen", MISSING, NO_ANSWER),
    *every("alpaca/chosen/rejected", "rejected", MISSING, NO_ANSWER),
    *every("alpaca/chosen/rejected", "margin", NO_NUMBER[:1]),
    *every("alpaca/chosen/rejected", "history", NO_LIST[:1]),
    *every("hh", "chosen", MISSING, NO_TURNS[:4]),
    *every("hh", "rejected", MISSING),
    bad("hh", {"chosen": "p a"}, "chosen", "transcript", "Add a 'prompt' column"),
    bad("hh", {"rejected": "Human p"}, "rejected", "transcript", "Add a 'prompt' column"),
    bad("hh", {"rejected": "\n\nHuman: q\n\nAssistant: b"}, "rejected", "share no turn", "'prompt' column"),
    bad("hh", {"chosen": "\n\nHuman: p\n\nAssistant:"}, "chosen", "the response is empty"),
    bad("hh", {"rejected": "\n\nHuman: p\n\nAssistant: \n"}, "rejected", "the response is empty"),
    bad("hh", {"rejected": "\n\nHuman: p"}, "rejected", "share no turn", "'prompt' column"),
    bad("hh", {"chosen": "\n\nHuman: p\n\nHuman: q", "rejected": "\n\nHuman: p\n\nHuman: r"}, "chosen",
        "different prompts", "one prompt"),
    *every("chosen/rejected", "chosen", MISSING, NO_TURNS[:-1]),
    *every("chosen/rejected", "rejected", MISSING, NO_TURNS[:-1]),
    bad("chosen/rejected", {"chosen": turns("p", " ")}, "chosen", "the response is empty"),
    bad("chosen/rejected", {"rejected": turns("q", "b")}, "rejected", "share no turn", "'prompt' column"),
    bad("chosen/rejected", {"rejected": turns("p", "b", "c")}, "rejected", "ends with a user turn"),
    bad("chosen/rejected", {"chosen": turns("p", "a", "q", "a"), "rejected": turns("p", "a", "r", "a")}, "chosen",
        "part at turn 3", "one prompt"),
    *every("messages/rejected_response", "messages", MISSING, NO_TURNS[:-1]),
    *every("messages/rejected_response", "rejected_response", MISSING, NO_TURNS[:2], NO_ANSWER),
    bad("messages/rejected_response", {"messages": turns("p")}, "messages", "the chosen answer"),
    bad("messages/rejected_response", {"messages": turns("p", "a", "q")}, "messages", "begins with a user turn"),
    bad("messages/rejected_response", {"messages": turns("p", "")}, "messages", "the response is empty"),
    *every("messages/rejected_response#messages", "rejected_messages", MISSING, NO_TURNS[:-1]),
    bad("messages/rejected_response#messages", {"rejected_messages": turns("q", "b")}, "rejected_messages", "no turn",
        "'prompt' column"),
    # lists
    *every("prompt/responses/scores", "responses", MISSING, NO_LIST),
    *every("prompt/responses/scores", "responses.1", NO_TURNS[:2], NO_ANSWER[:2]),
    bad("prompt/responses/scores", {"responses.1": None}, "responses.1", "a list is expected, not null"),
    *every("prompt/responses/scores", "scores", NO_LIST),
    *every("prompt/responses/scores", "scores.1", NO_NUMBER),
    bad("prompt/responses/scores", {"scores": [1]}, "scores", "1 value for 2 responses", "one value for each"),
    bad("prompt/responses/scores", {"scores": [1, 2, 3]}, "scores", "3 values for 2 responses", "one value for each"),
    bad("prompt/responses/scores", {"scores": [None, None]}, "scores", "none of the responses is judged"),
    bad("prompt/responses/scores", {"scores": None}, "scores", "none of the responses is judged"),
    bad("prompt/responses/scores", {"scores.1": 6}, "scores.1", "outside its scale"),
    bad("prompt/responses/scores", {"prompt": None}, "prompt", "missing or null"),
    *every("prompt/responses/scores#labels", "labels.1", NO_LABEL),
    bad("prompt/responses/scores#labels", {"labels": [True]}, "labels", "1 value for 2 responses", "one value"),
    *every("prompt/responses/scores#ranks", "ranks.1", NO_NUMBER),
    bad("prompt/responses/scores#ranks", {"ranks": [1]}, "ranks", "1 value for 2 responses", "one value"),
    bad("prompt/responses/scores#ranks", {"completions": None}, "completions", "missing or null"),
    bad("prompt/responses/scores#ranks", {"completions": GONE}, "completions", "missing or null"),
    *[
        bad("prompt/responses/scores#ranking", {"ranking": order}, "ranking", "each response once", "'ranks'")
        for order in ([1, 1], [0, 2], [2, 3], ["a", "b"], [0.0, 1.0], [True, False], [None, 0])
    ],
    bad("prompt/responses/scores#ranking", {"ranking": [0]}, "ranking", "1 value for 2 responses", "one value"),
    *every("question/answers/scores", "answers", MISSING, NO_LIST),
    *every("question/answers/scores", "answers.0", NO_ANSWER[:2]),
    *every("question/answers/scores", "question", MISSING, NO_TURNS[:2]),
    *every("question/answers/scores", "scores.0", NO_NUMBER),
    bad("question/answers/scores", {"scores": [1]}, "scores", "1 value for 2 responses", "one value for each"),
    # steps
    *every("prompt/completions/labels", "completions", MISSING, NO_LIST),
    *every("prompt/completions/labels", "labels", MISSING, NO_LIST),
    *every("prompt/completions/labels", "completions.1", NO_TEXT),
    *every("prompt/completions/labels", "labels.0", NO_LABEL),
    bad("prompt/completions/labels", {"labels": [True]}, "labels", "1 label for 2 steps", "one label for each"),
    bad("prompt/completions/labels", {"labels.1": None}, "labels.1", "true or false", '"rating"'),
    bad("prompt/completions/labels", {"completions": [], "labels": []}, "completions", "the response is empty"),
    bad("prompt/completions/labels", {"prompt": None}, "prompt", "missing or null"),
    # published sets
    *every("messages/rejected_response#query", "query", NO_TEXT),
    *every("messages/rejected_response#query", "response", MISSING, NO_ANSWER[:2]),
    *every("messages/rejected_response#query", "rejected_response", MISSING, NO_ANSWER[:2]),
    bad("messages/rejected_response#query", {"history": [["q"]]}, "history.0", "a question and its answer"),
    *every("nectar", "answers", MISSING, NO_LIST),
    *every("nectar", "answers.1.answer", MISSING, NO_ANSWER[:2]),
    *every("nectar", "answers.1.rank", MISSING, NO_NUMBER[:2]),
    bad("nectar", {"answers.0.rank": 0}, "answers.0.rank", "counted from 1"),
    bad("nectar", {"answers.0": "a"}, "answers.0", "an object is expected, not text"),
    bad("nectar", {"answers": [{"answer": "a", "rank": 1}]}, "answers", "two answers or more"),
    *every("helpsteer", "prompt", MISSING),
    *every("helpsteer", "response", MISSING, NO_ANSWER[:2]),
    *every("helpsteer", "helpfulness", NO_NUMBER),
    bad("helpsteer", {"verbosity": 5}, "verbosity", "5 lies outside its scale 0 to 4"),
    bad("helpsteer", dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity")),
        "helpfulness", "not judged"),
    *every("helpsteer-preference", "prompt", MISSING),
    *every("helpsteer-preference", "response_1", MISSING, NO_ANSWER[:2]),
    *every("helpsteer-preference", "preference_strength", MISSING, NO_NUMBER),
    bad("helpsteer-preference", {"preference_strength": 4}, "preference_strength", "-3 to 3, and this is 4"),
    *every("pku-saferlhf", "prompt", MISSING),
    *every("pku-saferlhf", "response_0", MISSING, NO_ANSWER[:2]),
    *every("pku-saferlhf", "safer_response_id", NO_NUMBER),
    bad("pku-saferlhf", {"better_response_id": 2}, "better_response_id", "0 or 1 is the better response"),
    bad("pku-saferlhf", {"better_response_id": None, "safer_response_id": None}, "better_response_id", "not compared"),
    bad("pku-saferlhf", {"is_response_0_safe": 3}, "is_response_0_safe", "true or false", '"rating"'),
    *every("arena", "conversation_a", MISSING, NO_TURNS[:-1]),
    *every("arena", "winner", MISSING),
    bad("arena", {"winner": "model_c"}, "winner", "this is 'model_c'"),
    bad("arena", {"winner": 0}, "winner", "this is 0"),
    bad("arena", {"conversation_b": turns("q", "b")}, "conversation_b", "share no turn", "'prompt' column"),
    bad("arena", {"conversation_b": turns("p", "")}, "conversation_b", "the response is empty"),
    *every("lmsys-55k", "prompt", MISSING, NO_LIST[:2], NO_LIST[3:]),
    *every("lmsys-55k", "response_b", MISSING, NO_LIST[:2], NO_LIST[3:]),
    bad("lmsys-55k", {"response_a": '["a", "c"]'}, "response_a", "2 answers to 1 question", "one answer for each"),
    bad("lmsys-55k", {"response_a": "[null]"}, "response_a.0", "text is expected, not null"),
    bad("lmsys-55k", {"response_a": '[""]'}, "response_a", "the response is empty"),
    bad("lmsys-55k", {"prompt": "[]", "response_a": "[]", "response_b": "[]"}, "prompt", "no turns"),
    bad("lmsys-55k", {"winner_tie": 1}, "winner_model_a", "is 1, and here 2 are"),
    bad("lmsys-55k", {"winner_model_b": 0}, "winner_model_a", "is 1, and here none are"),
    *every("lmsys-55k", "winner_tie", MISSING, NO_LABEL[:2]),
    *every("ultrafeedback", "instruction", MISSING, NO_TEXT),
    *every("ultrafeedback", "completions", MISSING, NO_LIST),
    *every("ultrafeedback", "completions.1", NO_OBJECT),
    *every("ultrafeedback", "completions.1.response", MISSING, NO_ANSWER[:2]),
    *every("ultrafeedback", "completions.0.overall_score", NO_NUMBER),
    bad("ultrafeedback", {"completions.0.overall_score": 11}, "completions.0.overall_score", "outside its scale"),
    *every("ultrafeedback", "completions.0.annotations", NO_OBJECT),
    *every("ultrafeedback", "completions.0.annotations.honesty", NO_OBJECT),
    bad("ultrafeedback", {"completions.0.annotations.honesty.Rating": "6"}, "completions.0.annotations.honesty.Rating",
        "6 lies outside its scale 1 to 5"),
    bad("ultrafeedback", {"completions": [{"response": "a"}, {"response": "b"}]}, "completions", "is judged"),
    *every("shp", "history", MISSING),
    *every("shp", "human_ref_B", MISSING, NO_ANSWER[:2]),
    *every("shp", "labels", MISSING, NO_LABEL),
    *every("shp", "score_A", NO_NUMBER),
    *every("openai-preference", "input", MISSING, NO_OBJECT),
    *every("openai-preference", "input.messages", MISSING, NO_TURNS[:-1]),
    *every("openai-preference", "input.tools", NO_LIST),
    *every("openai-preference", "preferred_output", MISSING, NO_TURNS[:-1]),
    *every("openai-preference", "non_preferred_output", MISSING, NO_ANSWER[2:]),
    *every("stack-exchange", "question", MISSING),
    *every("stack-exchange", "response_j", MISSING, NO_ANSWER[:2]),
    *every("stack-exchange", "response_k", MISSING, NO_ANSWER[:2]),
    *every("prompt/chosen_response/rejected_response", "prompt", MISSING, NO_TURNS),
    *every("prompt/chosen_response/rejected_response", "chosen_response", MISSING, NO_ANSWER),
    *every("prompt/chosen_response/rejected_response", "rejected_response", MISSING, NO_ANSWER),
    bad("prompt/chosen_response/rejected_response",
        {"chosen_response": turns("x", "a"), "rejected_response": turns("x", "b")}, "chosen_response", "another pr"),
    *every("alpaca/ranked", "instruction", MISSING, NO_TEXT),
    *every("alpaca/ranked", "output", MISSING, NO_LIST),
    *every("alpaca/ranked", "output.1", NO_ANSWER[:2]),
    bad("alpaca/ranked", {"output": ["a"]}, "output", "two answers or more"),
    *every("input/output", "input", MISSING),
    *every("input/output", "output", MISSING, NO_ANSWER[:2]),
    *every("input/output#problem", "solution", MISSING, NO_ANSWER[:2]),
    *every("step-dpo", "prompt", MISSING),
    *every("step-dpo", "chosen", MISSING, NO_ANSWER[:2], NO_TEXT),
    *every("step-dpo", "initial_reason_steps", NO_TEXT),
    *every("step-dpo", "full_rejected", NO_TEXT),
    # accord's own records
    bad("record", {"prompt": GONE}, "prompt", "required"),
    bad("record", {"prompt": 3}, "prompt", "valid string"),
    bad("record", {"prompt": [{"role": "robot", "content": "x"}]}, "prompt.0.role", "'robot'"),
    bad("record", {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "prompt.0.content", "'image' is no"),
    bad("record", {"responses.0.txt": "x"}, "responses.0.txt", "not part of a record"),
    bad("record", {"responses.0": {}}, "responses.0", "either text or messages"),
    bad("record", {"responses.0.messages": turns("", "x")[1:]}, "responses.0", "either text or messages"),
    bad("record", {"responses.0": {"messages": turns("x")}}, "responses.0", "without an assistant turn"),
    bad("record", {"responses.0.token_ids": [1, 2]}, "responses.0", "key of their tokenizer"),
    bad("record", {"responses.0.finish": "eos"}, "responses.0.finish", "'stop', 'length' or 'unknown'"),
    bad("record", {"responses.0.revised_from": 0}, None, "is no other response"),
    bad("record", {"responses.0.revised_from": 2}, None, "is no other response"),
    bad("record", {"responses.0.sampling_logprobs": [-1.0]}, "responses.0", "one a token"),
    bad("record", {"responses.0.advantages": [-1.0]}, "responses.0", "one a token"),
    bad("record", {"judgements.0.pair": [0, 2]}, None, "names response 2, but there are 2"),
    bad("record", {"judgements.0.pair": [0, -1]}, None, "names response -1"),
    bad("record", {"judgements.0.pair": [1, 1]}, "judgements.0", "two different responses"),
    bad("record", {"judgements.0.pair": [1]}, "judgements.0.pair.1", "required"),
    bad("record", {"judgements.0.pair": None}, "judgements.0", "judges a pair"),
    bad("record", {"judgements.0.value": 2}, "judgements.0", "set margin"),
    bad("record", {"judgements.0.value": math.nan}, "judgements.0.value", "finite"),
    bad("record", {"judgements.0.kind": "vote"}, "judgements.0.kind", "'label', 'score', 'rank' or 'preference'"),
    bad("record", {"judgements.0.scale": [1, 0]}, "judgements.0", "(lowest, highest)"),
    bad("record", {"judgements.0.scale": [2, 3]}, "judgements.0", "outside its scale"),
    bad("record", {"judgements.1.response": 5}, None, "names response 5"),
    bad("record", {"judgements.1.response": None}, "judgements.1", "judges a response"),
    bad("record", {"judgements.1.value": 0.5}, "judgements.1", "1 (good) or 0 (bad)"),
    bad("record", {"judgements.1.margin": True}, "judgements.1", "belongs to a preference"),
    bad("record", {"judgements.1.vlaue": 1}, "judgements.1.vlaue", "not part of a record"),
    bad("record", {"judgements": {"kind": "label"}}, "judgements", "valid tuple"),
    bad("record", {"weight": 0}, "weight", "greater than 0"),
    bad("record", {"weight": "heavy"}, "weight", "valid number"),
    bad("record", {"source": 3}, "source", "valid string"),
    bad("record", {"origin": "a.jsonl"}, "origin", "Origin"),
    # published sets
    bad("oasst", {"prompt": None}, "prompt", "missing or null"),
    *every("oasst", "prompt", NO_OBJECT),
    *every("oasst", "prompt.replies", NO_LIST),
    bad("oasst", {"prompt.replies": []}, "prompt.replies", "nobody has replied"),
    bad("oasst", {"prompt.replies": GONE}, "prompt.replies", "nobody has replied"),
    *every("oasst", "prompt.text", MISSING, NO_TEXT),
    bad("oasst", {"prompt.text": " "}, "prompt.text", "the message is empty"),
    bad("oasst", {"prompt.role": "assistant"}, "prompt.role", "a turn of the prompter"),
    *every("oasst", "prompt.replies.1", NO_OBJECT),
    *every("oasst", "prompt.replies.1.rank", NO_NUMBER),
    *every("oasst", "prompt.replies.0.text", MISSING),
    bad("oasst", {"prompt.replies.0.text": ""}, "prompt.replies.0.text", "the message is empty"),
    bad("oasst", {"prompt.replies.0.role": "prompter"}, "prompt.replies.0.role", "a turn of the assistant"),
    bad("oasst", {DEEP: 3}, DEEP, "text is expected, not a number"),
    *every("squality", "question", MISSING),
    *every("squality", "systems", MISSING, NO_OBJECT),
    *every("squality", "systems.x", NO_OBJECT),
    *every("squality", "systems.x.response", MISSING, NO_ANSWER[:2]),
    *every("squality", "systems.y.reviews", MISSING, NO_LIST),
    *every("squality", "systems.y.reviews.0", NO_OBJECT),
    *every("squality", "systems.y.reviews.0.worker_id", MISSING),
    *every("squality", "systems.y.reviews.0.overall-rating", NO_NUMBER),
    *every("squality", "systems.y.reviews.0.overall-rank", NO_NUMBER),
    bad("squality", {REVIEWED + "correctness-rating": 101}, REVIEWED + "correctness-rating", "outside its scale"),
    bad("squality", {REVIEWED + "selection-rating": -1}, REVIEWED + "selection-rating", "outside its scale"),
    bad("squality", {REVIEWED + "overall-rank": 0}, REVIEWED + "overall-rank", "counted from 1"),
    bad("squality", {"systems": {"x": {"response": "a", "reviews": []}}}, "systems", "none of the responses is judged"),
    *every("qa-feedback", "question", MISSING, NO_TEXT),
    *every("qa-feedback", "prediction 1", MISSING[1:], NO_ANSWER[:2]),
    *every("qa-feedback", "prediction 2", MISSING[1:], NO_TURNS[:2]),
    bad("qa-feedback", {"prediction 2": GONE}, "preference", "1 value for 0 pairs", "each pair"),
    *every("qa-feedback", "preference", MISSING, NO_LIST),
    bad("qa-feedback", {"preference": [1, 2]}, "preference", "2 values for 1 pair", "each pair"),
    *[bad("qa-feedback", {"preference.0": v}, "preference.0", "0 is a tie") for v in (3, -1, "1", None, True, 0.5)],
    *every("qa-feedback", "passages", NO_LIST[:2]),
    *every("qa-feedback", "passages.0", NO_LIST[:2]),
    bad("qa-feedback", {"passages.0.1": None}, "passages.0.1", "text is expected, not null"),
    *every("qa-feedback", "feedback", NO_OBJECT),
    *every("qa-feedback", "feedback.errors", NO_LIST[:3]),
    *every("qa-feedback", "feedback.errors.0", NO_OBJECT),
    *every("qa-feedback", "feedback.errors.0.error type", MISSING, NO_TEXT),
    *every("qa-feedback", "feedback.errors.0.start", MISSING, NO_NUMBER),
    *every("qa-feedback", "feedback.errors.0.end", MISSING),
    bad("qa-feedback", {"feedback.errors.0.start": -1}, "feedback.errors.0.start", "-1 to 6 is no part"),
    bad("qa-feedback", {"feedback.errors.0.start": 6}, "feedback.errors.0.start", "6 to 6 is no part"),
    bad("qa-feedback", {"feedback.errors.0.start": 0.5}, "feedback.errors.0.start", "0.5 to 6 is no part"),
    bad("qa-feedback", {"feedback.errors.0.end": 7}, "feedback.errors.0.start", "an answer of 6 characters"),
    *every("qa-feedback", "feedback.corrected-prediction", NO_TEXT),
    *every("qa-feedback", "feedback.missing-info", NO_LIST[:2]),
    *every("dsp", "query", MISSING, NO_TURNS),
    *every("dsp", "responses", MISSING, NO_OBJECT),
    *every("dsp", "responses.law", MISSING[1:], NO_TURNS[:-1], NO_ANSWER),
    bad("dsp", {"responses.law": HALF}, "responses", "half a character"),
    bad("dsp", {"responses": {"law": "a"}}, "responses", "two domains"),
    *every("red-team", "transcript", MISSING, NO_TURNS[:-1]),
    *every("red-team", "rating", MISSING, NO_NUMBER),
    bad("red-team", {"rating": 5}, "rating", "outside its scale 0 to 4"),
    bad("red-team", {"transcript": "\n\nAssistant: a\n\nHuman: p"}, "transcript", "begins with the human"),
    bad("red-team", {"transcript": "\n\nHuman: p"}, "transcript", "begins with the human"),
    bad("red-team", {"transcript": "\n\nHuman: p\n\nAssistant: a\n\nHuman: q"}, "transcript", "ends with a user turn"),
    bad("red-team", {"transcript": "\n\nHuman: p\n\nAssistant:"}, "transcript", "the response is empty"),
    bad("red-team", {"transcript": "p a"}, "transcript", "a list is expected, not text"),
    *every("gsm8k-solutions", "question", MISSING, NO_TURNS[:2]),
    *every("gsm8k-solutions", "x.solution", MISSING, NO_ANSWER[:2]),
    *every("gsm8k-solutions", "y.is_correct", MISSING, NO_LABEL),
    bad("gsm8k-solutions", {"x": GONE, "y": GONE}, None, "no solution of a model"),
    bad("gsm8k-solutions", {"x": "a", "y": "b"}, None, "no solution of a model"),
    # rows of another layout than the first
    bad("prompt/completion", {"label": True}, "label", "another layout (prompt/completion/label)", "different files"),
    bad("prompt/completion", {"rating": 3}, "rating", "another layout (prompt/response/rating)", "different files"),
    bad("prompt", {"completion": "a"}, "completion", "another layout (prompt/completion)", "different files"),
    bad("messages", {"rejected_response": "b"}, "rejected_response", "another layout", "different files"),
    bad("messages", {"label": True}, "label", "another layout", "different files"),
    bad("chosen/rejected", {"prompt": "p"}, "prompt", "another layout", "different files"),
]  # fmt: skip


# -- the same faults in other kinds of file ---------------------------------------------------------------------------

# What each kind of file can hold differs: in a table every value is text, in Parquet and Arrow a column has one type.
TABLES = (".csv", ".tsv", ".csv.gz")
TYPED = (".parquet", ".arrow", ".feather", ".parquet.gz")
JSONS = (".json", ".ndjson", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst")
RATED = {"prompt": "p", "response": "a", "rating": 3.0}


def _in_forms() -> Iterable[Bad]:
    for form in TABLES:
        flat = {k: v for k, v in GOOD[PAIRED].items() if k in ("prompt", "chosen", "rejected", "margin")}
        sides = {"chosen": json.dumps(turns("p", "a")), "rejected": json.dumps(turns("p", "b"))}
        yield Bad("prompt/completion", {"completion": ""}, "completion", "the response is empty", SKIP, form)
        yield Bad("prompt/completion/label", {"label": "good"}, "label", "true or false", '"rating"', form)
        yield Bad("prompt/completion/label", {"label": ""}, "label", "true or false", '"rating"', form)
        yield Bad("prompt/response/rating", {"rating": "great"}, "rating", "not the text 'great'", SKIP, form, RATED)
        yield Bad("prompt/response/rating", {"rating": "nan"}, "rating", "nan", SKIP, form, RATED)
        yield Bad("prompt/response/rating", {"rating": ""}, "rating", "not the text ''", SKIP, form, RATED)
        yield Bad("prompt/responses/scores", {"scores": "[1, 2"}, "scores", "no JSON list", SKIP, form)
        yield Bad("prompt/responses/scores", {"scores": "1"}, "scores", "a list is expected, not text", SKIP, form)
        yield Bad(PAIRED, {"margin": "wide"}, "margin", "not the text 'wide'", SKIP, form, flat)
        yield Bad(PAIRED, {"rejected": ""}, "rejected", "the response is empty", SKIP, form, flat)
        other = json.dumps(turns("q", "b"))
        yield Bad("chosen/rejected", {"rejected": other}, "rejected", "share no turn", "'prompt' column", form, sides)
        speaker = json.dumps([{"role": "robot", "content": "p"}])
        yield Bad("chosen/rejected", {"chosen": speaker}, "chosen.0.role", "'robot'", "assistant", form, sides)
        yield Bad("messages", {"messages": "[{]"}, "messages", "no JSON list", SKIP, form)
        yield Bad("squality", {"systems": "{"}, "systems", "no JSON", SKIP, form)
    for form in (*TYPED, *JSONS):
        yield Bad("prompt/completion", {"prompt": None}, "prompt", "missing or null", SKIP, form)
        yield Bad("prompt/completion", {"completion": " "}, "completion", "the response is empty", SKIP, form)
        yield Bad("prompt/response/rating", {"rating": math.nan}, "rating", "nan", SKIP, form, RATED)
        yield Bad("prompt/completion/label", {"label": None}, "label", "missing or null", SKIP, form)
        yield Bad("question/answers/scores", {"scores": [1.0]}, "scores", "1 value for 2", "one value for each", form)
        yield Bad("messages", {"messages": turns("p")}, "messages", "no assistant turn", SKIP, form)
        yield Bad("hh", {"chosen": "p a"}, "chosen", "transcript", "Add a 'prompt' column", form)
    for form in JSONS:
        yield Bad("prompt/completion", {"completion": HALF}, "completion", "half a character", SKIP, form)
        yield Bad("prompt/completion", {"label": 1}, "label", "another layout", "different files", form)


ROWS += _in_forms()


def written(rows: list[dict[str, Any]], form: str) -> bytes:
    """A file of this kind that holds these rows."""
    kind, _, packed = form[1:].partition(".")
    if kind in ("csv", "tsv"):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(v if isinstance(v, str) else json.dumps(v) for v in row.values())
        raw = text.getvalue().encode()
    elif kind in ("parquet", "arrow", "feather"):
        sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, sink)
        else:
            with (pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream)(sink, table.schema) as opened:
                opened.write_table(table)
        raw = sink.getvalue().to_pybytes()
    elif kind == "json":
        raw = json.dumps(rows, indent=1).encode()
    else:
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return COMPRESS[packed](raw)


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


COMPRESS = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


# -- lines that are no rows: (kind of file, line, what, remedy); a good row stands before and behind -------------------

LINES: list[tuple[str, bytes, str | None, str, str]] = [
    (".jsonl", b'{"prompt": "p", "completion": "a"', None, "the line is not JSON", SKIP),
    (".jsonl", b"{'prompt': 'p', 'completion': 'a'}", None, "the line is not JSON", SKIP),
    (".jsonl", b'{"prompt": "p", "completion": "a",}', None, "the line is not JSON", SKIP),
    (".jsonl", b'{"prompt": "p", "completion": "a"},', None, "more than one value", SKIP),
    (".jsonl", b'{"prompt": "p", "completion": "a"}{"prompt": "p", "completion": "a"}', None, "more than one", SKIP),
    (".jsonl", b'{"prompt": "p", "completion": undefined}', None, "the line is not JSON", SKIP),
    (".jsonl", b'{"prompt": "p", "completion": "a\tb"}', None, "control character", SKIP),
    (".jsonl", b'{"prompt": "p", "completion": "\\x41"}', None, "escape", SKIP),
    (".jsonl", b"\0\0\0\0\0\0\0\0", None, "the line is not JSON", SKIP),
    (".jsonl", b"// a note", None, "the line is not JSON", SKIP),
    (".jsonl", b"<<<<<<< HEAD", None, "the line is not JSON", SKIP),
    (".jsonl", b"[" * 100_000, None, "nested too deep", SKIP),
    (".jsonl", b'"p"', None, "not text", SKIP),
    (".jsonl", b"[1, 2]", None, "not a list", SKIP),
    (".jsonl", b"null", None, "not null", SKIP),
    (".jsonl", b"7", None, "not a number", SKIP),
    (".jsonl", b"true", None, "not true or false", SKIP),
    (".jsonl", b'{"prompt": "p", "prompt": "q", "completion": "a"}', "prompt", "stands twice", SKIP),
    (".jsonl", b'{"prompt": [{"role": "user", "role": "x", "content": ""}], "completion": "a"}', "role", "twice", SKIP),
    (".jsonl", b'{"prompt": "caf\xe9", "completion": "a"}', None, "byte 0xe9 at place 16", "UTF-8"),
    (".jsonl", b'{"prompt": "\xed\xa0\x80", "completion": "a"}', None, "byte 0xed", "UTF-8"),
    (".jsonl", b'{"prompt": "p", "completion": "cut \xf0\x9f\xa6', None, "byte 0xf0", "UTF-8"),
    (".jsonl.gz", b'{"prompt": "p"', None, "the line is not JSON", SKIP),
    (".jsonl.zst", b'{"prompt": "caf\xe9"}', None, "byte 0xe9", "UTF-8"),
    (".ndjson", b"oops", None, "the line is not JSON", SKIP),
    (".csv", b"p", None, "1 cells under 2 columns", "quotes"),
    (".csv", b"p,a,b", None, "3 cells under 2 columns", "quotes"),
    (".csv", b"Dear user, hello,a", None, "3 cells under 2 columns", "quotes"),
    (".tsv", b"p,a", None, "1 cells under 2 columns", "quotes"),
    (".tsv", b"p\ta\tb", None, "3 cells under 2 columns", "quotes"),
]


# -- files that are bad as a whole -------------------------------------------------------------------------------------

LINE = json.dumps(GOOD["prompt/completion"]).encode()
MANY = b"".join(json.dumps({"prompt": f"p {i}", "completion": f"a {i * i}"}).encode() + b"\n" for i in range(20_000))
TABLE = written([{"prompt": f"p {i}", "completion": "a" * i} for i in range(200)], ".parquet")
ARROW = written([{"prompt": f"p {i}", "completion": "a" * i} for i in range(200)], ".feather")
AGAIN = "Fetch or write it again"
LATE = {"on_error": "skip"}


def _zip() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("a.jsonl", LINE)
    return raw.getvalue()


def _flipped(raw: bytes, at: float) -> bytes:
    place = int(len(raw) * at)
    return raw[:place] + bytes(b ^ 0xFF for b in raw[place : place + 64]) + raw[place + 64 :]


FILES: list[Ruined] = [
    *[Ruined(f"a{kind}", b"", 1, "the file is empty", "one row") for kind in (".jsonl", ".json", ".csv", ".tsv")],
    *[Ruined(f"a.jsonl.{k}", pack(b" \n\n"), 1, "the file is empty", "one row") for k, pack in COMPRESS.items() if k],
    Ruined("a.json", b"[]", 1, "the file is empty", "at least one row"),
    Ruined("a.json", b'{"data": []}', 1, "the file is empty", "at least one row"),
    Ruined("a.csv", b"prompt,completion\n", 1, "the file is empty", "at least one row"),
    Ruined("a.parquet", written([], ".parquet"), 1, "the file is empty", "at least one row"),
    Ruined("a.jsonl", b"\xef\xbb\xbf", 1, "the file is empty", "at least one row"),
    # broken off or damaged
    *[
        Ruined(f"a.jsonl.{k}", pack(MANY)[: len(pack(MANY)) // 2], -1, "damaged or breaks off", AGAIN)
        for k, pack in COMPRESS.items() if k
    ],
    *[
        # what is damaged gives lines that are no rows, before it is known to be damaged
        Ruined(f"a.jsonl.{k}", _flipped(pack(MANY), 0.4), -1, "damaged or breaks off", AGAIN, options=LATE)
        for k, pack in COMPRESS.items() if k
    ],
    *[
        Ruined(f"a.jsonl.{k}", b"these are no compressed bytes", 1, "damaged or breaks off", AGAIN)
        for k in COMPRESS if k
    ],
    *[
        Ruined(f"a.json.{k}", pack(b"[" + LINE + b"]")[:-9], -1, "damaged or breaks off", AGAIN)
        for k, pack in COMPRESS.items() if k
    ],
    Ruined("a.parquet.gz", gzip.compress(TABLE)[:-200], -1, "damaged or breaks off", AGAIN),
    Ruined("a.parquet", TABLE[:-20], 1, "the Parquet file is damaged or cut off", AGAIN),
    Ruined("a.parquet", TABLE[: len(TABLE) // 2], 1, "the Parquet file is damaged or cut off", AGAIN),
    Ruined("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", 1, "the Parquet file is damaged or cut off", AGAIN),
    Ruined("a.parquet", LINE, 1, "the Parquet file is damaged or cut off", AGAIN),
    Ruined("a.parquet", b"", 1, "the Parquet file is damaged or cut off", AGAIN),
    Ruined("a.arrow", b"", 1, "the Arrow file is damaged or cut off", AGAIN),
    Ruined("a.feather", ARROW[: len(ARROW) // 2], 1, "the Arrow file is damaged or cut off", AGAIN),
    Ruined("a.arrow", LINE, 1, "the Arrow file is damaged or cut off", AGAIN),
    Ruined("a.arrow", written([GOOD["prompt/completion"]] * 9, ".arrow")[:300], 1, "the Arrow file is damaged", AGAIN),
    # JSON that is none, and where
    Ruined("a.json", b"[\n" + LINE + b",\n{", 3, "the file is not JSON", "json.tool"),
    Ruined("a.json", b"[\n" + LINE + b"\n" + LINE + b"\n]", 3, "Expecting ','", "json.tool"),
    Ruined("a.json", b"[" + LINE + b",\n]", 2, "the file is not JSON", "json.tool"),
    Ruined("a.json", b"[\n\n" + LINE, 3, "Expecting ','", "json.tool"),
    Ruined("a.json", b"[" + LINE + b"]\n[]", 2, "Extra data", "json.tool"),
    Ruined("a.json", b"[" + LINE + b',\n{"prompt": "p', 2, "Unterminated string", "json.tool"),
    Ruined("a.json", b"[" + LINE + b',\n{"prompt": "a\nb"}]', 2, "control character", "json.tool"),
    Ruined("a.json", b"[" + LINE + b",\n{'prompt': 1}]", 2, "property name", "json.tool"),
    Ruined("a.json", b"[" + LINE + b',\n{"prompt": nope}]', 2, "Expecting value", "json.tool"),
    Ruined("a.json", b"[" * 100_000, 1, "nested too deep", "json.tool"),
    Ruined("a.json", b"[" + LINE + b',{"prompt": "p", "prompt": "q"}]', 2, "stands twice", SKIP, "prompt"),
    Ruined("a.json", b"[" + LINE + b',\n{"prompt": "caf\xe9"}]', 2, "byte 0xe9 at place 16", "UTF-8"),
    Ruined("a.json", b'{"a": 1}', None, "holds no list of rows", "'data'"),
    Ruined("a.json", b'{"data": {"prompt": "p"}}', None, "holds no list of rows", "'data'"),
    Ruined("a.json", b'{\n"data": [\n{]}', 3, "the file is not JSON", "json.tool"),
    Ruined("a.json", b'"p"', None, "holds no list of rows", "'data'"),
    Ruined("a.json", b"oops", 1, "the file is not JSON", "json.tool"),
    Ruined("a.json", b"{\n'data': []}", 2, "the file is not JSON", "json.tool"),
    # tables
    Ruined("a.csv", b"prompt,prompt\np,a\n", 1, "two columns have the same name, 'prompt'", "Rename", "prompt"),
    Ruined("a.csv", b'prompt,completion\np,a\n"p,a\n', 3, "the table breaks off", "Close the quotes"),
    Ruined("a.csv", b'prompt,completion\n"p" x,a\n', 2, "the table breaks off", "Close the quotes"),
    Ruined("a.tsv", b'prompt\tcompletion\n"p\ta\n', 2, "the table breaks off", "Close the quotes"),
    Ruined("a.csv", b"prompt,completion\np,a\ncaf\xe9,a\n", 3, "byte 0xe9", "UTF-8"),
    Ruined("a.csv", b"prompt;completion\np;a\n", 2, "no known layout", "tabs"),
    Ruined("a.csv", b"prompt\tcompletion\np\ta\n", 2, "no known layout", "tabs"),
    Ruined("a.csv", b"p,a\nq,b\n", 2, "no known layout", "--columns"),
    # something else under this name
    *[
        Ruined("a.jsonl", pack(LINE), 1, f"compressed by {name}", f".{k}")
        for (k, pack), name in zip([*COMPRESS.items()][1:], ("gzip", "bzip2", "xz", "zstd"), strict=True)
    ],
    Ruined("a.json", gzip.compress(LINE), 1, "compressed by gzip", ".gz"),
    Ruined("a.csv", gzip.compress(LINE), 1, "compressed by gzip", ".gz"),
    Ruined("a.jsonl", _zip(), 1, "a zip archive", "Unpack it"),
    Ruined("a.csv", _zip(), 1, "a zip archive (or a spreadsheet)", ".csv"),
    Ruined("a.jsonl", TABLE, 1, "a Parquet file", ".parquet"),
    Ruined("a.json", ARROW, 1, "an Arrow file", ".arrow"),
    Ruined("a.jsonl", pickle.dumps([1]), 1, "a pickle", ".jsonl"),
    Ruined("a.jsonl", LINE.decode().encode("utf-16"), 1, "UTF-16", "UTF-8"),
    Ruined("a.json", LINE.decode().encode("utf-16"), 1, "UTF-16", "UTF-8"),
    Ruined("a.csv", "prompt,completion\np,a\n".encode("utf-16"), 1, "UTF-16", "UTF-8"),
    Ruined("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid 1\n", 1, "Git LFS pointer", "git lfs pull"),
    Ruined("a.json", b"version https://git-lfs.github.com/spec/v1\n", 1, "Git LFS pointer", "git lfs pull"),
    Ruined("a.csv", b"<!DOCTYPE html>\n<html></html>\n", 1, "a web page", "download link"),
    Ruined("a.jsonl", b"<html>\n<head></head></html>\n", 1, "a web page", "download link"),
    # names
    *[
        Ruined(f"a{kind}", pickle.dumps([1]), None, "can run code", ".parquet")
        for kind in (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".pkl.gz")
    ],
    *[
        Ruined(f"a{kind}", _zip(), None, "archives are not unpacked", "Unpack it")
        for kind in (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.zst", ".7z", ".rar")
    ],
    *[Ruined(f"a{kind}", LINE, None, "are not read", "Known: .jsonl") for kind in (".txt", ".xlsx")],
    *[Ruined(f"a{kind}", LINE, None, "does not say what the file holds", "Add how it ends") for kind in ("", ".gz")],
    # layouts that are none
    Ruined("a.jsonl", b"{}", 1, "no known layout", "--columns"),
    Ruined("a.jsonl", b'{"text": "once upon a time"}', 1, "no known layout", "'completion'"),
    Ruined("a.jsonl", b'{"text": "\\n\\nHuman: p\\n\\nAssistant: a"}', 1, "no known layout", "--columns messages=text"),
    Ruined("a.jsonl", b'{"query": "p", "reply": "a"}', 1, "no known layout", "completion=reply"),
    Ruined("a.jsonl", b'{"problem": "p", "solution": "a", "answer": "7"}', 1, "no known layout", "prompt=problem"),
    Ruined("a.jsonl", b'{"question": "p", "answers": ["a", "b"]}', 1, "no known layout", "responses=answers"),
    Ruined("a.jsonl", b'{"question": "p", "answer": "a", "context": "c"}', 1, "no known layout", "completion=answer"),
    Ruined("a.jsonl", b'{"chosen": "a"}', 1, "no known layout", "--columns"),
    # names of columns and layouts
    Ruined("a.jsonl", b'{"question": "p", "answer": "a"}', 1, "no column 'qestion' to read as 'prompt'", "'question'",
           "qestion", {"columns": {"prompt": "qestion"}}),
    Ruined("a.csv", b"question,answer\np,a\n", 2, "no column 'anwser'", "'answer'", "anwser",
           {"columns": {"completion": "anwser"}}),
    Ruined("a.parquet", TABLE, 1, "no column 'question'", "Known: completion, prompt", "question",
           {"columns": {"prompt": "question"}}),
]  # fmt: skip
