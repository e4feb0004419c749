# make demo: everything from nothing to a promoted model. make test: all checks and tests.
# Both make .venv first, from pyproject.toml, with the first Python of 3.11 to 3.13 that answers.

VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/ready
	$(RUN)/prefline run

# Two processes of one thread each; a file's tests stay together, and so share what is slow to make.
test: check
	$(RUN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

$(VENV)/ready: pyproject.toml
	@for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)"; $$python -m venv $(VENV) && break; fi; \
	done; test -x $(RUN)/python || { echo "Prefline needs Python 3.11, 3.12 or 3.13 on the PATH."; exit 1; }
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# Results, stores and the environment; not the data that DVC keeps
clean:
	rm -rf $(VENV) runs .prefect mlflow/mlflow.db mlflow/artifacts
