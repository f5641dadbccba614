"""The generate-dataset of Algorithm 1: what it holds, how one round renews it, and what is kept of it on disk.

`generation` is lines 7 to 12 for a minibatch; `dataset` holds the latest version of every image and runs the rounds;
`saved_rounds` and `candidate_cache` keep rounds and candidates on disk; `gallery` keeps some images as pictures;
`identity` says who a run is. May import: `hosting`, `diffusion` and the ground floor.
"""
