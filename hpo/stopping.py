"""Requests to stop: SIGTERM, SIGINT, SIGHUP (a closed terminal), the end of the process that started this one, or
another thread's word. They are obeyed at once, except within `deferred()`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

EXIT_SECS = 8.0
"""A process that was asked to stop and is still there is ended: others give back its trial."""
INTERRUPTED_EXIT_CODE = 130


class Stopped(BaseException):
    """Raised in the main thread when something asks to stop; not an error, so no `except Exception` takes it."""


_deferring = False
_pending: BaseException | None = None
_requested = False


def stop_on_signals(exit_for_certain: bool = False, exit_code: int = 0) -> None:
    """From now on these signals raise Stopped, once; a second SIGINT ends the process there and then. Those that
    whoever started the process wants ignored stay so.

    exit_for_certain: the process ends EXIT_SECS after the first, whatever it is doing, with this exit code.
    """

    def stop(number: int, _: object) -> None:
        global _requested  # noqa: PLW0603 (signals belong to the process)
        if _requested:
            if number == signal.SIGINT:
                os._exit(INTERRUPTED_EXIT_CODE)
            return
        _requested = True
        if exit_for_certain:
            _exit_later(exit_code)
        _raise(Stopped())

    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if (number := getattr(signal, name, None)) and signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, stop)
    if hasattr(signal, "SIGUSR1"):  # which schedulers send ahead of SIGTERM, and would end the process
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _exit_later(exit_code: int = 0) -> None:
    timer = threading.Timer(EXIT_SECS, os._exit, [exit_code])
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[BaseException], None]]:
    """Gives a function with which another thread raises an error in this one while the block runs.

    Only the main thread can be interrupted; elsewhere the function does nothing.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield lambda error: None
        return
    errors: list[BaseException] = []

    def take(*_: object) -> None:
        if errors:
            _raise(errors.pop())

    def interrupt(error: BaseException) -> None:
        errors.append(error)
        signal.pthread_kill(main.ident or 0, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, take)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _raise(error: BaseException) -> None:
    global _pending  # noqa: PLW0603
    if not _deferring:
        raise error
    if not isinstance(_pending, Stopped):
        _pending = error


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A request to stop that comes within this block is obeyed at its end; so is one that was lost before, since some
    code catches whatever is raised while a module is imported.
    """
    global _deferring, _pending  # noqa: PLW0603
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
        error, _pending = _pending, None
        if error is not None or _requested:
            raise error or Stopped()


def obey() -> None:
    """Obeys a request to stop that was lost: modules that Cython compiled catch whatever is raised while they are
    imported, NumPy's among them.
    """
    if is_requested() and not _deferring:
        raise Stopped


def is_requested() -> bool:
    """Whether this process was asked to stop."""
    return _requested


def stop_with_parent() -> None:
    """Stops this process when the one that started it ends, however it ends: then its end of stdin's pipe closes."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be in the way of the interpreter's end
            pass
        _exit_later()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watching the supervisor", daemon=True).start()
