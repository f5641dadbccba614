"""Using what a finished run leaves: its trained model, its predictions, its generated images.

`trained_model` reads a `model.pkl`; `predict` and `generate` are the verbs of that name; `generated_folder` writes
generated images with their provenance. May import: `generated`, `diffusion`, `hosting` and the ground floor.
"""
