"""One file per DomainBed algorithm."""
