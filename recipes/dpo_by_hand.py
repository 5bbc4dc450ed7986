"""DPO by hand: what `accord.train` does with pairs, on one screen and without a loop class.

    python recipes/dpo_by_hand.py smollm2                 # three toy pairs
    python recipes/dpo_by_hand.py MODEL pairs.jsonl 50    # your pairs, 50 updates

The loss is -log sigmoid(beta * ((a - a_r) - (b - b_r))): a and b are the summed log-probs of chosen and rejected under
the policy, a_r and b_r under the policy as it starts.
"""

import sys

import torch

import accord
from accord.data import sources
from accord.data.batches import pack
from accord.data.chat import Chat
from accord.data.views import Counts, view
from accord.engine.logprobs import Row
from accord.objectives.kinds import Pairs
from accord.objectives.pairs import dpo

TOY = [("Capital of France?", "Paris.", "London."), ("2 + 2?", "4", "5"), ("Opposite of hot?", "Cold.", "Warm.")]
model, file, steps = (*sys.argv[1:], *["smollm2", "", "10"][len(sys.argv) - 1 :])[:3]

# Records are facts; the view makes pairs of them; the chat template makes tokens of the pairs.
better = accord.Judgement(kind="preference", pair=(0, 1), value=1)
toy = [accord.Record(prompt=p, responses=[{"text": w}, {"text": l}], judgements=[better]) for p, w, l in TOY]
records = sources.load(file).records if file else toy
policy = accord.load(model, precision="fp32")  # an update of 1e-6 is smaller than a step of bf16
scorer, chat, counts, sequences = policy.scorer, Chat(policy.tokenizer), Counts(), []
for pair in view(records, "Pairs")[:32]:
    sequences += chat.encode(records[pair.record], [pair.branches["chosen"], pair.branches["rejected"]], counts) or []
n = len(sequences)
chosen, rejected = torch.arange(0, n, 2), torch.arange(1, n, 2)

# Every prompt once, its two answers behind it: one packed row, and for each log-prob the sequence it belongs to.
micro = pack(sequences, range(n), scorer.layout)
row, owner = Row.of(micro, scorer.device), torch.from_numpy(micro.owner)
lengths = torch.bincount(owner, minlength=n).double()
unknown = torch.full((n // 2,), torch.nan)


def scored() -> Pairs:
    """Summed log-probs of both sides, in float64."""
    sums = torch.zeros(n, dtype=torch.float64).index_add(0, owner, scorer(row)["logp"].double().cpu())
    sides = sums[chosen], sums[rejected], lengths[chosen], lengths[rejected]
    return Pairs(*sides, torch.ones(n // 2), unknown, unknown)


with torch.no_grad():
    reference = scored()
optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-6, weight_decay=0.0)
for step in range(int(steps)):
    now = scored()
    loss = dpo(now, reference, beta=0.1).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    margin = ((now.chosen - reference.chosen) - (now.rejected - reference.rejected)).mean()
    print(f"step {step + 1}: loss {loss.item():.4f}, margin {margin.item():+.3f} nats")
