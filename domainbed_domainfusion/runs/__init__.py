"""Using the files of a finished run (its trained model, its saved rounds), and the diffusion model without a run.

`trained_model` reads a `model.pkl`; `predict`, `generate` and `search_timesteps` are the verbs of that name;
`chosen_images` and `timestep_report` serve the last one; `generated_folder` writes generated images with their
provenance. May import: `generated`, `diffusion`, `hosting` and the ground floor.
"""
