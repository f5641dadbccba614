"""All that touches DomainBed: which host runs us, what it does not tell an algorithm, and what we add to it.

`host` finds the host and names its modules; `context` collects class names, splits and lengths as the host builds them;
`checks` and `readable_images` find bad input before a run begins; `hparams` is the one table of hparams, with the rows
of `classifier_hparams`, `rival_hparams` and `test_time_hparams`; `backbones` builds featurizers by name, and
`backbone_stages` finds their stages; `weight_average` averages the weights of any algorithm, with `loss_valley` for
SWAD; `attach` adds one import to a checkout. May import: the ground floor. Nothing here knows the diffusion model.
"""
