"""Sampling in process: fixed composition, fixed seeds, ids that training can use as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.views import Branch, Counts
from accord.engine import models
from accord.engine.logprobs import Row
from accord.errors import ConfigError
from accord.sampling import local, revise
from accord.sampling.local import answer
from tests.conftest import make_llama, pair_records

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy(model_folder):
    return models.load(model_folder, device="cpu", precision="fp32")


def ask(policy, **options):
    chat = Chat(policy.tokenizer)
    prompts = [Record(prompt=p) for p in ("hello", "tell me about the fox", "how are you today?")]
    return chat, prompts, answer(policy, chat, prompts, samples=2, max_new_tokens=9, **options)


def test_the_same_seed_gives_the_same_answers_and_another_one_others(policy):
    texts = [[[r.token_ids for r in a] for a in ask(policy, seed=s)[2]] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_answers_are_alike(policy):
    for first, second in ask(policy, temperature=0)[2]:
        assert first.token_ids == second.token_ids


def one_by_one(policy, prompts, limit, stop):
    """Greedy answers of transformers' `generate`, a prompt at a time."""
    found = []
    for ids in prompts:
        with torch.no_grad(), models.generating(policy) as model:
            out = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=limit,
                do_sample=False, eos_token_id=stop, pad_token_id=0,
            )  # fmt: skip
        found.append(out[0, len(ids) :].tolist())
    return found


