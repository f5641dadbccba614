"""What DomainFusion costs, each figure beside a reference measured in the same run: see benchmarks/README.md."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory, else logs its own start and end
