# Everything runs in .venv, which `make setup` keeps up to date.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: setup demo test lint type bench docs clean

setup: ; @$(PYTHON) requirements/install.py $(if $(GPU),--gpu) $(if $(ROS),--ros $(ROS))

demo: setup ; $(BIN)/recon4d demo --out demo_out --overwrite $(if $(SEQUENCE),--sequence $(SEQUENCE)) $(if $(RATE),--rate $(RATE))

# The tests start many processes: bytecode is kept even where the environment says not to.
test: setup ; PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup ; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

type: setup ; $(BIN)/mypy

bench: setup ; $(BIN)/python -m benchmarks --out bench_out $(if $(ONLY),--only $(ONLY))

docs: setup ; $(BIN)/python -m recon4d_ros.config_docs

clean: ; rm -rf build install log demo_out bench_out .pytest_cache .mypy_cache .ruff_cache .hypothesis
