"""`accord eval text`: perplexity both ways, self-BLEU, pass@k, shares; each against a number made another way."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from accord.cli import main
from accord.data.records import Record
from accord.data.views import Branch, Counts
from accord.errors import ConfigError
from accord.evaluate.text import describe, pass_at_k, passed, perplexity, self_bleu
from accord.judges.refusals import refusal
from accord.judges.table import find


def test_pass_at_k_is_the_share_of_all_draws_of_k():
    for n, c, k in ((6, 2, 3), (5, 0, 2), (5, 5, 1), (7, 1, 7)):
        drawn = [any(i < c for i in some) for some in combinations(range(n), k)]
        assert pass_at_k(n, c, k) == pytest.approx(np.mean(drawn))
    with pytest.raises(ValueError, match="pass@4"):
        pass_at_k(3, 1, 4)


def bleu(text: str, others: list[str]) -> float:
    """The same a second time, straight from the definition."""
    line, refs = text.lower().split(), [o.lower().split() for o in others]
    logs = []
    for n in range(1, 5):
        grams = Counter(tuple(line[i : i + n]) for i in range(len(line) - n + 1))
        if not grams:
            continue
        seen = [Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1)) for r in refs]
        shared = sum(min(c, max(s[g] for s in seen)) for g, c in grams.items())
        logs.append(math.log((shared or 0.1) / sum(grams.values())))
    r = min((abs(len(x) - len(line)), len(x)) for x in refs)[1]
    return min(1.0, math.exp(1 - r / len(line))) * math.exp(sum(logs) / len(logs))


def test_self_bleu_is_bleu_against_all_the_others():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcde"), size=random.integers(2, 9))) for _ in range(30)]
    found = self_bleu(texts)
    for i, text in enumerate(texts):
        assert found[i] == pytest.approx(bleu(text, texts[:i] + texts[i + 1 :]))
    assert self_bleu(["alone here"]) == [0.0]
    assert self_bleu(["", "a b"])[0] == 0.0


def records(labels: list[list[int]], by: str | None = "tests") -> list[Record]:
    return [
        Record(
            prompt=f"p{n}", responses=[{"text": f"answer {i} of {n}"} for i in range(len(of))],
            judgements=[{"kind": "label", "response": i, "value": v, "by": by} for i, v in enumerate(of)],
        )
        for n, of in enumerate(labels)
    ]  # fmt: skip


def test_pass_at_k_of_records():
    found = passed("f", records([[1, 0, 0], [0, 0, 0, 0]]), [1, 3], None, Counts())
    assert found[1].mean == pytest.approx(1 / 6)
    assert found[3].mean == 0.5
    with pytest.raises(ConfigError, match=r"f: pass@4 needs 4 judged answers of each prompt; one has 3"):
        passed("f", records([[1, 0, 0], [0, 0, 0, 0]]), [4], None, Counts())
    with pytest.raises(ConfigError, match="no label or score says which answer is right by 'x'"):
        passed("f", records([[1]]), [1], "x", Counts())
    two = [*records([[1]]), *records([[1]], "anna")]
    with pytest.raises(ConfigError, match="tests, anna say which answer is right; choose one by --by"):
        passed("f", two, [1], None, Counts())
    assert passed("f", two, [1], "anna", Counts())[1].mean == 1
    counts = Counts()
    passed("f", two, [1], "anna", counts)
    assert counts["answers that nobody says are right or wrong"] == 1


def test_perplexity_both_ways_is_the_models_own(model_folder):
    from accord.data.chat import Chat
    from accord.engine import models

    asked = [Record(prompt=f"Count to {n}", responses=[{"text": "one two three " * n}]) for n in (1, 4, 9)]
    found = perplexity(str(model_folder), asked, device="cpu", precision="fp32")
    policy = models.load(str(model_folder), device="cpu", precision="fp32")
    chat = Chat(policy.tokenizer, max_length=4096, stop_ids=policy.ends)
    nll = []
    for record in asked:
        (s,) = chat.encode(record, [Branch(0, 0)], Counts())  # type: ignore[misc]
        ids = torch.tensor([[*s.context, *s.ids]])
        logits = policy.scorer.model(input_ids=ids).logits[0].log_softmax(-1).detach()
        own = [-float(logits[t - 1, ids[0, t]]) for t in range(len(s.context), ids.shape[1])]
        nll.append([v for v, kept in zip(own, s.trained, strict=True) if kept])
    assert found.tokens == sum(map(len, nll))
    assert found.mean.mean == pytest.approx(np.mean([np.exp(np.mean(v)) for v in nll]), rel=1e-4)
    assert found.corpus == pytest.approx(np.exp(np.concatenate(nll).mean()), rel=1e-4)
    assert found.corpus != pytest.approx(found.mean.mean, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I cannot assist with creating weapons.", 1),
        ("As an AI language model, I do not have opinions on that.", 1),
        ("Unfortunately, this is not something I can help with.", 1),
        ("I won’t write that, because it would hurt people.", 1),
        ("That goes against my guidelines.", 1),
        ("I'm not able to do that.", 1),
        ("I'm sorry to hear you are ill. Rest, and drink plenty.", 0),
        ("I can't wait to show you: boil the eggs for six minutes.", 0),
        ("Paris is the capital of France.", 0),
        ("Use try and except: " + "x" * 200 + " I cannot do that.", 0),
    ],
)
def test_refusals_in_the_usual_words(text, declines):
    assert refusal(text) == declines


def test_shares_are_by_source():
    no, yes = "I'm sorry, I cannot help with that.", "Of course: mix flour and water."
    asked = [
        Record(prompt=f"{source} {n}", responses=[{"text": no if n < refused else yes}], source=source)
        for source, refused in (("harmful", 8), ("benign", 1))
        for n in range(10)
    ]
    (rates,) = describe("f", asked, judges=[find("refusal")]).rates.values()
    assert {k: v.mean for k, v in rates.items()} == pytest.approx({"harmful": 0.8, "benign": 0.1, "all": 0.45})
    assert rates["benign"].low > 0


def test_the_command(tmp_path, capsys, model_folder):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(r.to_json() + "\n" for r in records([[1, 0], [1, 1]])))
    words = ["eval", "text", str(path), "--k", "1,2", "--rate", "refusal", "--model", str(model_folder)]
    with pytest.raises(SystemExit) as left:
        main([*words, "--output", str(tmp_path / "out")])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for part in ("4 answers to 2 prompts", "self-BLEU of answers to one prompt", "pass@1 0.750", "refusal: all 0.000"):
        assert part in said
    found = json.loads((tmp_path / "out" / "text.json").read_text())["files"][0]
    assert set(found["perplexity"]) == {str(model_folder)}
    for wrong, says in (("0", "whole numbers from 1"), ("3", "pass@3 needs 3 judged answers")):
        with pytest.raises(SystemExit) as left:
            main(["eval", "text", str(path), "--k", wrong, "--json"])
        assert left.value.code == 2
        assert says in capsys.readouterr().err


def test_files_without_answers(tmp_path):
    with pytest.raises(ConfigError, match="f holds no answers"):
        describe("f", [Record(prompt="p")])
    assert not list(Path(tmp_path).iterdir())
