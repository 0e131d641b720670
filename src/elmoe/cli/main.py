"""The way into the command line: errors, signals and exit codes. The verbs are in `app.py`.

Exit code 0 on success, 2 for bad input (one line on standard error), 1 for a fault of ours, 130 after Ctrl-C and 143
after SIGTERM, which both leave nothing half done behind. Imports little, so that signals are heeded from the start.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

from elmoe.errors import ElmoeError

INTERRUPTED = 130
TERMINATED = 143


BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Must be set before NumPy is imported. Its products here are tiny: on a busy machine two threads took more than three
times as long as one. The C++ backend has threads of its own (ELMOE_NUM_THREADS)."""


class _TerminatedError(BaseException):
    """SIGTERM. No Exception, as KeyboardInterrupt is none: it unwinds everything."""


def main() -> None:
    """Entry point of the `elmoe` command."""
    signal.signal(signal.SIGTERM, _terminate)
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")
    sys.exit(_exit_code(sys.argv[1:] or ["--help"]))


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the tidying up
    raise _TerminatedError


def _exit_code(arguments: list[str]) -> int:
    try:
        from elmoe.cli.app import run_verb  # takes a second: what interrupts it is handled here, too

        code = run_verb(arguments)
        sys.stdout.flush()
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except ElmoeError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except _TerminatedError:
        _say("terminated")
        return TERMINATED
    except OSError as error:  # standard output is full, a folder vanished: not the input's fault, but no bug either
        _say(f"error: {error}")
        return 2
    except Exception:
        traceback.print_exc()
        _say("internal error: please report the lines above")
        return 1


def _say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
