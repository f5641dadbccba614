"""DomainFusion's speed and memory, as ratios to references measured in the same run: see benchmarks/README.md."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # stops torch's profiler from logging its start and end
