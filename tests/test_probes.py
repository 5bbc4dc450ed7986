"""What monitors see and say: unit facts, runs that are watched, broken runs that are named."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

import accord as package
from accord import doctor
from accord.data.batches import Corpus, gather
from accord.data.chat import Chat, Sequence
from accord.data.records import Response
from accord.data.views import Counts
from accord.engine import models
from accord.errors import ConfigError
from accord.monitors import Window
from accord.monitors.beta import Beta
from accord.monitors.degradation import Degradation
from accord.monitors.dispersion import Dispersion
from accord.monitors.drop import Drop
from accord.monitors.entanglement import Entanglement
from accord.monitors.entropy import Entropy
from accord.monitors.heart import Heart
from accord.monitors.length import Length
from accord.monitors.on_policy import OnPolicy
from accord.monitors.reference import ReferenceAtStart
from accord.monitors.repeats import Repeats
from accord.monitors.saturation import Saturation
from accord.monitors.spikes import Spikes
from accord.monitors.table import TABLE, Panel, named
from accord.objectives import kinds
from accord.objectives.pairs import dpo
from accord.sinks import JsonLines
from accord.training import inputs, plan, terms
from accord.training.parallel import norms_by_part
from accord.training.probes import distinct, divergences, entanglement, likelihoods, small, tokens
from accord.training.step import Step, TrainingError
from tests.conftest import ROOT, data_file, make_llama, make_tokenizer, pair_records

QUIET = {"device": "cpu", "precision": "fp32", "quiet": True}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def step_of(objective="dpo", records=None, optimizer=torch.optim.SGD, rate=1e-3, **options):
    """A random Llama, its step and one batch of pairs."""
    records = records or pair_records(8)
    policy = models.load(make_llama(), make_tokenizer(), device="cpu", precision="fp32")
    found = plan.terms(objective, options)
    chat = Chat(policy.tokenizer, stop_ids=policy.ends)
    corpus = Corpus.build(records, inputs.view_terms(found, records, Counts()), chat, Counts())
    batch = gather(corpus, {name: list(range(len(corpus.items[name]))) for name in found})
    held = {"ref": package_reference(policy)} if any(t.references for t in found.values()) else {}
    made = Step(
        policy.scorer, found, records, optimizer(policy.model.parameters(), lr=rate), references=held,
        max_grad_norm=None,
    )  # fmt: skip
    for ref in held.values():
        ref.prepare(batch.sequences)
    return made, batch


def package_reference(policy):
    import contextlib

    from accord.engine.reference import Reference

    return Reference("start of run", policy.start, lambda: contextlib.nullcontext(policy.scorer), torch.float32)


# -- facts -------------------------------------------------------------------------------------------------------------


def probability_slopes(pi_w, pi_l, ref_w, ref_l, beta):
    """dL/dpi of dpo, along chosen and along rejected."""
    p = torch.tensor([[pi_w], [pi_l]], dtype=torch.float64, requires_grad=True)
    now = kinds.Pairs(*p.log(), *[torch.ones(1)] * 2, torch.ones(1), torch.ones(1), torch.zeros(1))
    ref = kinds.Pairs(*torch.tensor([[ref_w], [ref_l]], dtype=torch.float64).log(), *[torch.ones(1)] * 2, torch.ones(1),
                      torch.ones(1), torch.zeros(1))  # fmt: skip
    (slope,) = torch.autograd.grad(dpo(now, ref, beta=beta).sum(), p)
    return slope.flatten().tolist()


@pytest.mark.parametrize(("rejected", "slopes"), [(0.1, (-0.5, 0.5)), (1e-2, (-0.443, 4.43)), (1e-4, (-0.334, 333.9))])
def test_the_loss_pushes_rejected_ever_harder_along_probabilities(rejected, slopes):
    found = probability_slopes(0.1, rejected, 0.1, 0.1, 0.1)
    assert found == pytest.approx(slopes, rel=2e-3)
    assert -found[1] / found[0] == pytest.approx(0.1 / rejected)  # pi+ / pi-


def test_factors_of_a_run_are_those_of_the_loss():
    """c+ and c- of dpo are -beta sigma(-u) and beta sigma(-u); ipo's fall linearly with the margin."""
    for objective, options in (("dpo", {"beta": 0.3}), ("ipo", {"tau": 0.2})):
        step, batch = step_of(objective, **options)
        found = terms.reduced(step.gradient(batch, 0)[0])
        first = 0.15 if objective == "dpo" else 2 * (1 / (2 * 0.2))
        assert found["factors/chosen"] == pytest.approx(-first, rel=1e-5)
        assert found["factors/rejected"] == pytest.approx(first, rel=1e-5)
        assert found["factors/squares"] == pytest.approx(first**2, rel=1e-5)
        for _ in range(3):
            step(batch, 0)
        found = terms.reduced(step.gradient(batch, 1)[0])
        margins = torch.tensor([e.rewards["chosen"] - e.rewards["rejected"] for e in step.gradient(batch, 1)[1]])
        want = 0.3 * torch.sigmoid(-margins).mean() if objective == "dpo" else 2 * (2.5 - margins).mean()
        assert found["factors/rejected"] == pytest.approx(float(want), rel=1e-4)


