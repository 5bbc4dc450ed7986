"""Faults that users of preference training report again and again: each is provoked by the tests named here."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import accord
from accord import config
from accord.data import sources
from accord.data.batches import Corpus, Schedule, TermSpec
from accord.data.chat import Chat, Sequence
from accord.data.records import Judgement, Record, Response
from accord.data.views import Counts, ViewOptions, view
from accord.engine import models
from accord.errors import AccordError, ConfigError, RecordError
from accord.objectives import table
from accord.sinks import JsonLines
from accord.training import plan
from accord.training.loop import Loop
from tests.conftest import ROOT, make_llama, make_tokenizer, mixed_records, pair_records
from tests.processes import FORKS
from tests.test_engine import plain

# paragraph: fault: the tests that hold it
FAULTS: dict[str, dict[str, tuple[str, ...]]] = {
    "tokens at the boundary": {
        "prompt tokens are no prefix": (
            "tests/test_chat.py::test_context_is_what_generation_sees_and_the_answer_is_trained",
            "tests/test_chat.py::test_a_block_of_thoughts_that_the_context_opens_is_not_opened_again",
            "tests/test_templates.py::test_each_turn_is_seen_and_said_as_the_template_renders_it",
        ),
        "two BOS or two EOS": (
            "tests/test_chat.py::test_bos_stands_once",
            "tests/test_chat.py::test_without_a_template_a_bos_in_the_text_is_not_doubled",
            "tests/test_chat.py::test_an_end_token_that_the_text_brings_is_not_doubled",
        ),
        "no EOS is trained, since pad is EOS": (
            "tests/test_chat.py::test_the_end_token_is_trained_exactly_when_the_response_ended",
            "tests/test_faults.py::test_a_model_whose_pad_is_its_eos_learns_to_stop",
        ),
        "EOS over the last token of what was cut": (
            "tests/test_chat.py::test_a_response_that_is_cut_trains_no_end_token",
        ),
        "white space added or eaten": (
            "tests/test_chat.py::test_any_text_comes_back",
            "tests/test_chat.py::test_sentencepiece",
        ),
        "tokenizer without BOS, EOS or pad": (
            "tests/test_chat.py::test_without_bos_eos_pad_nothing_is_made_up",
            "tests/test_templates.py::test_a_tokenizer_without_bos_eos_or_pad",
        ),
        "chat template ignored or missing": (
            "tests/test_chat.py::test_tokens_equal_the_templates_own_rendering",
            "tests/test_chat.py::test_without_a_template_turns_are_a_transcript",
        ),
        "a side of padding is assumed": (
            "tests/test_faults.py::test_how_the_tokenizer_pads_and_cuts_means_nothing",
        ),
        "masks that train the user's turns, or nothing": (
            "tests/test_chat.py::test_assistant_turns_are_trained_with_their_end_and_nothing_else",
            "tests/test_chat.py::test_a_template_that_rewrites_history_trains_each_turn_as_it_is_asked_for",
        ),
        "tool calls and system messages are lost": (
            "tests/test_chat.py::test_tools_and_tool_calls_are_rendered",
            "tests/test_chat.py::test_system_messages_stand_in_the_context",
            "tests/test_templates.py::test_what_a_template_does_not_show_is_said",
            "tests/test_sources.py::test_tools_and_tool_calls_are_kept",
        ),
    },
    "cutting and dropping": {
        "long rows vanish": (
            "tests/test_chat.py::test_dropping_is_counted_and_leaves_out_the_whole_record",
            "tests/test_faults.py::test_held_out_rows_that_are_too_long_are_counted_too",
        ),
        "empty or fully cut responses are NaN": (
            "tests/test_faults.py::test_a_response_of_no_tokens_is_counted_and_no_number_is_nan",
        ),
        "the last user turn is cut": (
            "tests/test_chat.py::test_the_oldest_turns_are_cut_first_and_alike_for_all_responses",
            "tests/test_chat.py::test_one_long_turn_loses_its_oldest_tokens_and_never_its_end",
        ),
        "only the chosen side is measured": ("tests/test_faults.py::test_either_side_that_is_too_long_is_cut",),
        "cutting changes which one is better": (
            "tests/test_faults.py::test_a_pair_that_cutting_makes_equal_is_dropped",
        ),
        "another limit, and the old cache": (
            "tests/test_faults.py::test_an_old_cache_serves_the_same_tokens_and_no_others",
        ),
    },
    "the reference": {
        "loaded by its name instead of the weights in memory": (
            "tests/test_faults.py::test_a_model_object_is_its_own_reference_whatever_it_is_called",
        ),
        "the raw base under an adapter": (
            "tests/test_training.py::test_at_step_0_rewards_are_zero_and_losses_known",
            "tests/test_faults.py::test_an_adapter_on_an_adapter_stands_on_both",
            "tests/test_faults.py::test_a_model_that_is_not_whole_is_refused",
        ),
        "made anew from resumed weights": (
            "tests/test_faults.py::test_a_resumed_run_is_compared_with_its_start",
            "tests/test_faults.py::test_a_resumed_run_refuses_another_model_or_reference",
        ),
        "dropout left on": (
            "tests/test_faults.py::test_policy_and_reference_are_equal_at_step_0_whatever_would_drop_out",
        ),
        "another dtype": (
            "tests/test_faults.py::test_policy_and_reference_are_equal_at_step_0_whatever_would_drop_out",
            "tests/test_contracts.py::test_a_policy_is_known_by_its_weights_wherever_they_are",
        ),
        "the trained policy is its own reference in evaluation": (
            "tests/test_faults.py::test_evaluation_compares_the_trained_policy_with_the_start",
        ),
        "packed rows start at six times log 2": (
            "tests/test_training.py::test_at_step_0_rewards_are_zero_and_losses_known",
            "tests/test_engine.py::test_loss_and_every_gradient_equal_the_plain_padded_forward",
        ),
        "log-probs that were computed otherwise": (
            "tests/test_faults.py::test_log_probs_that_the_data_brings_are_named_and_not_used",
            "tests/test_faults.py::test_an_old_cache_serves_the_same_tokens_and_no_others",
            "tests/test_training.py::test_a_corrupt_reference_cache_stops_the_run_at_step_0_with_a_sentence",
        ),
        "a cache whose key has too much or too little in it": (
            "tests/test_sweeps.py::test_every_combination_has_a_folder_and_a_row_and_shares_the_reference",
            "tests/test_faults.py::test_an_old_cache_serves_the_same_tokens_and_no_others",
            "tests/test_faults.py::test_a_file_is_known_by_its_content_whatever_its_time_says",
        ),
    },
    "the divisor": {
        "mean of means of micro-batches": (
            "tests/test_training.py::test_the_mean_over_accumulated_micro_batches_is_the_mean_over_one_batch",
        ),
        "processes with different numbers of tokens": ("tests/test_parallel.py::test_two_processes_are_one",),
        "the last incomplete window": (
            "tests/test_training.py::test_quotas_fill_every_batch_and_follow_the_shares",
            "tests/test_faults.py::test_the_last_update_of_an_epoch_is_a_whole_one",
        ),
        "metrics averaged over batches": (
            "tests/test_faults.py::test_evaluation_is_a_mean_over_examples_whatever_the_batch",
        ),
        "a term's weight changes beside another": (
            "tests/test_training.py::test_a_terms_weight_means_the_same_whatever_stands_beside_it",
        ),
    },
    "labels and pairs": {
        "a tie is read as a preference": ("tests/test_views.py::test_ties",),
        "chosen equals rejected": (
            "tests/test_views.py::test_equal_texts_are_no_pair",
            "tests/test_faults.py::test_a_pair_that_cutting_makes_equal_is_dropped",
        ),
        "labels as text": (
            "tests/test_faults.py::test_labels_in_words",
            "tests/test_bad_inputs.py::test_a_bad_row",
        ),
        "ratings that are all good": (
            "tests/test_training.py::test_a_batch_too_small_and_a_class_that_is_missing_are_refused_with_a_sentence",
            "tests/test_faults.py::test_a_rating_is_no_probability",
        ),
        "one class only in a batch": ("tests/test_faults.py::test_both_classes_stand_in_every_batch",),
        "a thousand good ones, then a thousand bad ones": (
            "tests/test_faults.py::test_sorted_data_is_not_trained_in_order",
        ),
        "prompts on both sides of a split": (
            "tests/test_views.py::test_split_is_by_prompt_and_stable",
            "tests/test_faults.py::test_prompts_that_are_held_out_are_not_trained_on",
        ),
        "a pair in both directions": (
            "tests/test_views.py::test_duplicates_and_contradictions_across_records",
        ),
        "strengths below one half": (
            "tests/test_views.py::test_a_strength_below_one_half_turns_the_pair_round",
            "tests/test_objectives.py::test_swapping_the_pair_and_its_strength_changes_nothing",
        ),
        "several scales": (
            "tests/test_views.py::test_ratings_of_several_scales_are_said",
            "tests/test_views.py::test_rescaling",
        ),
        "scores that are NaN or infinite": (
            "tests/test_sources.py::test_bad_row",
            "tests/test_bad_inputs.py::test_a_bad_row",
        ),
    },
    "names": {
        "ipo on sums or means": (
            "tests/test_faults.py::test_a_name_means_one_formula",
            "tests/test_objectives.py::test_ipo_is_least_at_half_over_tau_and_symmetric_about_it",
        ),
        "which hinge": (
            "tests/test_faults.py::test_a_name_means_one_formula",
            "tests/test_objectives.py::test_slic_hinge_rests_beyond_delta_and_is_a_perceptron_at_zero",
        ),
        "label smoothing that is ignored": ("tests/test_faults.py::test_a_name_means_one_formula",),
        "an f-divergence whose alpha is turned round": (
            "tests/test_faults.py::test_an_alpha_divergence_goes_from_the_reverse_to_the_forward_kl",
            "tests/test_migrate.py::test_what_is_not_here_is_refused_by_name",
        ),
        "accuracy of rewards taken for that of ranking": (
            "tests/test_faults.py::test_accuracy_of_rewards_is_not_that_of_ranking",
        ),
        "a win rate that is an accuracy": (
            "tests/test_faults.py::test_an_accuracy_is_called_one_and_has_its_interval",
        ),
    },
    "numbers": {
        "NaN long after its cause": (
            "tests/test_training.py::test_a_loss_that_is_not_finite_names_the_record_and_leaves_the_weights",
            "tests/test_training.py::test_a_gradient_that_is_not_finite_stops_before_the_update",
            "tests/test_faults.py::test_a_model_that_is_not_whole_is_refused",
        ),
        "exp of rewards": ("tests/test_laws.py::test_law",),
        "a reference in fp16": ("tests/test_faults.py::test_weights_in_half_precision_are_computed_in_float32",),
        "sums of log-probs in bf16": (
            "tests/test_engine.py::test_bf16_log_probs_stay_within_the_stated_tolerance",
        ),
        "ECE of pairs whose first is chosen": (
            "tests/test_stats.py::test_ece_of_both_orders_is_that_of_the_predicted_class",
        ),
        "an estimator of the KL as a loss": (
            "tests/test_engine.py::test_kl_from_the_reference_is_exact_in_value_and_gradient",
        ),
        "groups without variance": ("tests/test_faults.py::test_equal_ratings_have_no_advantage",),
        "the minimum of each sample for that of the mean": (
            "tests/test_objectives.py::"
            "test_kto_s_anchor_is_the_mean_log_ratio_of_mismatched_answers_never_negative_and_without_gradient",
        ),
    },
    "runs": {
        "order, schedule, chance or reference begin anew": (
            "tests/test_resume.py::test_killed_at_random_moments_and_resumed_is_the_straight_run",
            "tests/test_faults.py::test_a_resumed_run_is_compared_with_its_start",
        ),
        "a checkpoint half written on a full disk": (
            "tests/test_faults.py::test_a_full_disk_is_one_sentence_and_nothing_is_lost",
        ),
        "a kill loses the last good checkpoint": (
            "tests/test_resume.py::test_the_command_killed_while_it_writes_a_checkpoint_then_politely_stopped",
            "tests/test_training.py::test_a_checkpoint_is_complete_or_absent_and_the_best_one_stays",
            "tests/test_faults.py::test_what_a_killed_writer_leaves_is_cut_or_named",
        ),
        "another number of processes": (
            "tests/test_parallel.py::test_a_checkpoint_of_one_process_goes_on_with_two_and_back",
        ),
        "a head that is made anew": (
            "tests/test_training.py::test_a_head_is_trained_saved_and_never_made_anew",
            "tests/test_faults.py::test_a_model_that_is_not_whole_is_refused",
        ),
        "an option that nothing reads": (
            "tests/test_config.py::test_every_setting_is_read_and_explained",
            "tests/test_training.py::test_a_wrong_plan_names_what_is_nearest",
            "tests/test_faults.py::test_a_setting_that_nothing_reads_is_refused",
            "tests/test_faults.py::test_settings_from_python_are_checked_as_those_of_a_file",
        ),
        "a tracker takes the run down": (
            "tests/test_sinks.py::test_a_tracker_that_fails_is_switched_off_with_one_line",
            "tests/test_sinks.py::test_a_tracker_that_hangs_does_not_hang_the_run",
        ),
        "an old config that means something else": (
            "tests/test_contracts.py::test_a_run_goes_on_as_what_it_was",
            "tests/test_faults.py::test_names_of_other_settings_are_taken_for_nothing",
        ),
        "a folder that cannot be written": (
            "tests/test_faults.py::test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded",
        ),
        "a clock that was set back": (
            "tests/test_faults.py::test_the_newest_checkpoint_is_that_of_the_latest_step_whatever_the_clock_says",
            "tests/test_faults.py::test_a_file_is_known_by_its_content_whatever_its_time_says",
        ),
    },
    "files": {
        "truncated": (
            "tests/test_sources.py::test_truncated_or_damaged",
            "tests/test_sources.py::test_truncated_parquet_and_tables",
            "tests/test_bad_inputs.py::test_a_ruined_file",
        ),
        "a line that is no JSON": (
            "tests/test_sources.py::test_not_json",
            "tests/test_bad_inputs.py::test_a_line_that_is_no_row",
        ),
        "encoding, BOM, CRLF": (
            "tests/test_sources.py::test_wrong_encoding",
            "tests/test_sources.py::test_byte_order_mark",
            "tests/test_sources.py::test_every_format_and_compression",
        ),
        "null in some rows": ("tests/test_sources.py::test_bad_row", "tests/test_bad_inputs.py::test_a_bad_row"),
        "a list where text is expected": ("tests/test_bad_inputs.py::test_a_bad_row",),
        "ten million rows": ("tests/test_sources.py::test_a_stream_holds_a_piece_of_a_file",),
        "an empty file": ("tests/test_sources.py::test_empty_file",),
        "mixed layouts": (
            "tests/test_sources.py::test_folder_glob_and_what_is_left",
            "tests/test_sources.py::test_a_later_row_of_another_layout_is_not_read_as_the_first",
        ),
        "any character": (
            "tests/test_chat.py::test_any_text_comes_back",
            "tests/test_faults.py::test_any_character_goes_through_a_run",
        ),
        "a path that is not there or cannot be read": (
            "tests/test_sources.py::test_paths",
            "tests/test_sources.py::test_unreadable",
        ),
        "pickles": (
            "tests/test_engine.py::test_a_pickle_is_refused",
            "tests/test_sources.py::test_paths",
            "tests/test_faults.py::test_a_model_that_is_not_whole_is_refused",
        ),
        "models that run their own code": ("tests/test_faults.py::test_a_models_own_code_is_not_run_unasked",),
    },
}  # fmt: skip

TINY = {"device": "cpu", "precision": "fp32", "quiet": True}


def test_every_fault_is_held_by_tests_that_exist():
    here = {
        f"tests/{file.name}::{node.name}"
        for file in (ROOT / "tests").glob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    named = [name for faults in FAULTS.values() for tests in faults.values() for name in tests]
    assert not set(named) - here
    assert all(tests for faults in FAULTS.values() for tests in faults.values())
    own = {name for name in here if name.startswith("tests/test_faults.py::")}
    assert own - set(named) == {"tests/test_faults.py::test_every_fault_is_held_by_tests_that_exist"}
    assert sum(map(len, FAULTS.values())) >= 75


# -- pieces -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(model: Any, output: Path, data: Any = None, objective: Any = "dpo", **more: Any) -> accord.Run:
    """A run of four updates of four examples."""
    given = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "eval_fraction": 0.2} | TINY | more
    model = str(model) if isinstance(model, Path) else model
    return accord.train(model, pair_records(16) if data is None else data, objective, output=str(output), **given)


class KilledError(Exception):
    """Stands for a signal that nobody can catch."""


@contextlib.contextmanager
def killed(at: int) -> Iterator[None]:
    """A run within ends after its step `at`, with no time to write anything."""

    def hear(loop: Loop, step: int, row: dict[str, float], *, again: bool = False) -> None:
        if step == at:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_hear", hear)
        try:
            yield
        except KilledError:
            return
    pytest.fail(f"it never came to step {at}")


def rows(run: accord.Run | Path) -> list[dict[str, Any]]:
    folder = run if isinstance(run, Path) else run.folder
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metrics(run: accord.Run | Path) -> list[dict[str, Any]]:
    """metrics.jsonl, to be compared within 1e-4."""
    return [pytest.approx(row, rel=1e-4, abs=1e-6) for row in rows(run)]


def decisions(run: accord.Run) -> dict[str, Any]:
    return json.loads((run.folder / "data.json").read_text())["decisions"]


def examples(run: accord.Run) -> list[dict[str, Any]]:
    files = sorted((run.folder / "examples").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def rated(values: list[float], *, kind: str = "score", prefix: str = "p", **more: Any) -> list[Record]:
    return [
        Record(
            prompt=f"{prefix} {i}",
            responses=(Response(text=f"the quick fox {i}"),),
            judgements=(Judgement(kind=kind, response=0, value=v, **more),),
        )
        for i, v in enumerate(values)
    ]


def encoded(chat: Chat, records: list[Record], kind: str = "Pairs", options: ViewOptions | None = None) -> Corpus:
    counts = Counts()
    return Corpus.build(records, {"x": view(records, kind, options, counts=counts)}, chat, counts)


def pair(prompt: str, chosen: str, rejected: str) -> Record:
    return Record(
        prompt=prompt,
        responses=(Response(text=chosen), Response(text=rejected)),
        judgements=(Judgement(kind="preference", pair=(0, 1), value=1.0),),
    )


# -- tokens at the boundary, cutting and dropping ---------------------------------------------------------------------


def test_a_model_whose_pad_is_its_eos_learns_to_stop(tmp_path):
    """The probability of the end after an answer rises, and greedy answers end, though end and padding are one id."""
    tokenizer = make_tokenizer(None)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    start = make_llama(vocabulary=len(tokenizer))
    start.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    data = [Record(prompt="hello", responses=(Response(text=" world"),))] * 4
    run = train(tmp_path / "m", tmp_path / "r", data, "sft", max_steps=30, eval_fraction=0)
    (sequence,) = encoded(Chat(tokenizer), data[:1], "Demos").sequences
    whole = torch.tensor([[*sequence.context, *sequence.ids]])
    assert whole[0, -1] == tokenizer.eos_token_id
    ends = [m(input_ids=whole).logits.log_softmax(-1)[0, -2, tokenizer.eos_token_id] for m in (start, run.model)]
    assert float(ends[0]) < -2
    assert float(ends[1]) > -0.1


def test_how_the_tokenizer_pads_and_cuts_means_nothing():
    records = pair_records(6)
    expected = encoded(Chat(make_tokenizer()), records).sequences
    for padding, truncation in itertools.product(("left", "right"), repeat=2):
        tokenizer = make_tokenizer()
        tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length = padding, truncation, 4
        tokenizer.backend_tokenizer.enable_padding(length=64)
        tokenizer.backend_tokenizer.enable_truncation(3)
        found = encoded(Chat(tokenizer), records).sequences
        assert [s.key for s in found] == [s.key for s in expected]


def test_held_out_rows_that_are_too_long_are_counted_too(model_folder, tmp_path):
    held = [pair(f"held {i}", "the quick fox " * (1 if i else 40), "hello") for i in range(5)]
    run = train(model_folder, tmp_path / "r", eval_data=held, max_length=120, overlong="drop", max_steps=1)
    assert decisions(run)["dropped: longer than max_length=120 (held out)"]["count"] == 1
    assert run.summary["held_out_accuracy"]["pairs"] == 4
    cut = train(model_folder, tmp_path / "c", eval_data=held, max_length=120, max_steps=1)
    assert decisions(cut)["cut to max_length=120 (held out)"]["count"] == 1
    assert cut.summary["held_out_accuracy"]["pairs"] == 5


def test_a_response_of_no_tokens_is_counted_and_no_number_is_nan(model_folder, tmp_path):
    empty = Record(
        prompt="nothing",
        responses=(Response(text="", finish="length"), Response(text="hello")),
        judgements=(Judgement(kind="preference", pair=(0, 1), value=1.0),),
    )
    long = pair("the lazy dog " * 100, "the quick fox " * 100, "hello")
    run = train(model_folder, tmp_path / "r", [*pair_records(4), empty, long], eval_fraction=0, max_length=32)
    assert decisions(run)["dropped: a response without a token to train"]["count"] == 1
    assert decisions(run)["cut to max_length=32"]["count"] >= 1
    assert long.id in {row["record"] for row in examples(run)}
    assert all(math.isfinite(v) for row in rows(run) for v in row.values())


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_either_side_that_is_too_long_is_cut(side):
    texts = {"chosen": "hello", "rejected": "hello you"} | {side: "the quick brown fox " * 30}
    corpus = encoded(Chat(make_tokenizer(), max_length=60), [pair("hi " * 40, **texts)])
    (item,) = corpus.items["x"]
    sequences = {role: corpus.sequences[place] for role, place in item.roles.items()}  # type: ignore[index]
    assert {role: s.cut for role, s in sequences.items()} == {"chosen": False, "rejected": False} | {side: True}
    assert all(len(s.context) + len(s.ids) <= 60 for s in sequences.values())
    assert np.array_equal(*(s.context for s in sequences.values()))
    assert corpus.counts["cut to max_length=60"] == 1


def test_a_pair_that_cutting_makes_equal_is_dropped(model_folder, tmp_path):
    same = "the quick brown fox jumps over the lazy dog " * 8
    twins = pair("say it", same + "and lives", same + "and dies")
    run = train(model_folder, tmp_path / "r", [*pair_records(8), twins], eval_fraction=0, max_length=64)
    assert decisions(run)["dropped: chosen and rejected are the same tokens"] == {
        "count": 1, "examples": [{"id": twins.id}],
    }  # fmt: skip
    assert twins.id not in {row["record"] for row in examples(run)}
    with pytest.raises(ConfigError, match=r"the same tokens: 1.*raise max_length"):
        train(model_folder, tmp_path / "s", [twins], eval_fraction=0, max_length=64)


def test_an_old_cache_serves_the_same_tokens_and_no_others(model_folder, tmp_path, capsys):
    """Another rate finds everything; another limit or template nothing, and trains as if there were no cache."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    changes: dict[str, dict[str, Any]] = {
        "old": {}, "rate": {"learning_rate": 1e-3}, "length": {"max_length": 30},
        "template": {"chat_template": template},
    }  # fmt: skip
    found = {}
    for name, change in changes.items():
        capsys.readouterr()
        run = train(model_folder, tmp_path / name, reference_cache=str(tmp_path / "cache"), **change | {"quiet": False})
        said = re.search(r"([\d,]+) log-probs computed, ([\d,]+) from the cache", capsys.readouterr().out)
        assert said
        found[name] = (int(said[1]) > 0, int(said[2]) > 0)
        if name != "old":
            fresh = {"reference_cache": str(tmp_path / f"{name} cache")}
            alone = train(model_folder, tmp_path / f"{name} alone", **fresh | change)
            assert rows(run) == metrics(alone)
    assert found == {"old": (True, False), "rate": (False, True), "length": (True, False), "template": (True, False)}


