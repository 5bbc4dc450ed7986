"""Who answers? A model behind a URL, which may be given the weights that a loop has trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from accord.data.batches import seeded
from accord.data.chat import Chat
from accord.data.records import Record, Response, Sampler
from accord.endpoint import Answer, Failure, Server
from accord.errors import ConfigError, ServerError
from accord.sampling.local import SHARD, Shards

SAME = 4  # so many prompts whose answers are all alike, and the server does not sample
LOADS, UPDATES, RESETS = "/load_model", "/update_weights_from_disk", "/reset"  # `transformers serve`; SGLang; the first


class Remote:
    """A sampler behind a URL.

    Args:
        words: `URL[,model=M,weights=fixed,at_once=8,timeout=120,key=NAME,most_tokens=...]`; see `accord.endpoint`.
            weights: `update`, a loop hands over the weights of each round; `fixed`, the server keeps its own, and the
            answers are those of another policy.
    """

    def __init__(self, words: str) -> None:
        if "cache=" in words:
            raise ConfigError(f"{words!r}: samples are kept by who draws them, and never in the cache; leave cache out")
        self.server, own = Server.of(words + ",cache=false", weights="update")
        self.weights = own["weights"]
        if self.weights not in ("update", "fixed"):
            raise ConfigError(f"{words!r}: weights is update or fixed")
        self.more: dict[str, Any] = {}

    # -- weights -------------------------------------------------------------------------------------------------------

    def check(self, chat: Chat | None = None, template: str | None = None) -> None:
        """Whether a loop can use it, before anything is sampled.

        Args:
            chat: how the policy's prompts are rendered. template: a template of the user's.

        Raises:
            ServerError: it takes no weights, or nobody is there. ConfigError: it would render prompts in another way.
        """
        if self.weights == "fixed":
            return
        if template is not None or (chat is not None and chat.tokenizer.chat_template is None):
            what = "chat_template is set" if template is not None else "the model has no chat template"
            raise ConfigError(
                f"{what}, and {self.server.url} would render prompts by a template of its own: train on what was asked "
                "in another way; sample in this process, or give the model's tokenizer a chat template"
            )
        if not {LOADS, UPDATES} & self.server.routes:
            raise ServerError(
                f"{self.server.url} has no way to be given weights (it shows neither {UPDATES}, as SGLang does, nor "
                f"{LOADS}, as `transformers serve` does), so every round would be answered by those of the beginning; "
                "serve with one of these, sample in this process (leave sampler out), or say weights=fixed to learn "
                "from the answers of another policy"
            )

    def take(self, folder: str | Path, chat: Chat) -> None:
        """Hands over the weights of a whole model's folder, which the server reads for itself.

        Raises:
            ServerError: it does not take them, or does not answer with them.
        """
        if self.weights == "fixed":
            return
        name = str(Path(folder).resolve()) if Path(folder).exists() else str(folder)
        root, ends = self.server.root, sorted(chat.stop_ids)
        if LOADS in self.server.routes:
            if RESETS in self.server.routes:  # it would go on with what it loaded under that name before
                self.server.post(root + RESETS, {})
            said = self.server.post(root + LOADS, {"model": name}).text
            states = [json.loads(line[5:]) for line in said.splitlines() if line.startswith("data:")]
            if not states or states[-1].get("status") != "ready":
                why = states[-1].get("message", "nothing") if states else "nothing"
                raise ServerError(f"{root}{LOADS}: {name} is not loaded ({why}); does the server see this disk?")
            self.server.model = name
            pad = chat.tokenizer.pad_token_id
            settings = {
                "do_sample": True,
                "top_k": 0,
                "eos_token_id": ends,
                "pad_token_id": ends[0] if pad is None else pad,
            }
            self.more = {"generation_config": settings}
        else:
            made = self.server.post(root + UPDATES, {"model_path": name}).json()
            if not made.get("success"):
                raise ServerError(f"{root}{UPDATES}: {name} is not loaded ({made.get('message')})")
            self.more = {"top_k": -1, "repetition_penalty": 1.0}
        (first,) = self.server.ask([self._body(Record(prompt="Hi"), 1, 0.0, 1.0, 0)])
        if isinstance(first, Failure):
            raise ServerError(f"{self.server.url} does not answer with the weights of {name}: {first.why}")

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(
        self,
        prompts: Seq[Record],
        *,
        samples: int = 1,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
        kept: Path | None = None,
    ) -> list[list[Response] | Failure]:
        """`samples` answers to every prompt, as texts; a prompt of which one could not be had is a Failure.

        The arguments are those of `sampling.local.answer`. Each answer has a seed of its own; whether it is heeded is
        the server's affair.

        Raises:
            ServerError: as the server's `ask`; or it gives the same answer every time.
        """
        if samples < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ConfigError("sampling needs samples >= 1, max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")
        how = (self.server.url, self.server.named(), samples, max_new_tokens, temperature, top_p, seed)
        shards = Shards(kept, repr((how, [r.id for r in prompts])))
        size = max(1, SHARD // samples)
        found: list[list[Response] | Failure] = []
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            if (made := shards.known.get(start)) is not None:
                found += [made[k * samples : (k + 1) * samples] for k in range(len(part))]
                continue
            bodies = [
                self._body(r, max_new_tokens, temperature, top_p, _seed(seed, start + p, k))
                for p, r in enumerate(part)
                for k in range(samples)
            ]
            said = self.server.ask(bodies)
            by = Sampler(
                model=f"{self.server.model}@{self.server.root}", temperature=temperature, top_p=top_p, seed=seed
            )
            rows = [_responses(said[k * samples : (k + 1) * samples], by) for k in range(len(part))]
            self._must_sample(rows, samples, temperature)
            if not any(isinstance(r, Failure) for r in rows):
                shards.add(start, [one for r in rows if not isinstance(r, Failure) for one in r])
            found += rows
            progress(len(found) * samples, len(prompts) * samples)
        return found

    def _body(self, record: Record, limit: int, temperature: float, top_p: float, seed: int) -> dict[str, Any]:
        body = {"messages": [m.plain() for m in record.messages], "max_tokens": limit, "temperature": temperature,
                "top_p": top_p, "seed": seed}  # fmt: skip
        body |= {"tools": list(record.tools)} if record.tools else {}
        more = dict(self.more)
        if "generation_config" in more:  # what `transformers serve` wants as a text
            sampled = {"temperature": temperature} if temperature else {"do_sample": False, "top_k": None}
            more["generation_config"] = json.dumps(more["generation_config"] | sampled)
        return body | more

    def _must_sample(self, rows: Seq[list[Response] | Failure], samples: int, temperature: float) -> None:
        texts = [{a.text for a in answers} for answers in rows if not isinstance(answers, Failure)]
        if samples > 1 and temperature > 0 and len(texts) >= SAME and all(len(t) == 1 for t in texts):
            raise ServerError(
                f"{self.server.url} gives the same answer every time, at temperature={temperature:g}: it does not "
                "sample; `transformers serve` does where the model's generation_config.json says do_sample: true"
            )


def _seed(seed: int, prompt: int, number: int) -> int:
    return int(seeded(seed, "remote", prompt, number).integers(2**31))


def _responses(said: Seq[Answer | Failure], by: Sampler) -> list[Response] | Failure:
    made = []
    for answer in said:
        if isinstance(answer, Failure):
            return answer
        finish: Any = answer.finish
        made.append(Response(text=answer.text.strip(), finish=finish, sampler=by))
    return made
