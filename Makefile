# Two commands matter: `make demo` serves three small models and proves it, `make test` runs every check.
PYTHON ?= python3
TORCH ?= auto
export PYTHON TORCH TORCH_INDEX

BIN = .venv/bin

.PHONY: help demo stop test test-clients lint bench clean

help:
	@echo "make demo    install, serve three small models in the background, ask each of them"
	@echo "make stop    stop what make demo started"
	@echo "make test    install, lint, check types, run every test"
	@echo "make test-clients  the packages of PyPI and npm that people use against a real server"
	@echo "make lint    only ruff and mypy"
	@echo "make bench   measure a server of our own on this machine (see bench/README.md)"
	@echo "make clean   remove .venv and caches (models in ~/.lodger stay)"

demo:
	@scripts/install demo
	@$(BIN)/lodger up --demo -d
	@$(BIN)/lodger verify
	@echo "It goes on in the background. Stop it with: make stop"

stop:
	@$(BIN)/lodger down

lint:
	@scripts/install test
	@$(BIN)/ruff check . scripts/error_table scripts/readme_plans scripts/gpu_tables
	@$(BIN)/ruff format --check . scripts/error_table scripts/readme_plans scripts/gpu_tables
	@$(BIN)/mypy --strict

test: lint
	@scripts/test

test-clients:
	@scripts/install test
	@scripts/clients
	@$(BIN)/pytest -m clients tests/clients

bench:
	@scripts/install test
	@$(BIN)/python -m bench.compare lodger $(PEER)

clean:
	rm -rf .venv .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
