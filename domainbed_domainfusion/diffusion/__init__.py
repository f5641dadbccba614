"""Everything that touches the frozen latent diffusion model; diffusers and transformers are imported here only."""
