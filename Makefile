# make help says what there is. Every target is a plain command that can be run by hand.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
INVENTORY ?= inventories/lab
# auto: download, or build with Go when upstream does not answer; go; download; or the URL or folder of a mirror
ARTIFACTS ?= auto
SCENARIO ?=
VENV := .venv/bin

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.PHONY: cluster
cluster: ## Everything from nothing: environment, artifacts, lab of three hosts, cluster. INVENTORY=... for your own hosts
	@$(PYTHON) tools/cluster up --inventory $(INVENTORY) --artifacts $(ARTIFACTS)

.PHONY: destroy
destroy: ## Removes the lab that make cluster made, and nothing else
	@$(PYTHON) tools/cluster destroy --inventory $(INVENTORY)

.PHONY: kubeconfig
kubeconfig: ## Prints the path of the admin kubeconfig
	@$(PYTHON) tools/cluster kubeconfig --inventory $(INVENTORY)

.venv/requirements-dev.txt: requirements.txt requirements-dev.txt
	@$(PYTHON) tools/cluster environment
	@$(VENV)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@cp requirements-dev.txt $@

.PHONY: dev
dev: .venv/requirements-dev.txt ## The virtual environment with what tests and lint need

.PHONY: test
test: dev ## Everything that CI runs
	@$(VENV)/python tests/run.py

.PHONY: unit
unit: dev ## Pure functions and modules
	@$(VENV)/pytest tests/unit

.PHONY: lint
lint: dev ## ansible-lint, yamllint, ruff, mypy
	@$(VENV)/ruff check . && $(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/yamllint --strict .
	@$(VENV)/ansible-lint --offline

.PHONY: repo
repo: dev ## Consistency of the tree, and lint
	@$(VENV)/pytest tests/repo

.PHONY: integration
integration: dev ## Plugins and playbooks through ansible-playbook on this machine, etcd and the API server as processes
	@$(VENV)/python tests/run.py --only integration

.PHONY: molecule
molecule: dev ## One scenario on nodes of its own: SCENARIO=default, ha, external-etcd, debian13 or vm
	@$(VENV)/python tests/run.py --only molecule:$(or $(SCENARIO),default)

.PHONY: faults
faults: dev ## What a cluster must survive: killed runs, lost hosts, changed flags, wrong hosts. FAULTS=all for the long ones
	@$(VENV)/python tests/run.py --only faults

.PHONY: bench
bench: dev ## Time and task counts for 1, 3 and 6 hosts, as a table and as one line of JSON
	@$(VENV)/python tests/bench/bench.py

.PHONY: bench-etcd
bench-etcd: dev ## Snapshots and v2 migrations of etcd against etcdctl's own: seconds, memory, and lines of JSON
	@$(VENV)/python tests/bench/bench_etcd.py
	@$(VENV)/python tests/bench/bench_etcd_migration.py

.PHONY: bench-tenancy
bench-tenancy: dev ## Quotas and LimitRanges of 1,000 namespaces beside kubernetes.core, and an audit of 5,000 pods: time, requests, memory
	@$(VENV)/python tests/bench/bench_tenancy.py
	@$(VENV)/python tests/bench/bench_audit.py

.PHONY: bench-services
bench-services: dev ## kube-proxy's rules with 10 and 1,000 Services, and how soon a new Service answers on each host
	@$(VENV)/python tests/bench/bench_services.py

.PHONY: bench-dns
bench-dns: dev ## Questions at cluster DNS with and without the nodes' cache, failed look-ups while it restarts and while there is no cluster DNS
	@$(VENV)/python tests/bench/bench_dns.py

.PHONY: bench-ingress
bench-ingress: dev ## Requests lost while an ingress changes: Traefik behind the edge, beside nginx and haproxy that reload
	@$(VENV)/python tests/bench/bench_ingress.py

.PHONY: docs
docs: dev ## Writes the generated reference anew
	@$(VENV)/python tools/generate-docs
