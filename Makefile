SHELL := bash
activate := . .venv/bin/activate

.PHONY: setup demo test image lock

# Everything into .venv, a working nextflow included.
setup:
	@setup/install.sh

# The main job on generated images with the model in assets/.
demo: setup
	@$(activate) && nextflow run main.nf -profile demo --outdir demo-results
	@echo "The report is at $(CURDIR)/demo-results/report.html"

# Lint, both Nextflow parsers, and every test.
test: setup
	@$(activate) && setup/test.sh

# Both container images with podman or docker; `make image ARGS="light --pull"` has arguments for containers/build.sh.
image:
	@containers/build.sh $(ARGS)

# Pins anew what requirements/*.in ask for; `make lock UPGRADE=--upgrade` takes the newest.
lock: setup
	@$(activate) && cd requirements && for name in uv light runtime dev sbom; do \
	    uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header \
	        --no-emit-index-url $(UPGRADE) $$name.in --output-file $$name.lock || exit; \
	done
