"""ERM with text-to-image samples of the same diffusion model: the control that a reader of DomainFusion asks for."""

from .domainfusion import DomainFusion


class Synthetic(DomainFusion):
    """λ1·CE(raw) + λ3·CE(samples): DomainFusion whose generated images come from the class's prompt alone.

    It is DomainFusion with three other defaults (`hosting.hparams.SYNTHETIC`). Each round draws a new sample of the
    class of each image in the generate-dataset, from pure noise and without a choice among candidates. There is no
    Latent Distillation. Rounds, budget, optimizer and steps are DomainFusion's, so the two compare at equal cost: set
    `generation_budget` to N_c times DomainFusion's for an equal number of samples of the diffusion model.
    """
