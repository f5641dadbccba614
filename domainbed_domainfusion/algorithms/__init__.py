"""One file for each DomainBed algorithm: DomainFusion, rivals, controls, those at test time, zero-shot ones.

Each is a subclass of the host's `Algorithm`, and `register` adds it to the host.
May import: `generated`, `diffusion`, `hosting` and the ground floor.

The host's algorithms are imported before any file of this room, because they import us at their end. So each file can
be imported first, for example in a notebook.
"""

from ..hosting import host

host.module("algorithms")
