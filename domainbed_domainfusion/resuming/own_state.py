"""What an algorithm offers whose state is more than its attributes, as DomainFusion with its generate-dataset."""

from typing import Any, Protocol, runtime_checkable

#: In the job's folder, for all that a job needs to be continued. It is removed when the job is done.
RESUME_FOLDER = "resume"
#: With these words a job says that it goes on; `sweep status` counts them.
CONTINUED = "Continued after step"


@runtime_checkable
class ReadsInUpdate(Protocol):
    """An algorithm whose `update` reads loaders of the host, which advances their workers' random numbers."""

    def read_as_in_update(self) -> None:
        """Read what the next update would read, and compute nothing. A replayed update calls it."""
        ...


@runtime_checkable
class OwnState(Protocol):
    """Such an algorithm's `__getstate__` leaves out the attributes that these methods save and restore."""

    def resume_state(self) -> dict[str, Any]:
        """Plain data (see `values`) for a checkpoint. Raises InputError if the state cannot be saved."""
        ...

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take up `resume_state`'s data, after all other attributes and before the random generators are restored.

        Raises InputError if files that belong to it are missing or damaged.
        """
        ...

    def expensive_results(self) -> int:
        """A count that grows when something has been made that is worth a checkpoint at once, as a round."""
        ...

    def training_ended(self) -> None:
        """The job is done: delete what was kept outside the folder RESUME_FOLDER only for being continued."""
        ...
