"""A made-up job and made-up rates, and the jobs of a sweep's arguments."""

from domainbed_domainfusion.estimate import calibration, counting

REQUIRED = ["--output_dir", "nowhere", "--data_dir", "nowhere", "--command_launcher", "local"]


def sweep_jobs(*arguments: str) -> tuple[list[dict], int]:
    """The train arguments of the jobs without output_dir, and the number of jobs that are begun or done."""
    request = counting.request([*arguments, *REQUIRED])
    return [
        {name: value for name, value in args.items() if name != "output_dir"} for args in request.jobs
    ], request.begun_or_done


def job(hparams=None, **counts) -> counting.Job:
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [0]}
    return counting.Job(args, hparams or {}, **{"steps": 10, "checkpoints": 2, "evaluated": 100, **counts})


def rates(**values) -> calibration.Rates:
    zero = dict.fromkeys(
        (
            "imports",
            "startup",
            "ended",
            "warm_up",
            "raw_step",
            "step",
            "evaluated",
            "saving",
            "model_bytes",
            "ram_bytes",
            "loader_processes",
            "prefetched_bytes",
        ),
        0,
    )
    return calibration.Rates(**{**zero, "threads": 1, "device": "cpu", **values})