@pytest.mark.parametrize("most", [0, 20])
def test_answers_that_share_their_prompts_are_those_of_generate_whichever_end_early(policy, most):
    """Prompts of unequal length, unequally many answers of each, and end tokens that come at other places."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 300, (n,), generator=draw).tolist() for n in (5, 31, 12, 12, 3)]
    asked = [p for p, times in zip(prompts, (1, 3, 2, 4, 1), strict=True) for _ in range(times)]
    free = one_by_one(policy, prompts, 20, None)
    ends = sorted({row[3 * i] for i, row in enumerate(free)} | {free[0][0]})[:most]
    expected = dict(zip(map(tuple, prompts), one_by_one(policy, prompts, 20, ends or None), strict=True))
    chat = SimpleNamespace(stop_ids=tuple(ends))
    with models.generating(policy):
        rows = local.together(policy, policy.model, chat, asked, 20, 0.0, 1.0)
    assert [ids for ids, _ in rows] == [expected[tuple(p)] for p in asked]
    assert len({len(ids) for ids, _ in rows}) > 1 or not ends


def test_a_nucleus_draws_from_the_likeliest_tokens_alone(policy):
    chat, prompts, several = ask(policy, seed=5, top_p=1e-6)
    assert [[r.token_ids for r in a] for a in several] == [
        [r.token_ids for r in a] for a in answer(policy, chat, prompts, samples=2, max_new_tokens=9, temperature=0)
    ]
    assert all(lp == 0.0 for a in several for r in a for lp in r.sampling_logprobs)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    torch.manual_seed(0)
    chances = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    counts = torch.bincount(local._drawn(chances.expand(20_000, -1)), minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert torch.allclose(counts / 20_000, chances, atol=4 * 0.5 / 20_000**0.5)


def test_what_cannot_share_is_answered_by_generate(policy, monkeypatch):
    def asked():
        return [[r.token_ids for r in several] for several in ask(policy, temperature=0)[2]]

    def called(*args):
        calls.append(args)
        return generate(*args)

    calls, generate = [], local._generate
    monkeypatch.setattr(local, "_generate", called)
    shared = asked()
    assert not calls
    for layer in policy.model.model.layers:  # two layers of one number
        monkeypatch.setattr(layer.self_attn, "layer_idx", 0)
    with models.generating(policy):
        assert local.together(policy, policy.model, SimpleNamespace(stop_ids=()), [[3, 4, 5]], 4, 0.0, 1.0) is None
    monkeypatch.undo()
    monkeypatch.setattr(local, "_generate", called)
    monkeypatch.setattr(policy.scorer, "layout", "padded")
    assert asked() == shared
    assert len(calls) == 1


def test_sampled_ids_are_trained_as_they_are_and_their_log_probs_are_the_models(policy):
    chat, prompts, answers = ask(policy, seed=3)
    for prompt, several in zip(prompts, answers, strict=True):
        record = Record(prompt=prompt.prompt, responses=tuple(several))
        encoded = chat.encode(record, [Branch(0, i) for i in range(len(several))], Counts())
        for response, sequence in zip(several, encoded, strict=True):
            assert tuple(sequence.ids) == response.token_ids
            assert response.finish == ("stop" if response.token_ids[-1] in chat.stop_ids else "length")
            from accord.data.batches import pack

            with torch.no_grad():
                logp = policy.scorer(Row.of(pack([sequence], [0], "shared"), "cpu"))["logp"]
            assert torch.allclose(logp, torch.tensor(response.sampling_logprobs), atol=1e-4)


def test_sampling_leaves_the_model_as_it_was(policy):
    before = models.state_key(policy.model)
    policy.scorer.compute = torch.bfloat16
    try:
        ask(policy, seed=4)
    finally:
        policy.scorer.compute = torch.float32
    assert models.state_key(policy.model) == before
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_impossible_settings_are_refused(policy):
    with pytest.raises(ConfigError, match="temperature"):
        ask(policy, temperature=-1.0)


# -- mixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory, policy):
    folder = tmp_path_factory.mktemp("models") / "other"
    make_llama(seed=5, vocabulary=len(policy.tokenizer)).save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return models.load(folder, device="cpu", precision="fp32")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_mixture_is_the_geometric_mean_of_both_at_every_token(temperature, policy, other):
    """Its log-probs, against a forward of each model over the whole answer, prompts of different lengths."""
    chat, prompts, answers = ask(policy, seed=3, temperature=temperature, mixed=(other, 0.3))
    with torch.no_grad():
        for prompt, several in zip(prompts, answers, strict=True):
            context = chat.context_ids(prompt)
            for response in several:
                ids = torch.tensor([[*context, *response.token_ids]])
                mine, theirs = (p.scorer.causal(ids).logits[0].float().log_softmax(-1) for p in (policy, other))
                mixed = ((0.7 * mine + 0.3 * theirs) / temperature).log_softmax(-1)[len(context) - 1 : -1]
                wanted = mixed.gather(-1, torch.tensor(response.token_ids)[:, None])[:, 0]
                torch.testing.assert_close(torch.tensor(response.sampling_logprobs), wanted, atol=1e-4, rtol=1e-4)
    assert answers[0][0].sampler.model == f"{policy.key}^0.7*{other.key}^0.3"


def test_a_mixture_of_one_share_is_that_policy(policy, other):
    def ids(answers):
        return [[r.token_ids for r in several] for several in answers]

    for share, alone in ((0.0, policy), (1.0, other)):
        assert ids(ask(policy, temperature=0, mixed=(other, share))[2]) == ids(ask(alone, temperature=0)[2])


def test_policies_of_different_tokens_are_not_mixed(policy, tmp_path):
    make_llama(vocabulary=500).save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    strange = models.load(tmp_path, device="cpu", precision="fp32")
    with pytest.raises(ConfigError, match="cannot be mixed token by token; they need one tokenizer"):
        ask(policy, mixed=(strange, 0.5))


# -- revisions ---------------------------------------------------------------------------------------------------------


def test_revisions_stand_beside_what_they_revise_and_are_pairs_without_a_judge(accord, model_folder, tmp_path):
    given = pair_records(3)
    file = tmp_path / "given.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in given))
    code, out, err = accord(
        "sample", "--model", model_folder, "--prompts", file, "--revise", "Improve your answer.", "-n", 2,
        "--max-new-tokens", 5, "--precision", "fp32", "--output", "revised.jsonl",
    )  # fmt: skip
    assert code == 0, err
    assert "3 prompts, 12 answers" in out
    held = sources.load("revised.jsonl").records
    for before, after in zip(given, held, strict=True):
        assert after.responses[:2] == before.responses
        assert after.judgements == before.judgements
        assert [r.revised_from for r in after.responses] == [None, None, 0, 0, 1, 1]
    policy = models.load(model_folder, device="cpu", precision="fp32")
    chat = Chat(policy.tokenizer, stop_ids=policy.ends)
    asked = Record(
        prompt=[
            {"role": "user", "content": given[0].prompt}, {"role": "assistant", "content": given[0].responses[0].text},
            {"role": "user", "content": "Improve your answer."},
        ]
    )  # fmt: skip
    assert revise.questions(given, "Improve your answer.")[0] == asked
    assert chat.context_ids(asked)
    code, _, err = accord("pair", "revised.jsonl", "--output", "pairs.jsonl", "--rule", "revised")
    assert code == 0, err
    texts = [[a.plain_text for a in r.responses] for r in sources.load("pairs.jsonl").records]
    wanted = [
        [r.responses[i].plain_text, r.responses[r.responses[i].revised_from].plain_text]
        for r in held
        for i in range(2, 6)
    ]
    assert texts == [w for w in wanted if w[0] != w[1]]


def test_there_must_be_something_to_revise(accord, model_folder, tmp_path):
    (tmp_path / "p.txt").write_text("Hi\n")
    code, _, err = accord("sample", "--model", model_folder, "--prompts", tmp_path / "p.txt", "--revise", "Again.")
    assert code == 2
    assert "there is nothing to revise" in err
