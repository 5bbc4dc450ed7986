"""Who agrees with whom, and how sure is that? A fit of people, kept in a folder, to score for each of them.

found = fit("smollm2", "votes.jsonl", method="pal_a", users="by", groups=3, output="runs/people")
add(found.folder, "new-votes.jsonl", users="by")      # somebody new, from a few pairs
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.views import Counts
from accord.engine import models
from accord.errors import AccordError, ConfigError, nearest
from accord.people import mixture, pal
from accord.people.comparisons import Comparisons, Reading, Say, compare, read
from accord.stats import Interval, bootstrap

Method = Literal["pal_a", "pal_b", "mixture", "mixture_hard"]
METHODS = ("pal_a", "pal_b", "mixture", "mixture_hard")


@dataclass
class People:
    """A fit. told: what `people.json` says; model: scores and margins for users; weights [users, groups]."""

    told: dict[str, Any]
    model: pal.Pal | mixture.Mixture
    weights: Tensor
    mean: Tensor
    scale: Tensor
    folder: Path | None = None

    @property
    def users(self) -> list[str]:
        return list(self.told["users"])

    def plain(self, states: Tensor) -> Tensor:
        """Hidden states as the fit saw them: each number with mean 0 and deviation 1 over the training answers."""
        return (states - self.mean) / self.scale

    def seen(self, pairs: Comparisons) -> Comparisons:
        states = {n: self.plain(getattr(pairs, n)) for n in ("chosen", "rejected", "prompt")}
        return Comparisons(**states, user=pairs.user, question=pairs.question, users=pairs.users, source=pairs.source)

    def weight_of(self, user: str | None) -> Tensor:
        """Mixture [groups] of a user; of None, of people on average.

        Raises:
            ConfigError: nobody is called so.
        """
        if user is None:
            return self.weights.mean(0)
        if user not in self.users:
            raise ConfigError(f"nobody is called {user!r}; {nearest(user, self.users)}. `accord people add` adds users")
        return self.weights[self.users.index(user)]


def fit(
    model: str | Path,
    data: Any,
    *,
    method: Method = "pal_a",
    users: str = "source",
    groups: int = 2,
    reading: Reading = "mean",
    held_out: float = 0.25,
    latent: int = 64,
    steps: int = 300,
    max_length: int = 512,
    seed: int = 0,
    on_bad_record: Literal["raise", "skip"] = "raise",
    output: str | Path | None = None,
    say: Say = lambda done, of: None,
) -> People:
    """Fits `groups` kinds of people to who preferred what, beside one reward for all, and measures both.

    Args:
        model: whose hidden states are read; it stays as it is.
        data: pairs (or what makes pairs: ratings, rankings) with their users.
        method: `pal_a`, `pal_b` (`pal.py`), `mixture`, `mixture_hard` (`mixture.py`).
        users, reading: who a user is, and what is read of an answer; see `compare`.
        held_out: share of the prompts that accuracies are measured on.
        latent, steps: of PAL.
        output: a folder for people.json and people.safetensors.

    Raises:
        ConfigError: an option that means nothing here.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is not known; known: {', '.join(METHODS)}")
    if groups < 1 or latent < 1 or steps < 1 or not 0 < held_out < 1:
        raise ConfigError("groups, latent and steps are 1 or more, and held_out lies between 0 and 1")
    if output is not None and (Path(output) / "people.json").exists():
        raise ConfigError(f"{output} holds a fit already: choose another output, or remove it")
    counts = Counts()
    policy, chat = _reader(model, max_length)
    pairs = compare(
        policy, chat, _records(data, on_bad_record), users, reading=reading, seed=seed, counts=counts, say=say
    )
    if groups > len(pairs.users):
        raise ConfigError(f"groups={groups}, but there are {len(pairs.users)} users: {', '.join(pairs.users[:8])}")
    train, held = pairs.split(held_out, seed)
    both = torch.cat([train.chosen, train.rejected])
    mean, scale = both.mean(0), both.std(0).clamp(min=1e-6)
    told = {
        "method": method, "model": str(model), "key": policy.key, "reading": reading,
        "max_length": max_length, "groups": groups,
        "users": list(pairs.users), "source": list(pairs.source), "users_are": users, "seed": seed, "latent": latent,
        "pairs": {"train": len(train), "held_out": len(held)}, "counts": counts.totals(),
    }  # fmt: skip
    people = People(told, _model(method, 1, train, mean, scale, latent, steps, seed), torch.ones(len(pairs.users), 1),
                    mean, scale)  # fmt: skip
    told["single"] = _accuracy(people, held, seed)
    people.model = _model(method, groups, train, mean, scale, latent, steps, seed)
    people.weights = people.model.weights().float()
    told |= {"accuracy": _accuracy(people, held, seed), "recovered": _recovered(people)}
    told["of_users"] = _of_users(people, held)
    if output is not None:
        people.folder = Path(output)
        save(people, people.folder)
    return people


