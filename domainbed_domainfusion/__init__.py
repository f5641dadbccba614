"""DomainFusion (ECCV 2024) as a DomainBed algorithm: a classifier trained with a frozen latent diffusion model in the loop."""

__version__ = "0.1.0"
