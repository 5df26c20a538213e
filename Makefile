# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/.demo
	$(BIN)/python preprocessing/lips.py data=talker_small
	$(BIN)/python experiments/run.py exp=vae train=demo

test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.venv/.demo: EXTRAS = corpora,metrics,train,video
.venv/.test: EXTRAS = control,corpora,demo,dnsmos,docs,metrics,test,train,video

.venv/.demo .venv/.test: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11: name a newer one, as in  make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv data runs

.PHONY: demo test clean
