"""The table of objectives: one row each, read from the functions themselves.

An objective is a function decorated with `@row(...)` in a file of this folder. Its signature says most of what
there is to know:

- the annotation of the first argument is what it feeds on (`Demos, Points, Pairs, Groups, Tokens, Rollouts`);
- every further positional argument is something it needs, by name (`NEEDS`); `ref` means a reference policy;
- keyword-only arguments are its options, with their defaults;
- the docstring is equation, source and help.

The row adds what a signature cannot say. Everything here is read from the syntax tree, so that listing the table
imports no torch; `function(name)` imports the module that holds the function.
"""

from __future__ import annotations

import ast
import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accord import functions
from accord.errors import ConfigError, nearest
from accord.functions import Option

NEEDS = {
    "ref": "log-probs under the reference policy; any other name in `_ref` is a further reference, named in the run",
    "moving_ref": "log-probs under a reference that follows the policy, by options alpha and tau as `tr_dpo` has them",
    "old": "log-probs under the policy that sampled the responses, as they were written down when it sampled",
    "old_tokens": "the same token by token, [B, L]",
    "mismatched": "log-probs of another prompt's response after this prompt, no gradient, nats",
    "ref_mismatched": "the same under the reference",
    "log_z": "log of the partition function of each example's prompt, nats",
    "stats": "what the row's stats function made of the whole global batch, detached",
    "revised": "log-probs of each response of a pair where the other was said and is to be revised, nats",
    "ref_revised": "the same under the reference",
    "kept": "log-probs of each response of a pair where it was said itself and is to be revised, nats",
    "ref_kept": "the same under the reference",
    "kl": "KL(reference | policy) of next-token distributions, summed over a response's tokens, nats (live reference)",
    "kl_tokens": "the same token by token, [B, L]",
    "mask": "output of a learned mask head token by token, [B, L]",
    "kl_mask": "output of a second mask head, for divergences, [B, L]",
    "activation": "how active the reference is at each token, in [0, 1] over a response, [B, L] (live reference)",
    "extrapolated": "log-probs of logits h + extrapolation (an option of the row) * (h - h of ref), no gradient, nats",
    "entropy": "entropy of the next-token distribution, per response, nats",
    "collision": "log of the sum of squared next-token probabilities, summed over a response's tokens, no gradient",
    "distance": "how far the next token is from the right one on average, in the output embedding, [B, L], in [0, 2]",
    "tokens": "log-probs token by token, [B, L]",
    "ref_tokens": "the reference's log-probs token by token, [B, L]",
    "hidden": "hidden state at each response's last token, [B, h]",
    "score": "output of a scalar head at each response's last token, [B]",
    "attributes": "output of a head of `count` numbers, an option of the row, at a response's last token, [B, A]",
    "attribute": "which of the attributes an example is about, [B]",
    "embedding": "output of a head of `dimensions` numbers, an option of the row, at a response's last token, [B, D]",
    "gate": "output of a head at the prompt's last token, one number for each attribute or two dimensions, [B, G]",
    "cuts": "numbers that depend on nothing, learned beside the score: `levels` - 1 of them, an option of the row",
    "prototypes": "directions, learned, the same for all: `clusters` of them, an option of the row, [B, clusters * h]",
    "degree": "output of a head of `degrees` numbers, an option of the row, at each response's last token, [B, K]",
    "value": "output of a value head token by token, [B, L]",
    "returns": "what the tokens of a rollout returned, [B, L]",
    "old_value": "the value head's output when the rollout was sampled, [B, L]",
    "state": "what the row's stats function returned as state at the step before, or None at the first",
    "noise": "a number in [0, 1) for each example, drawn from (seed, step, record id), [B]",
    "progress": "share of the run that is done, in [0, 1]",
}


# What the reference must stand beside the policy for, in words; `extrapolated` only where its option is not 0.
LIVE = {
    "kl": "the divergence over the whole vocabulary",
    "activation": "the activation of the reference's layers",
    "extrapolated": "the extrapolation away from the reference",
}

# Names that the field uses for several objectives: none is guessed. In small letters, with _ for -.
AMBIGUOUS: dict[str, tuple[str, ...]] = {
    "rdpo": ("robust", "r_dpo", "rationale"),
    "r_dpo": ("robust", "r_dpo", "rationale"),
    "rpo": ("dpo_sft", "rpo_reward_aware", "irpo"),
    "hypo": ("hypo", "hybrid_dpo"),
    "hpo": ("hypo", "hybrid_dpo"),
    "hinge": ("rso_hinge", "slic_hf"),
    "tdpo": ("tdpo1", "tdpo2"),
    "exo": ("exo_pref", "exo_rw"),
    "aot": ("aot_paired", "aot_unpaired"),
    "aot_pair": ("aot_paired", "aot_unpaired"),
    "apo": ("apo_zero", "apo_down", "apo_zero_unpaired"),
    "oipo": ("online_ipo", "online_ipo1"),
    "mapo": ("sparsepo_mapo",),
    "gpo": ("gpo_score",),
    "spo": ("spo_degree", "sppo"),
    "rso": ("rso_hinge", "rso_sigmoid"),
}

