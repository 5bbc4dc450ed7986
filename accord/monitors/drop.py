"""Property 1 of 3D-Properties seen from outside: the chosen responses become less likely than under the reference."""

from __future__ import annotations

from collections import deque

from accord.monitors import Verdict


class Drop:
    """Watches the mean implicit reward of chosen responses.

    Speaks once, when the mean of `rewards/chosen` over the last `window` steps is below -`threshold` while the margin
    grows: both log-probs fall, the rejected one faster (arXiv 2406.07327, property 1).

    Args:
        window: steps averaged over.
        threshold: in units of the reward, beta x nats.
    """

    name = "drop"
    needs: tuple[str, ...] = ("rewards/chosen", "rewards/margins")

    def __init__(self, window: int = 10, threshold: float = 0.5) -> None:
        self.window, self.threshold = window, threshold
        self._seen: deque[tuple[float, float]] = deque(maxlen=window)
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        chosen, margin = next(
            (
                (metrics[k], metrics[k.removesuffix("rewards/chosen") + "rewards/margins"])
                for k in metrics
                if k.endswith("rewards/chosen") and k.removesuffix("rewards/chosen") + "rewards/margins" in metrics
            ),
            (None, None),
        )
        if chosen is None or margin is None:
            return None
        self._seen.append((chosen, margin))
        mean = sum(c for c, _ in self._seen) / len(self._seen)
        if self._spoke or len(self._seen) < self.window or mean > -self.threshold or self._seen[-1][1] <= 0:
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"chosen responses have become less likely than under the reference (mean reward {mean:.2f}), "
            "while the margin grows: the log-probs of both fall, the rejected one faster.",
            "If they should rise, add an SFT term (objective: dpo_sft, alpha: 0.005) "
            "or push the rejected ones less (objective: flex_dpo, beta_rejected: 0.05).",
        )
