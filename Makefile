# `make demo` runs the main job on real images in under 3 minutes, `make study` all of it, to a report, in under 5;
# `make test` checks everything, `make quick` what takes a minute. Each sets up its own .venv; all they need is make and Python 3.11 or newer (another one: make demo PYTHON=python3.12).

PYTHON ?= python3
BIN := .venv/bin

# what needs neither a database server, nor training, nor other processes
QUICK := spec parameters schema perturbations salt_and_pepper augmentation pixels image_sources splits checkpoint_writer \
         guard sharing compose winograd artifacts

.PHONY: demo study test quick lint clean

demo: .venv/installed
	$(BIN)/hpo run studies/quickstart.toml --workers 2

# from the search to the report, with 2 seeds: too few to claim anything, which the report says
study: .venv/installed
	$(BIN)/hpo run studies/training_robust_digits.toml --workers 2
	$(BIN)/hpo confirm training-robust-digits --top 1 --seeds 2 --workers 2
	$(BIN)/hpo report training-robust-digits

test: .venv/installed-dev lint
	$(BIN)/pytest

quick: .venv/installed-dev lint
	$(BIN)/pytest --numprocesses=2 -k "not adamw and not searched_recorded" $(wildcard $(QUICK:%=tests/test_%.py))

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hpo needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --group dev
	@touch $@

# passwords of your own for docker-compose.yml; an existing .env stays as it is
.env:
	@umask 077 && while IFS= read -r line; do case "$$line" in \
	*=change-me) printf '%s=%s\n' "$${line%%=*}" "$$($(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(24))')" ;; \
	*) printf '%s\n' "$$line" ;; esac; done < .env.example > $@.partial && mv $@.partial $@
	@echo "wrote .env; the dashboard's password is HPO_DASHBOARD_PASSWORD in it"

clean:
	rm -rf .venv hpo.db* hpo-logs hpo-artifacts
