# An image of rlzero; launch/jobset.yaml and launch/slurm.sh --image run it:
#
#   docker build -t rlzero .                            # TPU VM
#   docker build -t rlzero --build-arg DEVICE=cuda .    # NVIDIA GPUs
#   docker build -t rlzero --build-arg DEVICE=cpu .
#   docker run --rm rlzero python -m rlzero.grpo --help
#
# tests/test_dockerfile.py checks what can be checked without docker.
FROM python:3.12-slim-bookworm

ARG DEVICE=tpu
# g++ compiles the C++ that models write, bubblewrap keeps it in.
RUN apt-get update && \
    apt-get install -y --no-install-recommends bubblewrap g++ && \
    rm -rf /var/lib/apt/lists/*

WORKDIR /rlzero
# The packages first: they change less often than the code.
COPY setup.py ./
COPY rlzero/__init__.py rlzero/
COPY launch/constraints launch/constraints
RUN case "${DEVICE}" in \
      cpu) extra= ;; \
      cuda | tpu) extra="[${DEVICE}]" ;; \
      *) echo "DEVICE is '${DEVICE}'; choose cpu, cuda or tpu." >&2; exit 2 ;; \
    esac && \
    python -m venv .venv && \
    .venv/bin/pip install --no-cache-dir -c launch/constraints/python3.12.txt \
      -e ".${extra}"
COPY . .
ENV PATH="/rlzero/.venv/bin:${PATH}"

# Who runs it owns nothing but the folder of runs.
RUN useradd --create-home --uid 1000 rlzero && \
    mkdir runs && \
    chown rlzero runs
USER rlzero
CMD ["python", "-m", "rlzero.grpo", "--help"]