def test_three_actions_on_a_line_entangle_and_disperse():
    """Features 1, 2, -3 of three actions, uniform: a step that should part the first from the second lowers both."""
    phi = np.array([1.0, 2.0, -3.0])
    gradients = phi - phi.mean()
    step = gradients[0] - gradients[1]
    assert (step * gradients).tolist() == [-1, -2, 3]
    inner, of_w, of_l = gradients[0] * gradients[1], gradients[0] ** 2, gradients[1] ** 2
    assert 1 - inner / of_w < 0  # chosen falls
    assert inner / of_l - 1 < 0  # and so does rejected
    rises = {"chosen_rises": 1 - inner / of_w, "rejected_rises": inner / of_l - 1, "cosine": 1.0}
    said = Entanglement().see(1, {f"probe/entanglement/{k}": v for k, v in rises.items()})
    assert "along these pairs' own gradient, without the optimizer's scaling," in said.says
    assert "a step lowers chosen, and rejected too" in said.says


@pytest.mark.parametrize("pull", [0.0, 0.05, 0.2])
def test_a_pull_to_the_reference_ends_the_dispersion(pull):
    """The three actions under dpo with lambda x KL: without it all mass goes to the action in no pair."""
    phi = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    uniform = torch.full((3,), -math.log(3), dtype=torch.float64)
    for _ in range(4000):
        logp = (theta * phi).log_softmax(0)
        loss = -torch.nn.functional.logsigmoid(0.1 * (logp[0] - logp[1])) + pull * (logp.exp() * (logp - uniform)).sum()
        (slope,) = torch.autograd.grad(loss, theta)
        theta = (theta - (0.5 if pull else 5.0) * slope).detach().requires_grad_()
    p = (theta * phi).softmax(0).detach()
    want = {0.0: (0, 0, 1), 0.05: (0.2486, 0.2041, 0.5472), 0.2: (0.3149, 0.2994, 0.3857)}[pull]
    assert p.tolist() == pytest.approx(want, abs=2e-3)
    if pull:
        kl = float((p * (p.log() - uniform)).sum())
        assert kl == pytest.approx({0.05: 0.0983, 0.2: 0.0062}[pull], abs=5e-4)


