PYTHON ?= python3
BIN := .venv/bin

# threads that wait give way: on a machine with other work, spinning ones slow training a hundredfold
export GOMP_SPINCOUNT ?= 2000

.PHONY: train test test-isa test-slow kernels-static clean

# teacher, student, guided student, on the digits that come with fastdgl
train: .venv/installed
	$(BIN)/python fastdgl/train.py --config configs/quickstart.yaml

# one thread each: networks this small gain nothing from more, and the cores go to the tests side by side
test test-isa test-slow: export OMP_NUM_THREADS ?= 1

test: .venv/installed
	$(BIN)/python -m pytest -n logical --maxprocesses 8

# some tests whose numbers depend on the order of sums, with the instructions of other CPUs
test-isa: .venv/installed
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest $(ORDER_OF_SUMS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(ORDER_OF_SUMS)

ORDER_OF_SUMS := tests/test_engines.py tests/test_steps_of_biggan.py tests/test_biggan.py tests/test_stylegan2.py \
	-k "plain_pytorch_train_as_one or minimise or one_step_on_all or orthogonal_regularization or synchronised_batch_norm or nvidias or as_biggan_pytorch"

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
