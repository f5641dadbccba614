"""The records of a sweep: the lines of its jobs' `results.jsonl`."""

import json
import os

import tqdm

from ...errors import InputError
from .query import Q


def load_records(path: str) -> Q:
    """Every line of every `results.jsonl` one folder below `path`, as dicts; folders without one are skipped.

    Raises InputError if `path` does not exist or a line is not whole.
    """
    if not os.path.isdir(path):
        raise InputError(f"There is no folder {path}: give the --output_dir of a sweep.")
    records: list[dict] = []
    for name in tqdm.tqdm(os.listdir(path), ncols=80, leave=False):
        results = os.path.join(path, name, "results.jsonl")
        if not os.path.isfile(results):
            continue
        with open(results) as file:
            for number, line in enumerate(file, start=1):
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"Line {number} of {results} is not whole (the run was interrupted): "
                        "delete that line, or the job's folder and run it again."
                    ) from error
    return Q(records)


def get_grouped_records(records: Q) -> Q:
    """One {trial_seed, dataset, algorithm, test_env, records} per combination.

    A record with two test environments belongs to two groups.
    """
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        args = record["args"]
        for test_env in args["test_envs"]:
            key = (args["trial_seed"], args["dataset"], args["algorithm"], test_env)
            groups.setdefault(key, []).append(record)
    names = ("trial_seed", "dataset", "algorithm", "test_env")
    return Q([{**dict(zip(names, key)), "records": Q(members)} for key, members in groups.items()])
