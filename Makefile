# make demo   flatten the Fashion-MNIST example until its artifact takes 60 % of its time on an emulated Pixel 4
# make test   run every test; JOBS=1 one after the other
# Both set up all they need first: a virtual environment in .venv, the packages, the ARM64 emulator in the user's cache.

VENV := .venv
PLANISH := $(VENV)/bin/planish
RUN := runs/fashion
JOBS := 2
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test setup system clean

demo: setup
	@if [ -f $(RUN)/recipe.toml ]; then $(PLANISH) fit --resume $(RUN); else \
	  $(PLANISH) fit examples/fashion/model.py:trained --data examples/fashion/calibration.npz \
	    --test examples/fashion/test.npz --target pixel-4-cpu --latency 60% --max-drop 1pt --linearize 2 -o $(RUN); fi

test: setup
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

setup: $(VENV)/.installed
	@$(PLANISH) targets setup pixel-4-cpu

# torch comes first and by range: it decides what the exporters' own requirements resolve to.
$(VENV)/.installed: pyproject.toml | system
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "torch>=2.11,<2.14"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

system:
	@if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || ! command -v gcc >/dev/null \
	    || ! echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1; then \
	  echo "installing python3, python3-venv, gcc and libc6-dev"; \
	  $(AS_ROOT) apt-get update -q && $(AS_ROOT) apt-get install -y -q python3 python3-venv gcc libc6-dev; fi
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "planish needs Python 3.11 or newer; python3 is $$(python3 --version)"; exit 6; }

clean:
	rm -rf $(VENV) $(RUN)
