"""Every kind of feedback in one run: demonstrations, thumbs, ratings, pairs with strengths, rankings.

    python recipes/mixed_feedback.py smollm2 runs/mixed

The records are written here so that each kind can be seen. In a run of your own they come from files: `data=[...]`.
Each kind goes to an objective of its own; the five terms are added up, each divided by its own number of examples.
"""

import sys

import accord
from accord import Judgement, Record

model, output = (*sys.argv[1:], *["smollm2", "runs/mixed"][len(sys.argv) - 1 :])[:2]


def texts(*answers: str) -> list[dict[str, str]]:
    return [{"text": answer} for answer in answers]


records = []
for thing in ("bakery", "bike shop", "florist", "tea house", "cinema", "harbour"):
    ask = f"Write a slogan for a {thing}."
    good, fair, poor = (
        f"Your {thing}, your day.",
        f"A {thing} for everyone in town.",
        f"Sure! Here is a {thing} slogan:",
    )
    # 1. A demonstration: somebody wrote a good answer, and nobody compared it with anything.
    records.append(Record(prompt=ask, responses=texts(good), source="writers"))
    # 2. A thumb up and a thumb down.
    thumbs = [Judgement(kind="label", response=0, value=1), Judgement(kind="label", response=1, value=0)]
    records.append(Record(prompt=ask, responses=texts(good, poor), judgements=thumbs, source="visitors"))
    # 3. A rating on a scale.
    stars = [Judgement(kind="score", response=0, value=4, scale=(1, 5))]
    records.append(Record(prompt=ask, responses=texts(fair), judgements=stars, source="critics"))
    # 4. A pair with a strength: three of four judges preferred the first.
    votes = [Judgement(kind="preference", pair=(0, 1), value=0.75)]
    records.append(Record(prompt=ask, responses=texts(good, fair), judgements=votes, source="panel"))
    # 5. A ranking; 0 is the best place.
    order = [Judgement(kind="rank", response=i, value=i) for i in range(3)]
    records.append(Record(prompt=ask, responses=texts(good, fair, poor), judgements=order, source="editor"))

run = accord.train(
    model,
    records,
    {
        "demonstrations": "sft",
        "labels": "kto",
        "ratings": {"name": "pointwise_dpo_continuous", "view": {"rescale": "centred"}},
        "pairs": "soft_dpo",
        "rankings": {"name": "dpo", "weight": 0.5},
    },
    output=output,
    batch_size=16,
    max_steps=4,
    learning_rate=1e-6,
)
print(f"{run.summary['finished']}: {run.summary['examples']}")
print(f"loss {run.summary['train']['loss']:.3f}; everything is in {run.folder}")
