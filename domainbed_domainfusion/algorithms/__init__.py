"""One file for each DomainBed algorithm: DomainFusion, rivals, controls, those at test time, zero-shot ones.

Each is a subclass of the host's `Algorithm`, and `register` adds it to the host.
May import: `generated`, `diffusion`, `hosting` and the ground floor.
"""
