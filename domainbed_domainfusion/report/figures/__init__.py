"""`domainfusion figures --run JOB`: the supplement's Figures 2, 3 and 4 from one run.

Each is a PNG. `figures.json` has every number and seed, `figures.html` shows all figures on one page, and `report`
takes them from the job's folder. May import what `report` may import.
"""

from .output import write_figures

__all__ = ["write_figures"]
