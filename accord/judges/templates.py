"""What is a model that judges asked, and how is its answer read? A YAML file in `templates/`, or one of the user's.

kind: `pairs` (places {prompt}, {first}, {second}) or `score` ({prompt}, {answer}). text: the question; system: what
stands before it. verdict: a regular expression whose first group is the verdict; says: which verdict of a pair means
`first`, `second` or `tie`; scale: lowest and highest score. reference: what {reference} stands for where a right answer
is known. again: what is said where a verdict cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from accord.data.verdicts import PLACES, filled
from accord.errors import ConfigError, nearest

FOLDER = Path(__file__).parent / "templates"
VALUES = {"first": 1.0, "second": 0.0, "tie": 0.5}
NEEDED = {"pairs": {"prompt", "first", "second"}, "score": {"prompt", "answer"}}


@dataclass(frozen=True)
class Template:
    """A question to a judge, and how its answer is read."""

    name: str
    kind: str
    text: str
    verdict: str
    says: dict[str, str] = field(default_factory=dict)
    scale: tuple[float, float] | None = None
    system: str = ""
    reference: str = ""
    again: str = "Your verdict cannot be read. Answer in the form that was asked for, and with nothing else."

    @classmethod
    def of(cls, name: str) -> Template:
        """One of Accord's by name, or that of a file.

        Raises:
            ConfigError: there is none, or something in it cannot be; the file is named.
        """
        known = {p.stem: p for p in sorted(FOLDER.glob("*.yaml"))}
        path = known.get(name, Path(name).expanduser())
        if name not in known and not path.is_file():
            raise ConfigError(f"template={name!r} is neither a file nor known; {nearest(name, known)}")
        try:
            held = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: this is no template ({' '.join(str(error).split())})") from None
        if not isinstance(held, dict):
            raise ConfigError(f"{path}: a template is a map with kind, text and verdict")
        keys = [f.name for f in fields(cls) if f.name != "name"]
        for key in held:
            if key not in keys:
                raise ConfigError(f"{path}: {key} is not known in a template; {nearest(str(key), keys)}")
        if missing := [key for key in ("kind", "text", "verdict") if not held.get(key)]:
            raise ConfigError(f"{path}: {missing[0]} is missing")
        scale = held.pop("scale", None)
        made = cls(name=path.stem, scale=tuple(map(float, scale)) if scale else None, **held)  # type: ignore[arg-type]
        made._check(path)
        return made

    def _check(self, path: Path) -> None:
        if self.kind not in NEEDED:
            raise ConfigError(f"{path}: kind={self.kind!r} is not known; {nearest(str(self.kind), NEEDED)}")
        if missing := NEEDED[self.kind] - set(PLACES.findall(self.text)):
            raise ConfigError(f"{path}: the text has no place {{{min(missing)}}}")
        try:
            groups = re.compile(self.verdict).groups
        except re.error as error:
            raise ConfigError(f"{path}: verdict is no regular expression ({error})") from None
        if groups != 1:
            raise ConfigError(f"{path}: verdict has {groups} groups; one, in round brackets, holds the verdict")
        if self.kind == "pairs":
            if not {"first", "second"} <= set(self.says.values()) <= set(VALUES):
                raise ConfigError(f"{path}: says names the verdicts, like {{A: first, B: second, C: tie}}")
        elif self.scale is None or len(self.scale) != 2 or not self.scale[0] < self.scale[1]:
            raise ConfigError(f"{path}: scale is the lowest and the highest score, like [1, 10]")

    def messages(self, **values: str) -> list[dict[str, str]]:
        """What is sent, with the places filled; `reference` may be empty."""
        known = values.get("reference")
        values["reference"] = filled(self.reference, {"reference": known}) + "\n" if known else ""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": filled(self.text, values)}]

    def read(self, said: str) -> float:
        """The verdict: P(first is better), or a score; NaN where there is none, or several that differ.

        >>> pairs, score = Template.of("pairs"), Template.of("score")
        >>> pairs.read("B is wrong. [[A]]"), pairs.read("[[A]], or rather [[B]]"), score.read("Good: [[8]]")
        (1.0, nan, 8.0)
        """
        found = {v.strip() for v in re.findall(self.verdict, said)}
        if len(found) != 1:
            return math.nan
        (verdict,) = found
        if self.kind == "pairs":
            return VALUES[self.says[verdict]] if verdict in self.says else math.nan
        try:
            value = float(verdict)
        except ValueError:
            return math.nan
        assert self.scale is not None
        return value if self.scale[0] <= value <= self.scale[1] else math.nan

    @property
    def key(self) -> str:
        """Identity of what is asked and of how it is read."""
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return hashlib.blake2b(json.dumps(held, sort_keys=True).encode(), digest_size=3).hexdigest()