def test_one_token_never_entangles():
    """<g_w, g_l> - |g_w|^2 = -(1 - p_w + p_l) for one softmax: below 0 whatever the probabilities are."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        p = draw.dirichlet(np.ones(6))
        g = np.eye(6) - p
        assert g[0] @ g[1] - g[0] @ g[0] == pytest.approx(-(1 - p[0] + p[1]))


def test_estimates_of_kl():
    q, ref = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    k1, k2, k3 = divergences(np.log(q / ref))
    assert [float((q * k).sum()) for k in (k1, k2, k3)] == pytest.approx([0.498224, 0.491599, 0.498224], abs=1e-6)
    deviation = [float(np.sqrt((q * k**2).sum() - (q * k).sum() ** 2)) for k in (k1, k2, k3)]
    assert deviation == pytest.approx([0.857, 0.380, 0.660], abs=1e-3)


def test_distinct_counts_what_is_new_against_chance():
    assert distinct([[1, 2, 3, 4, 5, 6]], 1000) > 0.99
    assert distinct([[1, 1, 1, 1, 1, 1]] * 4, 1000) < 0.1


# -- probes ------------------------------------------------------------------------------------------------------------


def test_what_the_model_says_itself_does_not_surprise_it():
    """-log p - entropy has mean 0 over a model's own samples, with the standard error that is told."""
    step, _ = step_of()
    draw = np.random.default_rng(0)
    context = [1, 2, 3]
    own, errors = [], []
    for _ in range(40):
        ids: list[int] = []
        with torch.no_grad():
            for _ in range(6):
                logits = step.scorer.causal(torch.tensor([[*context, *ids]])).logits[0, -1].double()
                ids.append(int(draw.choice(len(logits), p=torch.softmax(logits, -1).numpy())))
        (seen,) = tokens(step.scorer, [Sequence.of(context, ids, [True] * 6)], 512)
        own.append((-seen[0] - seen[1]).sum())
        errors.append(seen[2].sum())
    assert abs(sum(own)) < 3 * math.sqrt(sum(errors))
    other = [Sequence.of(context, draw.integers(400, size=6), [True] * 6) for _ in range(40)]
    strange = sum(float((-s[0] - s[1]).sum()) for s in tokens(step.scorer, other, 512))
    assert strange > 3 * math.sqrt(sum(errors))


def test_likelihoods_are_those_of_the_scorer():
    step, batch = step_of()
    probe = small(batch, "dpo")
    found = likelihoods(step, probe)
    with torch.no_grad():
        seen = terms.reduced(step.evaluate(probe.batch).metrics)
    assert found["logps/chosen"] == pytest.approx(seen["logps/chosen"] / seen["lengths/chosen"], rel=1e-4)
    assert len(probe.unseen) == len(probe.batch.terms["dpo"])
    assert 0 < found["topk_mass"] <= 1


def test_entanglement_foretells_what_the_step_does():
    """A plain step on the probe changes both sides by what the gradients say, to first order, in sign and size."""
    signs = set()
    for seed in range(6):
        records = pair_records(24)[4 * seed : 4 * seed + 4]
        if seed % 2:  # a rejected answer that is the chosen one three times
            says = [r.responses[0].text for r in records]
            records = [
                r.model_copy(update={"responses": (Response(text=s), Response(text=" ".join([s] * 3)))})
                for r, s in zip(records, says, strict=True)
            ]
        step, batch = step_of(records=records)
        found = entanglement(step, small(batch, "dpo").batch, 0, step.parameters)
        assert all(p.grad is None for p in step.parameters)  # nothing is left behind
        before = terms.reduced(step.evaluate(batch).metrics)
        rate, pull = 0.02 / found["entanglement/norm_chosen"] ** 2, 0.05  # beta / 2 at the start
        step(batch, 0, {0: rate * pull})
        after = terms.reduced(step.evaluate(batch).metrics)
        for side in ("chosen", "rejected"):
            change = after[f"logps/{side}"] - before[f"logps/{side}"]
            told = rate * found[f"entanglement/norm_{side}"] ** 2 * found[f"entanglement/{side}_rises"]
            assert change == pytest.approx(told, rel=0.15, abs=2e-4)
            signs.add((side, told > 0))
    assert signs == {("chosen", True), ("chosen", False), ("rejected", False)}