# -- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cached", "live"])
def test_a_model_object_is_its_own_reference_whatever_it_is_called(mode, model_folder, tmp_path):
    tokenizer = make_tokenizer()
    model = make_llama(seed=9, vocabulary=len(tokenizer))
    model.config._name_or_path = model.name_or_path = str(model_folder)
    own = models.state_key(model)
    run = train(model, tmp_path / "r", tokenizer=tokenizer, reference_mode=mode)
    assert run.summary["references"]["ref"]["key"] == own != models.content_key(model_folder)
    assert run.summary["start"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert run.summary["train"]["rewards/margins"] > 0.1


def adapter(base: Path, folder: Path, seed: int, fit: Path | None = None) -> Path:
    """An adapter that is not zero; made for the model in `fit`, and said to stand on `base`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_pretrained(fit or base)
    adapted = get_peft_model(module, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    held = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(held | {"base_model_name_or_path": str(base)}))
    return folder


def added(weights: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """W + (alpha / r) B A by hand."""
    held = load_file(folder / "adapter_model.safetensors")
    options = json.loads((folder / "adapter_config.json").read_text())
    scale = options["lora_alpha"] / options["r"]
    found = dict(weights)
    for name in {n.partition(".lora_")[0] for n in held}:
        plain_name = name.removeprefix("base_model.model.") + ".weight"
        found[plain_name] = weights[plain_name] + scale * held[f"{name}.lora_B.weight"] @ held[f"{name}.lora_A.weight"]
    return found


def test_an_adapter_on_an_adapter_stands_on_both(model_folder, tmp_path):
    first = adapter(model_folder, tmp_path / "first", 1)
    second = adapter(first, tmp_path / "second", 2, fit=model_folder)
    expected = added(added(load_file(model_folder / "model.safetensors"), first), second)
    policy = models.load(second, device="cpu", precision="fp32")
    weights = dict(policy.model.named_parameters())
    assert all(torch.allclose(weights[n], w, atol=1e-5) for n, w in expected.items())
    assert len([line for line in policy.told if "merged" in line]) == 2
    run = train(second, tmp_path / "r", lora={"rank": 2})
    assert run.summary["references"]["ref"] == {"name": "adapters off", "key": policy.start, "mode": "cached"}
    assert run.summary["start"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    on_a_run = adapter(run.folder, tmp_path / "third", 3, fit=model_folder)
    assert models.load(on_a_run, device="cpu", precision="fp32").start == models.content_key(on_a_run)


@pytest.mark.parametrize("given", [{}, {"reference_mode": "live"}, {"lora": {"rank": 2}}], ids=["full", "live", "lora"])
def test_a_resumed_run_is_compared_with_its_start(given, model_folder, tmp_path):
    """Its cache is lost too, so that the reference is computed again when the weights have moved."""
    given = given | {"save_steps": 2, "reference_cache": str(tmp_path / "cache")}
    straight = train(model_folder, tmp_path / "straight", **given)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with killed(at=3):
        train(model_folder, tmp_path / "r", **given)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    resumed = train(model_folder, tmp_path / "r", **given)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    assert resumed.summary["references"] == straight.summary["references"]
    assert resumed.summary["held_out"] == straight.summary["held_out"]


@pytest.mark.parametrize(("which", "says"), [("model", "of the model are not"), ("ref", "of the reference 'ref' are")])
def test_a_resumed_run_refuses_another_model_or_reference(which, says, model_folder, tmp_path):
    moved = tmp_path / which
    shutil.copytree(model_folder, moved)
    model = moved if which == "model" else model_folder
    given = {"save_steps": 2} | ({"reference": str(moved)} if which == "ref" else {})
    with killed(at=3):
        train(model, tmp_path / "r", **given)
    held = load_file(moved / "model.safetensors")
    save_file({k: v * 1.01 for k, v in held.items()}, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"{says}.*put them back to go on"):
        train(model, tmp_path / "r", **given)
    save_file(held, moved / "model.safetensors", metadata={"format": "pt"})
    assert train(model, tmp_path / "r", **given).summary["finished"] == "done"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_policy_and_reference_are_equal_at_step_0_whatever_would_drop_out(precision, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    dropping = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.5, embd_pdrop=0.5,
        attn_pdrop=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(dropping).train()
    model.save_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    tokenizer.save_pretrained(tmp_path / "m")
    lora = {"rank": 2, "dropout": 0.5}
    run = train(
        tmp_path / "m", tmp_path / "r", precision=precision, lora=lora, reference=str(tmp_path / "m"), max_steps=1
    )
    slack = {"fp32": 1e-5, "bf16": 0.1 * models.TOLERANCE[torch.bfloat16]}[precision]  # rewards are 0.1 x log-ratios
    start = run.summary["start"]
    assert all(abs(start[f"rewards/{side}"]) <= slack for side in ("chosen", "rejected"))
    assert start["loss"] == pytest.approx(math.log(2), abs=slack)


def test_evaluation_compares_the_trained_policy_with_the_start(model_folder, tmp_path):
    """Rewards of held-out pairs, from scratch: transformers' own forward of the weights before and after."""
    from transformers import AutoModelForCausalLM

    run = train(model_folder, tmp_path / "r", beta=0.3)
    corpus = encoded(Chat(make_tokenizer()), run.held_out)
    assert len(corpus.items["x"]) == len(run.held_out) > 1
    whole = [Sequence(s.context, s.ids, s.trained) for s in corpus.sequences]
    with torch.no_grad():
        folders = (model_folder, run.folder / "model")
        before, after = (plain(AutoModelForCausalLM.from_pretrained(folder), whole) for folder in folders)
    reward = 0.3 * (after - before)
    means = {
        role: float(np.mean([reward[item.roles[role]] for item in corpus.items["x"]]))  # type: ignore[index]
        for role in ("chosen", "rejected")
    }
    assert means["chosen"] - means["rejected"] > 0.1
    for role, mean in means.items():
        assert run.summary["held_out"][f"eval_rewards/{role}"] == pytest.approx(mean, abs=1e-3)


def test_log_probs_that_the_data_brings_are_named_and_not_used(model_folder, tmp_path, capsys):
    brought, without = tmp_path / "with" / "a.jsonl", tmp_path / "without" / "a.jsonl"
    for file, more in ((brought, {"reference_chosen_logps": -1.0, "reference_rejected_logps": -99.0}), (without, {})):
        file.parent.mkdir()
        for r in pair_records(8):
            line = {"prompt": r.prompt, "chosen": r.responses[0].text, "rejected": r.responses[1].text} | more
            with file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
    run = train(model_folder, tmp_path / "r", str(brought), eval_fraction=0, quiet=False)
    assert "reference_chosen_logps, reference_rejected_logps" in capsys.readouterr().out
    assert rows(run) == metrics(train(model_folder, tmp_path / "s", str(without), eval_fraction=0))


def test_a_file_is_known_by_its_content_whatever_its_time_says(model_folder, tmp_path):
    """Other weights of the same size and time, as a copy that keeps times or a clock that was set back makes them."""
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    file = folder / "model.safetensors"
    before, stat = models.content_key(folder), file.stat()
    save_file({k: v * 1.01 for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert models.content_key(folder) != before
    assert models.load(folder, device="cpu", precision="fp32").start == models.content_key(folder)


# -- the divisor ------------------------------------------------------------------------------------------------------


def test_the_last_update_of_an_epoch_is_a_whole_one(model_folder, tmp_path):
    """Ten examples in fours: three updates of four, each the mean of its own."""
    given = {"max_steps": None, "epochs": 1, "eval_fraction": 0, "tokens_per_micro_batch": 100}
    run = train(model_folder, tmp_path / "r", pair_records(10), **given)
    seen = examples(run)
    assert Counter(row["step"] for row in seen) == {1: 4, 2: 4, 3: 4}
    assert len({row["record"] for row in seen}) == 10
    for row in rows(run):
        assert row["loss"] == pytest.approx(np.mean([e["loss"] for e in seen if e["step"] == row["step"]]), rel=1e-5)


def test_evaluation_is_a_mean_over_examples_whatever_the_batch(model_folder, tmp_path):
    """Eleven held-out pairs and demonstrations of different lengths, in batches of 2 and 3, and in one."""
    held = [r.model_copy(update={"prompt": f"held {r.prompt}"}) for r in mixed_records(11)]
    found = []
    for size in (4, 64):
        run = train(
            model_folder, tmp_path / f"{size}", mixed_records(8), {"pairs": "dpo", "demonstrations": "sft"},
            batch_size=size, eval_data=held, max_steps=1,
        )  # fmt: skip
        found.append(next(row for row in rows(run) if row["step"] == 0))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)
    assert found[0]["eval_demonstrations/nll_per_token"] > 1


# -- labels and pairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [".jsonl", ".csv"])
def test_labels_in_words(form, tmp_path):
    words = {"true": 1, "False": 0, "1": 1, "0": 0, " TRUE ": 1, "1.0": 1}

    def written(labels: list[str]) -> Path:
        file = tmp_path / f"a{form}"
        lines = [json.dumps({"prompt": "p", "completion": f"a {i}", "label": label}) for i, label in enumerate(labels)]
        table_ = ["prompt,completion,label", *(f"p,a {i},{label}" for i, label in enumerate(labels))]
        file.write_text("\n".join(lines if form == ".jsonl" else table_) + "\n")
        return file

    assert [r.judgements[0].value for r in sources.load(written([*words])).records] == [*words.values()]
    for word in ("good", "yes", "2", "-1", "truee"):
        with pytest.raises(RecordError, match="a label is true or false") as caught:
            sources.load(written(["true", word]))
        assert (caught.value.line, caught.value.field) == (2 if form == ".jsonl" else 3, "label")
        assert "Write true for good and false for bad" in str(caught.value)


@pytest.mark.parametrize("objective", ["kto", "pointwise_dpo", "unlearning"])
def test_a_rating_is_no_probability(objective, model_folder, tmp_path):
    """0 to 10 without a threshold would call a rating of 1 good."""
    file = tmp_path / "a.jsonl"
    lines = [{"prompt": f"p {i}", "response": f"fox {i}", "rating": i % 11, "scale": [0, 10]} for i in range(33)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=r"a\.jsonl, line \d+\)\. view: \{threshold: 5\} calls 5 and") as caught:
        train(model_folder, tmp_path / "r", str(file), objective)
    assert "values here go from 0 to 10" in str(caught.value)
    run = train(model_folder, tmp_path / "r", str(file), objective, view={"threshold": 7}, max_steps=1)
    assert run.summary["finished"] == "done"
    assert train(model_folder, tmp_path / "s", str(file), objective, view={"rescale": "unit"}, max_steps=1)


def points(values: list[float], both: bool, size: int) -> tuple[Schedule, list[bool]]:
    corpus = encoded(Chat(make_tokenizer()), rated(values, kind="label"), "Points")
    return Schedule(corpus, [TermSpec("x", both_classes=both)], size, 0), [v > 0.5 for v in values]


def test_both_classes_stand_in_every_batch():
    """Five bad ones among 300, sorted: without strata most batches of 8 would have none."""
    schedule, _ = points([1.0] * 295 + [0.0] * 5, True, 8)
    seen: Counter[int] = Counter()
    for step in range(60):
        term = schedule.batch(step).terms["x"]
        assert set(term.values["value"].tolist()) == {0.0, 1.0}
        seen.update(term.records.tolist())
    assert len(seen) == 300


def test_sorted_data_is_not_trained_in_order():
    """A thousand good ones, then a thousand bad ones: every batch of 64 holds 32 +- 4 standard deviations of each."""
    schedule, good = points([1.0] * 1000 + [0.0] * 1000, False, 64)
    for step in range(30):
        share = sum(good[r] for r in schedule.batch(step).terms["x"].records.tolist())
        assert abs(share - 32) <= 4 * math.sqrt(64 * 0.25)


def test_prompts_that_are_held_out_are_not_trained_on(model_folder, tmp_path):
    run = train(model_folder, tmp_path / "r", pair_records(16), eval_data=pair_records(4))
    assert decisions(run)["dropped: the prompt is held out"]["count"] == 4
    assert not {r.prompt_key for r in run.records} & {r.prompt_key for r in run.held_out}
    assert {row["record"] for row in examples(run)} <= {r.id for r in pair_records(16)[4:]}
    with pytest.raises(AccordError, match="every prompt of data is in eval_data too"):
        train(model_folder, tmp_path / "s", pair_records(4), eval_data=pair_records(4))


# -- names and numbers ------------------------------------------------------------------------------------------------


def test_a_name_means_one_formula():
    assert table.find("ipo").length == "sum"
    assert [*plan.terms("ipo", {}, length="mean")] == ["ipo[mean]"]
    assert [*plan.terms("ipo", {})] == ["ipo"]
    for name in ("hinge", "slic", "rpo", "loss_type"):  # these are different losses in different codes
        with pytest.raises(ConfigError, match=f"(no objective is|several objectives are) called '{name}'"):
            table.find(name)
    readers = {name for name, row in table.rows().items() if "label_smoothing" in row.options}
    for name in table.rows().keys() - readers:
        view = {"attributes": ["a", "b"]} if "attribute" in table.find(name).needs else {}
        with pytest.raises(ConfigError, match=f"'label_smoothing' is not an option of {name}"):
            plan.terms(name, {"label_smoothing": 0.1}, view=view)


def test_an_alpha_divergence_goes_from_the_reverse_to_the_forward_kl():
    """Near 0 it is DPO, at 1 the forward KL, and in between (1 - exp(-alpha rho)) / alpha by hand."""
    from accord.objectives.example import pairs

    fdpo, dpo = table.function("fdpo"), table.function("dpo")
    given = pairs(-10.0, -12.0), pairs(-11.0, -11.5)
    at = {alpha: float(fdpo(*given, divergence="alpha", alpha=alpha)) for alpha in (1e-9, 0.3, 1.0)}
    assert at[1e-9] == pytest.approx(float(dpo(*given)), abs=1e-6)
    assert at[1.0] == pytest.approx(float(fdpo(*given, divergence="forward_kl")), abs=1e-9)
    margin = 0.1 * (math.expm1(0.3 * 0.5) - math.expm1(-0.3 * 1.0)) / 0.3  # rho is 1 and -0.5
    assert at[0.3] == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)


def test_accuracy_of_rewards_is_not_that_of_ranking(model_folder, tmp_path):
    run = train(model_folder, tmp_path / "r", eval_fraction=0, max_steps=6)
    seen, differ = examples(run), False
    for row in rows(run):
        own = [e for e in seen if e["step"] == row["step"]]
        margins = np.array([e["rewards_chosen"] - e["rewards_rejected"] for e in own])
        rewards = np.mean(np.where(np.abs(margins) < 1e-6, 0.5, margins > 0))  # before the first update: ties
        ranking = np.mean([e["logps_chosen"] > e["logps_rejected"] for e in own])
        assert (row["rewards/accuracies"], row["accuracies/ranking"]) == (rewards, ranking)
        differ |= rewards != ranking
    assert differ


def test_an_accuracy_is_called_one_and_has_its_interval(model_folder, tmp_path):
    """Held-out pairs that were ranked right are no wins of sampled answers: nothing in a run folder says so."""
    run = train(model_folder, tmp_path / "r", pair_records(40), eval_fraction=0.5, max_steps=1)
    found = run.summary["held_out_accuracy"]
    assert found["pairs"] == 20
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    assert found["low"] < found["high"] - 0.1
    assert run.summary["longer_is_better"]["pairs"] == 20
    names = {name for row in rows(run) for name in row} | run.summary.keys()
    assert not [name for name in names if "win" in name]
    for file in ("report.html", "model/README.md"):
        assert not re.search(r"\bwins?\b|win.rate", (run.folder / file).read_text(), re.I)


def test_weights_in_half_precision_are_computed_in_float32(model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model_folder).half().save_pretrained(tmp_path / "m")
    make_tokenizer().save_pretrained(tmp_path / "m")
    policy = models.load(tmp_path / "m", device="cpu", precision="fp32")
    assert {p.dtype for p in policy.model.parameters()} == {policy.scorer.compute} == {torch.float32}
    run = train(tmp_path / "m", tmp_path / "r", max_steps=1)
    assert run.summary["start"]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ConfigError, match=r"precision='fp16'.*'fp32' or 'bf16'"):
        train(model_folder, tmp_path / "s", precision="fp16")
    with pytest.raises(ConfigError, match="precision='fp16' is none of auto, fp32, bf16"):
        models.load(model_folder, device="cpu", precision="fp16")  # type: ignore[arg-type]


