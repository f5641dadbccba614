"""One file for each DomainBed algorithm: DomainFusion, SAM and the two zero-shot classifiers.

Each is a `domainbed.algorithms.Algorithm` that `register` gives to the host. May import: `generated`, `diffusion`,
`hosting` and the ground floor.
"""
