# Two commands do all the set-up: `make demo` and `make test`. Each makes .venv when it has to.
PYTHON ?= python3
VENV := .venv/bin/python
PIP := $(PYTHON) -m pip --python $(VENV) --quiet --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: .venv/base.txt
	$(VENV) examples/demo.py

test: .venv/dev.txt
	PYTHON=$(VENV) scripts/check

# hatchling is installed first so that pip needs no network to build the editable package.
.venv/base.txt: pyproject.toml constraints.txt | $(VENV)
	@echo "Installing NumPy, ml_dtypes, LLVM (llvmlite), onnx and rich into .venv: at most 90 MB to download."
	$(INSTALL) hatchling
	$(INSTALL) --no-build-isolation --editable .
	@cp constraints.txt $@

.venv/dev.txt: .venv/base.txt
	@echo "Installing pytest, hypothesis, mypy, ruff, Pillow, ONNX Runtime and Triton into .venv: at most 350 MB to download."
	$(INSTALL) --no-build-isolation --editable .[dev]
	@cp constraints.txt $@

# The pip that runs make also serves .venv, which therefore needs none of its own (Debian splits it off).
$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "whet needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv --without-pip .venv

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
