"""TRL's side of the race: its own trainers, run by their own `train()`, on the same weights, ids and order."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accord.bench import device
from accord.bench.sides import ADAM, RATE, Turn
from accord.bench.work import Update
from accord.errors import ConfigError


@dataclass(frozen=True)
class Baseline:
    """How the opponent is set, TRL if it is not `plain`. `ours`: the precision that Accord takes against it."""

    says: str
    bf16: bool | None
    tuned: bool
    ours: str


BASELINES = {
    "box": Baseline("TRL out of the box", None, False, "auto"),
    "fp32": Baseline("TRL's defaults in fp32", False, False, "fp32"),
    "tuned": Baseline("TRL best tuned, fp32", False, True, "fp32"),
    "tuned-bf16": Baseline("TRL best tuned, bf16", True, True, "bf16"),
    "plain": Baseline("a plain loop, fp32", False, True, "fp32"),
}
PLAIN = ("dpo", "ulma", "sample")  # what is raced without TRL; `sample` against transformers' generate
TRAINERS = {"dpo": "DPO", "kto": "KTO", "bradley_terry": "Reward", "sft": "SFT"}


def rows_of(update: Update, objective: str) -> list[dict[str, Any]]:
    """An update as TRL has it: tokenised rows of its data set."""
    found: list[dict[str, Any]] = []
    if objective in ("dpo", "bradley_terry"):
        for p, i, j in update.pairs():
            prompt, better, worse = (x.tolist() for x in (update.prompts[p], *(update.answers[p][n] for n in (i, j))))
            if objective == "dpo":
                found.append({"prompt_ids": prompt, "chosen_ids": better, "rejected_ids": worse})
            else:
                found.append({"chosen_ids": prompt + better, "rejected_ids": prompt + worse})
        return found
    for prompt, several in zip(update.prompts, update.answers, strict=True):
        for i, answer in enumerate(several):
            ids, given = answer.tolist(), prompt.tolist()
            if objective == "kto":
                found.append({"prompt_ids": given, "completion_ids": ids, "label": i == 0})
            elif i == 0:
                found.append({"input_ids": given + ids, "labels": [-100] * len(given) + ids})
    for n, row in enumerate(found if objective == "kto" else ()):  # as Accord does: the next answer to another prompt
        other = next(r for r in (*found[n + 1 :], *found) if r["prompt_ids"] is not row["prompt_ids"])
        row["KL_completion_ids"] = other["completion_ids"]
    return found


class Theirs:
    """A TRL trainer on the updates."""

    def __init__(
        self, model: Path, updates: list[Update], objective: str, baseline: str, *, lora: bool = False, folder: Path,
        adapter: dict[str, torch.Tensor] | None = None, batch: int = 0,
    ) -> None:  # fmt: skip
        try:
            import trl
            from datasets import Dataset
            from transformers import AutoTokenizer, TrainerCallback
        except ImportError as error:
            raise ConfigError(
                f"accord bench races TRL, which is not here ({error}): pip install 'accord-align[bench]'"
            ) from error
        warnings.filterwarnings("ignore", module="trl|transformers|torch")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        how = BASELINES[baseline]
        rows = [rows_of(update, objective) for update in updates]
        size = len(rows[0])
        alone = batch or (size if not how.tuned else 2 if objective == "kto" else 1)  # TRL's KTO refuses one at a time
        kind = TRAINERS[objective]
        options: dict[str, Any] = {"bf16": how.bf16, "per_device_train_batch_size": alone}
        options["gradient_accumulation_steps"] = size // alone
        if how.tuned:
            options["gradient_checkpointing"] = False
            if kind in ("DPO", "KTO"):
                options["precompute_ref_log_probs"] = True
        if kind == "SFT":
            options["dataset_kwargs"] = {"skip_prepare_dataset": True}
        config = getattr(trl, f"{kind}Config")(
            output_dir=str(folder), max_steps=10**6, learning_rate=RATE, lr_scheduler_type="constant", report_to="none",
            save_strategy="no", max_length=None, use_cpu=device.name() == "cpu", disable_tqdm=True,
            adam_beta1=ADAM["betas"][0], adam_beta2=ADAM["betas"][1], adam_epsilon=ADAM["eps"], weight_decay=0.0,
            logging_strategy="no", **options,
        )  # fmt: skip
        side = self
        self.losses: list[float] = []
        self.reference = 0.0
        ended: list[Callable[[float], None]] = []
        self._ended = ended

        class Trainer(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
            """The same, with data that is tokenised and ordered already."""

            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

            def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

            def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
                began = device.now()
                found = super()._precompute_ref_logps(*args, **kwargs)
                side.reference = device.now() - began
                return found

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                found = super().compute_loss(*args, **kwargs)
                side.losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
                return found

        class Hold(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                found, side.losses = side.losses, []
                parts = 1 if kind == "SFT" else len(found)  # SFT divides by the tokens of the whole update
                ended[0](sum(found) / parts)

        peft = None
        if lora:
            from peft import LoraConfig

            peft = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.trainer = Trainer(
            model=str(model), args=config, train_dataset=Dataset.from_list([r for several in rows for r in several]),
            processing_class=AutoTokenizer.from_pretrained(model), peft_config=peft, callbacks=[Hold()],
        )  # fmt: skip
        with torch.no_grad():
            if kind == "Reward":  # as ours begins
                self.trainer.model.score.weight.zero_()
            if adapter:
                for name, p in self.trainer.model.named_parameters():
                    if p.requires_grad:
                        p.copy_(adapter[name])

    def turn(self, name: str = "trl") -> Turn:
        """Its loop, ready to go."""

        def body(ended: Callable[[float], None]) -> None:
            self._ended[:] = [ended]
            self.trainer.train()

        return Turn(name, body)
