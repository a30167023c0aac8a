PYTHON ?= python3

.PHONY: demo test test-comfyui screenshots lint format clean

demo: .venv/.installed
	.venv/bin/python -m training demo

test: lint
	.venv/bin/python -m pytest --cov=saeuron --cov-report=term --cov-fail-under=90

# Wants a ComfyUI: see tests/comfyui/conftest.py. `make test` runs these too, where there is one.
test-comfyui: .venv/.installed
	.venv/bin/python -m pytest tests/comfyui

screenshots: .venv/.installed
	KEEP_SCREENSHOTS=1 .venv/bin/python -m pytest tests/comfyui/test_browser.py

# Other people's SAE libraries, against which our readers are held, and a harness that runs our removals and judges; in an
# environment of their own, for their pins.
.PHONY: test-peers
test-peers: .venv-peers/.installed
	.venv-peers/bin/python -c "import dictionary_learning, sae_lens, sparsify; from importlib.metadata import version; version('overcomplete'), version('eval-unlearn')"
	.venv-peers/bin/python -m pytest tests/peers

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Known vulnerabilities of the locked packages, and a bill of materials of them in CycloneDX; both ask PyPI.
.PHONY: audit lock
audit: .venv-audit/.installed
	mkdir -p out
	.venv-audit/bin/cyclonedx-py requirements requirements-dev.lock --output-file out/sbom.json
	.venv-audit/bin/pip-audit --requirement requirements-dev.lock --no-deps --disable-pip

lock: .venv-audit/.installed
	.venv-audit/bin/uv pip compile requirements-dev.lock --no-deps --generate-hashes --universal --python-version 3.11 \
		--no-header --no-annotate --quiet --output-file out/lock
	(grep '^#' requirements-dev.lock; cat out/lock) > out/lock.new && mv out/lock.new requirements-dev.lock

.venv-audit/.installed: Makefile
	$(PYTHON) -m venv .venv-audit
	echo '*' > .venv-audit/.gitignore
	.venv-audit/bin/python -m pip install pip-audit==2.10.1 cyclonedx-bom==7.5.0 uv
	touch $@

# A file is spoilt a hundred thousand times, and commands are killed a hundred times each: an hour, or less.
.PHONY: fuzz kills
fuzz: .venv/.installed
	.venv/bin/python -m tests.fuzz --files 100000

kills: .venv/.installed
	.venv/bin/python -m tests.kills record train learn --times 100

# What shows only after long work in ComfyUI and in the bench: half an hour.
.PHONY: endurance mutants
endurance: .venv/.installed
	.venv/bin/python -m tests.endurance

# Mutants of saeuron/, a sample of them: what the tests do not notice is printed.
mutants: .venv-mutants/.installed
	.venv-mutants/bin/python -m tests.mutants

.venv-mutants/.installed: requirements-dev.lock Makefile
	$(PYTHON) -m venv .venv-mutants
	echo '*' > .venv-mutants/.gitignore
	.venv-mutants/bin/python -m pip install $$(grep -o '^torch==[^ ]*' $<)
	.venv-mutants/bin/python -m pip install --no-deps --require-hashes -r $<
	.venv-mutants/bin/python -m pip install mutmut==3.8.1
	touch $@

# Caches only: .venv is slow to rebuild, and out/ holds results.
clean:
	rm -rf .pytest_cache .ruff_cache .coverage mutants
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: it is the big one, and the rest must take the build it chose.
.venv/.installed: requirements-dev.lock
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $$(grep -o '^torch==[^ ]*' $<)
	.venv/bin/python -m pip install --no-deps --require-hashes -r $<
	touch $@

# torchvision comes built for a torch with CUDA; beside one without it breaks whoever finds it, and nobody here needs it.
.venv-peers/.installed: requirements-dev.lock tests/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	echo '*' > .venv-peers/.gitignore
	.venv-peers/bin/python -m pip install $$(grep -o '^torch==[^ ]*' $<)
	.venv-peers/bin/python -m pip install $$(grep -o '^torch==[^ ]*' $<) -r tests/peers/requirements.txt
	.venv-peers/bin/python -m pip uninstall -y torchvision
	touch $@
