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

# Caches only: .venv is slow to rebuild, and out/ holds results.
clean:
	rm -rf .pytest_cache .ruff_cache .coverage
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: it is the big one, and the rest must take the build it chose.
.venv/.installed: requirements-dev.lock
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $$(grep '^torch==' $<)
	.venv/bin/python -m pip install -r $<
	touch $@

# torchvision comes built for a torch with CUDA; beside one without it breaks whoever finds it, and nobody here needs it.
.venv-peers/.installed: requirements-dev.lock tests/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	echo '*' > .venv-peers/.gitignore
	.venv-peers/bin/python -m pip install $$(grep '^torch==' $<)
	.venv-peers/bin/python -m pip install $$(grep '^torch==' $<) -r tests/peers/requirements.txt
	.venv-peers/bin/python -m pip uninstall -y torchvision
	touch $@
