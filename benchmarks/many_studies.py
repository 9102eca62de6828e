"""A thousand finished studies in one database: what `hpo status` takes, and what an idle worker asks of it.

python benchmarks/many_studies.py --storage postgresql
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import sqlalchemy as sa
from free_objective import FreeObjective
from large_study import fill
from postgresql_servers import fresh_database, postgresql

from hpo.search.sql.storage import create_database
from hpo.search.sql.url import parse_url
from hpo.search.worker import work

IDLE_SECS = 20


def statements_while_idle(engine: sa.Engine) -> dict[str, float]:
    """A worker that waits for new studies: statements a second, and rows read a second."""
    counted: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: counted.append(arguments[2]))
    worker = threading.Thread(
        target=work, args=(engine, [], FreeObjective, "idle", lambda text: None, True), daemon=True
    )
    worker.start()
    time.sleep(5)
    first = len(counted)
    time.sleep(IDLE_SECS)
    return {"statements a second": (len(counted) - first) / IDLE_SECS, "first look": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgresql() as server:
        url = f"sqlite:///{folder}/hpo.db" if arguments.storage == "sqlite" else fresh_database(server.get_uri())
        engine = create_database(parse_url(url))
        for number in range(arguments.studies):
            fill(engine, f"study-{number:04}", arguments.trials)
        times = []
        for _ in range(3):
            started = time.monotonic()
            command = [sys.executable, "-m", "hpo", "status"]
            environment = os.environ | {"HPO_STORAGE": url, "PYTHONPATH": str(Path(__file__).parent.parent)}
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            times.append(round(time.monotonic() - started, 2))
        print(json.dumps({"storage": arguments.storage, "hpo status, s": times, **statements_while_idle(engine)}))


if __name__ == "__main__":
    main()