def _records(data: Any, on_bad_record: Literal["raise", "skip"]) -> list[Record]:
    if isinstance(data, (str, Path)):
        return list(sources.load(str(data), on_error=on_bad_record).records)
    return list(data)


def _reader(model: str | Path, max_length: int) -> tuple[models.Policy, Chat]:
    policy = models.load(model)
    return policy, Chat(policy.tokenizer, max_length=max_length, stop_ids=policy.ends)


def _model(
    method: str, groups: int, pairs: Comparisons, mean: Tensor, scale: Tensor, latent: int, steps: int, seed: int
) -> pal.Pal | mixture.Mixture:
    states = {n: (getattr(pairs, n) - mean) / scale for n in ("chosen", "rejected", "prompt")}
    plain = Comparisons(**states, user=pairs.user, question=pairs.question, users=pairs.users, source=pairs.source)
    if method.startswith("pal"):
        return pal.fit(plain, groups, method, latent=latent, steps=steps, seed=seed)  # type: ignore[arg-type]
    return mixture.fit(plain, groups, hard=method == "mixture_hard", seed=seed)


def _right(people: People, pairs: Comparisons) -> np.ndarray:
    margins = people.model.margins(people.seen(pairs), people.weights[pairs.user]).double()
    return torch.where(margins == 0, 0.5, (margins > 0).double()).numpy()


def _accuracy(people: People, pairs: Comparisons, seed: int) -> dict[str, float]:
    """Share of held-out pairs in the right order; the interval is over prompts, whose pairs stand or fall together."""
    right, question = _right(people, pairs), pairs.question.numpy()
    sums = np.array([[right[question == q].sum(), (question == q).sum()] for q in np.unique(question)])
    draws = np.random.default_rng(seed).integers(0, len(sums), (2000, len(sums)))
    shares = sums[draws].sum(1)
    low, high = np.quantile(shares[:, 0] / shares[:, 1], [0.025, 0.975])
    return Interval(float(right.mean()), float(low), float(high)).as_dict()


def _of_users(people: People, held: Comparisons) -> dict[str, dict[str, Any]]:
    right = _right(people, held)
    found = {}
    for i, name in enumerate(people.users):
        mine = held.user.numpy() == i
        own, asked = right[mine], held.question.numpy()[mine]
        weights = [round(float(w), 4) for w in people.weights[i]]
        found[name] = {"weights": weights, "pairs": len(own)} | (bootstrap(own, asked).as_dict() if len(own) else {})
    return found


def _recovered(people: People) -> dict[str, float] | None:
    """Do the groups agree with the sources of the users, which the fit has not seen? The adjusted Rand index (1: the
    same partition, 0: chance) of each user's likeliest group, and the share of users in a group's main source."""
    source = [sorted(set(people.told["source"])).index(s) for s in people.told["source"]]
    group = people.weights.argmax(-1).tolist()
    if len(set(source)) < 2 or len(set(source)) == len(source):
        return None
    table = np.zeros((max(source) + 1, max(group) + 1))
    np.add.at(table, (source, group), 1)

    def twos(x: np.ndarray) -> float:
        return float((x * (x - 1) / 2).sum())

    total, rows, columns = twos(np.array([len(source)])), twos(table.sum(1)), twos(table.sum(0))
    chance, most = rows * columns / total, (rows + columns) / 2
    index = 1.0 if most == chance else (twos(table) - chance) / (most - chance)
    return {"adjusted_rand": index, "purity": float(table.max(0).sum() / len(source))}


