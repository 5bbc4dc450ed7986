"""What does the model think of its own answers? It is asked which of two is better, and how sure it is, is read off its
next token."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from itertools import combinations
from pathlib import Path
from typing import Literal

from accord.data.records import Judgement, Record, Response
from accord.data.verdicts import FIRST, QUESTION, SECOND, asked, read
from accord.errors import ConfigError
from accord.judges.frame import Judge, Say, Unjudged
from accord.judges.ratio import Likelihoods
from accord.judges.table import row

CERTAIN = 1e-9  # probabilities are held so far from 0 and 1: a strength of 1 is for what is known


class Own:
    """P(one answer is better than another) of a model that is asked which, in both orders.

    Args:
        model: a run, folder or hub name. question: with {prompt}, {first} and {second}.

    Each pair gets two judgements, one an order: P(A) / (P(A) + P(B)) of the next token. Averaged in log-odds, as
    pairing and views do, a liking for A or for the first place falls out exactly where it adds to the log-odds.
    """

    compares = True

    def __init__(
        self, model: str, question: str = QUESTION, among: str = "all", device: str = "auto", precision: str = "auto"
    ) -> None:
        self.model, self.question, self.among = Likelihoods(model, device, precision), question, among
        self.by = f"self:{self.model.policy.start[:8]}"

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        orders = [
            (n, order)
            for n, record in enumerate(records)
            for pair in self._pairs(len(record.responses))
            for order in (pair, pair[::-1])
        ]
        found = self.model([self._question(records[n], order) for n, order in orders])
        said: list[list[Judgement]] = [[] for _ in records]
        why: dict[int, str] = {}
        sides: dict[tuple[int, frozenset[int]], list[Judgement]] = {}
        for (n, order), sums in zip(orders, found, strict=True):
            if isinstance(sums, Unjudged):
                why.setdefault(n, sums.why)
                continue
            (a, a_tokens), (b, b_tokens) = sums
            if not a_tokens or not b_tokens:
                why.setdefault(n, "the question with its answers is longer than the model's sequences")
                continue
            p = min(max(1 / (1 + math.exp(min(b - a, 700.0))), CERTAIN), 1 - CERTAIN)
            one = Judgement(kind="preference", pair=order, value=p, order=order, by=self.by, attribute="self")
            sides.setdefault((n, frozenset(order)), []).append(one)
        for (n, _), both in sides.items():
            if len(both) == 2:  # one order alone would count the liking for a place
                said[n] += both
        for n, record in enumerate(records):
            if len(record.responses) < 2:
                why[n] = "it has one response, and nothing to compare it with"
        say(len(records), len(records))
        return [Unjudged(why[n], tuple(s)) if n in why else tuple(s) for n, s in enumerate(said)]

    def _pairs(self, count: int) -> list[tuple[int, int]]:
        return [(0, j) for j in range(1, count)] if self.among == "first" else list(combinations(range(count), 2))

    def _question(self, record: Record, order: tuple[int, int]) -> Record:
        first, second = (record.responses[i].plain_text for i in order)
        prompt = asked(record.messages, first, second, self.question)
        return Record(prompt=prompt, responses=(Response(text=FIRST), Response(text=SECOND)))


@row()
def self(
    model: str = "{policy}",
    *,
    question: str | None = None,
    among: Literal["all", "first"] = "all",
    device: str = "auto",
    precision: str = "auto",
) -> Judge:
    """The model itself (OSP): P(A) / (P(A) + P(B)) of the word that says which of two answers is better, both orders.

    Equation:
        logit p = (logit p(y1 before y2) - logit p(y2 before y1)) / 2, which pairing and views take of the two verdicts

    Source: arXiv 2405.14103 (read: abstract and secondary sources; the form is inferred). A model that cannot judge
    learns it from pairs: view.verdict, see docs/judges.md.

    Args:
        model: a run, folder or hub name; in a loop, without one, the policy that the round begins with.
        question: a file with the question, with {prompt}, {first} and {second} in it; A or B is the answer.
        among: of more than two responses: all pairs, or each with the first.
    """
    text = QUESTION
    if question is not None:
        try:
            text = read(Path(question).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"question={question} cannot be read ({error})") from None
    return Own(model, text, among, device, precision)
