"""Small real parts that every test may use: a tokenizer, a random Llama, records, and where real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has its core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ACCORD_DATA") or ROOT.parent / "shared" / "data")

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Tests never touch the user's cache."""
    old = os.environ.get("ACCORD_CACHE")
    os.environ["ACCORD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if old is None:
        del os.environ["ACCORD_CACHE"]
    else:
        os.environ["ACCORD_CACHE"] = old


def data_file(name: str) -> Path:
    """A file of the real test data, or a named skip."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real test data is not here ({name}); set ACCORD_DATA")
    return path


def make_tokenizer(template: str | None = CHAT):
    """A byte-level BPE tokenizer over a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog", "hello world, how are you today?"] * 4, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = template
    return fast


def make_llama(seed: int = 0, vocabulary: int = 400, layers: int = 2):
    """A random Llama with grouped queries and tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.15)
    return model


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama with its tokenizer, as a transformers folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tok = make_tokenizer()
    make_llama(vocabulary=len(tok)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def pair_records(n: int = 24, source: str = "default"):
    """Preference pairs, a few tokens long, of different lengths."""
    from accord.data.records import Judgement, Record, Response

    animals = ["fox", "dog", "cat", "owl", "bee", "ant", "cow", "hen"]
    return [
        Record(
            prompt=f"tell me about the {animals[i % 8]} number {i}",
            responses=(
                Response(text=f"the {animals[i % 8]} is quick and brown" + " over the lazy dog" * (i % 3)),
                Response(text="hello world" + " today" * (i % 4)),
            ),
            judgements=(Judgement(kind="preference", pair=(0, 1), value=1.0),),
            source=source,
        )
        for i in range(n)
    ]


def mixed_records(n: int = 16):
    """All kinds of feedback, `n` records of each."""
    from accord.data.records import Judgement, Record, Response

    found = pair_records(n, "pairs")
    for i in range(n):
        found.append(Record(prompt=f"say hello {i}", responses=(Response(text=f"hello you {i}"),), source="demos"))
        found.append(
            Record(
                prompt=f"rate the fox {i}",
                responses=(Response(text=f"quick fox {i}"),),
                judgements=(Judgement(kind="score", response=0, value=float(i % 2), scale=(0, 1)),),
                source="ratings",
            )
        )
        found.append(
            Record(
                prompt=f"rank the dog {i}",
                responses=tuple(Response(text=t + f" {i}") for t in ("lazy dog", "brown dog", "the quick dog")),
                judgements=tuple(Judgement(kind="rank", response=j, value=j) for j in range(3)),
                source="rankings",
            )
        )
    return found


@pytest.fixture
def accord(capfd, monkeypatch, tmp_path):
    """Runs the command in an empty folder: (exit status, what it printed, what it printed as errors)."""
    from accord import cli

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code: int | str | None = 0
        try:
            cli.main([str(w) for w in words])
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return int(code or 0), out, err

    return run
