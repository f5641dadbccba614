"""Using the files of a finished run: its trained model for predictions, its saved rounds for generated images.

`trained_model` reads a `model.pkl`; `predict` and `generate` are the verbs of that name; `generated_folder` writes
generated images with their provenance. May import: `generated`, `diffusion`, `hosting` and the ground floor.
"""
