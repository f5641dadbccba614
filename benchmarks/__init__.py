"""What DomainFusion costs, each figure beside a reference measured in the same run: see benchmarks/README.md."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler logs its start and end
