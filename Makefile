PYTHON ?= python3
BIN := .venv/bin

# without a GPU two ranks of one thread each are faster than one rank of two threads
RANKS ?= $(if $(shell nvidia-smi -L 2>/dev/null),1,2)
export OMP_NUM_THREADS ?= 1

.PHONY: train test test-slow clean

# teacher, student, guided student, on the digits that come with fastdgl
train: .venv/installed
	$(BIN)/deepspeed --num_gpus $(RANKS) fastdgl/train.py --config configs/quickstart.yaml

test: .venv/installed
	$(BIN)/python -m pytest

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# torch first and by itself: what depends on it must find it installed, or pip fetches another build
.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,test]"
	touch $@

clean:
	rm -rf .venv
