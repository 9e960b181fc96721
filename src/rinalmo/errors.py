"""Every error that this package raises on purpose.

    RinalmoError                    base; str() is one line that says what is wrong, where, and what to do
    ├── InputError                  the user's sequences, files or options (also a ValueError)
    │   └── SequenceError           one record: knows file, record and position
    ├── CheckpointError             a model file that is damaged, foreign, unsafe or does not fit (also a ValueError)
    ├── TrainingError               a run that cannot go on: full disk, lost process, loss of NaN (also a RuntimeError)
    ├── DownloadError               a published model could not be fetched (also an OSError)
    │   └── SourceUnavailable       one address did not deliver; another may (in rinalmo.weights.download)
    ├── ToolError                   an external program failed (also a RuntimeError)
    └── MissingExtraError           an optional package is not installed (also an ImportError)

The command line turns a `RinalmoError` into its one line and its `exit_code`: 2 for what the user gave, 1 for what
happened while running. Anything else is a bug.
"""


class RinalmoError(Exception):
    """Base of all deliberate errors."""

    exit_code = 2


class InputError(RinalmoError, ValueError):
    """The user's input cannot be used as it is."""


class SequenceError(InputError):
    """One record of a sequence file cannot be used.

    `file`, `line` (1-based), `record` (its name or 1-based number) and `position` (1-based, in the sequence) are kept
    for programs that want them, and so is the `problem` without them.
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
        where = [
            part
            for part in (
                file,
                f"line {line}" if line is not None else None,
                f"record {record}" if record is not None else None,
                f"position {position}" if position is not None else None,
            )
            if part is not None
        ]
        super().__init__(f"{', '.join(where)}: {message}" if where else message)
        self.problem = message
        self.file = file
        self.line = line
        self.record = record
        self.position = position

    def found_in(self, file: str | None, line: int | None, record: str | None) -> "SequenceError":
        """The same problem, with the place it was read from."""
        return SequenceError(self.problem, file=file, line=line, record=record, position=self.position)


class CheckpointError(RinalmoError, ValueError):
    """A model file cannot be read as a RiNALMo."""


class TrainingError(RinalmoError, RuntimeError):
    """A run cannot go on, for a reason outside what the user gave. What it saved is kept."""

    exit_code = 1


class DownloadError(RinalmoError, OSError):
    """A published file could not be fetched."""


class ToolError(RinalmoError, RuntimeError):
    """An external program failed, or did not do what it should."""

    exit_code = 1


class MissingExtraError(RinalmoError, ImportError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install 'rinalmo[{extra}]'")
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[object, ...]:
        # From another process; by default the message alone would be given to __init__.
        return type(self), (self.package, self.extra, self.purpose)