def add(
    folder: str | Path,
    data: Any,
    *,
    users: str = "source",
    on_bad_record: Literal["raise", "skip"] = "raise",
    say: Say = lambda done, of: None,
) -> dict[str, Tensor]:
    """Adds users to a fit, all else frozen, from their pairs; gives their mixtures. Who was there is replaced."""
    people = load(folder)
    policy, chat = _reader(people.told["model"], people.told["max_length"])
    _same(policy, people)
    pairs = compare(policy, chat, _records(data, on_bad_record), users, reading=people.told["reading"], say=say)
    plain, found = people.seen(pairs), {}
    for i, name in enumerate(pairs.users):
        own = plain.at(plain.user == i)
        if not len(own):
            continue
        new = pal.weights_of(people.model, own) if isinstance(people.model, pal.Pal) else mixture.weights_of(
            people.model, own
        )  # fmt: skip
        found[name] = new.float()
        if name in people.users:
            people.weights[people.users.index(name)] = found[name]
        else:
            people.told["users"].append(name)
            people.told["source"].append(pairs.source[i])
            people.weights = torch.cat([people.weights, found[name][None]])
        people.told["of_users"][name] = {"weights": [round(float(w), 4) for w in found[name]], "added_from": len(own)}
    save(people, Path(folder))
    return found


def _same(policy: models.Policy, people: People) -> None:
    if policy.key != people.told["key"]:
        raise AccordError(
            f"{people.told['model']} is no longer the model whose hidden states this fit has read: fit anew, or put "
            "that model back"
        )


def scores(
    people: People, records: Seq[Record], user: str | None = None, say: Say = lambda done, of: None
) -> list[np.ndarray]:
    """What each record's responses are worth to a user (None: to people on average), [K]; NaN for what cannot be read.

    Raises:
        ConfigError: nobody is called so. AccordError: the model is another by now.
    """
    weights = people.weight_of(user)
    policy, chat = _reader(people.told["model"], people.told["max_length"])
    _same(policy, people)
    found = []
    for said, opens in read(policy, chat, records, people.told["reading"], Counts(), say):
        answers, prompt = people.plain(said), people.plain(opens).expand(len(said), -1)
        values = people.model.score(answers, prompt, weights.expand(len(said), -1)) if len(said) else torch.zeros(0)
        found.append(values.double().numpy())
    return found


def save(people: People, folder: Path) -> None:
    """people.json and people.safetensors, each whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    model = people.model
    held = (
        {f"pal.{k}": v for k, v in model.state_dict().items()}
        if isinstance(model, pal.Pal)
        else {"theta": model.theta, "share": model.share}
    )
    held |= {"weights": people.weights, "mean": people.mean, "scale": people.scale}
    part = folder / "people.safetensors.part"
    save_file({k: v.contiguous() for k, v in held.items()}, part)
    part.replace(folder / "people.safetensors")
    models.write_whole(folder / "people.json", json.dumps(people.told, indent=2))


def load(folder: str | Path) -> People:
    """Raises:
    AccordError: no fit lies there.
    """
    folder = Path(folder)
    try:
        told = json.loads((folder / "people.json").read_text("utf-8"))
        held = load_file(folder / "people.safetensors")
    except (OSError, ValueError) as error:
        raise AccordError(f"{folder} holds no fit of people ({error}): make one with accord people fit") from None
    weights = held["weights"]
    model: pal.Pal | mixture.Mixture
    if told["method"].startswith("pal"):
        state = {k.removeprefix("pal."): v for k, v in held.items() if k.startswith("pal.")}
        model = pal.Pal(len(held["mean"]), len(state["mixture"]), told["groups"], told["method"], told["latent"])
        model.load_state_dict(state)
        model.requires_grad_(False)
    else:
        model = mixture.Mixture(held["theta"], held["share"], weights, (), told["method"] == "mixture_hard")
    return People(told, model, weights, held["mean"], held["scale"], folder)
