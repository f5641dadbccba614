"""LD's coefficient a over the confidence p, of a group of images: means, spread, and where it is negative."""

from dataclasses import dataclass

CONFIDENCES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)
SPREAD = (0.1, 0.9)  # quantiles over images


@dataclass(frozen=True)
class Curve:
    """a over CONFIDENCES for a group of images under one kind of prompt; each list has one entry per confidence."""

    group: str  # a domain, or a class
    prompt: str  # "matched" or "mismatched"
    images: int
    mean: list[float]
    low: list[float]  # quantile SPREAD[0] over images
    high: list[float]  # quantile SPREAD[1]
    negative: list[float]  # share of images with a < 0

    @property
    def raised(self) -> list[tuple[float, float]]:
        """The ranges of p in which the mean of a is negative: LD raises the confidence there.

        Between two of CONFIDENCES the mean is taken to be linear; the first and the last range reach to 0 and 1.
        """
        edges = [0.0] if self.mean[0] < 0 else []
        for i in range(1, len(self.mean)):
            before, after = self.mean[i - 1], self.mean[i]
            if (before < 0) != (after < 0):
                share = before / (before - after)
                edges.append(CONFIDENCES[i - 1] + share * (CONFIDENCES[i] - CONFIDENCES[i - 1]))
        if self.mean[-1] < 0:
            edges.append(1.0)
        return list(zip(edges[::2], edges[1::2]))
