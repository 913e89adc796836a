# The same words as run.py, for those who type make.
PYTHON ?= python3
export SEED SECONDS
.PHONY: primer lab test check bench soak
primer lab test check bench soak:
	$(PYTHON) run.py $@ $(ARGS)
