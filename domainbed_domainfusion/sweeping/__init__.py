"""Launching sweeps: the host's own sweep script, from arguments or from a sweep file.

`command` is the verb `sweep`. `sweep_files` reads and checks sweep files. `quickstart` is the experiment on the
embedded data. `host_scripts` starts the host's scripts. `launchers/` has one file for each launcher that we add.
May import: `report`, `pocket`, `hosting` and the ground floor.
"""
