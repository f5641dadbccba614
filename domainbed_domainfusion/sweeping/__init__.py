"""Launching sweeps: the host's own sweep script, from arguments or from a sweep file.

`command` is the verb `sweep`. `sweep_files` reads and checks sweep files. `quickstart` is the experiment on the
embedded data. `host_scripts` starts the host's scripts. `launchers/` has the launchers that we add. `status` tells how
far a sweep's jobs are, `slurm_records` what has become of them in Slurm, and `mirror` copies their rows elsewhere.
May import: `report`, `resuming`, `pocket`, `hosting` and the ground floor.
"""
