"""DomainFusion (ECCV 2024) for DomainBed: a classifier trained with a frozen latent diffusion model in the loop."""

__version__ = "0.1.0"