def test_the_doctor_holds_what_gradients_foretold_against_what_happened(tmp_path):
    """Three looks: chosen foretold to rise and rose, then to fall and rose; rejected fell as foretold, then stood."""
    seen = [(1.0, -1.0, -2.0, -3.0), (-1.0, -1.0, -1.5, -3.5), (1.0, -1.0, -1.0, -3.5)]
    names = ("entanglement/chosen_rises", "entanglement/rejected_rises", "logps/chosen", "logps/rejected")
    looks = [{f"probe/{n}": v for n, v in zip(names, row, strict=True)} for row in seen]
    JsonLines(tmp_path / "metrics.jsonl").append({"step": s, **row} for s, row in enumerate(looks, 1))
    (line,) = [x for x in doctor.of_run(tmp_path) if x.name == "entanglement"]
    assert "chosen as foretold 1 times of 2, rejected as foretold 1 times of 1" in line.says


def test_the_part_of_a_gradient_that_is_not_finite_is_named():
    step, batch = step_of()
    step.gradient(batch, 0)
    parts = norms_by_part(step.scorer)
    assert parts.keys() == {"embeddings", "attention", "mlp", "norms"}
    whole = math.sqrt(sum(float(p.grad.square().sum()) for p in step.parameters))
    assert math.sqrt(sum(n * n for n in parts.values())) == pytest.approx(whole, rel=1e-5)
    next(p for n, p in step.scorer.named_parameters() if "mlp" in n).grad[0, 0] = math.nan
    with pytest.raises(TrainingError, match="in mlp"):
        step.update()


# -- monitors ----------------------------------------------------------------------------------------------------------


def shown(monitor, rows):
    """Steps at which a monitor spoke."""
    return [s for s, row in enumerate(rows, 1) if monitor.see(s, row) is not None]


def moved(chosen, rejected, length=1.0, **others):
    """Metrics of pairs whose log-probs changed by so many nats a token."""
    return {
        "logratios/chosen": chosen, "logratios/rejected": rejected, "lengths/chosen": length,
        "lengths/rejected": length, "logps/chosen": -10.0, "logps/rejected": -20.0, **others,
    }  # fmt: skip


def test_drop_speaks_once_when_rejected_is_a_thousandth_and_fell_further():
    assert shown(Drop(), [moved(-0.1 * s, -0.5 * s) for s in range(40)]) == [20]  # the mean of ten steps is -7
    assert shown(Drop(), [moved(-0.5 * s, -0.1 * s) for s in range(40)]) == []
    assert shown(Drop(), [moved(0.0, -0.02 * s, 100.0) for s in range(25)]) == []  # 0.5 nats a token, of long ones


def test_degradation_speaks_when_chosen_turns_and_not_while_it_rises():
    def rows(values):
        return [{"probability/chosen": v, "probability/rejected": 1 / s, "lengths/chosen": 1.0}
                for s, v in enumerate(values, 1)]  # fmt: skip

    up_and_down = [1 + 0.1 * s for s in range(20)] + [3.0 - 0.1 * s for s in range(30)]
    assert shown(Degradation(), rows(up_and_down)) == [42]  # the mean of ten steps is below half of 2.75
    monitor = Degradation()
    assert "after step 26" in next(v for s, r in enumerate(rows(up_and_down), 1) if (v := monitor.see(s, r))).says
    assert shown(Degradation(), rows([1 + 0.1 * s for s in range(40)])) == []


def test_dispersion_says_where_the_mass_goes():
    monitor = Dispersion()
    rows = [{"dispersed": 1.0, "logratios/pair": -2.0, **({"probe/logps/unseen": -1.0 + s / 10} if s in (1, 9) else {})}
            for s in range(1, 12)]  # fmt: skip
    said = [v for s, row in enumerate(rows, 1) if (v := monitor.see(s, row))]
    assert len(said) == 1
    assert "rose by 0.8 nats a token" in said[0].says


def test_beta_is_too_small_where_an_answer_has_not_the_nats():
    def row(beta):
        return moved(0.1, -0.1, 10.0, **{"rewards/margins": 2.0 * beta})

    assert shown(Beta(), [row(0.1)] * 20) == []
    assert shown(Beta(), [row(0.001)] * 20) == [1]
    assert shown(Beta(), [row(0.006)] * 20) == []  # answers of 10 nats: 167 are no wonder
    assert Beta().see(1, row(0.001)).remedy == "Tie it closer: a `beta` 1000 times as large."


