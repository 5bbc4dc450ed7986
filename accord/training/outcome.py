"""What comes out of a run beside its weights: settings as resolved, the summary, the model card."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
import yaml

from accord.data.batches import Corpus
from accord.engine import models
from accord.engine.heads import CLASSIFIERS, REWARDS
from accord.engine.reference import Reference
from accord.errors import AccordError, ConfigError
from accord.stats import share
from accord.training.cost import Law
from accord.training.loop import Finished
from accord.training.terms import Example, Term, by_mean, noise, reward_scale, right, tie_width


def settings_of(folder: Path) -> dict[str, Any]:
    """What config.yaml of a run says; empty if there is none.

    Raises:
        AccordError: it is damaged.
    """
    path = folder / "config.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AccordError(
            f"{path} is damaged ({' '.join(str(error).split())}): mend it to go on, or start again with overwrite: true"
        ) from error


def write_config(path: Path, resolved: dict[str, Any], policy: models.Policy, refs: dict[str, Reference]) -> None:
    """config.yaml: every setting as resolved, and in comments what they resolved to."""
    head = [
        f"# accord {importlib.metadata.version('accord-align')}; torch {torch.__version__}; "
        + "; ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers", "peft"))
        + f"; Python {platform.python_version()} on {platform.machine()}",
        f"# policy {policy.name}, content {policy.start}",
        *(f"# reference {name}: {ref.name}, content {ref.key}, {ref.mode}" for name, ref in refs.items()),
    ]
    body = yaml.safe_dump(plain(resolved), sort_keys=False, allow_unicode=True)
    models.write_whole(path, "\n".join(head) + "\n" + body)


def keep_objectives(folder: Path, terms: Mapping[str, Term]) -> None:
    """Copies objectives of the user's into the run, in `objectives/`.

    Raises:
        ConfigError: the run was started with another version of such a file.
    """
    for path in {Path(row.module) for term in terms.values() for row, _, _ in term.parts if row.module.endswith(".py")}:
        kept = folder / "objectives" / path.name
        text = path.read_text(encoding="utf-8")
        if kept.exists() and kept.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{path} has changed since the run was started (it holds what it was, in objectives/): put it back to "
                "go on, choose another output, or start again with overwrite: true"
            )
        kept.parent.mkdir(exist_ok=True)
        models.write_whole(kept, text)


def plain(value: Any) -> Any:
    """As YAML holds it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def summarise(
    finished: Finished,
    terms: dict[str, Term],
    corpus: Corpus,
    refs: dict[str, Reference],
    seconds: float,
    compute: torch.dtype,
    law: Law | None = None,
) -> dict[str, Any]:
    """summary.json: how it ended, the last and held-out numbers, what an update cost (`law`), accuracy with its
    interval and its baseline.

    A pair whose margin is within the noise of `compute` is half right, and counted in `ties`. Intervals are over
    records: pairs of one record are not independent.
    """
    summary: dict[str, Any] = {
        "finished": finished.reason,
        "steps": finished.progress.step,
        "best_step": finished.progress.best_step,
        "examples": {name: len(items) for name, items in corpus.items.items()},
        "references": {name: {"name": ref.name, "key": ref.key, "mode": ref.mode} for name, ref in refs.items()},
        "start": finished.progress.start,
        "train": finished.last,
        "held_out": finished.evaluation,
        "seconds": round(seconds, 1),
    } | ({"cost": law.as_dict()} if law else {})
    return summary | held_out_accuracy(finished.held, terms, compute)


def held_out_accuracy(held: Seq[Example], terms: Mapping[str, Term], compute: torch.dtype) -> dict[str, Any]:
    """Accuracy on held-out pairs with its interval and its baseline; a margin within the noise of `compute` is half
    right, and counted in `ties`. Empty without pairs."""
    summary: dict[str, Any] = {}
    pairs = [e for e in held if "rejected" in e.rewards]
    if pairs:
        found, longer = [], []
        for e in pairs:
            chosen, rejected = (torch.tensor(e.lengths[side]) for side in ("chosen", "rejected"))
            margin = torch.tensor(e.rewards["chosen"] - e.rewards["rejected"], dtype=torch.float64)
            found.append(float(right(margin, tie_width(terms[e.term], chosen, rejected, compute))))
            longer.append(float(right(chosen - rejected, torch.tensor(0))))
        records = [e.record for e in pairs]
        counted = {"pairs": len(pairs), "records": len(set(records))}
        summary["held_out_accuracy"] = share(found, records).as_dict() | counted | {
            "ties": found.count(0.5), "precision": precision_name(compute),
            "widths": {  # of `tie_width`, for those who read the examples
                name: {"unit": 0.0 if t.scored else reward_scale(t, "chosen") * noise(compute), "mean": by_mean(t)}
                for name, t in terms.items()
            },
        }  # fmt: skip
        summary["longer_is_better"] = share(longer, records).as_dict() | counted
    return summary


