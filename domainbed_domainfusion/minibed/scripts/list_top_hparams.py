"""The hparams of a sweep, best first: `python -m domainbed_domainfusion.minibed.scripts.list_top_hparams …`."""

import argparse
from collections.abc import Sequence

from .. import model_selection
from ..lib import reporting
from ..lib.query import Q


def print_top_hparams(groups: Q, selection_method: type[model_selection.SelectionMethod]) -> None:
    """For each trial's group: every run's accuracies, hparams and folders, the best validation accuracy first."""
    print(f"Model selection: {selection_method.name}")
    for group in groups:
        print(f"trial_seed: {group['trial_seed']}")
        for run_acc, records in selection_method.hparams_accs(group["records"]):
            print(f"\t{run_acc}\n\t\thparams:")
            for name, value in sorted(records[0]["hparams"].items()):
                print(f"\t\t\t{name}: {value}")
            print("\t\toutput_dirs:")
            for output_dir in records.select("args.output_dir").unique():
                print(f"\t\t\t{output_dir}")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the sweep in --input_dir and print the list for one dataset, algorithm and test environment."""
    parser = argparse.ArgumentParser(description="Domain generalization testbed")
    parser.add_argument("--input_dir", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--algorithm", required=True)
    parser.add_argument("--test_env", type=int, required=True)
    args = parser.parse_args(argv)
    records = reporting.load_records(args.input_dir)
    print("Total records:", len(records))
    groups = reporting.get_grouped_records(records).filter_equals(
        "dataset, algorithm, test_env", (args.dataset, args.algorithm, args.test_env)
    )
    for method in model_selection.METHODS:
        print_top_hparams(groups, method)


if __name__ == "__main__":
    main()