def test_entropy_turns_only_after_it_rose():
    def rows(*values):
        return [{"probe/topk_entropy": v, "probe/topk_mass": 0.9} for v in values]

    assert shown(Entropy(), rows(1.0, 1.2, 1.5, 1.3)) == [4]
    assert shown(Entropy(), rows(1.5, 1.3, 1.1)) == []
    assert shown(Entropy(), [{"probe/topk_entropy": 1.0, "probe/topk_mass": m} for m in (0.9, 0.85, 0.7)]) == [3]


def test_spikes_saturation_heart_length_and_repeats():
    calm = [{"loss": 0.7, "grad_norm": 1.0}] * 25
    assert shown(Spikes(), [*calm, {"loss": 0.7, "grad_norm": 30.0}, *calm]) == [26]
    pull = [{"factors/chosen": -c, "factors/rejected": c, "factors/squares": c * c} for c in (0.05, *[0.0004] * 20)]
    assert shown(Saturation(), pull) == [11]
    few = {"factors/chosen": -0.01, "factors/rejected": 0.01, "factors/squares": 0.05**2}
    assert shown(Saturation(), [few] * 12) == [10]  # one pair in 25 does it all
    assert shown(Heart(), [{"eval_loss": v} for v in (0.69, 0.5, 0.55, 0.6, 0.7)]) == [4]
    pairs = {"data/longer": 80.0, "data/shorter": 20.0}
    assert "the longer answer is chosen" in Length().see(1, pairs).says
    assert Length().see(1, {"data/longer": 60.0, "data/shorter": 40.0}) is None
    assert Repeats().see(1, {"data/pairs": 100.0, "data/duplicates": 0.0, "data/contradictions": 6.0}) is not None
    assert Repeats().see(1, {"data/pairs": 100.0, "data/duplicates": 4.0, "data/contradictions": 0.0}) is None


def test_a_reference_whose_signs_cancel_is_seen():
    """Means of +0.006 and -0.041 nats a token, but each response is 0.2 away; without that number nobody knows."""
    row = {"logratios/chosen": 0.006, "logratios/rejected": -0.041}
    assert ReferenceAtStart().see(1, row) is None
    said = ReferenceAtStart().see(1, row | {"logratios/away": 0.2})
    assert "0.2 from it on average whatever the sign" in said.says
    assert ReferenceAtStart().see(2, row | {"logratios/away": 0.2}) is None


@pytest.mark.parametrize(("objective", "options"), [("dpo", {}), ("dpo", {"length": "mean"}), ("kto", {})])
def test_how_far_a_run_starts_from_another_model_is_measured(objective, options, tmp_path, model_folder):
    """`logratios/away` of the first update, against each response scored with both models."""
    other = tmp_path / "other"
    make_llama(seed=1).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    size = 24 if objective == "kto" else 12  # all of them
    common = {**QUIET, "batch_size": size, "max_steps": 1, "eval_fraction": 0.0, "objective": objective, **options}
    run = package.train(model_folder, pair_records(12), reference=str(other), output=str(tmp_path / "run"), **common)
    (row,) = JsonLines(run.folder / "metrics.jsonl").read()
    policy, ref = (models.load(m, device="cpu", precision="fp32") for m in (model_folder, other))
    found = plan.terms("dpo", {})
    corpus = Corpus.build(
        pair_records(12), inputs.view_terms(found, pair_records(12), Counts()),
        Chat(policy.tokenizer, stop_ids=policy.ends), Counts(),
    )  # fmt: skip
    batch = gather(corpus, {"dpo": list(range(12))})
    now, then = (tokens(m.scorer, batch.sequences, 512) for m in (policy, ref))
    places = [p for role in batch.terms["dpo"].roles.values() for p in role.tolist()]
    ratios = [float((now[p][0] - then[p][0]).mean()) for p in places]
    assert row["logratios/away"] == pytest.approx(np.mean(np.abs(ratios)), rel=1e-3)
    assert "reference" in {v["monitor"] for v in JsonLines(run.folder / "verdicts.jsonl").read()}
    own = package.train(model_folder, pair_records(12), output=str(tmp_path / "own"), **common)
    assert "logratios/away" not in JsonLines(own.folder / "metrics.jsonl").read()[0]


