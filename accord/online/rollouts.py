"""What is written beside a round's answers, so that policies learn from them? Log-probs, values, advantages.

Log-probs and values are those of the models that the round begins with, as training computes them, temperature
included: at the first step every ratio is 1, whatever the sampler's arithmetic was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from accord.data.chat import Chat
from accord.data.records import Judgement, Record, Response
from accord.data.views import Branch, Counts
from accord.engine.logprobs import Row, no_dropout
from accord.engine.models import Policy
from accord.engine.reference import PASS_TOKENS, plan
from accord.online.advantages import IN_GROUP, AdvantageOptions, Answer, Memory, Weighed, advantages

Said = dict[str, np.ndarray]  # by name (`logp`, `head:value`): a number for each token of an answer


def said_of(
    policy: Policy, chat: Chat, records: Seq[Record], progress: Callable[[int, int], None] = lambda done, of: None
) -> list[list[Said | None]]:
    """What the policy says of every answer; None of one without a token, or that is cut."""
    sequences, places = [], list[tuple[int, int]]()
    found: list[list[Said | None]] = [[None] * len(r.responses) for r in records]
    for n, record in enumerate(records):
        for k, response in enumerate(record.responses):
            made = chat.encode(record, [Branch(n, k)], Counts())
            if made and len(response.token_ids or ()) == len(made[0].ids) and not made[0].later:
                sequences += made
                places.append((n, k))
    scorer = policy.scorer
    done = 0
    for micro in plan(sequences, scorer, PASS_TOKENS.get(scorer.device.type, 16384)) if sequences else ():
        with torch.no_grad(), no_dropout(scorer):
            out = {name: value.float().cpu().numpy() for name, value in scorer(Row.of(micro, scorer.device)).items()}
        for i in dict.fromkeys(micro.owner.tolist()):
            n, k = places[i]
            found[n][k] = _whole(sequences[i].trained, {k: v[micro.owner == i] for k, v in out.items() if v.ndim == 1})
            done += 1
        progress(done, len(sequences))
    return found


def _whole(trained: np.ndarray, said: Said) -> Said:
    """The same with a 0 at tokens that are not trained."""
    made = {}
    for name, values in said.items():
        made[name] = np.zeros(len(trained), values.dtype)
        made[name][trained] = values
    return made


def weighed(
    records: Seq[Record], scores: Seq[np.ndarray], old: Seq[Seq[Said | None]], options: AdvantageOptions,
    memory: Memory, counts: Counts, *, by: str | None, ref: Seq[Seq[Said | None]] | None = None,
    critic: Seq[Seq[Said | None]] | None = None,
) -> tuple[list[Record], Memory, dict[str, float]]:  # fmt: skip
    """Records of the answers that can be learned from, with their advantages; what the next round is told; numbers.

    Args:
        scores: of each record's answers, NaN where nobody scored one.
        old, ref, critic: what the policy, the reference and the critic say of them, see `said_of`.
        by: who judged.
    """

    def answer(n: int, k: int) -> Answer:
        response, own = records[n].responses[k], old[n][k]
        if own is None:
            return Answer(math.nan, np.zeros(1))
        theirs, value = (None if of is None else of[n][k] for of in (ref, critic))
        return Answer(
            float(scores[n][k]), own["logp"].astype(float), None if theirs is None else theirs["logp"].astype(float),
            None if value is None else value["head:value"].astype(float), response.finish != "length",
            is_greedy(response),
        )  # fmt: skip

    groups = [[answer(n, k) for k in range(len(r.responses))] for n, r in enumerate(records)]
    found, memory, told = advantages(groups, options, memory)
    made = []
    for n, record in enumerate(records):
        kept: list[Response] = []
        said: list[Judgement] = []
        for k, (response, one) in enumerate(zip(record.responses, found[n], strict=True)):
            if one is None:
                if not groups[n][k].greedy:
                    counts.add(_why(groups[n][k], options), record)
                continue
            said.append(Judgement(kind="score", response=len(kept), value=float(scores[n][k]), by=by))
            kept.append(_carrying(response, groups[n][k], one))
        if kept:
            made.append(Record(**{**dict(record), "responses": tuple(kept), "judgements": tuple(said)}))
        else:
            counts.add("no answers", record)
    return made, memory, told


def is_greedy(response: Response) -> bool:
    """Whether it is what others are compared with (`advantage.rule: greedy`)."""
    return response.sampler is not None and response.sampler.temperature == 0


def _why(answer: Answer, options: AdvantageOptions) -> str:
    if math.isnan(answer.score):
        return "left: an answer without a score"
    if options.rule in IN_GROUP:
        return "left: an answer that no other one to its prompt can be compared with"
    return "left: an answer whose greedy counterpart has no score"


def _carrying(response: Response, answer: Answer, weighed: Weighed) -> Response:
    numbers: dict[str, Any] = {"sampling_logprobs": answer.old, "advantages": weighed.advantage}
    if weighed.returns is not None:
        numbers |= {"returns": weighed.returns, "values": answer.value}
    return response.model_copy(
        update={"revised_from": None} | {k: tuple(map(float, v)) for k, v in numbers.items() if v is not None}
    )
