"""SIGTERM, SIGINT and SIGHUP (a closed terminal) as a request to stop, obeyed at once and without losing anything."""

import signal


class Stopped(BaseException):
    """Raised in the main thread when a signal asks to stop; not an error, so no `except Exception` takes it."""


def stop_on_signals() -> None:
    """From now on these signals raise Stopped."""

    def stop(*_: object) -> None:
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, stop)