def test_monitors_of_several_terms_see_their_own_numbers():
    panel = Panel(("length",), ("a", "b"))
    row = {"a/data/longer": 90.0, "a/data/shorter": 10.0, "b/data/longer": 50.0, "b/data/shorter": 50.0, "loss": None}
    (said,) = panel.see(1, row)
    assert said.says.startswith("a: in 90 %")
    with pytest.raises(ConfigError, match="'beta'"):
        named("betta")
    assert {m.name for m in TABLE.values()} == set(TABLE)
    for monitor in TABLE.values():
        assert monitor.question.endswith("?")
        assert monitor.__doc__.startswith("Speaks")


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_says_its_verdicts_again_after_a_resume_and_to_the_doctor(tmp_path, model_folder, accord):
    texts = {**QUIET, "probe_every": 2, "probe_samples": 2, "batch_size": 4, "learning_rate": 1e-3}
    straight = package.train(model_folder, pair_records(24), output=str(tmp_path / "a"), max_steps=6, **texts).folder
    said = JsonLines(straight / "verdicts.jsonl").read()
    assert {"step", "monitor", "says", "remedy"} == said[0].keys()
    assert "on_policy" in {v["monitor"] for v in said}  # a random model would not say it
    rows = JsonLines(straight / "metrics.jsonl").read()
    probed = [r["step"] for r in rows if "probe/update" in r]
    assert probed == [1, 3, 5]
    assert {"probe/samples/length", "probe/entanglement/cosine", "probe/grad_norm/mlp"} <= rows[1].keys()
    assert [r["step"] for r in JsonLines(straight / "timing.jsonl").read() if "probe_seconds" in r] == probed
    again = tmp_path / "b"
    package.train(model_folder, pair_records(24), output=str(again), max_steps=6, save_steps=3, **texts)
    for name in ("model", "summary.json"):
        (again / name).rename(tmp_path / f"gone-{name}")
    import shutil

    shutil.rmtree(again / "checkpoints" / "step-6")
    package.train(model_folder, pair_records(24), output=str(again), max_steps=6, save_steps=3, **texts)
    for name in ("metrics.jsonl", "verdicts.jsonl"):
        assert (again / name).read_text() == (straight / name).read_text()
    code, out, _ = accord("doctor", straight)
    assert code == 0
    for v in said:
        assert f"warn  {v['monitor']}: step {v['step']}: {v['says']}" in out
    assert [x.name for x in doctor.of_run(straight) if x.status == "warn"] == [v["monitor"] for v in said]


def test_a_run_without_probes_is_the_same_run(tmp_path, model_folder):
    common = {**QUIET, "batch_size": 4, "max_steps": 3, "learning_rate": 1e-3}
    seen = [
        package.train(model_folder, pair_records(24), output=str(tmp_path / name), **common, **more).folder
        for name, more in (("with", {"probe_every": 1}), ("without", {"probe_every": None, "monitors": "none"}))
    ]
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in seen]
    assert weights[0] == weights[1]
    assert not (seen[1] / "verdicts.jsonl").exists()


