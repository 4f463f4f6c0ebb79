# An image for launch/jobset.yaml, or for a GPU box:
#
#   docker build -t rlzero .                        # TPU
#   docker build -t rlzero --build-arg EXTRA=cuda . # GPU
FROM python:3.12-slim

ARG EXTRA=tpu
# g++ compiles the C++ that models write, bubblewrap keeps it in.
RUN apt-get update && \
    apt-get install -y --no-install-recommends bubblewrap g++ git && \
    rm -rf /var/lib/apt/lists/*

WORKDIR /rlzero
# The packages first: they change less often than the code.
COPY setup.py ./
COPY rlzero/__init__.py rlzero/
COPY launch/constraints launch/constraints
RUN python -m venv .venv && \
    .venv/bin/pip install --no-cache-dir -c launch/constraints/python3.12.txt \
      -e ".[${EXTRA}]"
COPY . .
ENV PATH="/rlzero/.venv/bin:${PATH}"
CMD ["python", "-m", "rlzero.grpo", "--help"]
