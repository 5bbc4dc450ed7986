"""Who scores, by the words of a command? A trained reward model, a policy, a rule, or what stands in the file already.

All of them are judges (`judges/frame.py`): records in, judgements out.

| words | who |
|---|---|
| `by:NAME` | the judgements that stand in the records under `by: NAME` |
| `slogan:words=5`, `my.py:mine` | a judge of `judges/table.py`, with its options |
| `PATH` of a reward model | its rewards, or its preferences; of a run of `sharing: ensemble`, those of all its models |
| `PATH` of any other model, with a reference | its implicit reward, beta * log-ratio |
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accord.data.records import Judgement, Record
from accord.engine import classifiers, models, rewards
from accord.errors import ConfigError, nearest
from accord.judges import table
from accord.judges.ensemble import passes
from accord.judges.frame import Judge, Say
from accord.judges.reward import Reward, trained

Length = Literal["sum", "mean"]


def quiet(done: int, of: int) -> None:
    """Says nothing."""


def find(
    words: str,
    *,
    reference: str | None = None,
    beta: float = 0.1,
    length: Length = "sum",
    max_length: int | None = None,
    device: models.Device = "auto",
    precision: models.Precision = "auto",
) -> Judge:
    """The judge that `words` name.

    Args:
        reference: whose log-probs a policy's are compared with; not looked at by the others.
        beta: of implicit rewards. length: whether log-ratios are summed over tokens or averaged.
        max_length: longest dialogue in tokens, by default that of a reward model's training, or 4,096; what is longer
            is cut, and counted.
        device, precision: as of `models.load`.

    Raises:
        ConfigError: nobody is called so, or a policy without a reference.
    """
    name, _, options = words.partition(":")
    if name == "by" and options:
        return Said(options)
    if name in table.rows() or ".py:" in words or " " in words.strip():
        return table.find(words, device=device, precision=precision)
    if rewards.ensemble(words) is not None:
        return trained(words, by=words, max_length=max_length, device=device, precision=precision)
    source = models.resolve(words)
    if classifiers.settings_of(source if isinstance(source, Path) else models.downloaded(source)) is not None:
        model = rewards.load(words, max_length=max_length, device=device, precision=precision)
        if model.kind == "attributes":
            raise ConfigError(
                f"{words} scores several attributes, of which none decides alone: train a mixture of them"
            )
        return Reward(model, by=words)
    if reference is None:
        raise ConfigError(
            f"{words} has no head that scores: name a reward model, or say --reference MODEL, and its implicit reward "
            f"is taken; also known: by:NAME, {', '.join(table.rows())}"
        )
    policy = rewards.implicit(
        words,
        reference,
        beta=beta,
        length=length,
        max_length=max_length or 4096,
        device=device,
        precision=precision,
    )
    return Reward(policy, by=f"{words} against {reference}, beta={beta:g}, {length}")


def dropped(judge: Judge, count: int, rate: float) -> list[Judge]:
    """Dropout passes of a reward model; see `judges.ensemble.passes`.

    Raises:
        ConfigError: it is none.
    """
    model = judge.model if isinstance(judge, Reward) else None
    if not isinstance(model, rewards.RewardModel):
        raise ConfigError(f"--passes: {judge.by} is no reward model, and has no head to drop from")
    return passes(model, count, rate)


def counted(judge: Judge) -> dict[str, int]:
    """What a judge that runs a model had to cut or leave out, by reason."""
    found = {k: n for one in getattr(judge, "judges", ()) for k, n in counted(one).items()}
    model = getattr(judge, "model", None)
    return found | ({f"{model.name}: {what}": n for what, n in model.counts.totals().items()} if model else {})


# -- judges that need no model -----------------------------------------------------------------------------------------


@dataclass
class Said:
    """What stands in the records already, under this `by`."""

    by: str
    ready = True  # asked before those that run a model

    def __call__(self, records: Seq[Record], say: Say = quiet) -> list[tuple[Judgement, ...]]:
        found = [tuple(j for j in record.judgements if j.by == self.by) for record in records]
        if not any(found):
            names = sorted({j.by for record in records for j in record.judgements if j.by})
            known = nearest(self.by, names) if names else "no judgement says by whom it is"
            raise ConfigError(f"nothing is said by {self.by!r} in these records; {known}")
        return found