# What is published under a name as for an objective, and is a setting here.
SETTINGS = {
    "pair_normalised": "how a gradient becomes a step (arXiv 2410.13828): set update: pair_normalised",
    "extragradient": "how a gradient becomes a step (arXiv 2503.08942): set update: extragradient, or train egpo",
    "reward_augmented": 'a view of scored pairs (arXiv 2410.08067): set view: {relabel: "...{score}..."}',
    "udm": "a view of labels (arXiv 2404.04656): set view: {match_prompts: true} beside bco",
}

FED = ("Demos", "Points", "Pairs", "Groups", "Tokens", "Rollouts")


def reference_named(need: str) -> str | None:
    """The reference whose log-probs a need is about, or None.

    >>> reference_named("ref_tokens"), reference_named("previous_ref"), reference_named("score")
    ('ref', 'previous_ref', None)
    """
    stem = need
    for ending in ("_tokens", "_mismatched", "_revised", "_kept"):
        stem = stem.removesuffix(ending)
    return stem if stem == "ref" or stem.endswith("_ref") else None


def moves(reference: str) -> bool:
    """True if the reference of that name follows the policy."""
    return reference.startswith("moving_")


@dataclass(frozen=True)
class Row:
    """What is known of an objective.

    length: whether it was published on summed or mean log-probs; a run that chooses the other one is named so. `sum
        only` if it divides by lengths or goes over tokens itself, so that a run cannot choose.
    unit: what is counted in the divisor: `example`, or `token` (the run's total of trained tokens).
    init: its value at policy = reference, as an expression over its options and `log` (`log(2)`, `1/(4*tau**2)`),
        and for points over `value`; or None where it has no fixed one.
    invariance: `shift` if adding a constant of the prompt to every log-ratio changes nothing, else None.
    stats: name of the function beside it that sees the global batch first; stats_needs: what that one needs;
        stats_reads: what of it, and of what the row feeds on, its body reads.
    couples: `batch` if its losses cannot be computed example by example.
    classes: `both` if every batch must hold good and bad examples.
    values: `probability` if the value of a point is taken for P(good), and must lie in [0, 1]; `scores` if both
        responses of a pair must have been scored.
    reads: of a row on demonstrations in a sum on pairs, the role of the pair that it reads, if not chosen: `rationale`.
    logps: False if it reads no log-prob of the policy, whatever its first argument holds: it is about heads' outputs,
        and the language-model head is not computed for it.
    update: how its step is made, where that is a part of it: `extragradient`; a run may choose another.
    beside: what it must stand beside to align anything, in words; a run on such rows alone is told.
    exceptions: laws that it breaks on purpose, with the reason.
    """

    name: str
    module: str
    feeds_on: str
    needs: tuple[str, ...]
    options: dict[str, Option]
    doc: str
    paper: str
    length: str = "sum"
    unit: str = "example"
    init: str | None = None
    invariance: str | None = None
    stats: str | None = None
    couples: str | None = None
    classes: str | None = None
    values: str | None = None
    reads: str | None = None
    logps: bool = True
    update: str | None = None
    beside: str | None = None
    aliases: tuple[str, ...] = ()
    exceptions: dict[str, str] = field(default_factory=dict)
    stats_needs: tuple[str, ...] = ()
    stats_reads: frozenset[str] = frozenset()

    @property
    def needs_reference(self) -> bool:
        return bool(self.references) or self.live

    @property
    def references(self) -> frozenset[str]:
        """Names of the references whose log-probs it asks for; `ref` is the run's first."""
        return frozenset(r for n in self.needs + self.stats_needs if (r := reference_named(n)))

    @property
    def live(self) -> bool:
        """True if it asks for what `ref` must stand beside the policy for."""
        return any(n.removesuffix("_tokens") in LIVE for n in self.needs + self.stats_needs)

    @property
    def scores_batch_first(self) -> bool:
        """True if the whole global batch must be scored before any loss is known."""
        return self.stats is not None or self.couples is not None

    @property
    def anchored(self) -> bool:
        """True if only answers to other prompts, which get no gradient, must be scored before any loss is known."""
        others = {"mismatched", "ref_mismatched"}
        alone = self.couples is None and others.isdisjoint(self.needs)
        return alone and bool(self.stats_reads) and self.stats_reads <= others

    @property
    def summary(self) -> str:
        return self.doc.strip().splitlines()[0]

    @property
    def help(self) -> str:
        first, _, rest = self.doc.partition("\n")
        return first + "\n" + textwrap.dedent(rest)


