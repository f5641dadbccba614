"""The embedded host: DomainBed's protocol, command lines and file formats, for machines without a checkout of it.

The modules have DomainBed's names (`algorithms`, `datasets`, `hparams_registry`, `lib.misc`, `scripts.train` …), so
that `host.module(name)` finds the same things in both. It is a stand-in, not a rival: its only own algorithm is ERM,
and it has no feature that DomainBed lacks. Equal seeds give equal splits, hparams, job names and results
(facebookresearch/DomainBed, commit b93c22a; recorded in tests/minibed). May import: the ground floor, and `register` by
the one line that a DomainBed checkout gets too.
"""
