"""What would one write without a toolkit? A padded batch, whole log-probs, the loss from its equation: the gate
compares Accord with it, and objectives that TRL has not are raced against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from accord.bench import device as place
from accord.bench.sides import ADAM, RATE, Turn, corpus_of
from accord.bench.work import Update
from accord.data.batches import Batch, gather
from accord.errors import AccordError
from accord.objectives import table


def padded(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, which of them there are, and which are trained, [N, L] each, filled up on the right."""
    sequences = batch.sequences
    width = max(len(s.context) + len(s.ids) for s in sequences)
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    mask, trained = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for r, s in enumerate(sequences):
        n = len(s.context) + len(s.ids)
        tokens[r, :n] = torch.from_numpy(np.concatenate([s.context, s.ids]).astype(np.int64))
        mask[r, :n] = 1
        trained[r, len(s.context) : n] = True
    return tokens.to(device), mask.to(device), trained.to(device)


def log_probs(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Sum of the log-probs of each sequence's trained tokens, [N] nats."""
    tokens, mask, trained = padded(batch, device)
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    logp = logits.float().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return (logp * trained[:, 1:]).double().sum(1)


def loss(objective: str, model: Any, head: Any, batch: Batch, reference: torch.Tensor) -> torch.Tensor:
    """The objective's loss of a batch, from its equation.

    Args:
        head: what makes a reward of a hidden state, for `bradley_terry`.
        reference: log-probs of the sequences under the reference, [N]; zeros where none is asked.

    Raises:
        AccordError: its equation does not stand here.
    """
    device, term = reference.device, batch.terms[objective]
    if objective == "bradley_terry":
        tokens, mask, _ = padded(batch, device)
        out = model(input_ids=tokens, attention_mask=mask, use_cache=False, output_hidden_states=True)
        score = head(out.hidden_states[-1][torch.arange(len(tokens), device=device), mask.sum(1) - 1])
        return F.softplus(score[term.roles["rejected"]] - score[term.roles["chosen"]]).mean()
    total = log_probs(model, batch, device)
    if objective == "sft":
        return -total.sum() / sum(int(s.trained.sum()) for s in batch.sequences)
    rho = total - reference
    if objective == "dpo":
        return F.softplus(-0.1 * (rho[term.roles["chosen"]] - rho[term.roles["rejected"]])).mean()
    good, own = torch.from_numpy(term.values["value"] >= 0.5).to(device), term.roles["response"]
    if objective == "kto":
        z = rho[term.roles["mismatched"]].detach().mean().clamp(min=0)
        return torch.where(
            good, 1 - torch.sigmoid(0.1 * (rho[own] - z)), 1 - torch.sigmoid(0.1 * (z - rho[own]))
        ).mean()
    if objective == "ulma":
        return torch.where(good, -total[own], F.softplus(0.1 * rho[own])).mean()
    raise AccordError(f"the bench has no plain form of {objective!r}")


class Plain:
    """The plain loop on the updates: a prompt's answers are a padded batch, references are computed once; fp32.

    Of objectives whose loss is a mean over examples, none of which knows of another prompt's.
    """

    def __init__(self, model: Path, updates: list[Update], objective: str) -> None:
        from transformers import AutoModelForCausalLM

        corpus, order = corpus_of(updates, objective, table.rows()[objective].feeds_on)
        self.objective = objective
        self.updates = [
            [gather(corpus, {objective: part.tolist()}) for part in np.split(np.array(examples), len(update.prompts))]
            for examples, update in zip(order, updates, strict=True)
        ]
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.model = loaded.to(place.name()).eval()  # dropout off, as the reference has it
        began = place.now()
        with torch.no_grad():
            known = [[log_probs(self.model, batch, self.model.device) for batch in parts] for parts in self.updates]
        self.references, self.reference = known, place.now() - began
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0, fused=True, **ADAM)

    def turn(self, name: str = "plain") -> Turn:
        """Its loop, ready to go."""

        def body(ended: Callable[[float], None]) -> None:
            while True:
                for parts, known in zip(self.updates, self.references, strict=True):
                    total = 0.0
                    for batch, reference in zip(parts, known, strict=True):
                        value = loss(self.objective, self.model, None, batch, reference) / len(parts)
                        value.backward()
                        total += float(value.detach())
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    ended(total)

        return Turn(name, body)