def row(
    *,
    paper: str,
    length: str = "sum",
    unit: str = "example",
    init: str | None = None,
    invariance: str | None = None,
    stats: str | None = None,
    couples: str | None = None,
    classes: str | None = None,
    values: str | None = None,
    reads: str | None = None,
    logps: bool = True,
    update: str | None = None,
    beside: str | None = None,
    aliases: tuple[str, ...] = (),
    exceptions: dict[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a function as an objective; the arguments are the fields of `Row` and must be literals."""
    del (
        paper,
        length,
        unit,
        init,
        invariance,
        stats,
        couples,
        classes,
        values,
        reads,
        logps,
        update,
        beside,
        aliases,
        exceptions,
    )  # read elsewhere
    return lambda function: function


@functools.cache
def rows() -> dict[str, Row]:
    """Every objective by name, in the order of the files and of the functions within."""
    found: dict[str, Row] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        nodes = functions.read(path)
        for name, node in nodes.items():
            if (facts := functions.marked(node)) is not None:
                stats = nodes[facts["stats"]] if facts.get("stats") else None
                found[name] = _read(node, f"accord.objectives.{path.stem}", facts, stats)
    return found


def _read(node: ast.FunctionDef, module: str, facts: dict[str, Any], stats: ast.FunctionDef | None = None) -> Row:
    first, *needs = _positional(node)
    options = {
        a.arg: Option(ast.unparse(a.annotation) if a.annotation else "Any", ast.literal_eval(default))
        for a, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if default is not None
    }
    return Row(
        name=node.name,
        module=module,
        feeds_on=ast.unparse(first.annotation).strip("'\"").rpartition(".")[2] if first.annotation else "",
        needs=tuple(a.arg for a in needs),
        options=options,
        doc=ast.get_docstring(node) or "",
        stats_needs=tuple(a.arg for a in _positional(stats)[1:]) if stats else (),
        stats_reads=_reads(stats) if stats else frozenset(),
        **facts,
    )


def _reads(node: ast.FunctionDef) -> frozenset[str]:
    """The tensors among a function's arguments that its body reads."""
    loaded = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return frozenset(a.arg for a in _positional(node) if a.arg in loaded)


def _positional(node: ast.FunctionDef) -> list[ast.arg]:
    return node.args.posonlyargs + node.args.args


def find(name: str) -> Row:
    """The row called `name` or known by that alias, or an objective of the user's: `my.py:name`.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if ".py:" in name:
        return _own(name)
    table = rows()
    if name in table:
        return table[name]
    for candidate in table.values():
        if name in candidate.aliases:
            return candidate
    plain = name.lower().replace("-", "_")
    if meant := AMBIGUOUS.get(plain):
        listed = "; ".join(f"{m} ({table[m].paper}): {table[m].summary}" for m in meant)
        of_them = "say which one is meant" if len(meant) > 1 else "one of them is here, by another name"
        raise ConfigError(f"several objectives are called {name!r}; {of_them}: {listed}")
    if plain in SETTINGS:
        raise ConfigError(f"{name!r} is no objective but {SETTINGS[plain]}")
    if plain != name:  # DPO, Sim-PO
        return find(plain)
    raise ConfigError(f"no objective is called {name!r}; {nearest(name, table, 'accord objectives')}")


@functools.cache
def _own(name: str) -> Row:
    """A function in a file of the user's as a row; what `@row(...)` does not say has its default."""
    node, nodes, module = functions.own(name, "objective")
    try:
        facts = {"paper": "none"} | (functions.marked(node) or {})
        found = _read(node, module, facts, nodes[facts["stats"]] if facts.get("stats") else None)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name}: defaults of options and what @row says must be literals ({error})") from None
    if found.feeds_on not in FED:
        raise ConfigError(f"{name}: annotate the first argument with what it feeds on: {', '.join(FED)}")
    for need in found.needs + found.stats_needs:
        if need not in NEEDS and reference_named(need) is None:
            raise ConfigError(f"{name}: nothing is called {need!r}; {nearest(need, NEEDS)} (options follow a *)")
    if "degree" in found.needs and "degrees" not in found.options:
        raise ConfigError(f"{name}: a head of several numbers needs the option degrees, as in spo_degree")
    if "extrapolated" in found.needs + found.stats_needs and "extrapolation" not in found.options:
        raise ConfigError(f"{name}: extrapolated log-probs need the option extrapolation, as in selfie")
    if any(moves(r) for r in found.references) and not {"alpha", "tau"} <= found.options.keys():
        raise ConfigError(f"{name}: a reference that moves needs the options alpha and tau, as in tr_dpo")
    return replace(found, name=name)


def function(name: str) -> Callable[..., Any]:
    """The objective itself (imports torch)."""
    found = find(name)
    return getattr(functions.module(found.module), found.name.rpartition(":")[2])


def stats_function(name: str) -> Callable[..., Any] | None:
    """The row's stats function, or None."""
    found = find(name)
    return getattr(functions.module(found.module), found.stats) if found.stats else None
