"""The toy of 3D-Properties against the reference numbers, and what every lab shares: seeds, files, any objective."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from accord import cli
from accord.errors import ConfigError
from accord.lab import frame, three_d, worlds
from accord.objectives import kinds, table

SEEDS = 10
# Medians over ten seeds of other random numbers: peak of chosen, its epoch, chosen at the end, epoch rejected is gone.
REFERENCE = {
    "S1": (0.69, 76, 0.26, 45),
    "S2": (0.76, 146, 0.50, 80),
    "S3": (0.46, 65, 0.25, 15),
    "S4": (0.54, 150, 0.29, 24),
}


@pytest.fixture(scope="module")
def fitted():
    return three_d.pretrain(three_d.Network(), three_d.SCENARIOS, SEEDS)


@pytest.fixture(scope="module")
def dpo(fitted):
    course = three_d.train(three_d.Network(), fitted, [three_d.job("dpo", three_d.SCENARIOS)], parameters=True)
    return {s: course["dpo", s] for s in three_d.SCENARIOS}


@pytest.fixture(scope="module")
def side(fitted):
    few = {s: [w[:5] for w in fitted[s]] for s in ("S1", "S4")}
    labels = [
        "flex_dpo(beta_rejected=0.08)", "flex_dpo(beta_rejected=0.05)", "flex_dpo(beta_rejected=0.02)",
        "dpo_sft(alpha=0.1)", "pointwise_dpo", "ulma", "sft", "ipo(tau=0.1)", "soft_dpo(strength=0.9)",
        "soft_dpo(strength=0.6)", "unlearning",
    ]  # fmt: skip
    return three_d.train(three_d.Network(), few, [three_d.job(label, ("S1", "S4")) for label in labels])


def test_step_one_fits_the_likelihoods(dpo):
    for name, (chosen, rejected) in three_d.SCENARIOS.items():
        assert dpo[name]["chosen"][0].numpy() == pytest.approx(chosen, rel=0.05)
        assert dpo[name]["rejected"][0].numpy() == pytest.approx(rejected, rel=0.05)
        assert dpo[name]["unseen_global"][0].numpy() == pytest.approx(1 - 4 * chosen - 4 * rejected, abs=0.01)


@pytest.mark.parametrize("name", REFERENCE)
def test_dpo_has_the_reference_numbers(dpo, name):
    peak, epoch, final, gone = REFERENCE[name]
    c = dpo[name]
    assert float(np.median(c.peak)) == pytest.approx(peak, abs=0.12)
    assert float(np.median(c.peak_epoch)) == pytest.approx(epoch, abs=20)
    assert float(np.median(c.final)) == pytest.approx(final, abs=0.1)
    assert float(np.median(c.gone)) == pytest.approx(gone, rel=0.15)
    assert -60 < float(c["log10_rejected"][-1].median()) < -30
    assert float(c["unseen_global"][-1].max()) < 1e-3  # mass goes to other prompts' chosen responses, not there
    assert 0.2 < float(c["others_chosen"][-1].median()) < 0.8


def test_rejected_drops_sooner_off_policy_and_later_with_chosen_off_policy(dpo):
    gone = {s: c.gone for s, c in dpo.items()}
    assert bool((gone["S3"] < gone["S1"]).all() & (gone["S1"] < gone["S2"]).all() & (gone["S4"] < gone["S2"]).all())
    assert int((dpo["S1"].final < dpo["S1"].peak - 0.1).sum()) >= 8
    assert float(dpo["S4"]["unseen_global"].amax(0).median()) > 0.92  # it rises, and then returns to nothing


def test_both_sides_are_pushed_alike_in_log_prob_and_by_the_inverse_of_their_probability(dpo):
    c = dpo["S1"]
    assert torch.allclose(c["push_chosen_logp"], c["push_rejected_logp"], rtol=1e-10, atol=0)
    assert bool((c["push_rejected"][-1] > 1e20 * c["push_chosen"][-1]).all())
    assert len(c["weights_chosen"]) == 51
    assert bool(
        (c["weights_rejected"][-1] < 1e3 * c["weights_chosen"][-1]).all()
    )  # no blow-up where weights are shared


@pytest.mark.parametrize(("rejected", "wanted"), [(0.1, (-0.5, 0.5)), (1e-2, (-0.443, 4.43)), (1e-4, (-0.334, 333.9))])
def test_gradients_with_respect_to_probability(rejected, wanted):
    """N15: beta = 0.1, chosen and both references at 0.1."""
    p = torch.tensor([[[0.1, rejected]]], dtype=torch.float64, requires_grad=True)
    ref = torch.full((1, 1, 2), 0.1, dtype=torch.float64).log()
    pair = worlds.pairs(np.array([[0]]), np.array([[1]]))
    loss = worlds.Asked("dpo", {"beta": 0.1}).losses({"logp": p.log(), "ref_logp": ref}, pair)
    assert torch.autograd.grad(loss.sum(), p)[0].flatten().tolist() == pytest.approx(wanted, rel=2e-3)


def test_a_frozen_readout_disperses_mass_off_policy_alone():
    network = three_d.Network(width=16, init="uniform")
    start = three_d.pretrain(network, ("S1", "S4"), 5)
    course = three_d.train(network, start, [three_d.job("dpo", ("S1", "S4"))], readout="frozen")
    assert bool((course["dpo", "S4"]["unseen_global"][-1] > 0.99).all())
    assert bool((course["dpo", "S4"].final < 0.01).all())
    assert bool((course["dpo", "S1"]["unseen_global"][-1] < 0.01).all())


def test_tanh_has_no_degradation_to_speak_of():
    network = three_d.Network(activation="tanh")
    course = three_d.train(network, three_d.pretrain(network, ("S1",), 5), [three_d.job("dpo", ("S1",))])["dpo", "S1"]
    assert bool((course.final > 0.8).all())
    assert bool((course.peak - course.final <= 0.1).all())


def test_objectives_that_pull_chosen_keep_it(side):
    for label in ("dpo_sft(alpha=0.1)", "pointwise_dpo", "ulma", "sft"):
        for scenario in ("S1", "S4"):
            assert float(side[label, scenario].final.min()) > 0.99, (label, scenario)


def test_finite_margins_are_met_and_leave_chosen_low_off_policy(side):
    for label, margin in (("ipo(tau=0.1)", 5.0), ("soft_dpo(strength=0.9)", 21.97), ("soft_dpo(strength=0.6)", 4.055)):
        for scenario in ("S1", "S4"):
            gained = side[label, scenario]["margin"][-1] - side[label, scenario]["margin"][0]
            assert gained.numpy() == pytest.approx(margin, abs=0.02)
    for label in ("ipo(tau=0.1)", "soft_dpo(strength=0.6)"):
        assert float(side[label, "S4"].final.median()) < 0.1
        assert float(side[label, "S4"]["unseen_global"][-1].median()) > 0.85


def test_a_weaker_push_on_rejected_raises_chosen_delays_the_drop_and_ends_lower(dpo, side):
    sweep = [dpo["S1"], *(side[f"flex_dpo(beta_rejected={b})", "S1"] for b in (0.08, 0.05, 0.02))]
    peaks = [float(c.peak[:5].median()) for c in sweep]
    gone = [float(c.gone[:5].median()) for c in sweep]
    ends = [float(c["log10_rejected"][-1][:5].median()) for c in sweep]
    assert peaks == sorted(peaks)
    assert gone == sorted(gone)
    assert gone[0] < gone[-1]
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == pytest.approx(-151, abs=25)


def test_ascent_on_rejected_underflows_and_collapses(side):
    assert float(side["unlearning", "S1"]["log10_rejected"][-1].max()) < -300
    assert side["unlearning", "S1"].final.numpy() == pytest.approx(0.25, abs=0.03)


# -- what all labs share -----------------------------------------------------------------------------------------------


def test_a_seed_is_the_same_whatever_stands_beside_it():
    network = three_d.Network(width=8)

    def course(seeds: int) -> three_d.Course:
        start = three_d.pretrain(network, ("S1",), seeds, (30, 10))
        jobs = [three_d.job("kto", ("S1",)), three_d.job("dpo", ("S1",))]
        return three_d.train(network, start, jobs, epochs=5, pairs="drawn")["kto", "S1"]

    two, three = course(2), course(3)
    assert torch.allclose(two["chosen"], three["chosen"][:, :2], rtol=1e-12, atol=0)
    assert not torch.allclose(three["chosen"][-1, 1], three["chosen"][-1, 2])


def test_the_table_is_called_as_it_is():
    draw = torch.Generator().manual_seed(0)
    logp, ref = (torch.randn(2, 4, 10, generator=draw, dtype=torch.float64).log_softmax(2) for _ in range(2))
    examples = three_d.examples_of(three_d.drawn_rejected(2), 0.8)
    ours = worlds.Asked("soft_dpo", {"beta": 0.3}).losses({"logp": logp, "ref_logp": ref}, examples)
    for s in range(2):
        at = [torch.as_tensor(examples.roles[r][s]) for r in ("chosen", "rejected")]
        nan = torch.full((4,), float("nan"), dtype=torch.float64)
        one = torch.ones(4, dtype=torch.float64)

        def seen(x, at=at, s=s, nan=nan, one=one):
            return kinds.Pairs(x[s].flatten()[at[0]], x[s].flatten()[at[1]], one, one, 0.8 * one, nan, nan)

        plain = table.function("soft_dpo")(seen(logp), seen(ref), beta=0.3).mean()
        assert float(ours[s]) == pytest.approx(float(plain), rel=1e-12)


def test_every_objective_is_trained_or_refused_with_the_reason():
    network = three_d.Network(width=4)
    start = three_d.pretrain(network, ("S1",), 2, (3, 1))
    trained, refused = set(), {}
    for name in table.rows():
        try:
            course = three_d.train(network, start, [three_d.job(name, ("S1",))], epochs=2)[name, "S1"]
        except ConfigError as error:
            refused[name] = str(error)
            continue
        assert bool(course["chosen"].isfinite().all()), name
        trained.add(name)
    assert trained >= {"dpo", "ipo", "simpo", "kto", "ulma", "sft", "tdpo1", "inpo", "bco", "infonca"}
    for name, why in refused.items():
        assert "does not have" in why or "no lab has" in why or name in why, (name, why)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["three-d", "--bata", "1"], "no option of lab three-d"),
        (["three-d", "--width", "wide"], "width='wide'"),
        (["three-d", "tau=0.1"], "'tau' is not an option of dpo"),
        (["three-d", "objective=sparsepo"], "needs 'mask'"),
        (["three-d", "objective=dpx"], "no objective is called 'dpx'"),
        (["three-d", "compare=dpo(beta)"], "options are written as name=value"),
        (["threed"], "did you mean 'three-d'"),
        (["three-d", "--seeds", "0"], "at least 1"),
        (["tabular", "covered=9"], "from 2 to responses=6"),
        (["games", "tau=0"], "must be above 0"),
        (["bandit", "samples=3"], "multiple of 8"),
        (["bandit", "beta_rejected=1"], "name one"),
    ],
)
def test_mistakes_are_one_sentence(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["lab", *words])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_the_command_writes_the_same_numbers_and_pictures_again(capsys, tmp_path):
    words = ["lab", "three-d", "epochs=20", "width=8", "compare=dpo", "others=false", "--seeds", "2"]
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--out", str(tmp_path)])
    assert not end.value.code
    assert "property 1, drastic drop" in capsys.readouterr().out
    drawn = ["gradients", "likelihoods", "near-zero", "objectives", "sweep"]
    pictures = {f"three-d-{name}.{ending}" for name in drawn for ending in ("png", "svg")}
    assert {p.name for p in tmp_path.iterdir()} == {"three-d.json"} | pictures
    with pytest.raises(SystemExit):
        cli.main([*words, "--json"])
    held = json.loads(capsys.readouterr().out)
    assert held == json.loads((tmp_path / "three-d.json").read_text(encoding="utf-8"))
    again = frame.Findings("again", held["numbers"], [], three_d.figures).figures()  # from the numbers alone
    assert sorted(again) == drawn
    for ending in ("png", "svg"):
        frame.save(again["sweep"], tmp_path / f"again.{ending}")
        assert (tmp_path / f"again.{ending}").read_bytes() == (tmp_path / f"three-d-sweep.{ending}").read_bytes()


def test_labs_are_listed_and_have_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["lab"])
    listed = capsys.readouterr().out
    assert all(line.split()[0] in frame.LABS for line in listed.splitlines())
    with pytest.raises(SystemExit):
        cli.main(["lab", "--help"])
    told = capsys.readouterr().out
    for lab in frame.LABS:
        assert f"Options of {lab}" in told
    assert "relu|tanh|gelu" in told


def test_verdicts_follow_the_interval():
    assert frame.how_often("x", [True] * 9 + [False]).verdict == "held"
    assert frame.how_often("x", [True] * 8 + [False] * 2).verdict == "inconclusive"
    assert frame.how_often("x", [True] + [False] * 9).verdict == "not seen"
    assert frame.difference("x", [0.1, -0.1, 0.2]).verdict == "inconclusive"
    assert frame.difference("x", [-0.1, -0.2, -0.3]).verdict == "not seen"
    with pytest.raises(ValueError, match="none of"):
        frame.Claim("x", "true", "because")
