"""SIGTERM and SIGINT as a request to stop, to be obeyed at once and without losing anything."""

import signal


class Stopped(BaseException):
    """Raised in the main thread when a signal asks to stop; not an error, so no `except Exception` takes it."""


def stop_on_signals() -> None:
    """From now on SIGTERM and SIGINT raise Stopped."""

    def stop(*_: object) -> None:
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
