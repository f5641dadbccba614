"""All that touches the frozen latent diffusion model (LDM) φ; diffusers and transformers are imported here only.

`source` resolves a name to a folder or file, `model` is the adapter, `candidates` is Algorithm 1's line 7, `style` its
lines 8 to 12, `distillation` is Algorithm 2. `timestep_evolution` searches the timesteps of `candidates`, which
`reference_distance` scores. `fine_tuning` trains a copy of the U-Net, for DSI or for `invariant_guidance` (InvDiff). At
test time `projection` is DDA's, and `mixed_prompt` is Diffusion-TTA's loss. May import: `pocket` (where the embedded
model lies) and the ground floor.
"""
