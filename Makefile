# Everything runs in .venv, made by the first target that needs it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test check format bench mirror_tax findings evidence_scale noise alternatives peers load soak fuzz wrk h2load proto perf_analyzer foreign_clients reference clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,torch,triton,bench,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/understudy demo

# Most tests wait more than they compute, so three run at a time; those that start Ray have the machine to themselves.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not end_to_end"
	$(BIN)/python -m pytest -m end_to_end

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(READY)
	$(BIN)/python -m models.reference --check

# The descriptors that the server reads, from the .proto files beside them.
proto: $(READY)
	$(BIN)/python -m serving.protocol.proto.compile

bench: $(READY) wrk
	$(BIN)/python -m benchmarks.overhead

# What mirroring costs clients, closed and open loop, in shadow and in canary, with good and with faulty candidates.
mirror_tax: $(READY) wrk
	$(BIN)/python -m benchmarks.mirror_tax

# Planted structural faults are found and named; noise is not.
findings: $(READY)
	$(BIN)/python -m benchmarks.findings

# A recorded trace of a baseline beside itself, resampled: nothing is found in it; `--record` records anew.
noise: $(READY)
	$(BIN)/python -m benchmarks.noise

# 10^8 pairs through a router's recorder: flat memory, bounded disk, exact sums; goes on where it was cut off.
evidence_scale: $(READY)
	$(BIN)/python -m benchmarks.evidence_scale

# What the HTTP and gRPC doors and the channel to the replicas were chosen over.
alternatives: $(READY) wrk h2load
	$(BIN)/python -m benchmarks.alternatives

# Triton, MLServer, LitServe, BentoML and Ray Serve beside Understudy; their packages go into .venv-peers.
peers: $(READY) wrk
	$(BIN)/python -m benchmarks.peers

# Locust against a service of its own: fails where p95 latency, error rate or capacity miss their objectives.
load: $(READY)
	$(BIN)/python -m benchmarks.load_test

# An hour at 70 % of capacity: fails where a process grows or a request fails; goes on where it was cut off.
soak: $(READY)
	$(BIN)/python -m benchmarks.soak

# NVIDIA's load generator, and clients whose packages do not fit beside ours; into .venv-peers, for the tests that use them.
perf_analyzer: $(READY)
	$(BIN)/python -m benchmarks.perf_analyzer

foreign_clients: $(READY)
	$(BIN)/python -m tests.contract.foreign

# 100,000 malformed bodies over HTTP, 20,000 messages over gRPC, damaged requests and sessions, and the decoders under atheris.
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m benchmarks.fuzz

wrk:
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --yes wrk; } || \
	{ echo "wrk: not found; it makes the load (Debian and Ubuntu: apt-get install wrk)" >&2; exit 2; }

h2load:
	@command -v h2load >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --yes nghttp2-client; } || \
	{ echo "h2load: not found; it makes the load over HTTP/2 (Debian and Ubuntu: apt-get install nghttp2-client)" >&2; exit 2; }

clean:
	rm -rf $(VENV) build *.egg-info
