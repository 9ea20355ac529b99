PYTHON ?= python3
BIN := .venv/bin

# threads that wait give way: on a machine with other work, spinning ones slow training a hundredfold
export GOMP_SPINCOUNT ?= 2000

.PHONY: train test test-slow kernels-static clean

# teacher, student, guided student, on the digits that come with fastdgl
train: .venv/installed
	$(BIN)/python fastdgl/train.py --config configs/quickstart.yaml

# one thread each: networks this small gain nothing from more, and the cores go to the tests side by side
test test-slow: export OMP_NUM_THREADS ?= 1

test: .venv/installed
	$(BIN)/python -m pytest -n logical --maxprocesses 8

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# compile the kernels for A100 and H100, and some of them for other GPUs, without any, and judge the machine code
kernels-static: .venv/installed
	$(BIN)/python -m bench.static

# torch first and by itself: what depends on it must find it installed, or pip fetches another build
.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,test]"
	touch $@

clean:
	rm -rf .venv
