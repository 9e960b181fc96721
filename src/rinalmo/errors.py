"""Every error that this package raises on purpose.

    RinalmoError                    base; str() is one line: the problem, its place, and what to do
    ├── InputError                  the user's sequences, files or options (also a ValueError)
    │   └── SequenceError           one record, with its file, name and position
    ├── CheckpointError             a model file that is damaged, foreign, unsafe or does not fit (also a ValueError)
    ├── TrainingError               a run that cannot continue: full disk, lost process, NaN loss (also a RuntimeError)
    ├── DownloadError               a published model could not be downloaded (also an OSError)
    │   └── SourceUnavailable       one address failed; another may work (in rinalmo.weights.download)
    ├── ToolError                   an external program failed (also a RuntimeError)
    └── MissingExtraError           an optional package is not installed (also an ImportError)

The command line prints the one line of a `RinalmoError` and exits with its `exit_code`: 2 for faults of the input, 1
for faults while running. Any other exception is a bug.
"""

from importlib import import_module
from typing import Any, Self


class RinalmoError(Exception):
    """Base of all deliberate errors.

    Attributes:
        exit_code: Exit status of the command line.
    """

    exit_code = 2

    @classmethod
    def from_os_error(cls, error: Exception, path: object, problem: str) -> Self:
        """A failure of the operating system, or of a library that reads or writes a file, in one line."""
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        return cls(f"{path}: {problem} ({reason})")


class InputError(RinalmoError, ValueError):
    """The user's input is invalid."""


class SequenceError(InputError):
    """One record of a sequence file cannot be used.

    Attributes:
        problem: The message without the place.
        file: The file, if any.
        line: Its line, from 1.
        record: The name of the record, or its number, from 1.
        position: The position in the sequence, from 1.

    Examples:
        >>> import rinalmo
        >>> try:
        ...     rinalmo.embed(["GGGA-CCC"], model="nano")
        ... except rinalmo.SequenceError as error:
        ...     (error.record, error.position)
        ('1', 5)
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        record: str | None = None,
        position: int | None = None,
    ) -> None:
        place = file or ""
        for name, value in (("line", line), ("record", record), ("position", position)):
            if value is not None:
                place += f"{', ' if place else ''}{name} {value}"
        super().__init__(f"{place}: {message}" if place else message)
        self.problem, self.file, self.line, self.record, self.position = message, file, line, record, position

    def with_location(self, file: str | None, line: int | None, record: str | None) -> "SequenceError":
        """The same problem in a record of a file."""
        return SequenceError(self.problem, file=file, line=line, record=record, position=self.position)


class CheckpointError(RinalmoError, ValueError):
    """A model file cannot be read as a RiNALMo."""


class TrainingError(RinalmoError, RuntimeError):
    """A run cannot continue, for a reason other than its input. Its saved checkpoints are kept."""

    exit_code = 1


class DownloadError(RinalmoError, OSError):
    """A published file could not be downloaded."""


class ToolError(RinalmoError, RuntimeError):
    """An external program failed."""

    exit_code = 1


class MissingExtraError(RinalmoError, ImportError):
    """An optional dependency is missing.

    Attributes:
        package: The package.
        extra: The extra of rinalmo that installs it.
        purpose: The function that needs it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install 'rinalmo[{extra}]'")
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self) -> tuple[object, ...]:
        # Across processes; by default __init__ would be called with the message alone.
        return type(self), (self.package, self.extra, self.purpose)


def import_extra(module: str, extra: str, purpose: str, package: str = "") -> Any:
    """Import an optional module; raises MissingExtraError that names its package if it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(package or module, extra, purpose) from None