def reward_settings(terms: Mapping[str, Term], heads: tuple[str, ...], max_length: int) -> dict[str, Any] | None:
    """What `reward.json` says of the model of a run: which heads make a reward, and how; None if there is no such."""
    own = [h for h in heads if h.partition(":")[0] in REWARDS]
    if not own:
        return None
    parts = [(row, options) for term in terms.values() for row, _, options in term.parts]
    names = next((term.view.attributes for term in terms.values() if term.view.attributes), None)
    how = [(row.name, options) for row, options in parts if not set(REWARDS).isdisjoint(row.needs)]
    return {
        "heads": own,
        "writes": any(term.logps for term in terms.values()),
        "objectives": [name for name, _ in how],
        "options": {k: v for _, options in reversed(how) for k, v in options.items()},
        "max_length": max_length,
    } | ({"attributes": list(names)} if names else {})


def precision_name(compute: torch.dtype) -> str:
    return "bf16" if compute == torch.bfloat16 else "fp32"


def library(policy: models.Policy) -> str:
    """What loads `model/`: peft for an adapter, transformers for whole weights (also those of stacked adapters)."""
    return "peft" if policy.lora is not None and not policy.stacked else "transformers"


SCORES = """
It is a reward model: it scores answers and writes no text. A dialogue is scored at its last token as the chat template
renders it, the end of the answer included; scores compare answers to one prompt.

```python
{load}
chat = [{{"role": "user", "content": question}}, {{"role": "assistant", "content": answer}}]
print(model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits)
```
"""
LOAD = {
    "transformers": "model = AutoModelForSequenceClassification.from_pretrained(folder)",
    "peft": "base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels={labels})\n"
    "model = PeftModel.from_pretrained(base, folder)",
}


def scoring(reward: dict[str, Any] | None, library: str) -> str:
    """What the card of a reward model says of its use; nothing of a language model."""
    if reward is None or reward["writes"]:
        return ""
    if any(
        str(h).partition(":")[0] not in CLASSIFIERS for h in reward["heads"]
    ):  # transformers would read a part of it
        return SCORES.partition("\n\n```")[0] + "\nAccord reads it (accord.engine.rewards.load).\n"
    labels = next((str(h).partition(":")[2] or "1" for h in reward["heads"]), "1")
    return SCORES.format(load=LOAD[library].format(labels=labels))


def card(
    resolved: dict[str, Any], summary: dict[str, Any], told: list[str], library: str,
    reward: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """The model card: what it was made from, how, and what came out."""
    base = resolved["model"]
    objective = resolved["objective"]
    said = f"objective `{objective}`" if isinstance(objective, str) else "the objectives under Options"
    numbers = {**{f"last batch, {k}": v for k, v in summary["train"].items()}, **summary["held_out"]}
    rows = "\n".join(f"| {k} | {v:.4g} |" for k, v in numbers.items() if isinstance(v, float))
    accuracy = summary.get("held_out_accuracy")
    sentence = (
        f"\nHeld-out accuracy {accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] on "
        f"{accuracy['pairs']} pairs; choosing the longer answer: {summary['longer_is_better']['mean']:.3f}.\n"
        if accuracy
        else ""
    )
    options = yaml.safe_dump(
        plain({k: v for k, v in resolved.items() if k != "output"}), sort_keys=False, allow_unicode=True
    )
    listed = "\n".join(f"- {t}" for t in told)
    known = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"} if base == "smollm2" else {}
    front = yaml.safe_dump({"base_model": base, "library_name": library, "tags": ["accord"]} | known)
    return f"""---
{front}---

# {Path(str(base)).name}, aligned with Accord

Trained from `{base}` with {said}, {summary["steps"]} updates of {resolved["batch_size"]} examples.
{scoring(reward, library)}
## Data

{listed}

## Results

| metric | value |
| --- | --- |
{rows}
{sentence}
## Options

```yaml
{options}```
"""


def add_result(model: Path, sentence: str) -> None:
    """Puts what was measured after the run at the head of the results of a saved model's card."""
    path = model / "README.md"
    before, heading, rest = path.read_text(encoding="utf-8").partition("## Results\n")
    models.write_whole(path, f"{before}{heading}\n{sentence}\n{rest}")
