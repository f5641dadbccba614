"""What DomainFusion costs, each figure beside a reference measured in the same run: see benchmarks/README.md."""
