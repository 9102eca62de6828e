"""What can go wrong that a user can mend. Each class knows its exit code; only `hpo.cli.main` prints.

HpoError              1  something the user should know, in one line
├── NothingCompleteError a study has no complete trial yet
├── InputError        2  what was typed or given is wrong
│   ├── SpecError        the study file or a --set
│   ├── DataError        the images
│   ├── WeightsError     the weights
│   └── StudyError       no such study, or it was already submitted otherwise
├── StorageError      3  the database cannot be opened or reached
├── WorkerError       4  workers ended before the budget was used
└── MachineError      5  this machine's device failed; a process that is started anew may go on

What was asked to stop ends with 0, and at once with 130 when it was asked twice (hpo.stopping).
"""

import difflib
import re
import shlex
from collections.abc import Iterable


class HpoError(Exception):
    """Base of all; the message is one line that says what is wrong, what is allowed and what to do."""

    exit_code = 1


class InputError(HpoError):
    """What was typed or given is wrong; nothing was changed."""

    exit_code = 2


class SpecError(InputError):
    """The study file, or an override of it, is wrong."""


class DataError(InputError):
    """The images are missing, damaged or not in the layout they should be in."""


class WeightsError(InputError):
    """The weights are missing, or do not fit the network."""


class StudyError(InputError):
    """The study does not exist, or exists with another spec."""


class StorageError(HpoError):
    """The database cannot be opened or reached."""

    exit_code = 3


class WorkerError(HpoError):
    """Workers ended before the budget was used."""

    exit_code = 4


class MachineError(HpoError):
    """This machine's device failed; neither configuration nor study is at fault, and another process may go on."""

    exit_code = 5


class NothingCompleteError(HpoError):
    """A study has no complete trial yet."""

    def __init__(self, study: str) -> None:
        super().__init__(
            f"study '{study}' has no complete trial yet; `hpo status {shlex.quote(study)}` shows how far it is"
        )


def reason_in(traceback: str) -> str:
    """The first line of a traceback's exception; of any other text, its first line."""
    lines = [re.sub(r"^ +[|+] ?", "", line) for line in traceback.strip().splitlines()] or [""]  # of exception groups
    frames = [position for position, line in enumerate(lines) if line.startswith("  File ")]
    after = lines[frames[-1] + 1 :] if frames else lines
    return next((line for line in after if line.strip() and not line.startswith("    ")), lines[-1])


def short(value: object) -> str:
    """A value as Python writes it, but never more than a line of it."""
    try:
        text = " ".join(repr(value).splitlines())
    except ValueError:  # an integer of thousands of digits
        return "so large a number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` when an allowed word is `word` but for a slip of the finger or two, else nothing."""
    similar = difflib.get_close_matches(word, list(allowed), n=5, cutoff=0.6)
    meant = min(similar, key=lambda other: _slips(word, other), default=None)
    is_near = meant is not None and _slips(word, meant) <= max(1, len(word) // 4)
    return f" Did you mean '{meant}'?" if is_near else ""


def _slips(word: str, other: str) -> int:
    """Letters that are missing, too many, wrong or exchanged with the next (optimal string alignment). difflib's ratio
    does not tell: by that, gaussian-blur is nearer to gaussian-noise than hihg is to high.
    """
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(word, start=1):
        row = [i]
        for j, expected in enumerate(other, start=1):
            row.append(min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (letter != expected)))
            if i > 1 and j > 1 and (letter, word[i - 2]) == (other[j - 2], expected):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]