def test_equal_ratings_have_no_advantage():
    sampled = {"token_ids": (5, 6), "tokenizer": "k", "sampling_logprobs": (-1.0, -2.0)}
    responses = tuple(Response(text=f"a {i}", **sampled) for i in range(3))  # type: ignore[arg-type]
    said = tuple(Judgement(kind="score", response=i, value=0.7) for i in range(3))
    record = Record(prompt="p", responses=responses, judgements=said)
    found = view([record], "Rollouts", ViewOptions(advantages="normalised"))
    assert [e.values["advantage"] for e in found] == pytest.approx([0, 0, 0], abs=1e-9)


# -- models that are not what they seem -------------------------------------------------------------------------------


def _rewritten(file: Path, change: Any) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _no_head(folder: Path) -> None:
    """A reward model: a trunk with a score, where a language model is expected."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    held = LlamaConfig.from_pretrained(folder).to_dict()
    model = LlamaForSequenceClassification(LlamaConfig(**held | {"tie_word_embeddings": False}))
    model.save_pretrained(folder)


def _other_names(folder: Path) -> None:
    adapter(folder, folder.parent / "a", 1)
    file = folder.parent / "a" / "adapter_model.safetensors"
    _rewritten(file, lambda held: {f"model.{k}": v for k, v in held.items()})


def _pickled(folder: Path) -> None:
    file = adapter(folder, folder.parent / "a", 1) / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def _no_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    _rewritten(file, lambda held: {k: v for k, v in held.items() if "layers.1.self_attn.q_proj" not in k})


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _nan(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: torch.full_like(v, math.nan) if "layers.1.mlp.up" in k else v for k, v in held.items()}


def _head(**held: torch.Tensor) -> Any:
    return lambda folder: save_file({f"log_z.linear.{k}": v for k, v in held.items()}, folder / "heads.safetensors")


BROKEN = {
    "a weight is missing": (
        _no_weight, r"no weights for model\.layers\.1\.self_attn\.q_proj\.weight, which would start at random"
    ),
    "a reward model": (_no_head, "is a reward model: it scores answers and writes none"),
    "an adapter of another model": (_other_names, r"no weights for base_model.*and \d+ more, which would start"),
    "a pickled adapter": (_pickled, "no safetensors found; pickled weights are not read"),
    "weights that break off": (_cut, r"damaged or cut off .*copy or download them again"),
    "weights that are not finite": (
        lambda f: _rewritten(f / "model.safetensors", _nan), "log-probs are not finite before any training"
    ),
    "half a head": (_head(weight=torch.ones(1, 32)), r"heads.safetensors: a head cannot be loaded .*linear\.bias"),
    "a wider head": (_head(weight=torch.ones(1, 64), bias=torch.ones(1)), r"heads.safetensors: .*size mismatch"),
    "a head that breaks off": (
        lambda f: (f / "heads.safetensors").write_bytes(b"\0\0"), "heads.safetensors: a head cannot be loaded"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_is_not_whole_is_refused(name, model_folder, tmp_path):
    ruin, says = BROKEN[name]
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    ruin(folder)
    asked = tmp_path / "a" if (tmp_path / "a").exists() else folder
    with pytest.raises(AccordError, match=says):
        models.load(asked, device="cpu", precision="fp32", heads=("log_z",))


def test_a_models_own_code_is_not_run_unasked(model_folder, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    held = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}, "model_type": "its_own"}
    (folder / "config.json").write_text(json.dumps(held | own))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
    )
    with pytest.raises(AccordError, match="asks to run its own code; allow it with trust_remote_code: true"):
        train(folder, tmp_path / "r")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "r").exists()


# -- runs -------------------------------------------------------------------------------------------------------------

# where the disk is full: (module, function), at which call of it, and how many bytes a file may have from then on
FULL = {
    "a checkpoint": ("accord.training.parallel.save_sharded", 2, 20_000, "goes on from step 2"),
    "a checkpoint, as torch's writer meets it": ("accord.training.parallel.save_sharded", 2, 5_000, "from step 2"),
    "metrics": ("accord.sinks.JsonLines.append", 4, 600, "for there is no checkpoint yet"),
    "examples": ("accord.training.trail.write_examples", 3, 500, "goes on from step 2"),
    "the model": ("accord.engine.models.save", 1, 20_000, "goes on from step 6"),
    "the summary": ("accord.training.run.write_json", 2, 100, "goes on from step 6"),
    "the data story": ("accord.training.run.write_json", 1, 100, "for there is no checkpoint yet"),
    "the reference": ("accord.engine.reference.save_file", 1, 100, "name another folder with reference_cache"),
}


def _on_a_full_disk(where: str, at: int, limit: int, said: Path, given: dict[str, Any]) -> None:
    import importlib
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    head, name = where.rsplit(".", 1)
    try:
        owner = importlib.import_module(head)
    except ModuleNotFoundError:
        owner = getattr(importlib.import_module(head.rsplit(".", 1)[0]), head.rsplit(".", 1)[1])
    real, calls = getattr(owner, name), itertools.count(1)

    def full(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return real(*args, **kwargs)

    setattr(owner, name, full)
    try:
        train(**given)
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said.write_text(f"{isinstance(error, AccordError)} {error}")


@pytest.fixture(scope="module")
def undisturbed(model_folder, tmp_path_factory) -> Path:
    return train(model_folder, tmp_path_factory.mktemp("undisturbed") / "r", max_steps=6, save_steps=2).folder


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(name, model_folder, undisturbed, tmp_path):
    """The kernel refuses to write on, in a process of its own; with room again, the same run ends as if undisturbed."""
    pytest.importorskip("resource", reason="limits of files are those of POSIX")
    where, at, limit, says = FULL[name]
    given = {"model": model_folder, "output": tmp_path / "r", "max_steps": 6, "save_steps": 2}
    cache = {"reference_cache": str(tmp_path / "cache")}
    process = FORKS.Process(target=_on_a_full_disk, args=(where, at, limit, tmp_path / "said", given | cache))
    process.start()
    process.join(120)
    sentence = (tmp_path / "said").read_text()
    assert sentence.startswith("True ")
    assert says in sentence
    kept = [*(tmp_path / "r" / "checkpoints").glob("step-*")]
    assert all((folder / "progress.json").exists() for folder in kept)
    resumed = train(**given)
    assert rows(resumed) == metrics(undisturbed)
    assert {p.name for p in resumed.folder.iterdir()} == {p.name for p in undisturbed.iterdir()}


def test_what_a_killed_writer_leaves_is_cut_or_named(model_folder, tmp_path):
    cache = tmp_path / "cache"
    given = {"save_steps": 2, "reference_cache": str(cache)}
    straight = train(model_folder, tmp_path / "straight", **given)
    shutil.rmtree(cache)
    with killed(at=3):
        train(model_folder, tmp_path / "r", **given)
    folder = tmp_path / "r"
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write('{"step": 3, "sets/源'.encode()[:-1])  # half a character
    for half in ("steps-0000003-0000003.parquet", ".steps-0000003-0000004.parquet.writing"):
        (folder / "examples" / half).write_bytes(b"PAR1half")
    (shard,) = cache.rglob("*.safetensors")
    (shard.parent / ".0123.0.writing").write_bytes(shard.read_bytes()[:100])
    resumed = train(model_folder, folder, **given)
    assert rows(resumed) == rows(straight)
    assert sorted(examples(resumed), key=str) == sorted(examples(straight), key=str)

    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AccordError, match=f"{shard.name} is damaged or cut off .*remove it, and its log-probs are"):
        train(model_folder, tmp_path / "s", **given)
    shard.unlink()
    train(model_folder, tmp_path / "s", **given)
    (cache / shard.parent.name / "reference.json").write_text('{"key"')
    with pytest.raises(AccordError, match=r"reference.json breaks off; remove .* and it is computed again"):
        train(model_folder, tmp_path / "t", **given)
    text = (tmp_path / "s" / "config.yaml").read_text()
    (tmp_path / "s" / "summary.json").unlink()
    (tmp_path / "s" / "config.yaml").write_text(text[: text.index("weight_decay") + 8])
    with pytest.raises(AccordError, match=r"config.yaml is damaged .*overwrite: true"):
        train(model_folder, tmp_path / "s", **given | {"reference_cache": str(tmp_path / "other")})


def test_the_newest_checkpoint_is_that_of_the_latest_step_whatever_the_clock_says(model_folder, tmp_path, capsys):
    with killed(at=5):
        train(model_folder, tmp_path / "r", max_steps=6, save_steps=2)
    folders = sorted((tmp_path / "r" / "checkpoints").glob("step-*"))
    assert [f.name for f in folders] == ["step-2", "step-4"]
    for year, folder in zip((2040, 1990), folders, strict=True):  # the later one is the older one by the clock
        for path in (folder, *folder.rglob("*")):
            os.utime(path, ((year - 1970) * 31_557_600,) * 2)
    capsys.readouterr()
    run = train(model_folder, tmp_path / "r", max_steps=6, save_steps=2, quiet=False)
    assert "going on from step 4" in capsys.readouterr().out
    assert [row["step"] for row in rows(run) if "grad_norm" in row] == [1, 2, 3, 4, 5, 6]
    assert all(json.loads(line)["seconds"] >= 0 for line in (run.folder / "timing.jsonl").read_text().splitlines())


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(model_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"nothing can be written in .*file; choose another output"):
        train("/no/such/model", tmp_path / "file" / "r")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "mine").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match=r"nothing can be written in .*mine; choose another output"):
            train("/no/such/model", tmp_path / "mine" / "r")
    with pytest.raises(AccordError, match=r"cannot be kept in .*file.*name another folder with reference_cache"):
        train(model_folder, tmp_path / "r", reference_cache=str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objective": "sft", "reference": "/some/model"}, "nothing reads reference='/some/model'"),
        ({"objective": "sft", "length": "mean"}, "length=mean is set, but no objective here is on sums or means"),
        ({"best_metric": "eval_rewards/margins"}, "nothing reads best_metric='eval_rewards/margins': set patience"),
        ({"log_z": "head"}, "log_z is set, but no objective here reads it"),
        ({"view": {"threshold": 5}}, "view.threshold is set, and no objective here reads it"),
        ({"objective": {"name": "dpo", "view": {"threshold": 5}}}, "view.threshold is set, and dpo does not read it"),
        ({"tau": 0.1}, "'tau' is not an option of dpo"),
        ({"learning_rates": {"head:log_z": 0.1}}, "there is no component 'head:log_z'; there are"),
        ({"reference": {"old_ref": "/some/model"}}, "no objective here compares with 'old_ref'"),
        ({"patience": 2, "eval_fraction": 0.0}, "give eval_data, or an eval_fraction above 0"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(given, says, model_folder, tmp_path):
    with pytest.raises(ConfigError, match=says):
        train(model_folder, tmp_path / "r", **given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"overlong": "trim"}, "overlong='trim': input should be 'cut' or 'drop'"),
        ({"schedule": "cos"}, "schedule='cos': input should be 'cosine', 'linear' or 'constant'"),
        ({"reference_mode": "Live"}, "reference_mode='Live'"),
        ({"resume": "no"}, "resume='no': input should be 'auto' or 'never'"),
        ({"on_verdict": "halt"}, "on_verdict='halt'"),
        ({"batch_size": "8"}, "batch_size='8': input should be a valid integer"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3': input should be a valid number"),
        ({"max_steps": 2.5}, "max_steps=2.5: input should be a valid integer"),
        ({"eval_steps": 0}, "eval_steps=0 must be at least 1"),
        ({"save_steps": 0}, "save_steps=0 must be at least 1"),
        ({"warmup": 3}, "warmup=3 must be from 0 to 1"),
        ({"epochs": math.nan}, "epochs=nan must be at least"),
        ({"adam_beta2": 1.5}, "adam_beta2=1.5 must be"),
        ({"max_grad_norm": 0}, "max_grad_norm=0 must be at least"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0"),
    ],
)
def test_settings_from_python_are_checked_as_those_of_a_file(given, says, model_folder, tmp_path):
    with pytest.raises(ConfigError, match=says):
        train(model_folder, tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_names_of_other_settings_are_taken_for_nothing():
    """What other toolkits call their settings is refused, or means what it means there."""
    good = {"model": "m", "data": "d"}
    others = [
        "num_train_epochs", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "max_prompt_length", "bf16", "fp16",
        "max_completion_length", "loss_type", "ref_model", "ref_adapter_name", "precompute_ref_log_probs", "rpo_alpha",
        "f_divergence_type", "train_batch_size", "save_total_limit", "logging_steps", "eval_strategy", "report_to",
        "use_peft", "model_name_or_path", "dataset_name", "hub_token", "generate_during_eval", "padding_free",
        "remove_unused_columns", "disable_dropout", "sync_ref_model", "lora_r", "cutoff_len", "ref_model_init_kwargs",
    ]  # fmt: skip
    for name in others:
        with pytest.raises(ConfigError, match=f"{name!r} is no setting"):
            config.check(good | {name: 1})
    theirs = {
        "beta", "learning_rate", "max_length", "max_steps", "weight_decay", "max_grad_norm", "seed", "label_smoothing",
        "gradient_checkpointing", "eval_steps", "save_steps", "per_device_train_batch_size", "chat_template",
    }  # fmt: skip
    known = set(config.settings()) | set(config.TRANSLATED) | {o for row in table.rows().values() for o in row.options}
    assert theirs <= known


def test_any_character_goes_through_a_run(model_folder, tmp_path):
    odd = "nul \0, a fox \U0001f98a, \u0645\u0631\u062d \u202eturned\u202c, e\u0301, a line\u2028and\x85more"
    lines = [{"prompt": f"{odd} {i}", "chosen": f"yes {odd}", "rejected": f"no {odd} {i}"} for i in range(8)]
    file = tmp_path / "\U0001f98a feedback.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    run = train(model_folder, tmp_path / "\u0645 run", str(file))
    assert [*sorted(r.prompt for r in [*run.records, *run.held_out])] == [line["prompt"] for line in lines]
    assert all(math.isfinite(v) for row in rows(run) for v in row.values())
    chat = Chat(make_tokenizer())
    (sequence, _) = encoded(chat, run.records[:1]).sequences
    assert chat.tokenizer.decode(sequence.ids[:-1]) == f"yes {odd}"
    samples = JsonLines(tmp_path / "samples.jsonl")
    samples.append([{"step": i, "text": odd} for i in range(3)])
    assert [row["text"] for row in samples.read()] == [odd] * 3
    samples.cut(1)
    assert [row["step"] for row in samples.read()] == [0, 1]
