"""Named readings of Latent Distillation: what the hparam `ld_preset` stands for."""

from typing import Any

#: What `ld_preset` means. listing: the supplement's Algorithm 2, whose squared norm is a sum. score: what public
#: reviews say of the earlier version (score distillation, guided noise as in the image-to-image pipeline), with the
#: weights and timesteps that are usual for score distillation. guidance: the part of score that knows the class.
LD_PRESETS: dict[str, dict[str, Any]] = {
    "mean": {
        "ld_when": "step",
        "ld_gradient": "full",
        "ld_guidance_scale": 1.0,
        "ld_reduction": "mean",
        "ld_timesteps": [0.0, 1.0],
        "ld_weighting": "uniform",
    },
    "listing": {
        "ld_when": "generation",
        "ld_gradient": "full",
        "ld_guidance_scale": 1.0,
        "ld_reduction": "sum",
        "ld_timesteps": [0.0, 1.0],
        "ld_weighting": "uniform",
    },
    "score": {
        "ld_when": "step",
        "ld_gradient": "sds",
        "ld_guidance_scale": 7.5,
        "ld_reduction": "sum",
        "ld_timesteps": [0.02, 0.98],
        "ld_weighting": "one_minus_alpha_bar",
    },
    "guidance": {
        "ld_when": "step",
        "ld_gradient": "guidance",
        "ld_guidance_scale": 7.5,
        "ld_reduction": "sum",
        "ld_timesteps": [0.02, 0.98],
        "ld_weighting": "one_minus_alpha_bar",
    },
}


def with_ld_preset(hparams: dict[str, Any]) -> dict[str, Any]:
    """A copy in which `ld_preset` has filled in every hparam of Latent Distillation that is null."""
    preset = LD_PRESETS.get(hparams.get("ld_preset", ""), {})
    return {**hparams, **{name: value for name, value in preset.items() if hparams.get(name) is None}}