def test_a_verdict_stops_a_run_that_is_told_to_unless_it_informs(tmp_path, model_folder):
    make_llama(seed=1).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    common = {**QUIET, "batch_size": 4, "max_steps": 5, "on_verdict": "stop"}

    def run(name, monitors):
        return package.train(
            model_folder, pair_records(24), output=str(tmp_path / name), monitors=monitors,
            reference=str(tmp_path / "other"), **common,
        )  # fmt: skip

    stopped, through = run("stopped", "on_policy, reference"), run("through", "on_policy")
    assert (stopped.summary["finished"], stopped.summary["steps"]) == ("verdict", 1)
    assert (through.summary["finished"], through.summary["steps"]) == ("done", 5)
    assert [v["monitor"] for v in JsonLines(through.folder / "verdicts.jsonl").read()] == ["on_policy"]
    with pytest.raises(ConfigError, match="on_verdict=warn goes past that, monitors=NAMES leaves it out"):
        run("stopped", "on_policy")
    with pytest.raises(ConfigError, match=r"overwrite: true$"):
        run("through", "on_policy")


def test_of_chosen_alone_on_policy_says_nothing_of_rejected():
    seen = {"probe/surprise/chosen": 2.0, "probe/surprise_error/chosen": 0.1}
    assert "Rejected" not in OnPolicy().see(1, seen).says
    seen |= {"probe/surprise/rejected": 2.0, "probe/surprise_error/rejected": 0.1}
    assert "Rejected ones that it would not say fall fastest" in OnPolicy().see(1, seen).says


def test_the_doctor_tries_settings_before_a_run(accord, model_folder, tmp_path):
    JsonLines(tmp_path / "pairs.jsonl").append(
        {"prompt": r.prompt, "chosen": r.responses[0].text, "rejected": r.responses[1].text} for r in pair_records(24)
    )
    code, out, err = accord("doctor", "--model", model_folder, "--data", tmp_path / "pairs.jsonl", "--batch-size", 4,
                            "--objective", "dpo", "--max-steps", 3, "--precision", "fp32")  # fmt: skip
    assert code == 0, err
    for part in ("cost: ", "step 0: log-ratios and losses are where they must be (dpo 0.6931)", "warn  on_policy"):
        assert part in out
    assert not (tmp_path / "runs").exists()


def test_monitors_are_listed(accord):
    code, out, _ = accord("monitors")
    assert code == 0
    assert all(name in out for name in TABLE)
    assert "Speaks once" in accord("monitors", "drop")[1]
    assert {m["name"] for m in json.loads(accord("monitors", "--json")[1])} == set(TABLE)
    assert accord("monitors", "dorp")[0] == 2


@pytest.mark.parametrize("fault", ["wrong reference", "off-policy data", None])
def test_a_broken_run_is_named_and_a_healthy_one_is_not(fault, tmp_path):
    """Some of what scripts/provoke.py measures."""
    model, texts = data_file("tiny-lm/hf"), data_file("pairwise/dpo-en-demo.jsonl.gz")
    spec = importlib.util.spec_from_file_location("provoke", ROOT / "scripts" / "provoke.py")
    provoke = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(provoke)
    provoke.PROMPTS, provoke.HEALTHY = 96, provoke.HEALTHY | {"max_steps": 4}
    other = provoke.another_model(str(model), str(texts), tmp_path) if fault == "wrong reference" else ""
    said = provoke.verdicts(str(model), fault, 7, str(texts), other, tmp_path)
    assert [v["monitor"] for v in said] == ([provoke.FAULTS[fault]] if fault else [])


