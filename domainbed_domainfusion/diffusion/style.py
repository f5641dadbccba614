"""Style and content of images or latents, and the choice among candidates: Algorithm 1, lines 8 to 12.

Pure functions. x is (..., C, H, W): pixels in [-1, 1] or latents. The style is the mean and standard deviation of every
channel. The content is x normalised by them.
"""

import torch
from torch import Tensor

EPSILON = 1e-5  # added to the variance, so that a flat channel has a content of zero, not of noise


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The style (μ, σ), each (..., C): mean and standard deviation over the pixels of every channel."""
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=0)
    return mean, (variance + EPSILON).sqrt()


def decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1, lines 8 and 9: (μ, σ, content) with content (..., C, H, W) of mean 0 and deviation 1."""
    mean, deviation = statistics(x)
    return mean, deviation, (x - mean[..., None, None]) / deviation[..., None, None]


def adain(mu: Tensor, sigma: Tensor, content: Tensor) -> Tensor:
    """Algorithm 1, line 12: content (..., C, H, W) in the style μ, σ (..., C); undoes `decompose`."""
    return content * sigma[..., None, None] + mu[..., None, None]


def style_divergence(mu0: Tensor, sigma0: Tensor, mu: Tensor, sigma: Tensor, kind: str = "poisson") -> Tensor:
    """KL(μ0, μ_j) + KL(σ0, σ_j) of Algorithm 1, line 11: (B, C) against (B, N, C) -> (B, N), all >= 0.

    The paper leaves open what KL means between two vectors; both forms are ours.
    "poisson": generalised KL of positive vectors that need not sum to one, Σ u log(u/v) − u + v, with u = e^μ for
    the means and u = σ for the deviations, so that overall brightness and contrast count.
    "softmax": KL of the two vectors' softmax. It ignores an offset that all channels share.
    """
    mu0, sigma0 = mu0.unsqueeze(-2), sigma0.unsqueeze(-2)
    if kind == "poisson":
        means = mu0.exp() * (mu0 - mu) - mu0.exp() + mu.exp()
        deviations = sigma0 * (sigma0 / sigma).log() - sigma0 + sigma
        return (means + deviations).sum(-1)
    if kind == "softmax":
        return _softmax_divergence(mu0, mu) + _softmax_divergence(sigma0, sigma)
    raise ValueError(f"style divergence {kind!r} is neither 'poisson' nor 'softmax'")


def choose_content(similarity: Tensor, confidence: Tensor, weight: float) -> Tensor:
    """Algorithm 1, line 10: argmax_j λ_s · similarity + (1 − λ_s) · confidence, (B, N) each -> (B,) indices.

    similarity: cos(feature(c0), feature(c_j)) in [-1, 1]; confidence: of the true class, in [0, 1]; weight: λ_s.
    Ties go to the first.
    """
    return (weight * similarity + (1 - weight) * confidence).argmax(dim=-1)


def choose_style(divergence: Tensor) -> Tensor:
    """Algorithm 1, line 11: the style furthest from the original, (B, N) -> (B,) indices; ties go to the first."""
    return divergence.argmax(dim=-1)


def _softmax_divergence(reference: Tensor, other: Tensor) -> Tensor:
    log_p, log_q = reference.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
