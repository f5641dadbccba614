"""The generate-dataset of Algorithm 1: its images in memory, its rounds of generation, and its files on disk.

`generation` is lines 7 to 12 for a minibatch. `dataset` holds the latest version of every image and runs the rounds;
`image_store` is its memory. `device_pool` makes candidates on several devices. `guided` is several generate-datasets,
one for each description of a domain. `saved_rounds` and `candidate_cache` keep rounds and candidates on disk.
`gallery` keeps some images as pictures. `identity` tells runs, models and images apart.
May import: `hosting`, `diffusion` and the ground floor.
"""