def test_a_reward_model_has_no_next_token_to_probe(tmp_path, model_folder):
    """Its leaves are rewards: no log-probs, no factors, no entanglement; the parts of its gradient are told."""
    run = package.train(
        str(model_folder), pair_records(40), "bradley_terry", max_steps=2, batch_size=8, probe_every=1,
        output=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    rows = [r for r in JsonLines(run.folder / "metrics.jsonl").read() if "grad_norm" in r]
    assert "probe/grad_norm/head:score" in rows[0]
    assert not [k for k in rows[0] if k.startswith(("probe/logps", "probe/entanglement", "factors"))]


def test_answers_of_the_start_are_scored_again_shown_and_kept_over_a_resume(tmp_path, model_folder):
    """A resumed run measures the distance to the same answers; the report has them beside the last ones."""

    def run(name, **more):
        return package.train(
            str(model_folder), pair_records(40), "dpo", max_steps=4, batch_size=8, learning_rate=1e-2, probe_every=2,
            probe_samples=3, eval_fraction=0.2, save_steps=2, output=str(tmp_path / name), quiet=True, precision="fp32",
            **more,
        ).folder  # fmt: skip

    whole = run("whole")
    rows = [r for r in JsonLines(whole / "metrics.jsonl").read() if "probe/logps/started" in r]
    assert [r["step"] for r in rows] == [1, 3]
    assert rows[0]["probe/started/kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["probe/started/kl_per_token"] > 1e-4
    said = JsonLines(whole / "samples.jsonl").read()
    assert len(said) == 3
    assert {"prompt", "before", "after"} == set(said[0])
    assert "What it said before, and says now" in (whole / "report.html").read_text()
    shutil.copytree(whole, tmp_path / "again")
    (tmp_path / "again" / "config.yaml").write_text(
        (whole / "config.yaml").read_text().replace(str(whole), str(tmp_path / "again"))
    )
    for gone in ("model", "checkpoints/step-4"):
        shutil.rmtree(tmp_path / "again" / gone)
    again = [r for r in JsonLines(run("again") / "metrics.jsonl").read() if "probe/logps/started" in r]
    assert again == rows


def test_the_window_knows_the_error_of_its_mean():
    window = Window(4)
    for value in (1.0, 2.0, 3.0, 4.0):
        window.add(value)
    assert window.error == pytest.approx(math.sqrt(5 / 3 / 4))


def test_dispersion_is_not_said_of_a_share_that_may_be_chance():
    """Half and a little more of the pairs, but in batches that differ by more than that."""
    rows = [{"dispersed": v, "logratios/pair": -3.0} for v in [0.2, 0.9] * 10]
    assert shown(Dispersion(), rows) == []
    assert shown(Dispersion(), [{"dispersed": 0.6, "logratios/pair": -3.0}] * 10) == [10]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--objective", "bradley_terry"], "not checked: nothing here compares with a reference"),
        (["--objective", "dpo", "--reference", "OTHER"], "not checked: the reference "),
    ],
)
def test_the_doctor_says_why_step_0_was_not_checked(settings, says, accord, model_folder, tmp_path):
    JsonLines(tmp_path / "pairs.jsonl").append(
        {"prompt": r.prompt, "chosen": r.responses[0].text, "rejected": r.responses[1].text} for r in pair_records(24)
    )
    make_llama(seed=1).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    words = [tmp_path / "other" if w == "OTHER" else w for w in settings]
    code, out, err = accord("doctor", "--model", model_folder, "--data", tmp_path / "pairs.jsonl", "--batch-size", 4,
                            "--epochs", 1, "--precision", "fp32", *words)  # fmt: skip
    assert code == 0, err
    assert f"step 0: {says}" in out
    assert "where they must be" not in out
    cost = int(re.search(r"cost: (\d+) updates", out)[1])
    assert cost < doctor.TRIAL
    assert f"trial: done after {cost} steps" in out  # never more than the run


@pytest.mark.parametrize(("nats", "settled"), [(10.0, True), (1000.0, False)])
def test_the_doctor_says_what_a_margin_of_1_takes(nats, settled, tmp_path):
    """An answer has 130 nats; a margin of 0.2 nats of log-ratio is one of 0.2 / nats."""
    row = moved(0.01, -0.01, 10.0, **{"rewards/margins": 0.2 / nats}) | {"logps/chosen": -130.0}
    JsonLines(tmp_path / "metrics.jsonl").append([{"step": 1, **row}])
    (line,) = [x for x in doctor.of_run(tmp_path) if x.name == "scale"]
    assert line.says.startswith(f"a margin of 1 takes {nats:,.0f} nats of log-ratio, and a whole chosen answer has 130")
    assert ("no pair is ever settled" in line.says) is not settled
    assert (Beta().see(1, row) is None) is settled
